"""What OpenArena's renderer drew, frame by frame, and what happened in it: shots, weapons, doors and lifts, explosions.

`idtech3.c` prints the camera and the drawn entities. Where something is drawn that is no event, such as another player, a
span is of kind `other`: the truth does not say that nothing is seen to happen.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synth.doom.truth import runs
from synth.engines.quake_map import QuakeMap
from synth.engines.takes import Take
from synth.engines.truth_file import OTHER, UNITS_PER_M, EventSpan, FrameTruth, Optics, view_of

FPS = 30
_MIRRORS_ONLY, _FIRST_PERSON = 2, 4  # of an entity's flags
_NEAR_UNITS = 130.0  # of the weapon of the player whom a third-person camera shows
_JUMP_UNITS = 60.0  # a step of the eye in one frame that is no move: a teleport, a new life, another player
_DEAD_S, _NEAR_ITEM_UNITS, _TAKEN_SHOWN = 0.1, 80.0, 10  # no weapon so long; how far an item is that vanishes; frames
_ARRIVAL_SHOWN = 24  # frames that a player shines who comes to life or out of a teleporter
_FLASH_GAP, _FLASH_SHOWN, _WEAPON_BEFORE, _WEAPON_SHOWN, _BLAST_SHOWN = 11, 5, 6, 8, 12  # frames
# Things that no kind of event covers, by a part of their names, and the radius of each in units.
_OTHER_RADII = {
    "players": 30.0,
    "ammo/": 12.0,  # a missile
    "plasma1": 16.0,
    "weaphits": 12.0,
    "boom": 38.0,
    "gibs": 8.0,
    "misc/tele": 40.0,
    "bloodExplosion": 16.0,
}


@dataclass(frozen=True)
class Scene:
    """What the renderer drew in a frame. Units are the game's: 32 to a metre."""

    fov_deg: tuple[float, float]
    eye: NDArray[np.float64]
    forward: NDArray[np.float64]
    entities: tuple[tuple[int, str, NDArray[np.float64]], ...]  # flags, model, place

    @property
    def yaw_deg(self) -> float:
        return math.degrees(math.atan2(self.forward[1], self.forward[0]))

    def is_near(self, at: NDArray[np.float64]) -> bool:
        """Return whether a place is where a third-person camera shows its player."""
        return bool(np.linalg.norm(at - self.eye) < _NEAR_UNITS)

    @property
    def pitch_deg(self) -> float:
        return math.degrees(math.asin(max(-1.0, min(1.0, float(self.forward[2])))))


def read_scene(lines: Iterable[str]) -> Scene | None:
    """Read the last scene of the world among the lines that the game printed for a frame."""
    head: list[float] | None = None
    entities: list[tuple[int, str, NDArray[np.float64]]] = []
    for line in lines:
        words = line.split()
        if words[:1] == ["GAMECRAFT_REF"] and len(words) == 20:
            head, entities = [float(word) for word in words[1:]], []
        elif words[:1] == ["GAMECRAFT_ENT"] and len(words) == 7 and not int(words[2]) & _MIRRORS_ONLY:
            entities.append((int(words[2]), words[3], np.array([float(word) for word in words[4:7]])))
    if head is None:
        return None
    return Scene((head[4], head[5]), np.array(head[6:9]), np.array(head[9:12]), tuple(entities))


def own_weapons(scene: Scene, third_person: bool) -> list[str]:
    """Return the models of the weapon that the followed or own player holds."""
    if third_person:
        return [model for _, model, at in scene.entities if "weapons" in model and scene.is_near(at)]
    return [model for flags, model, _ in scene.entities if flags & _FIRST_PERSON and "weapons" in model]


def jumps_of(scenes: Sequence[Scene]) -> list[int]:
    """Return the frames at which the eye is elsewhere. A fall is as fast, but its steps are like the one before or after."""
    steps = np.diff([scene.eye for scene in scenes], axis=0)
    around = np.concatenate([steps[:1], steps, steps[-1:]])
    unlike = np.minimum(*(np.linalg.norm(steps - other, axis=1) for other in (around[:-2], around[2:])))
    far = np.linalg.norm(steps, axis=1) > _JUMP_UNITS
    return [int(number) + 1 for number in np.flatnonzero(far & (unlike > _JUMP_UNITS / 2))]


def event_spans(
    scenes: Sequence[Scene], jumps: Sequence[int], take: Take, movers: Sequence[tuple[NDArray[np.float64], float]]
) -> Iterator[EventSpan]:
    """Find shots, changes of weapon, movers and blasts in what was drawn."""
    drawn = take.hand or take.third_person
    weapons = [own_weapons(scene, take.third_person) for scene in scenes]
    flashes = [any("flash" in model for model in models) for models in weapons]
    if drawn:
        for start, end in _joined_runs(flashes, _FLASH_GAP):
            yield EventSpan("shot", start, end + _FLASH_SHOWN)
        held = [
            next((m for m in models if not any(part in m for part in ("flash", "barrel", "hand"))), None) for models in weapons
        ]
        for number in range(1, len(scenes)):
            if held[number] and held[number - 1] and held[number] != held[number - 1] and number not in jumps:
                yield EventSpan("wield", number - _WEAPON_BEFORE, number + _WEAPON_SHOWN, details={"item": held[number]})
    yield from _shots_of_others(scenes, take)
    yield from _movers(scenes, movers)
    blasts = [[at for _, model, at in scene.entities if "boom" in model] for scene in scenes]
    for start, end in _joined_runs([bool(places) for places in blasts], 4):
        yield EventSpan("explosion", start, min(end + 2, start + _BLAST_SHOWN), _metres(blasts[start][0]), 1.2)


def _shots_of_others(scenes: Sequence[Scene], take: Take) -> Iterator[EventSpan]:
    """Find the shots of players other than the one who is shown: a muzzle flash elsewhere."""
    seen = [_other_flashes(scene, take.third_person) for scene in scenes]
    for start, end in _joined_runs([bool(places) for places in seen], _FLASH_GAP):
        at = next(places[0] for places in seen[start:end] if places)
        yield EventSpan("shot", start, end + _FLASH_SHOWN, _metres(at), 0.6, {"by_other": True})


def _other_flashes(scene: Scene, third_person: bool) -> list[NDArray[np.float64]]:
    return [
        at
        for flags, model, at in scene.entities
        if "weapons" in model and "flash" in model and not flags & _FIRST_PERSON and not (third_person and scene.is_near(at))
    ]


def _movers(scenes: Sequence[Scene], bounds: Sequence[tuple[NDArray[np.float64], float]]) -> Iterator[EventSpan]:
    """Find doors and lifts: models "*N" whose place changes. bounds: middle and radius of each when it is at its origin."""
    moving: dict[str, dict[int, NDArray[np.float64]]] = {}
    before: dict[str, NDArray[np.float64]] = {}
    for number, scene in enumerate(scenes):
        now = {model: at for _, model, at in scene.entities if model.startswith("*")}
        for model, at in now.items():
            if model in before and np.linalg.norm(at - before[model]) > 0.05:
                moving.setdefault(model, {})[number] = at
        before = now
    for model, moves in moving.items():
        middle, radius = bounds[int(model[1:])] if int(model[1:]) < len(bounds) else (np.zeros(3), 0.0)
        for start, end in _joined_runs([number in moves for number in range(len(scenes))], 3):
            at_m = _metres(moves[start] + middle) if radius else None
            yield EventSpan("door", start, end, at_m, radius / UNITS_PER_M, {"model": model})


def is_hidden(event: EventSpan, scenes: Sequence[Scene], quake_map: QuakeMap) -> bool:
    """Return whether walls hide the nearest point of an event for as long as it lasts."""
    if event.at_m is None:
        return False
    at, radius, last = np.array(event.at_m) * UNITS_PER_M, event.radius_m * UNITS_PER_M, min(event.end, len(scenes))
    for scene in scenes[max(0, event.start) : max(last, event.start + 1)]:
        away = scene.eye - at
        distance = float(np.linalg.norm(away))
        if distance <= radius or not quake_map.hides(scene.eye, at + away * (radius / distance)):
            return False
    return True


def other_spans(
    scenes: Sequence[Scene],
    jumps: Sequence[int],
    take: Take,
    quake_map: QuakeMap,
    truths: Sequence[FrameTruth],
    optics: Optics,
) -> Iterator[EventSpan]:
    """Find when something is seen to happen, or may be, that is no event: `other`.

    Another player, a missile, an impact, blood or a teleporter is in view; an item is taken; the screen is tinted since the
    player is hit; the player lies dead or comes to life.
    """
    flags = np.array([_shows_other(*pair, take, quake_map, optics) for pair in zip(scenes, truths, strict=True)], bool)
    armed = np.array([bool(own_weapons(scene, take.third_person)) for scene in scenes])
    if armed.any():
        for start, end in runs(~armed):
            if end - start > _DEAD_S * FPS:
                flags[start:end] = True
    items = [[at for _, model, at in scene.entities if "powerups" in model] for scene in scenes]
    for number in range(1, len(scenes)):
        eye = scenes[number - 1].eye
        near = [at for at in items[number - 1] if np.linalg.norm(at - eye) < _NEAR_ITEM_UNITS]
        left = {tuple(np.rint(at[:2])) for at in items[number]}
        if number not in jumps and any(tuple(np.rint(at[:2])) not in left for at in near):
            flags[number : number + _TAKEN_SHOWN] = True
    for jump in jumps:
        flags[jump : jump + _ARRIVAL_SHOWN] = True
    for start, end in _joined_runs(flags.tolist(), 2):
        yield EventSpan(OTHER, start, end)


def _shows_other(scene: Scene, truth: FrameTruth, take: Take, quake_map: QuakeMap, optics: Optics) -> bool:
    for flags, model, at in scene.entities:
        if "viewBloodBlend" in model:
            return True
        radius = next((radius for part, radius in _OTHER_RADII.items() if part in model), None)
        own = flags & _FIRST_PERSON or (take.third_person and "players" in model and scene.is_near(at))
        if radius is None or own or "powerups" in model:
            continue
        seen = view_of(EventSpan(OTHER, 0, 1, _metres(at), radius / UNITS_PER_M), truth, optics)[2]
        if seen and not quake_map.hides(scene.eye, at):
            return True
    return False


def _joined_runs(flags: Sequence[bool], gap: int) -> list[tuple[int, int]]:
    """Return the runs [start, end) of set flags. Those that are at most `gap` frames apart are joined."""
    joined: list[tuple[int, int]] = []
    for start, end in runs(np.array(flags, bool)):
        if joined and start - joined[-1][1] <= gap:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    return joined


def _metres(at: NDArray[np.float64]) -> tuple[float, float, float]:
    east, north, up = at / UNITS_PER_M
    return float(east), float(north), float(up)
