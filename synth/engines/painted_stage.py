"""The stage of the painted game: a world, the player with hand and panels, and how all of it moves while nothing happens.

`synth.engines.painted` lets things happen on it.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from synth.engines.painted_world import TEXTURES, Eye, Floats, Light, Sprite, Wall, World, make_atlas, noise
from synth.engines.takes import Take
from synth.engines.truth_file import OTHER, EventSpan, FrameTruth, Optics, view_of

FPS = 30
_EYE_M, _ROOM_M, _REACH_M = 1.6, 0.5, 5.5  # of the eye, between it and what it cannot walk through, of what is acted
_MOMENTUM = 0.8  # of the speed that is left after a frame
Act = Iterator[None]
"""Something that happens, with a step a frame."""
Vector = NDArray[np.float64]


@dataclass
class Motion:
    """What the player does in a frame."""

    ahead: float = 0.0  # m/s
    right: float = 0.0
    turn: float = 0.0  # degrees a second, to the right
    look: float = 0.0  # degrees a second, upwards
    jump: bool = False


@dataclass
class Hand:
    """What is drawn over the view: a hand with a tool, or the player from behind."""

    picture: NDArray[np.uint8]  # [H, W, 4]
    at: tuple[float, float]  # of its middle, as shares of the picture
    height: float  # share of the picture's
    offset: Vector = field(default_factory=lambda: np.zeros(2))  # shares of its height
    turned_deg: float = 0.0
    flash: float = 0.0


@dataclass(frozen=True)
class Habits:
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


def _draw_habits(rng: random.Random, walls: list[Wall]) -> Habits:
    return Habits(
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


class Stage:
    """A painted world, its player, and what happens in it."""

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
        self.acts: list[Act] = []
        self.busy = False  # a menu is open
        self.behaviour = "stand"
        self.depth_ahead = 3.0

    def log(self, kind: str, frames: int, at: tuple[float, float, float] | None = None, radius_m: float = 0.5) -> None:
        """Log an event whose first picture is the next one."""
        first = self.number + 1
        self.events.append(EventSpan(kind, first, first + frames, at, radius_m))

    def remove(self, *sprites: Sprite) -> None:
        """Take sprites out of the world."""
        self.world.sprites = [one for one in self.world.sprites if one not in sprites]

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

    def move(self, motion: Motion) -> None:
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

    def live(self, motion: Motion) -> None:
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


def _build_world(stage: Stage) -> World:
    rng, draws = stage.rng, stage.draws
    indoors = rng.random() < 0.5
    gain = draws.uniform(0.5, 1.3) * draws.uniform(0.8, 1.1, 3)
    light = Light(
        gain.astype(np.float32), draws.uniform(10, 200, 3).astype(np.float32), rng.uniform(15, 90), rng.uniform(0.7, 1.4)
    )
    floor, ceiling, sky, wall = (rng.randrange(TEXTURES) for _ in range(4))
    ceiling_m = rng.uniform(2.6, 5)
    world = World(make_atlas(draws), floor, ceiling if indoors else None, sky, ceiling_m, light, rng.uniform(1, 4))
    half, top = stage.half_m, ceiling_m if indoors else rng.uniform(1.5, 8)
    corners = [(-half, -half), (half, -half), (half, half), (-half, half)]
    for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
        world.walls.append(Wall(start, end, 0.0, top, wall, rng.uniform(1.5, 4)))
    return world


def _furnish(stage: Stage) -> None:
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
        stage.world.walls += block_of(x, y, rng.uniform(0.4, 2.5), top, rng.randrange(TEXTURES))
    for _ in range(rng.randrange(2, 6)):
        x, y = spot()
        block = block_of(x, y, rng.uniform(0.5, 1.0), rng.uniform(0.5, 1.2), rng.randrange(TEXTURES))
        stage.world.walls += block
        stage.blocks.append(block)
    for _ in range(rng.randrange(2, 5)):
        x, y = spot()
        angle, wide, high = rng.uniform(0, math.pi), rng.uniform(1, 3), rng.uniform(1.8, stage.world.ceiling_m)
        along = np.array([math.cos(angle), math.sin(angle)])
        door = Wall((x, y), (x + wide * along[0], y + wide * along[1]), 0.0, high, rng.randrange(TEXTURES), wide)
        stage.doors.append(door)
        for side in (-1, 1):
            at = np.array([x, y]) + (wide if side > 0 else 0) * along
            far = at + side * rng.uniform(0.3, 1.5) * along
            stage.world.walls.append(Wall((at[0], at[1]), (far[0], far[1]), 0.0, high * 1.1, rng.randrange(TEXTURES)))
    stage.world.walls += stage.doors
    pictures = [paint_figure(stage.draws) for _ in range(3)]
    for _ in range(rng.randrange(0, 12)):
        x, y = spot()
        stage.world.sprites.append(Sprite(rng.choice(pictures), (x, y, 0.0), rng.uniform(0.4, 3.0)))


def block_of(x: float, y: float, side: float, top: float, texture: int) -> list[Wall]:
    """Build a block of four walls."""
    half = side / 2
    corners = [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    return [Wall(a, b, 0.0, top, texture, side) for a, b in zip(corners, corners[1:] + corners[:1], strict=True)]


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


def paint_glow(draws: np.random.Generator, colour: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Paint a ragged ball of light, [64, 64, 4] with opacity."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    ragged = np.hypot(x, y) + 0.5 * (noise(draws, 64, 6) - 0.5)
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[..., :3] = np.clip(colour * (1.5 - 0.7 * np.clip(ragged, 0, 1))[..., None], 0, 255)
    picture[..., 3] = np.clip(255 * (1.1 - ragged) * 2, 0, 255)
    return picture


def _paint_hand(stage: Stage) -> Hand:
    rng, draws = stage.rng, stage.draws
    picture = paint_figure(draws, rng.randrange(2, 6))
    if stage.take.third_person:
        return Hand(picture, (0.5, rng.uniform(0.6, 0.75)), rng.uniform(0.25, 0.5))
    return Hand(
        picture, (rng.uniform(0.5, 0.9), rng.uniform(0.85, 1.0)), rng.uniform(0.3, 1.0), turned_deg=rng.uniform(-50, 50)
    )


def _paint_panel(stage: Stage) -> NDArray[np.uint8]:
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


def _draw_hand(picture: Floats, hand: Hand, sway: Vector, near: float) -> None:
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


def middle_of(block: list[Wall]) -> tuple[float, float]:
    """Return the place of a block or a wall."""
    x, y = np.mean([wall.start for wall in block], axis=0)
    return float(x), float(y)
