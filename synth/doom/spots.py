"""Find spots on a map for a take: in front of a shut door, or with an open view ahead."""

import math
import random
from collections.abc import Iterator
from typing import NamedTuple

from synth.doom.events import Observation
from synth.doom.navigate import CELL, Grid, build_grid, find_routes, standing_point
from synth.doom.wad import Level, Point

# Map units that must be free straight ahead, and half of that a little to both sides: room for the thing that appears.
_VIEW = 288.0
_ASIDE_DEG = 18
_HEADINGS = 16
# Map units from a door: it fills the picture with its frame still visible, and the USE key reaches it.
_DOOR_DISTANCE = 58.0


class Spot(NamedTuple):
    """A place on the map and a view direction."""

    x: float
    y: float
    yaw_deg: float
    door: int | None = None  # the sector of the door in view


def find_spots(level: Level, observation: Observation, rng: random.Random, door: bool) -> Iterator[Spot]:
    """Yield spots in random order. All can be walked to from the player's place, through doors that open."""
    grid = build_grid(level)
    reached = find_routes(grid, observation.state["POSITION_X"], observation.state["POSITION_Y"]).cost
    return _door_spots(level, observation, grid, set(reached), rng) if door else _open_spots(grid, sorted(reached), rng)


def _door_spots(
    level: Level, observation: Observation, grid: Grid, reached: set[tuple[int, int]], rng: random.Random
) -> Iterator[Spot]:
    shut = observation.view().shut_sectors
    doors = [door for door in level.doors if door.sector in shut]
    for door in rng.sample(doors, len(doors)):
        x, y = standing_point(door, _DOOR_DISTANCE)
        if grid.cell(x, y) in reached:
            yield Spot(x, y, math.degrees(math.atan2(-door.normal[1], -door.normal[0])), door.sector)


def _open_spots(grid: Grid, reached: list[tuple[int, int]], rng: random.Random) -> Iterator[Spot]:
    for cell in rng.sample(reached, len(reached)):
        here, turn = grid.centre(cell), rng.randrange(_HEADINGS)
        headings = ((turn + k) * 360 / _HEADINGS for k in range(_HEADINGS))
        yaw_deg = next((yaw for yaw in headings if _is_open(grid, here, yaw)), None)
        if yaw_deg is not None:
            yield Spot(*here, yaw_deg)


def _is_open(grid: Grid, here: Point, yaw_deg: float) -> bool:
    rays = ((yaw_deg, _VIEW), (yaw_deg - _ASIDE_DEG, _VIEW / 2), (yaw_deg + _ASIDE_DEG, _VIEW / 2))
    return all(_is_free(grid, here, math.radians(yaw), length) for yaw, length in rays)


def _is_free(grid: Grid, here: Point, yaw: float, length: float) -> bool:
    steps = (CELL * k for k in range(int(length // CELL) + 1))
    return all(grid.is_free(grid.cell(here[0] + d * math.cos(yaw), here[1] + d * math.sin(yaw))) for d in steps)
