"""A game of our own that needs no installation: painted worlds in which all kinds of events happen, each look another.

`synth.engines.recorder` records it. Nobody would play it: it is variety to train detectors on. No two takes share textures,
colours, hands, panels, the way that a hand swings, or how a door opens, so what a detector learns here is not how one game
looks. `painted_world` draws it. In `mixed` something happens every few seconds, in `walk` nothing does.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from synth.engines.painted_world import Eye, Floats, Light, Sprite, Wall, World, make_atlas, noise
from synth.engines.takes import Engine, Played, Take
from synth.engines.truth_file import OTHER, EventSpan, FrameTruth, Optics, view_of

FPS = 30
_TEXTURES = 24
_EYE_M, _ROOM_M, _REACH_M = 1.6, 0.5, 5.5  # of the eye, between it and what it cannot walk through, of what is acted
_MOMENTUM = 0.8  # of the speed that is left after a frame
_AWAY_DEG_S = 150.0  # a turn where a wall is ahead
_SHOWN = 8  # frames in which what happens at once counts as shown
_Act = Iterator[None]
Vector = NDArray[np.float64]


@dataclass
class _Motion:
    """What the player does in a frame."""

    ahead: float = 0.0  # m/s
    right: float = 0.0
    turn: float = 0.0  # degrees a second, to the right
    look: float = 0.0  # degrees a second, upwards
    jump: bool = False


@dataclass
class _Hand:
    """What is drawn over the view: a hand with a tool, or the player from behind."""

    picture: NDArray[np.uint8]  # [H, W, 4]
    at: tuple[float, float]  # of its middle, as shares of the picture
    height: float  # share of the picture's
    offset: Vector = field(default_factory=lambda: np.zeros(2))  # shares of its height
    turned_deg: float = 0.0
    flash: float = 0.0


@dataclass(frozen=True)
class _Habits:
    """How a take moves all the time, whatever happens: no event, and unlike any other take."""

    bob_m: float  # of the eye, as it walks
    hand_bob: float  # shares of the hand's height: as the player walks, stands, and a degree that it lags behind in a turn
    hand_idle: float
    hand_lag: float
    flicker: float  # share of the light
    messages: float  # share of the frames in which words come up, where there are panels
    brisk: float  # m/s
    quick: float  # the fastest turn, degrees a second
    jumpy: float  # share of walks in which the player jumps
    pushed: float  # share of the frames in which a view from behind comes closer, as where a wall is behind the camera
    water: float  # copies of the floor's texture a second
    screens: tuple[tuple[Wall, float], ...]  # walls whose texture moves, in copies a second


def _draw_habits(rng: random.Random, walls: list[Wall]) -> _Habits:
    return _Habits(
        rng.choice([0, 0, 0.03, 0.06]),
        rng.choice([0, 0.02, 0.06]),
        rng.choice([0, 0, 0.01, 0.03]),
        rng.choice([0, 0.0005, 0.002]),
        rng.choice([0, 0, 0, 0.03, 0.1]),
        rng.choice([0, 0.005, 0.01]),
        rng.uniform(1.5, 9),
        rng.uniform(120, 420),
        rng.choice([0, 0.1, 0.5]),
        rng.choice([0, 0.005, 0.02]),
        rng.choice([0, 0, 0, 0, rng.uniform(-1, 1)]),
        tuple((rng.choice(walls), rng.uniform(-1.5, 1.5)) for _ in range(rng.choice([0, 0, 1, 3]))),
    )


class _Stage:
    """A painted world, its player, and what goes on."""

    def __init__(self, take: Take) -> None:
        self.rng = random.Random(f"{take.seed}/painted")  # noqa: S311
        self.draws = np.random.default_rng([take.seed, 7])
        self.take, self.number = take, 0
        self.optics = Optics(*take.size, take.size[0] / 2 / math.tan(math.radians(self.rng.uniform(60, 100) / 2)))
        self.half_m = self.rng.uniform(6, 16)
        self.world = _build_world(self)
        self.blocks: list[list[Wall]] = []  # what can be dug
        self.doors: list[Wall] = []
        _furnish(self)
        self.eye = Eye(0.0, 0.0, _EYE_M, self.rng.uniform(0, 360), 0.0)
        self.speed: Vector = np.zeros(2)
        self.rise = 0.0
        self.habits = _draw_habits(self.rng, self.world.walls)
        self.words: NDArray[np.uint8] | None = None
        self.sway, self.flicker, self.closer, self.near = np.zeros(2), 1.0, 1.0, 1.0
        levels = 255 * (np.arange(256) / 255) ** self.world.light.gamma
        self.gamma = np.rint(levels).astype(np.uint8)
        self.walked = 0.0
        self.hand = _paint_hand(self) if take.hand or take.third_person else None
        self.panel = _paint_panel(self) if take.hud else None
        self.menu: Floats | None = None
        self.tint: Vector = np.zeros(3)
        self.pulse = 1.0  # added grey levels, and times the light
        self.flakes: list[NDArray[np.float64]] = []
        self.wanderers: list[Sprite] = []
        self.events: list[EventSpan] = []
        self.acts: list[_Act] = []
        self.busy = False  # a menu is open
        self.behaviour = "stand"
        self.depth_ahead = 3.0

    def log(self, kind: str, frames: int, at: tuple[float, float, float] | None = None, radius_m: float = 0.5) -> None:
        """Log an event whose first picture is the next one."""
        first = self.number + 1
        self.events.append(EventSpan(kind, first, first + frames, at, radius_m))

    def place_ahead(self) -> tuple[float, float, float] | None:
        """Return a place on the floor that is in view and free, or None."""
        away = self.rng.uniform(1.3, min(_REACH_M, max(1.4, self.depth_ahead - 0.6)))
        if self.depth_ahead < 1.9:
            return None
        bearing = math.radians(self.eye.yaw_deg + self.rng.uniform(-12, 12))
        return self.eye.x + away * math.cos(bearing), self.eye.y + away * math.sin(bearing), 0.0

    def sees(self, x: float, y: float, half_height_m: float, far_m: float) -> bool:
        """Return whether something on the floor is in the picture, and not farther away than that. Walls hide nothing."""
        if math.hypot(x - self.eye.x, y - self.eye.y) > far_m:
            return False
        event = EventSpan(OTHER, 0, 1, (x, y, half_height_m), half_height_m)
        return view_of(event, self.frame_truth(), self.optics)[2]

    def frame_truth(self) -> FrameTruth:
        eye = self.eye
        return FrameTruth((eye.x, eye.y, eye.z), eye.yaw_deg, eye.pitch_deg, behaviour=self.behaviour)

    def move(self, motion: _Motion) -> None:
        eye, yaw = self.eye, math.radians(self.eye.yaw_deg)
        wanted = motion.ahead * np.array([math.cos(yaw), math.sin(yaw)]) + motion.right * np.array(
            [math.sin(yaw), -math.cos(yaw)]
        )
        self.speed = _MOMENTUM * self.speed + (1 - _MOMENTUM) * wanted
        for axis, name in enumerate(("x", "y")):
            before = getattr(eye, name)
            setattr(eye, name, before + float(self.speed[axis]) / FPS)
            if self._blocked():
                setattr(eye, name, before)
                self.speed[axis] = 0.0
        eye.yaw_deg = (eye.yaw_deg - motion.turn / FPS) % 360
        eye.pitch_deg = max(-35.0, min(35.0, eye.pitch_deg + motion.look / FPS))
        self.walked += float(np.linalg.norm(self.speed)) / FPS
        ground = _EYE_M + self.habits.bob_m * math.sin(self.walked * 7)
        if motion.jump and self.rise == 0.0:
            self.rise = 5.0
        if self.rise or eye.z > ground + 0.1:
            eye.z, self.rise = eye.z + self.rise / FPS, self.rise - 14.0 / FPS
            if eye.z <= ground:
                eye.z, self.rise = ground, 0.0
        else:
            eye.z = ground

    def _blocked(self) -> bool:
        if max(abs(self.eye.x), abs(self.eye.y)) > self.half_m - _ROOM_M:
            return True
        return any(_distance(wall, self.eye.x, self.eye.y) < _ROOM_M for wall in self.world.walls if wall.top_m > 0.3)

    def live(self, motion: _Motion) -> None:
        """Let go on what always does: moving walls, water, the hand, flickering light, words that come and go."""
        habits, panel = self.habits, self.panel
        for wall, speed in habits.screens:
            wall.slide += speed / FPS
        self.world.floor_slide += habits.water / FPS
        self.flicker = 1 + habits.flicker * self.draws.uniform(-1, 1) if self.draws.random() < 0.3 else self.flicker
        walk, idle = math.sin(self.walked * 3.5), math.sin(self.number * 0.13)
        self.sway = np.array([habits.hand_bob * walk - habits.hand_lag * motion.turn, habits.hand_bob * abs(walk)])
        if self.take.third_person:
            if self.draws.random() < habits.pushed:
                self.closer = float(self.draws.uniform(1, 3))
            elif self.draws.random() < 0.05:
                self.closer = 1.0
            self.near += (self.closer - self.near) * 0.3
        self.sway[1] += habits.hand_idle * idle + habits.hand_lag * abs(motion.look)
        if panel is None:
            return
        if self.draws.random() < 0.03:
            _count(panel, self.draws)
        if self.words is None and self.draws.random() < habits.messages:
            self.words = np.zeros_like(panel)
            at = self.rng.randrange(panel.shape[1] // 2), self.rng.randrange(12, panel.shape[0])
            _write(self.words, "".join(self.rng.sample("ABCDEFGHIK LMNO", 10)), at, self.rng.uniform(0.8, 1.5))
        elif self.words is not None and self.draws.random() < 0.02:
            self.words = None

    def draw(self) -> NDArray[np.uint8]:
        """Draw the frame."""
        picture, self.depth_ahead = self.world.draw(self.eye, self.take.size, self.optics.focal_px)
        picture *= self.pulse * self.flicker
        if self.tint.any():
            picture += self.tint
        for flake in self.flakes:
            _draw_flakes(picture, flake)
        if self.hand is not None:
            _draw_hand(picture, self.hand, self.sway, self.near)
        for panel in (self.panel, self.words):
            if panel is not None:
                picture += (panel[..., :3] - picture) * (panel[..., 3:] / np.float32(255))
        if self.menu is not None:
            picture += (self.menu[..., :3] - picture) * self.menu[..., 3:]
        levels = np.clip(picture, 0, 255).astype(np.uint8)
        return np.asarray(cv2.LUT(levels, self.gamma))


def _distance(wall: Wall, x: float, y: float) -> float:
    (x0, y0), (x1, y1) = wall.start, wall.end
    step = np.array([x1 - x0, y1 - y0])
    along = max(0.0, min(1.0, float((np.array([x - x0, y - y0]) @ step) / max(step @ step, 1e-9))))
    return math.hypot(x - x0 - along * step[0], y - y0 - along * step[1])


def _build_world(stage: _Stage) -> World:
    rng, draws = stage.rng, stage.draws
    indoors = rng.random() < 0.5
    gain = draws.uniform(0.5, 1.3) * draws.uniform(0.8, 1.1, 3)
    light = Light(
        gain.astype(np.float32), draws.uniform(10, 200, 3).astype(np.float32), rng.uniform(15, 90), rng.uniform(0.7, 1.4)
    )
    floor, ceiling, sky, wall = (rng.randrange(_TEXTURES) for _ in range(4))
    ceiling_m = rng.uniform(2.6, 5)
    world = World(make_atlas(draws, _TEXTURES), floor, ceiling if indoors else None, sky, ceiling_m, light, rng.uniform(1, 4))
    half, top = stage.half_m, ceiling_m if indoors else rng.uniform(1.5, 8)
    corners = [(-half, -half), (half, -half), (half, half), (-half, half)]
    for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
        world.walls.append(Wall(start, end, 0.0, top, wall, rng.uniform(1.5, 4)))
    return world


def _furnish(stage: _Stage) -> None:
    """Add blocks, doors, and things that stand about."""
    rng, half = stage.rng, stage.half_m - 1.5

    def spot() -> tuple[float, float]:
        while True:
            x, y = rng.uniform(-half, half), rng.uniform(-half, half)
            if math.hypot(x, y) > 2:
                return x, y

    for _ in range(rng.randrange(3, 9)):
        x, y = spot()
        top = stage.world.ceiling_m if rng.random() < 0.4 else rng.uniform(0.4, 2.5)
        stage.world.walls += _block(x, y, rng.uniform(0.4, 2.5), top, rng.randrange(_TEXTURES))
    for _ in range(rng.randrange(2, 6)):
        x, y = spot()
        block = _block(x, y, rng.uniform(0.5, 1.0), rng.uniform(0.5, 1.2), rng.randrange(_TEXTURES))
        stage.world.walls += block
        stage.blocks.append(block)
    for _ in range(rng.randrange(2, 5)):
        x, y = spot()
        angle, wide, high = rng.uniform(0, math.pi), rng.uniform(1, 3), rng.uniform(1.8, stage.world.ceiling_m)
        along = np.array([math.cos(angle), math.sin(angle)])
        door = Wall((x, y), (x + wide * along[0], y + wide * along[1]), 0.0, high, rng.randrange(_TEXTURES), wide)
        stage.doors.append(door)
        for side in (-1, 1):
            at = np.array([x, y]) + (wide if side > 0 else 0) * along
            far = at + side * rng.uniform(0.3, 1.5) * along
            stage.world.walls.append(Wall((at[0], at[1]), (far[0], far[1]), 0.0, high * 1.1, rng.randrange(_TEXTURES)))
    stage.world.walls += stage.doors
    pictures = [paint_figure(stage.draws) for _ in range(3)]
    for _ in range(rng.randrange(0, 12)):
        x, y = spot()
        stage.world.sprites.append(Sprite(rng.choice(pictures), (x, y, 0.0), rng.uniform(0.4, 3.0)))


def _block(x: float, y: float, side: float, top: float, texture: int, bottom: float = 0.0) -> list[Wall]:
    half = side / 2
    corners = [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    return [Wall(a, b, bottom, top, texture, side) for a, b in zip(corners, corners[1:] + corners[:1], strict=True)]


def paint_figure(rng: np.random.Generator, parts: int = 5) -> NDArray[np.uint8]:
    """Paint something or someone out of ellipses, [96, 64, 4] with opacity; its lower edge is its foot."""
    picture = np.zeros((96, 64, 4), np.uint8)
    for number in range(parts):
        colour = [int(value) for value in rng.integers(20, 235, 3)]
        middle = (int(rng.integers(20, 44)), int(90 - number * 80 / parts - rng.integers(0, 12)))
        axes = (int(rng.integers(6, 20)), int(rng.integers(8, 24)))
        cv2.ellipse(picture, middle, axes, float(rng.uniform(-40, 40)), 0, 360, (*colour, 255), -1)
    shaded = picture[..., :3] * (0.6 + 0.6 * np.tile(noise(rng, 128, 8)[:96, :64, None], (1, 1, 3)))
    picture[..., :3] = np.clip(shaded, 0, 255)
    return picture


def _glow(draws: np.random.Generator, colour: NDArray[np.float64]) -> NDArray[np.uint8]:
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    ragged = np.hypot(x, y) + 0.5 * (noise(draws, 64, 6) - 0.5)
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[..., :3] = np.clip(colour * (1.5 - 0.7 * np.clip(ragged, 0, 1))[..., None], 0, 255)
    picture[..., 3] = np.clip(255 * (1.1 - ragged) * 2, 0, 255)
    return picture


def _paint_hand(stage: _Stage) -> _Hand:
    rng, draws = stage.rng, stage.draws
    picture = paint_figure(draws, rng.randrange(2, 6))
    if stage.take.third_person:
        return _Hand(picture, (0.5, rng.uniform(0.6, 0.75)), rng.uniform(0.25, 0.5))
    return _Hand(
        picture, (rng.uniform(0.5, 0.9), rng.uniform(0.85, 1.0)), rng.uniform(0.3, 1.0), turned_deg=rng.uniform(-50, 50)
    )


def _paint_panel(stage: _Stage) -> NDArray[np.uint8]:
    rng, (width, height) = stage.rng, stage.take.size
    panel = np.zeros((height, width, 4), np.uint8)
    for _ in range(rng.randrange(1, 5)):
        wide, high = rng.randrange(20, width // 2), rng.randrange(8, max(9, height // 7))
        x, y = rng.randrange(0, width - wide), rng.choice([2, height - high - 2])
        tone = [rng.randrange(256) for _ in range(3)]
        cv2.rectangle(panel, (x, y), (x + wide, y + high), (*tone, rng.choice([120, 200, 255])), -1)
        cv2.putText(
            panel, str(rng.randrange(1000)), (x + 2, y + high - 2), cv2.FONT_HERSHEY_PLAIN, high / 16, (240, 240, 240, 255), 1
        )
    return panel


def _count(panel: NDArray[np.uint8], draws: np.random.Generator) -> None:
    """Change a number of a panel, as one that counts."""
    height, width = panel.shape[:2]
    x, y = int(draws.integers(0, width - 30)), int(draws.choice([2, height - 14]))
    if panel[y + 5, x + 5, 3]:
        cv2.rectangle(panel, (x, y), (x + 24, y + 11), (40, 40, 40, 255), -1)
        _write(panel, str(draws.integers(100)), (x + 2, y + 10), 0.8)


def _write(panel: NDArray[np.uint8], text: str, at: tuple[int, int], size: float) -> None:
    cv2.putText(panel, text, at, cv2.FONT_HERSHEY_PLAIN, size, (240, 240, 240, 255), 1)


def _draw_hand(picture: Floats, hand: _Hand, sway: Vector, near: float) -> None:
    height, width = picture.shape[:2]
    tall = hand.height * height * near
    x = hand.at[0] * width + (hand.offset[0] + sway[0]) * tall
    y = hand.at[1] * height + (hand.offset[1] + sway[1]) * tall
    scale = tall / hand.picture.shape[0]
    turn = cv2.getRotationMatrix2D((32, 60), hand.turned_deg, scale)
    turn[:, 2] += (x - 32, y - 60)
    drawn = cv2.warpAffine(hand.picture, turn, (width, height), flags=cv2.INTER_LINEAR).astype(np.float32)
    picture += (drawn[..., :3] - picture) * (drawn[..., 3:] / 255)
    if hand.flash:
        at = (round(x - 0.3 * tall), round(y - 0.6 * tall))
        cv2.circle(picture, at, max(2, round(hand.flash * tall)), (255.0, 240.0, 180.0), -1, cv2.LINE_AA)


def _draw_flakes(picture: Floats, flakes: NDArray[np.float64]) -> None:
    height, width = picture.shape[:2]
    for x, y, dx, dy, tone, size in flakes:
        start = (round(x * width), round(y * height))
        cv2.line(picture, start, (round((x + dx) * width), round((y + dy) * height)), (tone, tone, tone), int(size))
    flakes[:, 0] = (flakes[:, 0] + flakes[:, 2]) % 1
    flakes[:, 1] += flakes[:, 3]
    flakes[flakes[:, 1] > 1, 1] -= 1


# What can happen: each act is a generator with a step a frame.


def _swing(stage: _Stage, frames: int) -> _Act:
    hand = stage.hand
    if hand is None:
        return
    way, turn = np.array([stage.rng.uniform(-0.5, 0), stage.rng.uniform(-0.4, 0.1)]), stage.rng.uniform(-70, 70)
    start = hand.turned_deg
    for step in range(frames):
        swung = math.sin(math.pi * (step + 1) / (frames + 1))
        hand.offset, hand.turned_deg = way * swung, start + turn * swung
        yield
    hand.offset, hand.turned_deg = np.zeros(2), start


def _maybe_swing(stage: _Stage) -> None:
    if stage.hand is not None and stage.rng.random() < 0.7:
        stage.acts.append(_swing(stage, stage.rng.randrange(6, 12)))


def _place(stage: _Stage) -> _Act:
    at = stage.place_ahead()
    if at is None:
        return
    _maybe_swing(stage)
    side = stage.rng.uniform(0.5, 1.2)
    if stage.rng.random() < 0.7:
        block = _block(at[0], at[1], side, side, stage.rng.randrange(_TEXTURES))
        stage.world.walls += block
        stage.blocks.append(block)
    else:
        stage.world.sprites.append(Sprite(paint_figure(stage.draws), at, stage.rng.uniform(0.4, 1.2)))
    stage.log("place", _SHOWN, (at[0], at[1], side / 2), max(side, 0.5))
    yield


def _dig(stage: _Stage) -> _Act:
    seen = [block for block in stage.blocks if stage.sees(*_middle(block), 0.5, 5.0)]
    if not seen:
        return
    block = stage.rng.choice(seen)
    at, frames, cracks = _middle(block), stage.rng.randrange(4, 40), stage.rng.randrange(2, 8)
    stage.log("dig", frames + _SHOWN, (*at, 0.4), 0.7)
    for step in range(frames):
        if stage.hand is not None and step % 9 == 0:
            stage.acts.append(_swing(stage, 8))
        if step % cracks == 0:
            for wall in block:
                wall.shade, wall.slide = 1 - 0.5 * step / frames, stage.rng.uniform(0, 0.2)
            if stage.rng.random() < 0.3:
                stage.acts.append(_burst(stage, (*at, 0.4), stage.rng.randrange(1, 5), 0.1))
        yield
    stage.world.walls = [wall for wall in stage.world.walls if wall not in block]
    stage.blocks.remove(block)
    yield from _burst(stage, (*at, 0.4), stage.rng.randrange(0, 8), 0.2)


def _middle(block: list[Wall]) -> tuple[float, float]:
    x, y = np.mean([wall.start for wall in block], axis=0)
    return float(x), float(y)


def _burst(stage: _Stage, at: tuple[float, float, float], count: int, speed: float) -> _Act:
    """Throw pieces about."""
    colour = stage.draws.uniform(60, 255, 3)
    pieces = [Sprite(_glow(stage.draws, colour), at, stage.rng.uniform(0.05, 0.25)) for _ in range(count)]
    ways = [np.array([stage.rng.gauss(0, 1), stage.rng.gauss(0, 1), stage.rng.uniform(0.5, 3)]) * speed for _ in pieces]
    stage.world.sprites += pieces
    for _ in range(10):
        for piece, way in zip(pieces, ways, strict=True):
            x, y, z = np.array(piece.at) + way
            piece.at, way[2] = (float(x), float(y), max(0.0, float(z))), way[2] - 0.1 * speed
        yield
    stage.world.sprites = [one for one in stage.world.sprites if one not in pieces]


def _torch(stage: _Stage) -> _Act:
    at = stage.place_ahead()
    if at is None:
        return
    _maybe_swing(stage)
    high = stage.rng.uniform(0.2, 1.4)
    colour = np.array([255.0, 200.0, 90.0])
    stage.world.sprites.append(
        Sprite(_glow(stage.draws, colour), (at[0], at[1], high), stage.rng.uniform(0.3, 0.8), glows=True)
    )
    stage.log("torch", _SHOWN, (at[0], at[1], high), 0.7)
    stage.world.light.gain *= np.float32(stage.rng.uniform(1.0, 1.25))
    yield


def _explosion(stage: _Stage) -> _Act:
    at = stage.place_ahead()
    if at is None:
        return
    stage.log("explosion", 36, (at[0], at[1], 0.8), 1.2)
    ball = Sprite(_glow(stage.draws, stage.draws.uniform((200, 80, 0), (255, 255, 200))), at, 0.3, glows=True)
    stage.world.sprites.append(ball)
    stage.acts.append(_burst(stage, (at[0], at[1], 0.8), stage.rng.randrange(0, 20), 0.25))
    large, bright, quick = stage.rng.uniform(1.5, 3.5), stage.rng.uniform(1.0, 1.6), stage.rng.randrange(4, 12)
    for step in range(36):
        ball.height_m = 0.3 + large * min(1.0, step / quick)
        ball.opacity = 1.0 - max(0.0, (step - quick) / (36 - quick))
        stage.pulse = 1 + (bright - 1) * max(0.0, 1 - step / 8)
        yield
    stage.pulse = 1.0
    stage.world.sprites = [one for one in stage.world.sprites if one is not ball]


def _weather(stage: _Stage) -> _Act:
    stage.log("weather", FPS)
    light, rng, draws = stage.world.light, stage.rng, stage.draws
    gain, fog, fog_m = light.gain.copy(), light.fog.copy(), light.fog_m
    new_gain = (draws.uniform(0.3, 1.4) * draws.uniform(0.8, 1.1, 3)).astype(np.float32)
    new_fog, new_fog_m = draws.uniform(10, 220, 3).astype(np.float32), rng.uniform(6, 60)
    frames = rng.choice([1, 10, 30])
    if stage.flakes:
        stage.flakes = []
    elif rng.random() < 0.7:
        count, fall, large = rng.randrange(60, 300), rng.uniform(0.01, 0.08), rng.choice([1, 3, 9])
        places = draws.random((count, 2)) - (0, rng.choice([0, 1]))  # all at once, or from above
        ways = np.stack([draws.normal(0, 0.004, count), fall * draws.uniform(0.7, 1.3, count)], 1)
        sizes = np.maximum(1, large * draws.random((count, 1)) ** 4)
        stage.flakes = [np.concatenate([places, ways, draws.uniform(140, 255, (count, 1)), sizes], 1)]
        if rng.random() < 0.5:
            return
    for step in range(frames):
        share = (step + 1) / frames
        light.gain, light.fog = gain + (new_gain - gain) * share, fog + (new_fog - fog) * share
        light.fog_m = fog_m + (new_fog_m - fog_m) * share
        yield


def _appear(stage: _Stage) -> _Act:
    at = stage.place_ahead()
    if at is None:
        return
    high = stage.rng.uniform(1.0, 2.4)
    figure = Sprite(paint_figure(stage.draws), at, high, opacity=0.0)
    stage.world.sprites.append(figure)
    stage.log("appear", 15, (at[0], at[1], high / 2), high / 2)
    frames = stage.rng.choice([1, 1, 10])
    for step in range(frames):
        figure.opacity = (step + 1) / frames
        yield
    stage.wanderers.append(figure)


def _shot(stage: _Stage) -> _Act:
    hand, rng = stage.hand, stage.rng
    if hand is None:
        return
    period, flash, kick, bright = rng.randrange(4, 14), rng.uniform(0, 0.2), rng.uniform(-0.15, 0.15), rng.uniform(1, 1.4)
    shots = rng.choice([1, 1, 2, 4])
    stage.log("shot", (shots - 1) * period + 6)
    for _ in range(shots):
        for step in range(period):
            hand.flash = flash if step < 2 else 0.0
            hand.offset = np.array([kick, abs(kick)]) * max(0.0, 1 - step / 5)
            stage.pulse = bright if step < 2 else 1.0
            yield
    hand.flash, stage.pulse, hand.offset = 0.0, 1.0, np.zeros(2)


def _wield(stage: _Stage) -> _Act:
    hand, frames = stage.hand, stage.rng.randrange(3, 9)
    if hand is None:
        return
    stage.log("wield", 2 * frames)
    for step in range(2 * frames):
        if step == frames:
            hand.picture = paint_figure(stage.draws, stage.rng.randrange(2, 6))
        hand.offset = np.array([0.0, 1 - abs(step - frames) / frames])
        yield
    hand.offset = np.zeros(2)


def _menu(stage: _Stage) -> _Act:
    rng, (width, height) = stage.rng, stage.take.size
    menu = np.zeros((height, width, 4), np.float32)
    menu[..., 3] = rng.choice([0.0, 0.3, 0.6])
    wide, high = rng.randrange(width // 3, width), rng.randrange(height // 3, height)
    x, y = (width - wide) // 2, (height - high) // 2
    menu[y : y + high, x : x + wide] = (*stage.draws.uniform(20, 230, 3), rng.uniform(0.7, 1))
    cell = rng.randrange(10, 28)
    for row in range(y + 4, y + high - cell, cell + 2):
        for column in range(x + 4, x + wide - cell, cell + 2):
            menu[row : row + cell, column : column + cell, :3] = stage.draws.uniform(20, 230)
    stage.busy, stage.menu = True, menu
    stage.log("menu", _SHOWN)
    for _ in range(rng.randrange(20, 90)):
        yield
    stage.log("menu", _SHOWN)
    stage.menu, stage.busy = None, False


def _door(stage: _Stage) -> _Act:
    seen = [door for door in stage.doors if stage.sees(*_middle([door]), 1.2, 9.0)]
    if not seen:
        return
    door, rng = stage.rng.choice(seen), stage.rng
    way, frames = rng.choice(["up", "aside", "swing", "swap"]), rng.randrange(10, 45)
    frames = 1 if way == "swap" else frames
    wide = math.dist(door.start, door.end)
    at = (*_middle([door]), door.top_m / 2)
    stage.log("door", max(frames, 6), at, max(wide, door.top_m) / 2)
    bottom, end, start = door.bottom_m, np.array(door.end), np.array(door.start)
    turned = np.array([-(end - start)[1], (end - start)[0]])
    raised = door.top_m - 0.2 if bottom == 0.0 else 0.0
    for step in range(frames):
        share = (step + 1) / frames
        if way == "up":
            door.bottom_m = bottom + (raised - bottom) * share
        elif way == "aside":
            shifted = start + (end - start) * 0.9 * share
            door.start = (float(shifted[0]), float(shifted[1]))
        else:
            swung = start + (end - start) * math.cos(share * math.pi / 2) + turned * math.sin(share * math.pi / 2)
            door.end = (float(swung[0]), float(swung[1]))
        yield
    if way == "aside":  # it comes back out of sight
        stage.doors.remove(door)


def _hurt(stage: _Stage) -> _Act:
    stage.log(OTHER, 10)
    colour = stage.draws.uniform((40, 0, 0), (140, 60, 60))
    for step in range(10):
        stage.tint = colour * (1 - step / 10)
        yield
    stage.tint = np.zeros(3)


_ACTS: dict[str, Callable[[_Stage], _Act]] = {
    "door": _door,
    "shot": _shot,
    "wield": _wield,
    "place": _place,
    "dig": _dig,
    "torch": _torch,
    "explosion": _explosion,
    "weather": _weather,
    "appear": _appear,
    "menu": _menu,
    "hurt": _hurt,
}


def _happen(stage: _Stage) -> Iterator[None]:
    """Let something happen every few seconds: in each take a few of the kinds."""
    kinds = stage.rng.sample(sorted(_ACTS), stage.rng.randrange(4, 8))
    while True:
        for _ in range(round(FPS * stage.rng.uniform(0.4, 2.5))):
            yield
        if not stage.busy:
            stage.acts.append(_ACTS[stage.rng.choice(kinds)](stage))


SCENARIOS: dict[str, Callable[[_Stage], Iterator[None]]] = {"mixed": _happen, "walk": lambda _: itertools.repeat(None)}


def _moves(stage: _Stage) -> Iterator[_Motion]:
    """Walk, turn, strafe, back, look, jump and stand."""
    rng, habits, brisk = stage.rng, stage.habits, stage.habits.brisk
    while True:
        draw, seconds, motion, stage.behaviour = rng.random(), rng.uniform(0.4, 2.0), _Motion(), "stand"
        if draw < 0.35:
            stage.behaviour = "walk"
            motion = _Motion(brisk, turn=rng.choice([0, 0, rng.uniform(-60, 60)]), jump=rng.random() < habits.jumpy)
        elif draw < 0.6:
            stage.behaviour = "turn"
            motion = _Motion(rng.choice([0, 0, brisk]), turn=rng.choice([-1, 1]) * rng.uniform(40, habits.quick))
        elif draw < 0.7:
            stage.behaviour = "strafe"
            motion = _Motion(right=rng.choice([-1, 1]) * brisk)
        elif draw < 0.77:
            stage.behaviour, motion = "back", _Motion(-brisk)
        elif draw < 0.85:
            stage.behaviour = "look"
            motion = _Motion(look=rng.choice([-1, 1]) * rng.uniform(25, 90))
            seconds = min(seconds, 0.8)
        for step in range(round(seconds * FPS)):
            level = -stage.eye.pitch_deg * 1.5 if motion.ahead else 0.0
            stopped = step > 0 and float(np.linalg.norm(stage.speed)) < 0.1 * motion.ahead
            away = _AWAY_DEG_S if motion.ahead > 0 and (stage.depth_ahead < 1.0 or stopped) else 0.0
            yield replace(motion, turn=motion.turn + away, look=motion.look + level)


def _wander(stage: _Stage) -> None:
    """Move who has appeared, and let go who is out of sight for good."""
    for one in stage.wanderers:
        bearing = 2 * math.pi * math.sin(stage.number / 90 + one.height_m * 50)
        x, y, z = one.at
        one.at = (x + math.cos(bearing) * 1.2 / FPS, y + math.sin(bearing) * 1.2 / FPS, z)
    gone = [one for one in stage.wanderers if not stage.sees(*one.at[:2], one.height_m / 2, 99.0) and stage.rng.random() < 0.2]
    stage.wanderers = [one for one in stage.wanderers if one not in gone]
    stage.world.sprites = [one for one in stage.world.sprites if one not in gone]


def _runs_of_others(seen: list[bool]) -> Iterator[EventSpan]:
    """Yield the stretches in which someone walks about in view: what has appeared is no event any more."""
    edges = np.flatnonzero(np.diff(np.array([False, *seen, False]).astype(int)))
    for start, end in edges.reshape(-1, 2).tolist():
        yield EventSpan(OTHER, start, end)


def play(take: Take, encode: Callable[[NDArray[np.uint8]], None]) -> Played:
    """Record a take."""
    stage = _Stage(take)
    moves, course = _moves(stage), SCENARIOS[take.scenario](stage)
    frames: list[FrameTruth] = []
    seen_wanderers: list[bool] = []
    for number in range(round(take.seconds * FPS)):
        stage.number = number
        encode(stage.draw())
        frames.append(stage.frame_truth())
        seen_wanderers.append(any(stage.sees(*one.at[:2], one.height_m / 2, 99.0) for one in stage.wanderers))
        motion = next(moves) if not stage.busy else _Motion()
        stage.move(motion)
        stage.live(motion)
        _wander(stage)
        next(course)
        stage.acts = [act for act in stage.acts if next(act, stage) is None]
    events = [*stage.events, *_runs_of_others(seen_wanderers)]
    return Played({"game": "painted", "indoors": stage.world.ceiling is not None}, stage.optics, frames, events, [])


ENGINE = Engine(tuple(SCENARIOS), FPS, play)
