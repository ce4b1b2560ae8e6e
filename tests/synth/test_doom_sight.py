from synth.doom.sight import LineOfSight
from synth.doom.wad import Level, Line, Sector

# A room (sector 0), a doorway (1) to the east of it, a room behind (2); a pillar's wall, a step (3) may stand in the first.
OPEN, SHUT = (0.0, 100.0), (0.0, 0.0)
FLOOR, CEILING = 0, 1
EYE = (50.0, 0.0, 41.0)


def line(start, end, front, back=None):
    return Line(start, end, front, back, back is None, 0)


def level(*more):
    walls = [line((0, 100), (200, 100), 0), line((200, -100), (0, -100), 0), line((0, -100), (0, 100), 0)]
    door = [line((200, -30), (200, 30), 0, 1), line((220, -30), (220, 30), 1, 2)]
    jambs = [line((200, 30), (200, 100), 0), line((200, -100), (200, -30), 0)]
    return Level("ROOM", (*walls, *door, *jambs, *more), (Sector(0, 100),) * 4, ())


def step():
    return line((120, -90), (120, 90), 0, 3), line((140, -90), (140, 90), 3, 0)


def sees(sector, yaw_deg=0.0, door=OPEN, part=CEILING, more=(), step=OPEN, eye=EYE):
    return LineOfSight(level(*more)).sees(sector, part, eye, yaw_deg, (OPEN, door, OPEN, step))


def test_a_door_ahead_is_seen_and_one_behind_is_not():
    assert sees(1)
    assert not sees(1, 180.0)


def test_a_shut_door_is_seen_and_hides_what_is_behind_it():
    assert sees(1, door=SHUT)
    assert sees(2, door=OPEN)
    assert not sees(2, door=SHUT)


def test_a_wall_between_hides_the_door():
    assert not sees(1, more=[line((150, -90), (150, 90), 0)])


def test_a_step_hides_what_lies_below_it_and_not_what_stands_above():
    assert not sees(1, part=FLOOR, more=step(), step=(38.0, 100.0))
    assert sees(1, part=CEILING, more=step(), step=(38.0, 100.0))


def test_a_low_ceiling_hides_what_hangs_above_it():
    assert not sees(1, door=(0.0, 95.0), more=step(), step=(0.0, 50.0))
    assert sees(1, door=(0.0, 40.0), more=step(), step=(0.0, 50.0))


def test_what_is_higher_than_the_view_is_not_on_screen():
    assert sees(1, door=(0.0, 100.0))
    assert not sees(1, door=(0.0, 100.0), eye=(170.0, 0.0, 41.0))
