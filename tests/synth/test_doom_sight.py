from synth.doom.sight import Sight
from synth.doom.wad import Level, Line, Sector

# A room (sector 0), a doorway (1) to the east of it, a room behind (2); a pillar's wall stands in the first.
OPEN, SHUT = (0.0, 100.0), (0.0, 0.0)


def line(start, end, front, back=None):
    return Line(start, end, front, back, back is None, 0)


def level(*more):
    walls = [line((0, 100), (200, 100), 0), line((200, -100), (0, -100), 0), line((0, -100), (0, 100), 0)]
    door = [line((200, -30), (200, 30), 0, 1), line((220, -30), (220, 30), 1, 2)]
    jambs = [line((200, 30), (200, 100), 0), line((200, -100), (200, -30), 0)]
    return Level("ROOM", (*walls, *door, *jambs, *more), (Sector(0, 100),) * 3, ())


def sees(sector, eye, yaw_deg, door=OPEN, **about):
    return Sight(level(*about.get("more", ()))).sees(sector, eye, yaw_deg, (OPEN, door, OPEN))


def test_a_door_ahead_is_seen_and_one_behind_is_not():
    assert sees(1, (50.0, 0.0), 0.0)
    assert not sees(1, (50.0, 0.0), 180.0)


def test_a_shut_door_is_seen_and_hides_what_is_behind_it():
    assert sees(1, (50.0, 0.0), 0.0, door=SHUT)
    assert sees(2, (50.0, 0.0), 0.0, door=OPEN)
    assert not sees(2, (50.0, 0.0), 0.0, door=SHUT)


def test_a_wall_between_hides_the_door():
    assert not sees(1, (50.0, 0.0), 0.0, more=[line((150, -90), (150, 90), 0)])
