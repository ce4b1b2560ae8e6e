"""Detect events between two tics: doors and lifts that move, monsters that appear, shots, injuries, pickups.

An event is a plain name, or an object with its name under "e", as in the truth file.
"""

import math
from dataclasses import dataclass
from typing import Any

from synth.doom.navigate import BODY_HEIGHT, bearing_deg
from synth.doom.sight import HALF_HEIGHT, HALF_VIEW_DEG, LineOfSight
from synth.doom.wad import Level, Line, Point
from synth.doom.walk import Monster, PlayerView

EventEntry = str | dict[str, Any]
MovingSector = dict[str, Any]

IN_VIEW_DISTANCE = 400.0  # map units; a door farther away is only a few pixels high
MIN_MONSTER_AREA_PX = 100  # box area from which a monster can be recognised
TELEPORT_DISTANCE = 64.0  # map units per tic; a running player covers 17


@dataclass(frozen=True)
class Observation:
    """The engine's state in one tic."""

    state: dict[str, float]  # the engine's variables by name
    monsters: tuple[Monster, ...]  # those on screen
    heights: tuple[tuple[float, float], ...]  # floor and ceiling of each sector, in map units
    objects: int  # number of objects on screen, monsters included
    screen_width: int  # px

    def view(self) -> PlayerView:
        """Return the part of the state that a player may act on."""
        shut = frozenset(i for i, (floor, ceiling) in enumerate(self.heights) if ceiling - floor < BODY_HEIGHT)
        state = self.state
        return PlayerView(state["POSITION_X"], state["POSITION_Y"], state["ANGLE"], self.screen_width, self.monsters, shut)


class EventDetector:
    """Compares each observation with the previous one. Use one detector per life of the player."""

    def __init__(self, level: Level, half_height: float = HALF_HEIGHT) -> None:
        """half_height: half the height of the view at distance 1."""
        self._borders = _sector_borders(level)
        self._sight = LineOfSight(level, half_height)
        self._before: Observation | None = None
        self._moving: dict[int, str] = {}
        self._seen: set[int] = set()

    def update(self, now: Observation) -> list[EventEntry]:
        """Return the events between the previous observation and this one."""
        before, self._before = self._before, now
        events: list[EventEntry] = []
        if before is not None:
            events += self._sector_events(before, now)
        events += self._new_monsters(now)
        if before is not None:
            events += _player_events(before.state, now.state)
        return events

    def moving(self) -> list[MovingSector]:
        """Return the doors, lifts and floors that move in the latest observation, and whether they are on screen."""
        now = self._before
        if now is None:
            return []
        eye, yaw = (*_place(now.state), now.state["CAMERA_POSITION_Z"]), now.state["ANGLE"]
        return [
            {
                "sector": sector,
                "motion": motion,
                "dist": round(self._distance(sector, eye[:2]), 1),
                "visible": self._sight.sees(sector, int(motion.startswith("door")), eye, yaw, now.heights),
            }
            for sector, motion in self._moving.items()
        ]

    def _distance(self, sector: int, eye: Point) -> float:
        return min(math.dist(middle, eye) for middle in self._borders[sector])

    def _sector_events(self, before: Observation, now: Observation) -> list[EventEntry]:
        moving = {
            sector: _motion(old, new)
            for sector, (old, new) in enumerate(zip(before.heights, now.heights, strict=True))
            if old != new
        }
        started = [s for s, motion in moving.items() if self._moving.get(s) != motion]
        ended = [s for s in self._moving if s not in moving]
        events: list[EventEntry] = [self._sector_start(sector, moving[sector], now.state) for sector in started]
        events += [{"e": f"{self._moving[sector]}_end", "sector": sector} for sector in ended]
        self._moving = moving
        return events

    def _sector_start(self, sector: int, motion: str, state: dict[str, float]) -> EventEntry:
        x, y = state["POSITION_X"], state["POSITION_Y"]
        middles = self._borders[sector]
        distance = self._distance(sector, (x, y))
        centre = (sum(m[0] for m in middles) / len(middles), sum(m[1] for m in middles) / len(middles))
        bearing = abs(bearing_deg(x, y, state["ANGLE"], centre))
        return {
            "e": f"{motion}_start",
            "sector": sector,
            "dist": round(distance, 1),
            "bearing": round(bearing, 1),
            "in_view": distance < IN_VIEW_DISTANCE and bearing < HALF_VIEW_DEG,
        }

    def _new_monsters(self, now: Observation) -> list[EventEntry]:
        new = [m for m in now.monsters if m.width * m.height > MIN_MONSTER_AREA_PX and m.id not in self._seen]
        self._seen.update(monster.id for monster in new)
        return [{"e": "enemy_appears", "name": m.name, "box": [m.x, m.y, m.width, m.height]} for m in new]


def _motion(old: tuple[float, float], new: tuple[float, float]) -> str:
    if new[1] != old[1]:
        return "door_opening" if new[1] > old[1] else "door_closing"
    return "floor_up" if new[0] > old[0] else "floor_down"


def _player_events(before: dict[str, float], now: dict[str, float]) -> list[EventEntry]:
    events: list[EventEntry] = []
    if now["SELECTED_WEAPON"] != before["SELECTED_WEAPON"]:
        weapons = {"to": int(now["SELECTED_WEAPON"]), "was": int(before["SELECTED_WEAPON"])}
        events.append({"e": "weapon_switched"} | weapons)
    elif now["SELECTED_WEAPON_AMMO"] < before["SELECTED_WEAPON_AMMO"]:
        events.append("shot_fired")
    if now["HEALTH"] < before["HEALTH"]:
        events.append({"e": "hurt", "by": before["HEALTH"] - now["HEALTH"]})
    if any(now[name] > before[name] for name in ("ITEMCOUNT", "HEALTH", "ARMOR")):
        events.append("pickup")
    counts = {"KILLCOUNT": "kill", "SECRETCOUNT": "secret"}
    events += [event for name, event in counts.items() if now[name] > before[name]]
    if math.dist(_place(before), _place(now)) > TELEPORT_DISTANCE:
        events.append("teleport")
    return events


def _place(state: dict[str, float]) -> Point:
    return state["POSITION_X"], state["POSITION_Y"]


def _sector_borders(level: Level) -> dict[int, list[Point]]:
    """Return the midpoints of the lines around each sector."""
    borders: dict[int, list[Line]] = {}
    for line in level.lines:
        for sector in {line.front, line.front if line.back is None else line.back}:
            borders.setdefault(sector, []).append(line)
    return {sector: [line.middle for line in lines] for sector, lines in borders.items()}
