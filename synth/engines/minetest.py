"""Record gameplay in Minetest: one outdoor place, a seeded player, and the ground truth of every frame.

`record` writes OUT.mp4, OUT.jsonl (a header, one line per frame, a footer; `synth.doom.truth` reads it), OUT.camera.npz and
OUT.events.json (the poses and events that curation uses). Frame i of the video is the picture before the action on line i.
"""

import itertools
import json
import math
import random
import time
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from curation.cameras import engine as engine_cameras
from curation.cameras.camera import Camera, to_npz
from curation.captions import engine_events
from curation.captions.engine_events import EngineEvent
from curation.errors import AttemptFailed, InputError
from synth.doom.cameras import poses
from synth.doom.truth import GameEvent, Truth, read_truth
from synth.engines.minetest_game import FPS, MOUSE_STEP_DEG, GameSettings, Optics, Place, Session, start_game
from synth.engines.player import PLAYS, Act, Acts, Roamer, View
from synth.recording_files import encoder, staged

UNITS_PER_M = 32.0  # of the truth file: those of `synth.doom.truth`, whose limits of speed then hold
WALK_M_S = 4.0
UNITS = f"X east, Y north, Z up; {UNITS_PER_M:g} units = 1 m; angle deg counter-clockwise from +X; the eye of this very frame"

_TRUTH_KEYS = {"up": "W", "down": "S", "left": "A", "right": "D", "jump": "JUMP", "sneak": "CROUCH"}
_FIRST_ONSET_S, _LAST_ONSET_S, _LINGER_S = 3.0, 5.0, 2.5
_RETRY_FRAMES = 8  # until an event that lacked a clear view is asked for again
# How long a frame lasts in real time at least: so that the server makes a step in every one, and so that threads that build
# meshes are done with what changed.
_EVENT_FRAME_S, _SHOWING_FRAME_S, _SHOWING_FRAMES = 0.045, 0.3, 4

_EXPLOSION_S = 2.05  # flash and flames last a second, most of the smoke another one


@dataclass(frozen=True)
class EventKind:
    """An event that can be acted, in the closed vocabulary of prompts."""

    caption: str
    category: str  # environment | actor | entity, as in captions/interaction.yaml
    delay: int  # frames from its arrival at the client to the first picture that shows it
    lasts_s: float | None = None  # how long it happens, and the player faces it; None: to the end


EVENTS = {
    "snow": EventKind("it starts to snow", "environment", 1),
    "night": EventKind("night falls", "environment", 2),
    "torch": EventKind("take out a torch", "actor", 0),
    "block": EventKind("place a block", "actor", 1, _LINGER_S),
    "creature": EventKind("a creature appears", "entity", 0, _LINGER_S),
    "explosion": EventKind("an explosion", "environment", 0, _EXPLOSION_S),
}


@dataclass(frozen=True)
class Recording:
    """What to record, and how it is drawn."""

    place: Place = field(default_factory=Place)
    scenario: str = "roam"  # one of `synth.engines.player.PLAYS`
    seconds: float = 60.0
    event: str | None = None  # one of `EVENTS`, acted after 3 to 5 seconds
    seed: int = 0  # of all random choices
    width: int = 256  # px
    height: int = 192  # px
    fps: Fraction = FPS
    time_of_day: float = 0.42  # 0 midnight, 0.5 noon
    crf: int = 18  # x264 quality, 0 lossless to 51
    draw_number: bool = False  # draw the number of each frame as black and white squares, to test what belongs together


def record(out_mp4: str | Path, recording: Recording) -> Truth:
    """Play and record. The files get their final names only when complete.

    Raises InputError for bad arguments, Unavailable where the game is not installed, AttemptFailed where this recording failed.
    """
    out = Path(out_mp4)
    if out.suffix != ".mp4":
        raise InputError(f"the recording must be named *.mp4, not {out.name!r}")
    check_recording(recording)
    out.parent.mkdir(parents=True, exist_ok=True)
    jsonl, camera = out.with_suffix(".jsonl"), Path(engine_cameras.log_uri(str(out)))
    events = Path(engine_events.log_uri(str(out)))
    with staged((out, camera, events, jsonl)) as parts:
        with start_game(_game_settings(recording)) as session, open(parts[jsonl], "w", encoding="utf-8") as log:
            _write(session, recording, parts[out], log)
        truth = read_truth(parts[jsonl])
        parts[camera].write_bytes(to_npz(engine_camera(truth)))
        parts[events].write_text(engine_events.to_json(logged_events(truth)), encoding="utf-8")
    return truth


def _game_settings(recording: Recording) -> GameSettings:
    names = ("place", "width", "height", "fps", "seed", "time_of_day", "draw_number")
    return GameSettings(**{name: getattr(recording, name) for name in names})


def check_recording(recording: Recording) -> None:
    """Raise InputError for anything that cannot be recorded; the message lists the valid values."""
    if recording.scenario not in PLAYS:
        raise InputError(f"unknown scenario {recording.scenario!r}; known: {', '.join(PLAYS)}")
    if recording.width % 2 or recording.height % 2 or min(recording.width, recording.height) < 64:
        raise InputError(f"the size must be even and at least 64x64, not {recording.width}x{recording.height}")
    if round(recording.seconds * recording.fps) < 2:
        raise InputError(f"record at least two frames, not {recording.seconds} s")
    if recording.event is not None and recording.event not in EVENTS:
        raise InputError(f"unknown event {recording.event!r}; known: {', '.join(EVENTS)}")
    if recording.event is not None and recording.seconds < _LAST_ONSET_S + 2:
        raise InputError(f"a recording with an event must be at least {_LAST_ONSET_S + 2:g} s long, not {recording.seconds:g}")
    ranges = {"seed": (0, 2**31 - 1), "crf": (0, 51), "time_of_day": (0, 1), "fps": (1, 120)}
    for name, (low, high) in ranges.items():
        if not low <= getattr(recording, name) <= high:
            raise InputError(f"{name} must be between {low} and {high}, not {getattr(recording, name)}")


def engine_camera(truth: Truth) -> Camera:
    """Return the camera of every frame of a recording, in the truth's units. Walking at 4 m/s is one unit of speed."""
    header, frames = truth.header, len(truth)
    pose = poses(truth.position, truth.yaw_deg, truth.pitch_deg)
    return Camera(
        pose=np.linalg.inv(pose[0]) @ pose,
        intrinsics=np.tile([header["fx"], header["fy"], header["cx"], header["cy"]], (frames, 1)),
        times_s=truth.time_s,
        size=(header["width"], header["height"]),
        viewport=(0, 0, header["width"], header["height"]),
        valid=np.ones(frames, bool),
        residual_px=np.zeros(frames, np.float32),
        keyframes=np.arange(0),
        scale_to_unit=1 / (WALK_M_S * UNITS_PER_M),
        scale_source="engine",
    )


def logged_events(truth: Truth) -> list[EngineEvent]:
    """Return the events of a recording that have a caption."""
    return [_logged(event, truth.time_s) for event in truth.events if "caption" in event.details]


def _logged(event: GameEvent, time_s: NDArray[np.float64]) -> EngineEvent:
    """Return an event as it is logged. It ends at the first frame that no longer shows it, if there is one."""
    lasts_s, end_s = EVENTS[event.name].lasts_s, None
    if lasts_s is not None and (later := time_s[time_s >= time_s[event.frame] + lasts_s]).size:
        end_s = float(later[0])
    return EngineEvent(event.frame, float(time_s[event.frame]), event.details["caption"], event.details["category"], end_s)


class _Cue:
    """Has the recording's event acted when its time comes, and knows in which frame it shows first."""

    def __init__(self, recording: Recording, session: Session, roamer: Roamer) -> None:
        self.shown: dict[int, list[dict[str, Any]]] = {}  # events of the truth file, by the first frame that shows them
        self._recording, self._session, self._roamer = recording, session, roamer
        first_s = random.Random(f"{recording.seed}/onset").uniform(_FIRST_ONSET_S, _LAST_ONSET_S)
        self._due = round(first_s * recording.fps)
        self._asked = False
        self._acted_at: int | None = None
        self._frame_began_s = time.monotonic()

    def direct(self, number: int, acts: Acts) -> Acts:
        """Return how the player continues at this frame: facing the event, or looking for a view in which it can be acted."""
        name = self._recording.event
        if name is None:
            return acts
        showing = self._acted_at is not None and number <= self._acted_at + _SHOWING_FRAMES
        self._keep_pace(_SHOWING_FRAME_S if showing else _EVENT_FRAME_S)
        if self._asked:
            self._asked = False
            if not self._session.answer():
                self._due = number + _RETRY_FRAMES
                return itertools.chain(self._roamer.look_around(), acts)
            self._acted_at = number
            return itertools.chain(self._roamer.linger(_LINGER_S), PLAYS[self._recording.scenario](self._roamer))
        if self._session.client.get("event") == name:
            kind = EVENTS[name]
            self.shown[number + kind.delay] = [{"e": name, "caption": kind.caption, "category": kind.category}]
        elif self._acted_at is None and number >= self._due:
            self._session.ask(name)
            self._asked = True
        return acts

    def check(self) -> None:
        """Raise AttemptFailed if the event was not acted."""
        if self._recording.event is not None and not self.shown:
            raise AttemptFailed(f"the player found no view in which to act {self._recording.event!r}; try another seed")

    def _keep_pace(self, frame_s: float) -> None:
        now_s = time.monotonic()
        time.sleep(max(0.0, self._frame_began_s + frame_s - now_s))
        self._frame_began_s = time.monotonic()


@dataclass
class _Frame:
    """What is known of a frame when it is drawn. Its camera comes with the next one."""

    client: dict[str, Any]
    act: Act
    mouse_steps: int
    behaviour: str
    events: list[dict[str, Any]]


def _write(session: Session, recording: Recording, video: Path, log: IO[str]) -> None:
    total, view = round(recording.seconds * recording.fps), View()
    roamer = Roamer(random.Random(f"{recording.seed}/play"), view, float(recording.fps))
    acts, cue = PLAYS[recording.scenario](roamer), _Cue(recording, session, roamer)
    _log(log, _header(recording, session))
    frame: _Frame | None = None
    session.act(Act())
    size, gop = (recording.width, recording.height), round(recording.fps)
    with encoder(video, size, recording.fps, recording.crf, gop) as encode:
        for number in range(total + 1):
            picture = session.picture()
            if session.client_lines != 1:
                raise AttemptFailed(f"frame {number} came with {session.client_lines} lines of the game's log, not one")
            if frame is not None:
                _log(log, _frame_line(number - 1, recording, frame, session.client))
            if number == total:
                break
            encode(picture)
            _look(view, session)
            acts = cue.direct(number, acts)
            act = next(acts)
            frame = _Frame(session.client, act, session.act(act), roamer.behaviour, cue.shown.get(number, []))
    cue.check()
    counts = {event["e"]: 1 for events in cue.shown.values() for event in events}
    _log(log, {"footer": True, "frames": total, "true_cuts": [], "event_counts": counts})


def _log(file: IO[str], line: dict[str, Any]) -> None:
    file.write(json.dumps(line) + "\n")


def _look(view: View, session: Session) -> None:
    position, direction = session.client["position"], session.client["direction"]
    view.east, view.north = position[0] - session.ready["x"], position[2] - session.ready["z"]
    view.yaw_deg = math.degrees(math.atan2(direction[2], direction[0]))


def _header(recording: Recording, session: Session) -> dict[str, Any]:
    optics = Optics.of(recording.width, recording.height)
    return {
        "header": True,
        "fps": float(recording.fps),
        "width": recording.width,
        "height": recording.height,
        "game": "Minetest with minetest_game",
        "scenario": recording.scenario,
        "event": recording.event,
        "seed": recording.seed,
        "place": asdict(recording.place),
        "ground_m": session.ready["ground"],
        "units": UNITS,
        "fx": optics.focal_px,
        "fy": optics.focal_px,
        "cx": recording.width / 2,
        "cy": optics.centre_y,
        "camera": "pinhole, square pixels, no distortion, level",
        "mouse": "MOUSE_DX = degrees turned in that frame, right positive",
        "argv": ["--no-hud", "--no-weapon"],
    }


def _frame_line(number: int, recording: Recording, frame: _Frame, after: dict[str, Any]) -> dict[str, Any]:
    """Return a line of the truth file. after: the client's line of the next frame, which has this frame's camera."""
    eye, direction = after["eye"], after["direction"]
    state = {
        "CAMERA_POSITION_X": round(eye[0] * UNITS_PER_M, 4),
        "CAMERA_POSITION_Y": round(eye[2] * UNITS_PER_M, 4),
        "CAMERA_POSITION_Z": round(eye[1] * UNITS_PER_M, 4),
        "CAMERA_ANGLE": round(math.degrees(math.atan2(direction[2], direction[0])) % 360, 4),
        "CAMERA_PITCH": round(math.degrees(math.asin(max(-1.0, min(1.0, direction[1])))), 4),
        "CAMERA_FOV": round(after["hfov_deg"], 4),
        "ATTACK_READY": 1.0,
    }
    return {
        "frame": number,
        "t": round(number / float(recording.fps), 4),
        "tic": frame.client["number"],  # the game's own number of the frame
        "map": "minetest",
        "mode": frame.behaviour,
        "keys": [_TRUTH_KEYS[key] for key in frame.client["keys"] or [] if key in _TRUTH_KEYS],
        "pressed": sorted(_TRUTH_KEYS[key] for key in frame.act.keys),
        "mouse_dx": round(frame.mouse_steps * MOUSE_STEP_DEG, 4),
        "state": state,
        "events": frame.events,
        "moving": [],
    }
