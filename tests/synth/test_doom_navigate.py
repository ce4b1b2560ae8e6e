"""Maps and paths: the geometry of a hand-made map in a WAD file, the grid of blocked cells, paths and doors."""

import itertools
import math
import struct
from pathlib import Path

import pytest

from synth.doom.navigate import bearing_deg, build_grid, distance_behind, find_routes, offset_right, standing_point
from synth.doom.wad import map_names, read_level

NONE = 0xFFFF
FREE_DOOR, EXIT_SWITCH = 1, 11


def write_wad(path: Path, lumps: dict[str, bytes]) -> Path:
    body, entries = b"", b""
    for name, data in lumps.items():
        entries += struct.pack("<ii8s", 12 + len(body), len(data), name.encode())
        body += data
    path.write_bytes(struct.pack("<4sii", b"PWAD", len(lumps), 12 + len(body)) + body + entries)
    return path


def two_rooms(path: Path, door_special: int = FREE_DOOR) -> Path:
    """Rooms at x 0..256 and 288..544 (y 0..256), joined by a shut door at y 96..160; the right wall is an exit."""
    vertices = [(0, 0), (256, 0), (256, 96), (256, 160), (256, 256), (0, 256)]
    vertices += [(288, 96), (288, 0), (544, 0), (544, 256), (288, 256), (288, 160)]
    left, door, right = 0, 1, 2  # sectors; each has one sidedef of the same number
    walls = [(0, 5, left), (5, 4, left), (4, 3, left), (2, 1, left), (1, 0, left)]
    walls += [(6, 2, door), (3, 11, door), (7, 6, right), (11, 10, right), (10, 9, right), (8, 7, right)]
    lines = [(a, b, 0, 0, 0, sector, NONE) for a, b, sector in walls]
    lines += [(9, 8, 0, EXIT_SWITCH, 0, right, NONE)]
    lines += [(3, 2, 0, door_special, 0, left, door), (6, 11, 0, door_special, 0, right, door)]
    heights = [(0, 128), (0, 0), (0, 128)]
    lumps = {
        "MAP01": b"",
        "THINGS": struct.pack("<hhHHH", 128, 224, 0, 2035, 7),
        "LINEDEFS": b"".join(struct.pack("<7H", *line) for line in lines),
        "SIDEDEFS": b"".join(struct.pack("<hh8s8s8sH", 0, 0, b"-", b"-", b"-", sector) for sector in range(3)),
        "VERTEXES": b"".join(struct.pack("<hh", *vertex) for vertex in vertices),
        "SECTORS": b"".join(struct.pack("<hh8s8s3H", *height, b"F", b"C", 160, 0, 0) for height in heights),
    }
    return write_wad(path, lumps)


def test_geometry_doors_and_exits_are_read(tmp_path):
    wad = two_rooms(tmp_path / "rooms.wad")
    level = read_level(wad, "MAP01")
    assert map_names(wad) == ["MAP01"]
    assert len(level.lines) == 14
    assert [(door.middle, door.normal, door.sector) for door in level.doors] == [
        ((256, 128), (-1, 0), 1),
        ((288, 128), (1, 0), 1),
    ]
    assert [line.middle for line in level.exits] == [(544, 128)]
    assert level.obstacles == (((128, 224), 10.0),)


def test_a_path_leads_through_the_door_and_keeps_clear_of_walls(tmp_path):
    grid = build_grid(read_level(two_rooms(tmp_path / "rooms.wad"), "MAP01"))
    found = find_routes(grid, 64, 64)
    path = found.path_to(grid.cell(480, 200))
    points = [grid.centre(cell) for cell in path]
    assert math.dist(points[0], (64, 64)) < 16
    assert all(math.dist(a, b) < 23 for a, b in itertools.pairwise(points)), "each step is to a neighbour"
    assert all(112 < y < 144 for x, y in points if 250 < x < 294), "the doorway is 64 wide, the player 32"
    assert all(grid.is_free(cell) for cell in path)


def test_walls_exits_and_barrels_are_blocked(tmp_path):
    grid = build_grid(read_level(two_rooms(tmp_path / "rooms.wad"), "MAP01"))
    for x, y in [(8, 128), (264, 40), (536, 128), (128, 216), (-40, 128)]:
        assert grid.cell(x, y) not in find_routes(grid, 64, 64).cost


def test_a_door_that_needs_a_key_is_a_wall(tmp_path):
    grid = build_grid(read_level(two_rooms(tmp_path / "rooms.wad", door_special=26), "MAP01"))
    with pytest.raises(ValueError, match="no path to cell"):
        find_routes(grid, 64, 64).path_to(grid.cell(480, 200))


def test_a_limit_ends_the_search_and_an_obstacle_blocks_the_way(tmp_path):
    grid = build_grid(read_level(two_rooms(tmp_path / "rooms.wad"), "MAP01"))
    assert max(find_routes(grid, 64, 64, limit=5).cost.values()) <= 5
    assert grid.cell(480, 200) not in find_routes(grid.with_obstacle(272, 128), 64, 64).cost
    assert grid.cell(480, 200) in find_routes(grid, 64, 64).cost, "the grid itself is unchanged"


def test_standing_points_are_in_front_of_a_door(tmp_path):
    west, east = read_level(two_rooms(tmp_path / "rooms.wad"), "MAP01").doors
    assert standing_point(west) == (216, 128)
    assert standing_point(east) == (328, 128)
    assert distance_behind(west, *standing_point(west)) == -40
    assert distance_behind(west, *standing_point(east)) == 72
    assert offset_right(west, 216, 148) == 20, "who faces east, north of the middle, has it on the right"
    assert offset_right(east, 328, 148) == -20


@pytest.mark.parametrize(("target", "bearing"), [((10, 0), 0), ((0, 10), 90), ((0, -10), -90), ((-10, 0), 180)])
def test_bearings_are_positive_to_the_left(target, bearing):
    assert bearing_deg(0, 0, 0, target) == pytest.approx(bearing)
    assert bearing_deg(0, 0, 720, target) == pytest.approx(bearing)


def test_a_file_that_is_no_wad_and_an_unknown_map_are_refused(tmp_path):
    (tmp_path / "note.wad").write_bytes(b"hello")
    with pytest.raises(ValueError, match="is not a WAD file"):
        map_names(tmp_path / "note.wad")
    with pytest.raises(ValueError, match="has no map 'E9M9'; it has MAP01"):
        read_level(two_rooms(tmp_path / "rooms.wad"), "E9M9")
