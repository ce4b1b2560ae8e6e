"""The standard caption C_t (paper section 3.4): short, long and structured, checked against the measurements of the clip.

A model gets the measurements in its prompt, and its caption is checked against them. Without a model the caption is composed
from the measurements alone and claims nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from curation.vlm import Prompt, question_files

MEASURED = "measured"  # the source of a caption that is composed from measurements

# The words for each measured camera motion in a sentence, and the motion that contradicts it.
MOTIONS = {
    "still": "stands still",
    "forward": "moves forward",
    "back": "moves back",
    "turn_left": "turns left",
    "turn_right": "turns right",
    "look_up": "looks up",
    "look_down": "looks down",
    "strafe_left": "moves sideways to the left",
    "strafe_right": "moves sideways to the right",
}
# The words for each kind of event that the detector names, and for one that it does not.
HAPPENINGS = {
    "event": "something happens",
    "door": "a door or lift moves",
    "shot": "a shot is fired",
    "wield": "the player draws or lowers a weapon or tool",
    "place": "the player places a block",
    "dig": "the player digs",
    "torch": "a torch is lit",
    "explosion": "something explodes",
    "weather": "the weather or the light changes",
    "appear": "someone appears",
    "menu": "a menu opens or closes",
}
_OPPOSITE = {"forward": "back", "turn_left": "turn_right", "look_up": "look_down", "strafe_left": "strafe_right"}
OPPOSITE = _OPPOSITE | {b: a for a, b in _OPPOSITE.items()}

# Mean luma (0-255) below which a clip has this word. Above the last limit it is "bright".
_LIGHT_LEVELS = ((40, "dark"), (80, "dim"), (170, "evenly lit"))
# Camera motion (px/frame at 320 px wide) below which it has this word. Above the last limit it "moves fast".
_PACE_LEVELS = ((0.3, "hardly moves"), (3.0, "moves slowly"), (9.0, "moves"))
_MIN_MOTION_S = 0.3  # shorter camera motions are not mentioned
_MAX_MOTIONS = 6

# Mean luma beyond which a caption of the other extreme is wrong. The two ranges overlap between these limits.
_TOO_BRIGHT_FOR_DARK, _TOO_DARK_FOR_BRIGHT = 110.0, 60.0
# A motion of half a second or more is present, one under a fifth of a second is absent. "Still" is wrong if the camera moves
# for more than half of the clip.
_PRESENT_S, _ABSENT_S, _MAX_MOVING_SHARE = 0.5, 0.2, 0.5


class MeasuredEvent(NamedTuple):
    """A detected event: start, strongest moment, end (s from the clip's start), the detector's confidence (0-1) kind."""

    start_s: float
    peak_s: float
    end_s: float
    energy: float
    kind: str = "event"  # one of `HAPPENINGS`

    @property
    def words(self) -> str:
        return HAPPENINGS.get(self.kind, HAPPENINGS["event"])


@dataclass(frozen=True)
class ClipMeasurements:
    """The measurements of a clip that captions use. None means unknown.

    motions: camera motion (a key of `MOTIONS`), start and end (s from the clip's start), in order. events_known: whether the
    event detector is sure of them, so that no event means that nothing happens; events_unknown: why it is not. frozen: the
    share of the time (0-1) in which the picture stands still. The other fields are named and measured as the ledger's columns.
    """

    length_s: float
    motions: tuple[tuple[str, float, float], ...] = ()
    events: tuple[MeasuredEvent, ...] = ()
    events_known: bool = False
    events_unknown: str | None = None
    luma_mean: float | None = None
    flashes_hz: float | None = None
    motion_camera: float | None = None
    motion_object: float | None = None
    frozen: float | None = None
    camera_words: str | None = None

    @property
    def strongest(self) -> MeasuredEvent | None:
        """The event with the highest confidence; of equal ones the longest."""
        return max(self.events, key=lambda event: (event.energy, event.end_s - event.start_s), default=None)

    def seconds_of(self, motion: str) -> float:
        """Return how long the camera makes this motion; "still" is the rest of the clip."""
        if motion == "still":
            return max(0.0, self.length_s - sum(end - start for _, start, end in self.motions))
        return sum(end - start for name, start, end in self.motions if name == motion)


@dataclass(frozen=True)
class StandardCaption:
    """A standard caption. `structured` has the other keys of `SCHEMA`, with None for what is unknown."""

    short: str
    long: str
    structured: dict[str, Any]
    source: str


_TEXT = {"type": "string", "maxLength": 160}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "short": {"type": "string", "minLength": 1, "maxLength": 200},
        "long": {"type": "string", "minLength": 1, "maxLength": 900},
        "scene": _TEXT,
        "viewpoint": {"enum": ["first_person", "third_person", "top_down", "side", "isometric", "other"]},
        "subject": _TEXT,
        "style": _TEXT,
        "lighting": {"enum": ["dark", "dim", "even", "bright", "mixed"]},
        "weather": _TEXT,
        "camera_motion": {"type": "array", "items": {"enum": list(MOTIONS)}, "maxItems": 6},
    },
    "required": ["short", "long", "scene", "viewpoint", "subject", "style", "lighting", "weather", "camera_motion"],
    "additionalProperties": False,
}
_STRUCTURED = [name for name in SCHEMA["required"] if name not in ("short", "long")]


def compose_caption(clip: ClipMeasurements) -> StandardCaption:
    """Compose the caption from the measurements alone."""
    known: dict[str, Any] = {"camera_motion": [name for name, _ in _motion_sequence(clip)] or ["still"]}
    if (light := _light_word(clip)) is not None:
        known["lighting"] = {"evenly lit": "even"}.get(light, light)
    return StandardCaption(describe_briefly(clip), describe(clip), {n: known.get(n) for n in _STRUCTURED}, MEASURED)


def describe_briefly(clip: ClipMeasurements) -> str:
    """Return one sentence with the camera's motions and the time of the strongest event."""
    words = "; ".join(part for part in (_camera_words(clip), _event_words(clip)) if part)
    return f"{words[0].upper()}{words[1:]}."


def describe(clip: ClipMeasurements) -> str:
    """Return all measurements as sentences. Prompts and long captions contain them, so the words are part of cache keys."""
    text = [f"A clip of {clip.length_s:.1f} s.", f"{_camera_words(clip).capitalize()}{_pace_words(clip)}."]
    if clip.camera_words:
        text.append(f"Camera path: {clip.camera_words}.")
    if (light := _light_word(clip)) is not None:
        text.append(f"It is {light} (mean luminance {clip.luma_mean:.0f} of 255).")
    for event in clip.events:
        when = f"from {event.start_s:.1f} to {event.end_s:.1f} s, strongest at {event.peak_s:.1f} s"
        sure = "" if event.kind == "event" else f" (confidence {event.energy:.2f})"
        text.append(f"{event.words[0].upper()}{event.words[1:]} {when}{sure}.")
    if not clip.events and clip.events_known:
        text.append("Nothing is seen to happen beside the camera's motion.")
    if clip.flashes_hz:
        text.append(f"The picture flashes {clip.flashes_hz:.1f} times a second.")
    if clip.frozen:
        text.append(f"The picture stands still for {clip.frozen:.0%} of the time.")
    return " ".join(text)


def _motion_sequence(clip: ClipMeasurements) -> list[tuple[str, float]]:
    """Return the camera's motions in order, with seconds. Brief ones are left out, then equal neighbours are joined."""
    lasting = [(name, end - start) for name, start, end in clip.motions if end - start >= _MIN_MOTION_S]
    return [(name, sum(s for _, s in run)) for name, run in groupby(lasting, key=lambda m: m[0])][:_MAX_MOTIONS]


def _camera_words(clip: ClipMeasurements) -> str:
    motions = _motion_sequence(clip)
    return "the camera " + (", then ".join(MOTIONS[name] for name, _ in motions) if motions else MOTIONS["still"])


def _pace_words(clip: ClipMeasurements) -> str:
    if clip.motion_camera is None:
        return ""
    word = next((word for limit, word in _PACE_LEVELS if clip.motion_camera < limit), "moves fast")
    return f"; on average it {word} ({clip.motion_camera:.1f} px a frame at 320 px wide)"


def _light_word(clip: ClipMeasurements) -> str | None:
    luma = clip.luma_mean
    return None if luma is None else next((word for limit, word in _LIGHT_LEVELS if luma < limit), "bright")


def _event_words(clip: ClipMeasurements) -> str:
    event = clip.strongest
    return f"{event.words} at {event.peak_s:.1f} s" if event else ""


def caption_prompt(clip: ClipMeasurements, frames: Sequence[bytes], labels: Sequence[str]) -> Prompt:
    """Return the question for the standard caption."""
    text = question_files.render("captions", facts=describe(clip))
    return Prompt("caption", text, SCHEMA, tuple(frames), tuple(labels))


def caption_from_answer(answer: Mapping[str, Any], source: str) -> StandardCaption:
    """Turn a model's answer that fits `SCHEMA` into a caption."""
    return StandardCaption(answer["short"], answer["long"], {name: answer[name] for name in _STRUCTURED}, source)


def find_conflicts(structured: Mapping[str, Any], clip: ClipMeasurements) -> list[str]:
    """Return the claims of a caption that the measurements clearly contradict, in words."""
    claimed = [name for name in structured["camera_motion"] or [] if name in MOTIONS]
    problems = [problem for name in dict.fromkeys(claimed) if (problem := _motion_conflict(name, clip))]
    luma, light = clip.luma_mean, structured["lighting"]
    if luma is not None and (
        (light == "dark" and luma > _TOO_BRIGHT_FOR_DARK) or (light == "bright" and luma < _TOO_DARK_FOR_BRIGHT)
    ):
        problems.append(f"says {light}, mean luminance is {luma:.0f}")
    return problems


def _motion_conflict(name: str, clip: ClipMeasurements) -> str | None:
    if clip.motion_camera is None:
        return None
    if name == "still":
        moving = clip.length_s - clip.seconds_of("still")
        return f"says still, the camera moves for {moving:.1f} s" if moving > _MAX_MOVING_SHARE * clip.length_s else None
    if clip.seconds_of(name) >= _ABSENT_S:
        return None
    opposite_s = clip.seconds_of(OPPOSITE[name])
    if opposite_s >= _PRESENT_S:
        return f"says {name}, measured is {OPPOSITE[name]} for {opposite_s:.1f} s"
    return f"says {name}, the camera stands still" if not clip.motions else None
