"""Walks over a map: picks a door or an unseen place, follows the path there, crosses doors, notices being stuck."""

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
    depth_behind,
    routes,
    standing_point,
)
from synth.doom.wad import Door, Level, Point

NEAR, FAR = 6.0, 160.0  # a goal is this many cells away: nearer is no walk, farther takes longer than a behaviour lasts
DOOR_SHARE = 0.75  # of the plans that could open a door, so many do: doors are the interactions footage lacks
MOST_TRIES = 3  # a door used that often without opening, or crossed that often, is left alone
REGION = 16  # cells; visits are counted on this coarser grid
MIN_ROOM = 30  # fewer reachable cells mean that the player is walled in by remembered obstacles
WAYPOINT_REACH = 40.0  # map units; a waypoint this close is passed, so corners are cut as a person cuts them
LOOK_AHEAD = 2  # waypoints
STANDSTILL = 0.6  # map units a tic; less than that while walking is a collision
PATIENCE_TICS = 20


@dataclass(frozen=True)
class Monster:
    """A monster on the screen: the engine's name and number for it, its box in pixels."""

    name: str
    id: int
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class View:
    """What the player knows in one tic: where they stand, which monsters they see, which sectors are shut."""

    x: float
    y: float
    yaw_deg: float
    screen_width: int
    monsters: tuple[Monster, ...] = ()
    shut_sectors: frozenset[int] = frozenset()

    def bearing_deg(self, target: Point) -> float:
        """The angle from the view direction to a point on the map, positive to the left."""
        return bearing_deg(self.x, self.y, self.yaw_deg, target)

    def distance(self, target: Point) -> float:
        """Map units to a point on the map."""
        return math.dist((self.x, self.y), target)


class Walk:
    """The memory of a walking player: the path ahead, the door in hand, places seen, places that blocked the way."""

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

    def plan(self, view: View) -> bool:
        """Choose a goal and a path to it; False when there is nowhere to go."""
        found = routes(self._grid, view.x, view.y, limit=FAR)
        if len(found.cost) < MIN_ROOM:
            self._grid = self._map
            found = routes(self._grid, view.x, view.y, limit=FAR)
        far_enough = {cell: cost for cell, cost in found.cost.items() if cost > NEAR}
        goal = self._door_goal(view, far_enough) or self._unseen_goal(far_enough)
        self.path = found.path_to(goal) if goal else []
        return bool(self.path)

    def waypoint(self, view: View) -> Point:
        """The point of the path to walk to; what was reached is dropped from the path."""
        self._visits[self._region(self._grid.cell(view.x, view.y))] += 1
        while len(self.path) > 1 and view.distance(self._grid.centre(self.path[0])) < WAYPOINT_REACH:
            self.path.pop(0)
        return self._grid.centre(self.path[min(LOOK_AHEAD, len(self.path) - 1)])

    def arrived(self, view: View) -> bool:
        """True at the end of the path."""
        return len(self.path) == 1 and view.distance(self._grid.centre(self.path[0])) < WAYPOINT_REACH

    def shut_door_ahead(self, view: View) -> Door | None:
        """A door in reach and in view that is shut and worth a try."""
        doors = (door for door in self.doors if door.sector in view.shut_sectors and self._tries[door] < MOST_TRIES)
        near = (door for door in doors if view.distance(door.middle) < USE_REACH + 8)
        facing = (door for door in near if abs(view.bearing_deg(door.middle)) < 40)
        return next((door for door in facing if depth_behind(door, view.x, view.y) < 0), None)

    def take_door(self, door: Door) -> None:
        """Make a door the one to open and cross, and count the try."""
        self.door, self.path = door, []
        self._tries[door] += 1

    def collided(self, view: View, walking: bool) -> bool:
        """True when walking has not moved the player for a while; the place ahead then counts as a wall."""
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

    def _door_goal(self, view: View, reached: dict[Cell, float]) -> Cell | None:
        """A place in front of one of the three doors that were tried least, then are nearest."""
        goals = []
        for index, door in enumerate(self.doors):
            cell = self._grid.nearest_free(*standing_point(door), radius=1)
            if door.sector in view.shut_sectors and cell in reached and self._tries[door] < MOST_TRIES:
                goals.append((self._tries[door], reached[cell], index, cell))
        if not goals or self._rng.random() > DOOR_SHARE:
            return None
        return self._rng.choice(sorted(goals)[:3])[-1]

    def _unseen_goal(self, reached: dict[Cell, float]) -> Cell | None:
        """The best of 80 random places: far away and seldom visited."""
        if not reached:
            return None
        places = self._rng.sample(sorted(reached), min(80, len(reached)))
        return max(places, key=lambda cell: reached[cell] - 0.6 * self._visits[self._region(cell)])

    @staticmethod
    def _region(cell: Cell) -> Cell:
        return cell[0] // REGION, cell[1] // REGION
