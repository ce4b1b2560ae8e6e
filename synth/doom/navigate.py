"""Path finding on a map: a grid of blocked cells, and shortest paths over the free ones.

Lengths are in map units (32 are about a metre). x is east, y is north.
"""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from synth.angles import wrapped_deg
from synth.doom.wad import EXITS, TELEPORTS, Door, Level, Line, Point

CELL = 16  # side of a grid cell
CLEARANCE = 20.0  # half the player's width is 16; with 20 a doorway of 64 still has one free cell at any offset
STEP_UP = 24  # the highest step that a walking player can climb
BODY_HEIGHT = 56  # the player needs this much between floor and ceiling
USE_REACH = 64.0  # how far the USE key reaches from the player's centre
DIAGONAL = math.sqrt(2)

Cell = tuple[int, int]
_STEPS = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if (dx, dy) != (0, 0)]


@dataclass(frozen=True, eq=False)
class Grid:
    """Cells of 16 map units. Where `blocked[i, j]` is set, the player's centre cannot be in cell (i, j)."""

    x0: float
    y0: float
    blocked: NDArray[np.bool_]

    def cell(self, x: float, y: float) -> Cell:
        """Return the cell of a point, clipped to the grid."""
        i, j = int((x - self.x0) // CELL), int((y - self.y0) // CELL)
        return min(max(i, 0), self.blocked.shape[0] - 1), min(max(j, 0), self.blocked.shape[1] - 1)

    def centre(self, cell: Cell) -> Point:
        """Return the centre of a cell, in map units."""
        return self.x0 + (cell[0] + 0.5) * CELL, self.y0 + (cell[1] + 0.5) * CELL

    def is_free(self, cell: Cell) -> bool:
        """Whether a cell is inside the grid and not blocked."""
        inside = 0 <= cell[0] < self.blocked.shape[0] and 0 <= cell[1] < self.blocked.shape[1]
        return inside and not self.blocked[cell]

    def nearest_free(self, x: float, y: float, radius: int = 5) -> Cell | None:
        """Return the free cell closest to a point, at most `radius` cells away; None if there is none."""
        i, j = self.cell(x, y)
        around = range(-radius, radius + 1)
        cells = [(i + di, j + dj) for di in around for dj in around if self.is_free((i + di, j + dj))]
        return min(cells, key=lambda cell: (math.dist(self.centre(cell), (x, y)), cell), default=None)

    def with_obstacle(self, x: float, y: float) -> "Grid":
        """Return a copy of the grid in which the cells around a point are blocked."""
        blocked = self.blocked.copy()
        _block_along(blocked, (self.x0, self.y0), (x, y), (x, y), CELL)
        return replace(self, blocked=blocked)


@dataclass(frozen=True)
class Routes:
    """Shortest paths from one cell to every cell that can be reached."""

    cost: dict[Cell, float]  # length of the path, in cells
    came_from: dict[Cell, Cell] = field(repr=False)

    def path_to(self, goal: Cell) -> list[Cell]:
        """Return the cells from the start to `goal`, both included. Raises ValueError if `goal` was not reached."""
        if goal not in self.cost:
            raise ValueError(f"no path to cell {goal}; {len(self.cost)} cells were reached")
        path = [goal]
        while path[-1] in self.came_from:
            path.append(self.came_from[path[-1]])
        return path[::-1]


def build_grid(level: Level) -> Grid:
    """Build the grid of a map. Walls, high steps, low ceilings, exits, teleports and solid things block; doors do not."""
    points = [point for line in level.lines for point in (line.start, line.end)]
    x0, y0 = min(x for x, _ in points) - 4 * CELL, min(y for _, y in points) - 4 * CELL
    width, height = max(x for x, _ in points) - x0, max(y for _, y in points) - y0
    blocked = np.zeros((int(width // CELL) + 5, int(height // CELL) + 5), bool)
    doors = {door.sector for door in level.doors}
    for line in level.lines:
        if _is_solid(line, level, doors):
            _block_along(blocked, (x0, y0), line.start, line.end, CLEARANCE)
    for centre, radius in level.obstacles:
        _block_along(blocked, (x0, y0), centre, centre, CLEARANCE + radius)
    return Grid(x0, y0, blocked)


def find_routes(grid: Grid, x: float, y: float, limit: float = math.inf) -> Routes:
    """Find shortest paths from the free cell nearest to a point to every cell within `limit` cells (Dijkstra)."""
    start = grid.nearest_free(x, y)
    if start is None:
        return Routes({}, {})
    cost, came_from, queue = {start: 0.0}, dict[Cell, Cell](), [(0.0, start)]
    while queue:
        reached, cell = heapq.heappop(queue)
        if reached > cost[cell]:
            continue
        for neighbour, step in _neighbours(grid, cell):
            total = reached + step
            if total <= limit and total < cost.get(neighbour, math.inf):
                cost[neighbour], came_from[neighbour] = total, cell
                heapq.heappush(queue, (total, neighbour))
    return Routes(cost, came_from)


def standing_point(door: Door, distance: float = 40.0) -> Point:
    """Return the point from which to use a door: `distance` map units in front of the middle of its face."""
    return door.middle[0] + distance * door.normal[0], door.middle[1] + distance * door.normal[1]


def distance_behind(door: Door, x: float, y: float) -> float:
    """Return how far a point is behind the face of a door, in map units. Negative: in front of it."""
    return (door.middle[0] - x) * door.normal[0] + (door.middle[1] - y) * door.normal[1]


def offset_right(door: Door, x: float, y: float) -> float:
    """Return how far right the middle of a door is for a person who faces it, in map units. Negative: to the left."""
    return (y - door.middle[1]) * -door.normal[0] + (x - door.middle[0]) * door.normal[1]


def bearing_deg(x: float, y: float, yaw_deg: float, target: Point) -> float:
    """Return the angle from the view direction to a target, in (-180, 180], positive to the left."""
    return wrapped_deg(math.degrees(math.atan2(target[1] - y, target[0] - x)) - yaw_deg)


def _is_solid(line: Line, level: Level, doors: set[int]) -> bool:
    if line.back is None or line.blocking or line.special in EXITS or line.special in TELEPORTS:
        return True
    front, back = level.sectors[line.front], level.sectors[line.back]
    gap = min(front.ceiling, back.ceiling) - max(front.floor, back.floor)
    too_low = gap < BODY_HEIGHT and line.front not in doors and line.back not in doors
    return too_low or abs(front.floor - back.floor) > STEP_UP


def _neighbours(grid: Grid, cell: Cell) -> Iterator[tuple[Cell, float]]:
    """Yield the free cells one step away, with the step's length. A diagonal step must not cut a corner."""
    i, j = cell
    for di, dj in _STEPS:
        if not grid.is_free((i + di, j + dj)):
            continue
        if not (di and dj):
            yield (i + di, j + dj), 1.0
        elif grid.is_free((i + di, j)) and grid.is_free((i, j + dj)):
            yield (i + di, j + dj), DIAGONAL


def _block_along(blocked: NDArray[np.bool_], origin: Point, start: Point, end: Point, reach: float) -> None:
    """Block, in place, the cells whose centre is closer than `reach` to the segment from `start` to `end`."""
    low = [max(int((min(start[k], end[k]) - reach - origin[k]) // CELL), 0) for k in (0, 1)]
    high = [int((max(start[k], end[k]) + reach - origin[k]) // CELL) + 1 for k in (0, 1)]
    x = origin[0] + CELL * (np.arange(low[0], min(high[0], blocked.shape[0]))[:, None] + 0.5)
    y = origin[1] + CELL * (np.arange(low[1], min(high[1], blocked.shape[1]))[None, :] + 0.5)
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = ((x - start[0]) * dx + (y - start[1]) * dy) / ((dx * dx + dy * dy) or 1.0)
    along = np.clip(along, 0.0, 1.0)
    near = np.hypot(x - start[0] - along * dx, y - start[1] - along * dy) < reach
    blocked[low[0] : high[0], low[1] : high[1]] |= near
