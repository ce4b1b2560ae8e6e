"""The standard caption C_t (paper section 3.4): short, long and structured, held against what was measured.

A model is told the measured facts, and its caption is checked against them; without a model the caption is composed of the
facts alone, and says nothing that they do not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from curation.vlm import Prompt, question_files

MEASURED = "measured"  # the source of a caption that no model wrote

# What a measured regime is called in a sentence, and which word contradicts it.
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
_OPPOSITE = {"forward": "back", "turn_left": "turn_right", "look_up": "look_down", "strafe_left": "strafe_right"}
OPPOSITE = _OPPOSITE | {b: a for a, b in _OPPOSITE.items()}

# Mean luma (0-255) under which a clip is called so; what is brighter than the last is bright.
_LIGHT = ((40, "dark"), (80, "dim"), (170, "evenly lit"))
# px/frame at 320 wide under which the camera is called so.
_PACE = ((0.3, "hardly moves"), (3.0, "moves slowly"), (9.0, "moves"))
_FEWEST_S = 0.3  # a shorter stretch of camera motion is not worth a word
_MOST_MOTIONS = 6

# Mean luma beyond which a caption of the other extreme is wrong: the terms overlap between.
_TOO_BRIGHT_FOR_DARK, _TOO_DARK_FOR_BRIGHT = 110.0, 60.0
# A motion counts as seen from half a second on, as unseen under a fifth; "still" is wrong where more than half the clip moves.
_SEEN_S, _UNSEEN_S, _MOSTLY = 0.5, 0.2, 0.5


class Happening(NamedTuple):
    """Something that happens: start, strongest moment and end (s from the clip's start), and how sure that is (0-1)."""

    start_s: float
    peak_s: float
    end_s: float
    energy: float


@dataclass(frozen=True)
class Facts:
    """What was measured of a clip; None is unknown. `motions`: regime, start and end (s from the clip's start), in order."""

    length_s: float
    motions: tuple[tuple[str, float, float], ...] = ()
    happenings: tuple[Happening, ...] = ()
    happenings_known: bool = False
    luma_mean: float | None = None
    flashes_hz: float | None = None
    motion_camera: float | None = None
    motion_object: float | None = None
    frozen: float | None = None
    camera_words: str | None = None

    @property
    def strongest(self) -> Happening | None:
        return max(self.happenings, key=lambda h: (h.energy, h.end_s - h.start_s), default=None)

    def seconds_of(self, motion: str) -> float:
        if motion == "still":
            return max(0.0, self.length_s - sum(end - start for _, start, end in self.motions))
        return sum(end - start for name, start, end in self.motions if name == motion)


@dataclass(frozen=True)
class Caption:
    """A standard caption; `structured` has the keys of `SCHEMA`, null for what is not known."""

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


def measured(facts: Facts) -> Caption:
    """The caption that the facts alone allow."""
    known: dict[str, Any] = {"camera_motion": [name for name, _ in _course(facts)] or ["still"]}
    if (light := _light(facts)) is not None:
        known["lighting"] = {"evenly lit": "even"}.get(light, light)
    return Caption(short(facts), sentences(facts), {n: known.get(n) for n in _STRUCTURED}, MEASURED)


def short(facts: Facts) -> str:
    """What the camera does and when something happens, in a sentence."""
    words = "; ".join(part for part in (_camera(facts), _event(facts)) if part)
    return f"{words[0].upper()}{words[1:]}."


def sentences(facts: Facts) -> str:
    """Everything measured, as sentences for a reader or a model."""
    said = [f"A clip of {facts.length_s:.1f} s.", f"{_camera(facts).capitalize()}{_pace(facts)}."]
    if facts.camera_words:
        said.append(f"Camera path: {facts.camera_words}.")
    if (light := _light(facts)) is not None:
        said.append(f"It is {light} (mean luminance {facts.luma_mean:.0f} of 255).")
    for h in facts.happenings:
        said.append(f"Something happens from {h.start_s:.1f} to {h.end_s:.1f} s, strongest at {h.peak_s:.1f} s.")
    if not facts.happenings and facts.happenings_known:
        said.append("Nothing is seen to happen beside the camera's motion.")
    if facts.flashes_hz:
        said.append(f"The picture flashes {facts.flashes_hz:.1f} times a second.")
    if facts.frozen:
        said.append(f"The picture stands still for {facts.frozen:.0%} of the time.")
    return " ".join(said)


def _course(facts: Facts) -> list[tuple[str, float]]:
    """What the camera does one after the other, with seconds; brief stretches left out, equal neighbours joined."""
    lasting = [(name, end - start) for name, start, end in facts.motions if end - start >= _FEWEST_S]
    return [(name, sum(s for _, s in run)) for name, run in groupby(lasting, key=lambda m: m[0])][:_MOST_MOTIONS]


def _camera(facts: Facts) -> str:
    course = _course(facts)
    return "the camera " + (", then ".join(MOTIONS[name] for name, _ in course) if course else MOTIONS["still"])


def _pace(facts: Facts) -> str:
    if facts.motion_camera is None:
        return ""
    word = next((word for limit, word in _PACE if facts.motion_camera < limit), "moves fast")
    return f"; on average it {word} ({facts.motion_camera:.1f} px a frame at 320 px wide)"


def _light(facts: Facts) -> str | None:
    luma = facts.luma_mean
    return None if luma is None else next((word for limit, word in _LIGHT if luma < limit), "bright")


def _event(facts: Facts) -> str:
    found = facts.strongest
    return f"something happens at {found.peak_s:.1f} s" if found else ""


def prompt(facts: Facts, frames: Sequence[bytes], labels: Sequence[str]) -> Prompt:
    """The question for C_t."""
    words = question_files.render("captions", facts=sentences(facts))
    return Prompt("caption", words, SCHEMA, tuple(frames), tuple(labels))


def from_answer(answer: Mapping[str, Any], source: str) -> Caption:
    """A model's answer that fits `SCHEMA` as a caption."""
    return Caption(answer["short"], answer["long"], {name: answer[name] for name in _STRUCTURED}, source)


def conflicts(structured: Mapping[str, Any], facts: Facts) -> list[str]:
    """What a caption claims against the measurements, in words; only what is beyond doubt."""
    claimed = [name for name in structured["camera_motion"] or [] if name in MOTIONS]
    found = [problem for name in dict.fromkeys(claimed) if (problem := _motion_conflict(name, facts))]
    luma, light = facts.luma_mean, structured["lighting"]
    if luma is not None and (
        (light == "dark" and luma > _TOO_BRIGHT_FOR_DARK) or (light == "bright" and luma < _TOO_DARK_FOR_BRIGHT)
    ):
        found.append(f"says {light}, mean luminance is {luma:.0f}")
    return found


def _motion_conflict(name: str, facts: Facts) -> str | None:
    if facts.motion_camera is None:
        return None
    if name == "still":
        moving = facts.length_s - facts.seconds_of("still")
        return f"says still, the camera moves for {moving:.1f} s" if moving > _MOSTLY * facts.length_s else None
    if facts.seconds_of(name) >= _UNSEEN_S:
        return None
    against = facts.seconds_of(OPPOSITE[name])
    if against >= _SEEN_S:
        return f"says {name}, measured is {OPPOSITE[name]} for {against:.1f} s"
    return f"says {name}, the camera stands still" if not facts.motions else None
