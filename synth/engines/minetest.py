"""Record gameplay in Minetest: one prepared outdoor place, a seeded player, and the ground truth of every frame.

`record` writes OUT.mp4, OUT.jsonl (a header line, one line per frame, a footer; `synth.doom.truth` reads it) and
OUT.camera.npz and OUT.events.json (the poses and events that curation uses). Frame i of the video is the picture before the action on line i.

The camera is level. The picture shows more ground than sky all the same: it is the lower part of a higher one, so the optical
centre lies above the middle. A turn is then exactly a rotation about the camera's own y axis.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from curation.cameras.camera import Camera, to_npz
from curation.cameras.engine import log_uri
from curation.captions import engine_events
from curation.captions.engine_events import EngineEvent
from curation.errors import InputError
from synth.doom.cameras import poses
from synth.doom.truth import Truth, read_truth
from synth.engines.lockstep import Game, XInput, require, virtual_display
from synth.engines.player import PLAYS, Act, Roamer, View

MODS = Path(__file__).with_name("minetest_mods")
PACKAGES = "minetest xvfb libxtst6 libgl1-mesa-dri gcc libc6-dev"
UNITS_PER_M = 32.0  # of the truth file: those of `synth.doom.truth`, whose speed limits then hold
WALK_M_S = 4.0
UNITS = f"X east, Y north, Z up; {UNITS_PER_M:g} units = 1 m; angle deg counter-clockwise from +X; the eye of this very frame"

_FX_SHARE = 0.4559  # focal length as a share of the picture's width: 95.3 degrees across
_HORIZON_SHARE = 0.425  # of the picture's height that is above the horizon
_PX_A_TURN = 32  # mouse steps in a frame of a key turn, so that such a turn is a whole number of steps
_KEY_TURN_DEG = 90.0 / 17.5  # in a frame
_X_KEYS = {"up": "w", "down": "s", "left": "a", "right": "d", "jump": "space"}
_TRUTH_KEYS = {"up": "W", "down": "S", "left": "A", "right": "D", "jump": "JUMP", "sneak": "CROUCH"}
_FIRST_ONSET_S, _LAST_ONSET_S, _LINGER_S = 3.0, 5.0, 2.5
_COMMAND_TIMEOUT_S, _ARRIVAL_S, _RETRY_FRAMES = 5.0, 0.15, 8
_EVENT_FRAME_S = 0.045  # of real time, so that the server makes a step in every frame
_READY_FRAMES = 6000
_SETTLE_FRAMES, _SETTLE_S = 60, 0.03

_CONFIGURATION = """\
screen_w = {width}
screen_h = {height}
fov = {fov}
mouse_sensitivity = {sensitivity}
fps_max = 1000
fps_max_unfocused = 1000
vsync = false
enable_sound = false
enable_client_modding = true
csm_restriction_flags = 0
dedicated_server_step = 0.03
server_map_save_interval = 0.5
view_bobbing_amount = 0
fall_bobbing_amount = 0
camera_smoothing = 0
viewing_range = 100
max_block_send_distance = 8
max_block_generate_distance = 8
max_simultaneous_block_sends_per_client = 200
creative_mode = false
enable_damage = false
server_announce = false
bind_address = 127.0.0.1
enable_minimap = false
enable_clouds = false
enable_3d_clouds = false
enable_shaders = false
show_nametag_backgrounds = false
node_highlighting = none
autojump = false
time_speed = 0
name =
gamecraft_at = {at}
gamecraft_start = {start}
gamecraft_seed = {seed}
gamecraft_time_of_day = {time_of_day}
gamecraft_draw_number = {draw_number}
"""


@dataclass(frozen=True)
class EventKind:
    """An event that can be acted, in the closed vocabulary of prompts."""

    caption: str
    category: str  # environment | actor | entity, as in captions/interaction.yaml
    delay: int  # frames from the command to the first picture that shows it


EVENTS = {
    "snow": EventKind("it starts to snow", "environment", 3),
    "night": EventKind("night falls", "environment", 4),
    "torch": EventKind("take out a torch", "actor", 2),
    "block": EventKind("place a block", "actor", 3),
    "creature": EventKind("a creature appears", "entity", 2),
    "explosion": EventKind("an explosion", "environment", 2),
}


@dataclass(frozen=True)
class Place:
    """A place in a generated world."""

    world_seed: int = 77
    east: int = 540
    north: int = 780
    mapgen: str = "v7"


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
    fps: Fraction = Fraction(35, 2)
    time_of_day: float = 0.42  # 0 midnight, 0.5 noon
    crf: int = 18  # x264 quality, 0 lossless to 51
    draw_number: bool = False  # draw the number of each frame as black and white squares, to test what belongs together


@dataclass(frozen=True)
class Optics:
    """The game's window and the picture that is cut out of it: its lower part, at the same focal length."""

    width: int  # px
    height: int  # px, of the picture
    window_height: int  # px
    focal_px: float

    @classmethod
    def of(cls, width: int, height: int) -> "Optics":
        hidden = round(height * (1 - 2 * _HORIZON_SHARE))
        return cls(width, height, height + hidden, width * _FX_SHARE)

    @property
    def centre_y(self) -> float:
        """The row of the horizon, px."""
        return self.window_height / 2 - (self.window_height - self.height)

    @property
    def vertical_fov_deg(self) -> float:
        """The vertical field of view of the window."""
        return math.degrees(2 * math.atan(self.window_height / 2 / self.focal_px))

    @property
    def fov_setting(self) -> float:
        """The game's setting `fov`. The game widens it for windows that are less wide than 16:10."""
        aspect = self.width / self.window_height
        return self.vertical_fov_deg / min(max(math.sqrt(1.6 / aspect), 1.0), 1.4)

    def deg_per_px(self) -> float:
        """The turn of one step of the mouse."""
        return _KEY_TURN_DEG / _PX_A_TURN

    @property
    def mouse_sensitivity(self) -> float:
        """The game's setting, of which it multiplies the turn of a step by a function of the field of view."""
        return self.deg_per_px() / (math.tan(math.radians(self.vertical_fov_deg / 2)) * 1.3763818698)


def record(out_mp4: str | Path, recording: Recording) -> Truth:
    """Play and record. The files get their final names only when complete. Raises InputError for bad arguments."""
    out = Path(out_mp4)
    if out.suffix != ".mp4":
        raise InputError(f"the recording must be named *.mp4, not {out.name!r}")
    check_recording(recording)
    require("minetest", PACKAGES)
    out.parent.mkdir(parents=True, exist_ok=True)
    jsonl, camera = out.with_suffix(".jsonl"), Path(log_uri(str(out)))
    events = Path(engine_events.log_uri(str(out)))
    parts = {path: path.with_name(f".part-{os.getpid()}-{path.name}") for path in (out, camera, events, jsonl)}
    try:
        with _session(recording) as session, open(parts[jsonl], "w", encoding="utf-8") as log:
            _write(session, recording, parts[out], log.write)
        truth = read_truth(parts[jsonl])
        parts[camera].write_bytes(to_npz(engine_camera(truth)))
        parts[events].write_text(engine_events.to_json(logged_events(truth)), encoding="utf-8")
        jsonl.unlink(missing_ok=True)  # a newer video must not be paired with an older truth file
        for path, part in parts.items():
            part.replace(path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return truth


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
    pose = poses(truth.position, truth.yaw_deg)
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
    return [
        EngineEvent(event.frame, float(truth.time_s[event.frame]), event.details["caption"], event.details["category"])
        for event in truth.events
        if "caption" in event.details
    ]


class Session:
    """A running game whose place is ready, in lockstep."""

    def __init__(self, game: Game, keys: XInput, world: Path, optics: Optics) -> None:
        self.client: dict[str, Any] = {}
        self.server: list[dict[str, Any]] = []
        self.client_lines = 0
        self.ready: dict[str, Any] = {}
        self._game, self._keys, self._world, self._optics = game, keys, world, optics
        self._turned_deg = self._turned_px = 0.0

    def picture(self) -> NDArray[np.uint8]:
        """Wait for the next frame. Return its lower part [H, W, 3]; `client` and `server` then hold what the mods logged."""
        picture = self._game.next_frame()
        self.server, self.client_lines = [], 0
        self._read_lines()
        return picture[-self._optics.height :]

    def _read_lines(self) -> None:
        for line in self._game.take_lines():
            _, mark, text = line.partition(": GAMECRAFT_")
            if mark and text.startswith("FRAME "):
                self.client, self.client_lines = json.loads(text[len("FRAME ") :]), self.client_lines + 1
            elif mark and text.startswith("SERVER "):
                self.server.append(json.loads(text[len("SERVER ") :]))

    def act(self, act: Act) -> int:
        """Apply the player's action and let the game draw the next frame. Return by how many steps the mouse was moved."""
        self._turned_deg += act.turn_deg  # steps are whole: what one frame lacks the next one gets
        steps = round(self._turned_deg / self._optics.deg_per_px() - self._turned_px)
        self._turned_px += steps
        self._keys.set(frozenset(_X_KEYS[key] for key in act.keys), steps)
        self._game.advance()
        return steps

    def ask(self, name: str) -> None:
        """Ask the server for an event. It acts in its next step, while the next picture is drawn, and answers after that one."""
        time.sleep(_ARRIVAL_S)  # until the server has made up for the frames so far: its thread lags behind the pictures
        part = self._world / "commands.part"
        part.write_text(name + "\n", encoding="utf-8")
        part.replace(self._world / "commands.txt")

    def answer(self) -> bool:
        """Return whether the server acted the event: it may need another view. Then the next picture is the first to show it."""
        end = time.monotonic() + _COMMAND_TIMEOUT_S
        while not (answers := [line for line in self.server if line["event"] == "command"]):
            if time.monotonic() > end:
                raise InputError(f"the game did not act an event in {_COMMAND_TIMEOUT_S:g} s")
            time.sleep(0.01)
            self._read_lines()
        time.sleep(_ARRIVAL_S)  # until what the server sends has reached the client
        return bool(answers[-1]["acted"])

    def wait_until_ready(self) -> None:
        """Let the game run until the place stands and is drawn."""
        settled = 0
        for number in range(_READY_FRAMES):
            self.picture()
            if number % 40 == 20:
                self._keys.focus()
            self.ready = next((line for line in self.server if line["event"] == "ready"), self.ready)
            settled += bool(self.ready)
            if settled > _SETTLE_FRAMES:
                return
            self._game.advance()
            time.sleep(_SETTLE_S)  # the server and the builders of meshes run in real time
        raise InputError("the place was not ready in time")


@contextlib.contextmanager
def _session(recording: Recording) -> Iterator[Session]:
    prepared = prepared_world(recording.place)
    with _running(recording, prepared) as session:
        yield session


@contextlib.contextmanager
def _running(recording: Recording, prepared: Path | None) -> Iterator[Session]:
    """Run the game in a copy of a prepared world, or in a new one."""
    optics = Optics.of(recording.width, recording.height)
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="minetest-", ignore_cleanup_errors=True)))
        world = _write_files(home, recording, optics, prepared)
        display = stack.enter_context(virtual_display(max(640, optics.width), max(480, optics.window_height)))
        environment = {"HOME": str(home), "DISPLAY": display, "LP_NUM_THREADS": "1"}
        command = [require("minetest", PACKAGES), "--go", "--worldname", "world"]
        game = stack.enter_context(Game(command, environment, float(1 / recording.fps)))
        keys = XInput(display)
        session = Session(game, keys, world, optics)
        session.wait_until_ready()
        yield session


def prepared_world(place: Place) -> Path:
    """Return the folder of a world in which the place stands. It is generated at first use and cached."""
    content = (MODS / "gamecraft_server" / "place.lua").read_bytes()
    name = hashlib.sha256(json.dumps(asdict(place)).encode() + content).hexdigest()[:12]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gamecraft" / f"minetest-{name}"
    if not folder.exists():
        with _running(Recording(place), None) as session:
            end = time.monotonic() + 6  # the server writes the map to disk twice a second
            while time.monotonic() < end:
                session.act(Act())
                session.picture()
                time.sleep(_SETTLE_S)
            part = folder.with_name(f".part-{os.getpid()}-{folder.name}")
            shutil.copytree(session._world, part, ignore=shutil.ignore_patterns("worldmods", "players*", "auth*"))
        part.replace(folder)
    return folder


def _write_files(home: Path, recording: Recording, optics: Optics, prepared: Path | None) -> Path:
    """Write the game's configuration, mods and world to its home folder. Return the world's folder."""
    settings = home / ".minetest"
    world = settings / "worlds" / "world"
    if prepared is not None:
        shutil.copytree(prepared, world)
    shutil.copytree(MODS / "gamecraft_server", world / "worldmods" / "gamecraft_server")
    shutil.copytree(MODS / "gamecraft_client", settings / "clientmods" / "gamecraft_client")
    (settings / "clientmods" / "mods.conf").write_text("load_mod_gamecraft_client = true\n")
    rng = random.Random(f"{recording.seed}/start")
    angle, distance = rng.uniform(0, 2 * math.pi), rng.uniform(0, 6)
    start = (distance * math.cos(angle), distance * math.sin(angle), rng.uniform(0, 360))
    (settings / "minetest.conf").write_text(
        _CONFIGURATION.format(
            width=optics.width,
            height=optics.window_height,
            fov=optics.fov_setting,
            sensitivity=optics.mouse_sensitivity,
            at=f"{recording.place.east},{recording.place.north}",
            start=",".join(f"{value:.3f}" for value in start),
            seed=recording.seed,
            time_of_day=recording.time_of_day,
            draw_number=str(recording.draw_number).lower(),
        )
    )
    if prepared is None:
        backends = "".join(f"{name}backend = sqlite3\n" for name in ("", "player_", "auth_", "mod_storage_"))
        (world / "world.mt").write_text(f"gameid = minetest_game\n{backends}")
        seed = f"mg_name = {recording.place.mapgen}\nseed = {recording.place.world_seed}\n[end_of_params]\n"
        (world / "map_meta.txt").write_text(seed)
    return world


@dataclass
class _Frame:
    """What is known of a frame. Its camera comes with the next one."""

    client: dict[str, Any]
    act: Act
    steps: int
    behaviour: str
    events: list[dict[str, Any]]


def _write(session: Session, recording: Recording, video: Path, log: Callable[[str], Any]) -> None:
    total, optics = round(recording.seconds * recording.fps), Optics.of(recording.width, recording.height)
    view, fps = View(), float(recording.fps)
    roamer = Roamer(random.Random(f"{recording.seed}/play"), view, fps)
    acts = PLAYS[recording.scenario](roamer)
    pending, asked_at = recording.event or "", None  # type: str, int | None
    onset = round(random.Random(f"{recording.seed}/onset").uniform(_FIRST_ONSET_S, _LAST_ONSET_S) * fps)
    logged: dict[int, list[dict[str, Any]]] = {}
    log(json.dumps(_header(recording, optics, session)) + "\n")
    counts, out_of_step = Counter[str](), 0
    before: _Frame | None = None
    session.act(Act())
    began_s = time.monotonic()
    with _encoder(video, recording) as encode:
        for number in range(total + 1):
            picture = session.picture()
            out_of_step += session.client_lines != 1
            if before is not None:
                log(json.dumps(_frame_line(number - 1, recording, before, session.client)) + "\n")
            if number == total:
                break
            encode(picture)
            _see(view, session)
            if recording.event is not None:
                began_s = _wait_until(began_s + _EVENT_FRAME_S)
            if asked_at is not None:
                if session.answer():
                    kind = EVENTS[pending]
                    logged[asked_at + kind.delay] = [{"e": pending, "caption": kind.caption, "category": kind.category}]
                    acts = itertools.chain(roamer.linger(_LINGER_S), PLAYS[recording.scenario](roamer))
                    counts[pending] += 1
                    pending = ""
                else:
                    acts, onset = itertools.chain(roamer.look_around(), acts), number + _RETRY_FRAMES
                asked_at = None
            elif pending and number >= onset:
                session.ask(pending)
                asked_at = number
            act = next(acts)
            before = _Frame(session.client, act, session.act(act), roamer.behaviour, logged.get(number, []))
    footer = {"footer": True, "frames": total, "true_cuts": [], "event_counts": dict(counts), "frames_out_of_step": out_of_step}
    log(json.dumps(footer) + "\n")
    if pending:
        raise InputError(f"the player found no place to act {pending!r}; try another seed")
    if out_of_step:
        raise InputError(f"{out_of_step} frames did not come with exactly one line of the game's log")


def _wait_until(time_s: float) -> float:
    """Wait until a time of the monotonic clock. Return it, or the present if it has passed."""
    now_s = time.monotonic()
    time.sleep(max(0.0, time_s - now_s))
    return max(time_s, now_s)


def _see(view: View, session: Session) -> None:
    position, direction = session.client["position"], session.client["direction"]
    view.east, view.north = position[0] - session.ready["x"], position[2] - session.ready["z"]
    view.yaw_deg = math.degrees(math.atan2(direction[2], direction[0]))


def _header(recording: Recording, optics: Optics, session: Session) -> dict[str, Any]:
    return {
        "header": True,
        "fps": float(recording.fps),
        "width": recording.width,
        "height": recording.height,
        "game": "Minetest with minetest_game",
        "scenario": recording.scenario,
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
    optics = Optics.of(recording.width, recording.height)
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
        "tic": number,
        "map": "minetest",
        "mode": frame.behaviour,
        "keys": [_TRUTH_KEYS[key] for key in frame.client["keys"] or [] if key in _TRUTH_KEYS],
        "pressed": sorted(_TRUTH_KEYS[key] for key in frame.act.keys),
        "mouse_dx": round(frame.steps * optics.deg_per_px(), 4),
        "state": state,
        "events": frame.events,
        "moving": [],
    }


@contextlib.contextmanager
def _encoder(path: Path, recording: Recording) -> Iterator[Callable[[NDArray[np.uint8]], None]]:
    """Yield a function that appends an RGB picture to the video. One thread: it leaves the other cores to the game."""
    options = {"crf": str(recording.crf), "preset": "veryfast", "x264-params": "cpu-independent=1"}
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=recording.fps, options=options)
        stream.width, stream.height, stream.pix_fmt = recording.width, recording.height, "yuv420p"
        stream.codec_context.gop_size = round(recording.fps)
        stream.codec_context.thread_count = 1
        numbers = itertools.count()

        def encode(picture: NDArray[np.uint8]) -> None:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = next(numbers), 1 / recording.fps
            container.mux(stream.encode(frame))

        yield encode
        container.mux(stream.encode(None))


def known_scenarios() -> Sequence[str]:
    """Return the names of all ways to play."""
    return list(PLAYS)
