"""Read the geometry of one map from a Doom WAD file: lines with their sectors, doors, exits and solid things.

Vertices and sidedefs are resolved: a `Line` contains its end points and the sectors on its two sides. The lump layouts are
those of the original game; maps in the later Hexen and UDMF layouts raise ValueError.
"""

import itertools
import struct
from dataclasses import dataclass
from pathlib import Path

NO_SIDE = 0xFFFF
BLOCKS_EVERYTHING = 0x0001  # linedef flag: nothing can walk through, whatever the heights

# Linedef specials of doors that the USE key opens from the front side: once or repeatedly, slow or fast.
FREE_DOORS = frozenset({1, 31, 117, 118})
KEY_DOORS = frozenset({26, 27, 28, 32, 33, 34})
EXITS = frozenset({11, 51, 52, 124, 197, 198})
TELEPORTS = frozenset({39, 97})

# Things that block the player, with their radius in map units: barrels, pillars, torches, trees. Monsters are not listed.
_THIN = (25, 26, 27, 28, 29, 30, 31, 32, 33, 35, 36, 37, 41, 42, 43, 44, 45, 46, 47, 48, 55, 56, 57, 70, 85, 86, 2028)
SOLID_THINGS = dict.fromkeys(_THIN, 16.0) | {2035: 10.0, 54: 32.0}

Point = tuple[float, float]


@dataclass(frozen=True)
class Sector:
    """A floor and a ceiling, in map units above zero."""

    floor: int
    ceiling: int


@dataclass(frozen=True)
class Line:
    """A wall or an edge between two sectors. Seen from `start` to `end`, the front side is on the right."""

    start: Point
    end: Point
    front: int
    back: int | None
    blocking: bool
    special: int

    @property
    def middle(self) -> Point:
        """The midpoint of the line, in map units."""
        return (self.start[0] + self.end[0]) / 2, (self.start[1] + self.end[1]) / 2


@dataclass(frozen=True)
class Door:
    """One face of a door that the USE key opens."""

    middle: Point
    normal: Point  # unit vector towards the side from which the door must be used
    sector: int


@dataclass(frozen=True)
class Level:
    """The geometry of one map."""

    name: str
    lines: tuple[Line, ...]
    sectors: tuple[Sector, ...]  # indexed as in the engine
    obstacles: tuple[tuple[Point, float], ...]  # centre and radius, in map units

    @property
    def doors(self) -> list[Door]:
        """The faces of all doors that open without a key."""
        return [_door(line) for line in self.lines if line.special in FREE_DOORS and line.back is not None]

    @property
    def exits(self) -> list[Line]:
        """The lines that end the map when crossed or used."""
        return [line for line in self.lines if line.special in EXITS]


def map_names(wad: Path) -> list[str]:
    """Return the names of the maps in a WAD file, in file order. Raises ValueError if the file is not a WAD."""
    names = [name for name, _, _ in _directory(wad)]
    return [marker for marker, first in itertools.pairwise(names) if first == "THINGS"]


def read_level(wad: Path, name: str) -> Level:
    """Read the geometry of map `name`. Raises ValueError for an unknown map or another layout."""
    lumps = _map_lumps(wad, name)
    vertices = list(struct.iter_unpack("<hh", lumps["VERTEXES"]))
    side_sectors = [side[-1] for side in struct.iter_unpack("<hh8s8s8sH", lumps["SIDEDEFS"])]
    lines = struct.iter_unpack("<7H", lumps["LINEDEFS"])
    sectors = struct.iter_unpack("<hh8s8s3H", lumps["SECTORS"])
    things = struct.iter_unpack("<hhHHH", lumps["THINGS"])
    return Level(
        name=name,
        lines=tuple(_line(fields, vertices, side_sectors) for fields in lines),
        sectors=tuple(Sector(floor=fields[0], ceiling=fields[1]) for fields in sectors),
        obstacles=tuple(((x, y), SOLID_THINGS[kind]) for x, y, _, kind, _ in things if kind in SOLID_THINGS),
    )


def _line(fields: tuple[int, ...], vertices: list[tuple[int, int]], side_sectors: list[int]) -> Line:
    start, end, flags, special, _, right, left = fields
    return Line(
        start=vertices[start],
        end=vertices[end],
        front=side_sectors[right],
        back=None if left == NO_SIDE else side_sectors[left],
        blocking=bool(flags & BLOCKS_EVERYTHING),
        special=special,
    )


def _door(line: Line) -> Door:
    assert line.back is not None, f"a door has two sides: {line}"
    dx, dy = line.end[0] - line.start[0], line.end[1] - line.start[1]
    length = (dx * dx + dy * dy) ** 0.5 or 1.0
    return Door(middle=line.middle, normal=(dy / length, -dx / length), sector=line.back)


def _directory(wad: Path) -> list[tuple[str, int, int]]:
    """Return name, offset and size of each lump."""
    with wad.open("rb") as file:
        kind, count, offset = struct.unpack("<4sii", file.read(12).ljust(12, b"\0"))
        if kind not in (b"IWAD", b"PWAD"):
            raise ValueError(f"{wad} is not a WAD file (it starts with {kind!r})")
        file.seek(offset)
        entries = list(struct.iter_unpack("<ii8s", file.read(16 * count)))
    return [(name.rstrip(b"\0").decode("latin1"), start, size) for start, size, name in entries]


def _map_lumps(wad: Path, name: str) -> dict[str, bytes]:
    known = map_names(wad)
    if name not in known:
        raise ValueError(f"{wad.name} has no map {name!r}; it has {', '.join(known)}")
    directory = _directory(wad)
    first = [entry[0] for entry in directory].index(name) + 1
    members = directory[first : first + 11]  # ten lumps make a map; an eleventh marks the Hexen layout
    if "BEHAVIOR" in {entry[0] for entry in members}:
        raise ValueError(f"map {name} of {wad.name} is in the Hexen layout; only the Doom layout is supported")
    lumps: dict[str, bytes] = {}
    with wad.open("rb") as file:
        for lump, offset, size in members:
            file.seek(offset)
            lumps.setdefault(lump, file.read(size))
    return lumps
