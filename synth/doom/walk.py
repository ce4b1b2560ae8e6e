"""Walking over a map: choose a door or an unseen place, follow the path there, cross doors, notice when stuck."""

import math
import random
from collections import Counter
from dataclasses import dataclass

from synth.doom.navigate import (
    CELL,
    USE_REACH,
    Cell,
    bearing_deg,
    build_grid,
    distance_behind,
    find_routes,
    standing_point,
)
from synth.doom.wad import Door, Level, Point

MIN_GOAL_CELLS, MAX_GOAL_CELLS = 6.0, 160.0  # distance of a goal; a farther one takes longer than a behaviour lasts
DOOR_SHARE = 0.75  # this share of the plans that could open a door do: footage has too few opened doors
MAX_TRIES = 3  # a door that was used without opening, or crossed, this often is ignored
REGION_CELLS = 16  # visits are counted on a grid this much coarser
MIN_FREE_CELLS = 30  # with fewer reachable cells the player is enclosed by remembered obstacles
WAYPOINT_REACH = 40.0  # map units; a waypoint this close counts as passed, so the player cuts corners as people do
LOOK_AHEAD_WAYPOINTS = 2  # waypoints
STANDSTILL = 0.6  # map units per tic; a slower walk counts as a collision
PATIENCE_TICS = 20


@dataclass(frozen=True)
class Monster:
    """A monster on the screen: the engine's name and id for it, its box in pixels."""

    name: str
    id: int
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class PlayerView:
    """What the player knows in one tic: their place, the visible monsters, the shut sectors."""

    x: float
    y: float
    yaw_deg: float
    screen_width: int
    monsters: tuple[Monster, ...] = ()
    shut_sectors: frozenset[int] = frozenset()

    def bearing_deg(self, target: Point) -> float:
        """Return the angle from the view direction to a point on the map, positive to the left."""
        return bearing_deg(self.x, self.y, self.yaw_deg, target)

    def distance(self, target: Point) -> float:
        """Return the distance to a point on the map, in map units."""
        return math.dist((self.x, self.y), target)


class Walk:
    """The memory of a walking player: the path ahead, the door to cross, visited places, places that blocked the way."""

    def __init__(self, level: Level, rng: random.Random) -> None:
        self.doors = level.doors
        self.door: Door | None = None
        self.path: list[Cell] = []
        self._map = self._grid = build_grid(level)
        self._rng = rng
        self._visits: Counter[Cell] = Counter()
        self._tries: Counter[Door] = Counter()
        self._last: Point | None = None
        self._standstill = 0

    def plan(self, view: PlayerView) -> bool:
        """Choose a goal and a path to it. False if there is nowhere to go."""
        reachable = find_routes(self._grid, view.x, view.y, limit=MAX_GOAL_CELLS)
        if len(reachable.cost) < MIN_FREE_CELLS:
            self._grid = self._map
            reachable = find_routes(self._grid, view.x, view.y, limit=MAX_GOAL_CELLS)
        far_enough = {cell: cost for cell, cost in reachable.cost.items() if cost > MIN_GOAL_CELLS}
        goal = self._door_goal(view, far_enough) or self._unseen_goal(far_enough)
        self.path = reachable.path_to(goal) if goal else []
        return bool(self.path)

    def waypoint(self, view: PlayerView) -> Point:
        """Return the next point to walk to, and remove the points already reached from the path."""
        self._visits[self._region(self._grid.cell(view.x, view.y))] += 1
        while len(self.path) > 1 and view.distance(self._grid.centre(self.path[0])) < WAYPOINT_REACH:
            self.path.pop(0)
        return self._grid.centre(self.path[min(LOOK_AHEAD_WAYPOINTS, len(self.path) - 1)])

    def arrived(self, view: PlayerView) -> bool:
        """Whether the player is at the end of the path."""
        return len(self.path) == 1 and view.distance(self._grid.centre(self.path[0])) < WAYPOINT_REACH

    def shut_door_ahead(self, view: PlayerView) -> Door | None:
        """Return a shut door in reach and in view that has tries left, if there is one."""
        doors = (door for door in self.doors if door.sector in view.shut_sectors and self._tries[door] < MAX_TRIES)
        near = (door for door in doors if view.distance(door.middle) < USE_REACH + 8)
        facing = (door for door in near if abs(view.bearing_deg(door.middle)) < 40)
        return next((door for door in facing if distance_behind(door, view.x, view.y) < 0), None)

    def take_door(self, door: Door) -> None:
        """Choose this door as the one to open and cross, and count the try."""
        self.door, self.path = door, []
        self._tries[door] += 1

    def collided(self, view: PlayerView, walking: bool) -> bool:
        """Whether walking has not moved the player for a while. The place ahead is then marked as a wall."""
        here = (view.x, view.y)
        stands = walking and self._last is not None and math.dist(self._last, here) < STANDSTILL
        self._last = here
        self._standstill = self._standstill + 1 if stands else max(0, self._standstill - 1)
        if self._standstill <= PATIENCE_TICS:
            return False
        yaw = math.radians(view.yaw_deg)
        self._grid = self._grid.with_obstacle(view.x + 2 * CELL * math.cos(yaw), view.y + 2 * CELL * math.sin(yaw))
        self._standstill, self.path = 0, []
        return True

    def _door_goal(self, view: PlayerView, reached: dict[Cell, float]) -> Cell | None:
        """Return a place in front of a door: one of the three with the fewest tries, the nearest first."""
        goals = []
        for index, door in enumerate(self.doors):
            cell = self._grid.nearest_free(*standing_point(door), radius=1)
            if door.sector in view.shut_sectors and cell in reached and self._tries[door] < MAX_TRIES:
                goals.append((self._tries[door], reached[cell], index, cell))
        if not goals or self._rng.random() > DOOR_SHARE:
            return None
        return self._rng.choice(sorted(goals)[:3])[-1]

    def _unseen_goal(self, reached: dict[Cell, float]) -> Cell | None:
        """Return the best of 80 random places: far away and seldom visited."""
        if not reached:
            return None
        places = self._rng.sample(sorted(reached), min(80, len(reached)))
        return max(places, key=lambda cell: reached[cell] - 0.6 * self._visits[self._region(cell)])

    @staticmethod
    def _region(cell: Cell) -> Cell:
        return cell[0] // REGION_CELLS, cell[1] // REGION_CELLS
