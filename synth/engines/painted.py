"""A game of our own that needs no installation: painted worlds in which all kinds of events happen, each look another.

`synth.engines.recorder` records it. Nobody would play it: it is variety to train detectors on. No two takes share textures,
colours, hands, panels, the way that a hand swings, or how a door opens, so what a detector learns here is not how one game
looks. `painted_stage` is the world and its player, which `painted_world` draws. In `mixed` something happens every few seconds,
in `walk` nothing does.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from synth.doom.truth import runs
from synth.engines.painted_stage import FPS, Act, Motion, Stage, block_of, middle_of, paint_figure, paint_glow
from synth.engines.painted_world import TEXTURES, Sprite
from synth.engines.takes import Engine, Played, Take
from synth.engines.truth_file import OTHER, EventSpan, FrameTruth

_AWAY_DEG_S = 150.0  # a turn where a wall is ahead
_SHOWN = 8  # frames in which what happens at once counts as shown
Place = tuple[float, float, float]


# What can happen: each act is a generator with a step a frame.


def _ahead(act: Callable[[Stage, Place], Act]) -> Callable[[Stage], Act]:
    """Let an act happen at a free place ahead of the player. Where there is none, nothing happens."""

    def act_there(stage: Stage) -> Act:
        at = stage.place_ahead()
        if at is not None:
            yield from act(stage, at)

    return act_there


def _swing(stage: Stage, frames: int) -> Act:
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


def _maybe_swing(stage: Stage) -> None:
    if stage.hand is not None and stage.rng.random() < 0.7:
        stage.acts.append(_swing(stage, stage.rng.randrange(6, 12)))


@_ahead
def _place(stage: Stage, at: Place) -> Act:
    _maybe_swing(stage)
    side = stage.rng.uniform(0.5, 1.2)
    if stage.rng.random() < 0.7:
        block = block_of(at[0], at[1], side, side, stage.rng.randrange(TEXTURES))
        stage.world.walls += block
        stage.blocks.append(block)
    else:
        stage.world.sprites.append(Sprite(paint_figure(stage.draws), at, stage.rng.uniform(0.4, 1.2)))
    stage.log("place", _SHOWN, (at[0], at[1], side / 2), max(side, 0.5))
    yield


def _dig(stage: Stage) -> Act:
    seen = [block for block in stage.blocks if stage.sees(*middle_of(block), 0.5, 5.0)]
    if not seen:
        return
    block = stage.rng.choice(seen)
    stage.blocks.remove(block)  # nothing else is done to it
    at, frames, cracks = middle_of(block), stage.rng.randrange(4, 40), stage.rng.randrange(2, 8)
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
    yield from _burst(stage, (*at, 0.4), stage.rng.randrange(0, 8), 0.2)


def _burst(stage: Stage, at: tuple[float, float, float], count: int, speed: float) -> Act:
    """Throw pieces about."""
    colour = stage.draws.uniform(60, 255, 3)
    pieces = [Sprite(paint_glow(stage.draws, colour), at, stage.rng.uniform(0.05, 0.25)) for _ in range(count)]
    ways = [np.array([stage.rng.gauss(0, 1), stage.rng.gauss(0, 1), stage.rng.uniform(0.5, 3)]) * speed for _ in pieces]
    stage.world.sprites += pieces
    for _ in range(10):
        for piece, way in zip(pieces, ways, strict=True):
            x, y, z = np.array(piece.at) + way
            piece.at, way[2] = (float(x), float(y), max(0.0, float(z))), way[2] - 0.1 * speed
        yield
    stage.remove(*pieces)


@_ahead
def _torch(stage: Stage, at: Place) -> Act:
    _maybe_swing(stage)
    high = stage.rng.uniform(0.2, 1.4)
    colour = np.array([255.0, 200.0, 90.0])
    stage.world.sprites.append(
        Sprite(paint_glow(stage.draws, colour), (at[0], at[1], high), stage.rng.uniform(0.3, 0.8), glows=True)
    )
    stage.log("torch", _SHOWN, (at[0], at[1], high), 0.7)
    stage.world.light.gain *= np.float32(stage.rng.uniform(1.0, 1.25))
    yield


@_ahead
def _explosion(stage: Stage, at: Place) -> Act:
    stage.log("explosion", 36, (at[0], at[1], 0.8), 1.2)
    ball = Sprite(paint_glow(stage.draws, stage.draws.uniform((200, 80, 0), (255, 255, 200))), at, 0.3, glows=True)
    stage.world.sprites.append(ball)
    stage.acts.append(_burst(stage, (at[0], at[1], 0.8), stage.rng.randrange(0, 20), 0.25))
    large, bright, quick = stage.rng.uniform(1.5, 3.5), stage.rng.uniform(1.0, 1.6), stage.rng.randrange(4, 12)
    for step in range(36):
        ball.height_m = 0.3 + large * min(1.0, step / quick)
        ball.opacity = 1.0 - max(0.0, (step - quick) / (36 - quick))
        stage.pulse = 1 + (bright - 1) * max(0.0, 1 - step / 8)
        yield
    stage.pulse = 1.0
    stage.remove(ball)


def _weather(stage: Stage) -> Act:
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


@_ahead
def _appear(stage: Stage, at: Place) -> Act:
    high = stage.rng.uniform(1.0, 2.4)
    figure = Sprite(paint_figure(stage.draws), at, high, opacity=0.0)
    stage.world.sprites.append(figure)
    stage.log("appear", 15, (at[0], at[1], high / 2), high / 2)
    frames = stage.rng.choice([1, 1, 10])
    for step in range(frames):
        figure.opacity = (step + 1) / frames
        yield
    stage.wanderers.append(figure)


def _shot(stage: Stage) -> Act:
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


def _wield(stage: Stage) -> Act:
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


def _menu(stage: Stage) -> Act:
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


def _door(stage: Stage) -> Act:
    seen = [door for door in stage.doors if stage.sees(*middle_of([door]), 1.2, 9.0)]
    if not seen:
        return
    door, rng = stage.rng.choice(seen), stage.rng
    stage.doors.remove(door)  # nothing else is done to it
    way, frames = rng.choice(["up", "aside", "swing", "swap"]), rng.randrange(10, 45)
    frames = 1 if way == "swap" else frames
    wide = math.dist(door.start, door.end)
    at = (*middle_of([door]), door.top_m / 2)
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
    if way != "aside":  # that one has left the picture
        stage.doors.append(door)


def _hurt(stage: Stage) -> Act:
    stage.log(OTHER, 10)
    colour = stage.draws.uniform((40, 0, 0), (140, 60, 60))
    for step in range(10):
        stage.tint = colour * (1 - step / 10)
        yield
    stage.tint = np.zeros(3)


_ACTS: dict[str, Callable[[Stage], Act]] = {
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


def _happen(stage: Stage) -> Iterator[None]:
    """Let something happen every few seconds: in each take a few of the kinds."""
    kinds = stage.rng.sample(sorted(_ACTS), stage.rng.randrange(4, 8))
    while True:
        for _ in range(round(FPS * stage.rng.uniform(0.4, 2.5))):
            yield
        if not stage.busy:
            stage.acts.append(_ACTS[stage.rng.choice(kinds)](stage))


SCENARIOS: dict[str, Callable[[Stage], Iterator[None]]] = {"mixed": _happen, "walk": lambda _: itertools.repeat(None)}


def _moves(stage: Stage) -> Iterator[Motion]:
    """Walk, turn, strafe, back, look, jump and stand."""
    rng, habits, brisk = stage.rng, stage.habits, stage.habits.brisk
    while True:
        draw, seconds, motion, stage.behaviour = rng.random(), rng.uniform(0.4, 2.0), Motion(), "stand"
        if draw < 0.35:
            stage.behaviour = "walk"
            motion = Motion(brisk, turn=rng.choice([0, 0, rng.uniform(-60, 60)]), jump=rng.random() < habits.jumpy)
        elif draw < 0.6:
            stage.behaviour = "turn"
            motion = Motion(rng.choice([0, 0, brisk]), turn=rng.choice([-1, 1]) * rng.uniform(40, habits.quick))
        elif draw < 0.7:
            stage.behaviour = "strafe"
            motion = Motion(right=rng.choice([-1, 1]) * brisk)
        elif draw < 0.77:
            stage.behaviour, motion = "back", Motion(-brisk)
        elif draw < 0.85:
            stage.behaviour = "look"
            motion = Motion(look=rng.choice([-1, 1]) * rng.uniform(25, 90))
            seconds = min(seconds, 0.8)
        for step in range(round(seconds * FPS)):
            level = -stage.eye.pitch_deg * 1.5 if motion.ahead else 0.0
            stopped = step > 0 and float(np.linalg.norm(stage.speed)) < 0.1 * motion.ahead
            away = _AWAY_DEG_S if motion.ahead > 0 and (stage.depth_ahead < 1.0 or stopped) else 0.0
            yield replace(motion, turn=motion.turn + away, look=motion.look + level)


def _wander(stage: Stage) -> None:
    """Move who has appeared, and let go who is out of sight for good."""
    for one in stage.wanderers:
        bearing = 2 * math.pi * math.sin(stage.number / 90 + one.height_m * 50)
        x, y, z = one.at
        one.at = (x + math.cos(bearing) * 1.2 / FPS, y + math.sin(bearing) * 1.2 / FPS, z)
    gone = [one for one in stage.wanderers if not stage.sees(*one.at[:2], one.height_m / 2, 99.0) and stage.rng.random() < 0.2]
    stage.wanderers = [one for one in stage.wanderers if one not in gone]
    stage.remove(*gone)


def play(take: Take, encode: Callable[[NDArray[np.uint8]], None]) -> Played:
    """Record a take."""
    stage = Stage(take)
    moves, course = _moves(stage), SCENARIOS[take.scenario](stage)
    frames: list[FrameTruth] = []
    seen_wanderers: list[bool] = []
    for number in range(round(take.seconds * FPS)):
        stage.number = number
        encode(stage.draw())
        frames.append(stage.frame_truth())
        seen_wanderers.append(any(stage.sees(*one.at[:2], one.height_m / 2, 99.0) for one in stage.wanderers))
        motion = next(moves) if not stage.busy else Motion()
        stage.move(motion)
        stage.live(motion)
        _wander(stage)
        next(course)
        stage.acts = [act for act in stage.acts if next(act, stage) is None]
    # Who walks about in view has appeared before, and is no event any more.
    others = [EventSpan(OTHER, start, end) for start, end in runs(np.array(seen_wanderers))]
    return Played(
        {"game": "painted", "indoors": stage.world.ceiling is not None}, stage.optics, frames, [*stage.events, *others], []
    )


ENGINE = Engine(tuple(SCENARIOS), FPS, play)
