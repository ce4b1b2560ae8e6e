"""The scripted player: what each style does and never does; the same seed makes the same choices."""

import itertools
import random

from synth.doom.player import STYLES, Action, ScriptedPlayer
from synth.doom.wad import Door, Level, Line, Sector
from synth.doom.walk import Monster, PlayerView

ROOM = 512


def room() -> Level:
    """One square room with a shut door in the middle of the east wall."""
    corners = [(0, 0), (0, ROOM), (ROOM, ROOM), (ROOM, 288), (ROOM, 224), (ROOM, 0)]
    sides = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0)]
    lines = [Line(corners[a], corners[b], 0, None, False, 0) for a, b in sides if (a, b) != (3, 4)]
    door = Line(corners[3], corners[4], 0, 1, False, 1)
    return Level("ROOM", (*lines, door), (Sector(0, 128), Sector(0, 0)), ())


def play(style: str, seed: int, tics: int, view: PlayerView) -> tuple[list[Action], list[str]]:
    player = ScriptedPlayer(random.Random(seed), room(), style)
    steps = [(player.act(view), player.behaviour) for _ in range(tics)]
    return [action for action, _ in steps], [behaviour for _, behaviour in steps]


CENTRE = PlayerView(256, 256, 0.0, 640, shut_sectors=frozenset({1}))


def test_the_same_seed_plays_the_same():
    assert play("explore", 1, 600, CENTRE) == play("explore", 1, 600, CENTRE)
    assert play("explore", 1, 600, CENTRE) != play("explore", 2, 600, CENTRE)


def test_each_style_does_all_of_its_behaviours():
    for style, mix in STYLES.items():
        assert set(mix) <= set(play(style, 0, 8000, CENTRE)[1])


def test_static_never_walks_and_camera_never_shoots():
    walking = {"W", "A", "S", "D"}
    assert not any(action.keys & walking for action in play("static", 0, 2000, CENTRE)[0])
    enemy = Monster("Demon", 1, 300, 200, 40, 60)
    seen = PlayerView(256, 256, 0.0, 640, (enemy,))
    shooting = {"FIRE", "WEAPON1", "WEAPON2", "NEXT_WEAPON"}
    assert not any(action.keys & shooting for action in play("camera", 0, 2000, seen)[0])


def test_turns_are_smooth():
    turns = [action.turn_deg for action in play("fight", 0, 3000, CENTRE)[0]]
    assert max(abs(b - a) for a, b in itertools.pairwise(turns)) < 1.3


def test_a_monster_is_aimed_at_and_shot():
    left = PlayerView(256, 256, 0.0, 640, (Monster("Demon", 1, 20, 200, 40, 60),))
    ahead = PlayerView(256, 256, 0.0, 640, (Monster("Demon", 1, 300, 200, 40, 60),))
    actions, behaviours = play("explore", 0, 40, left)
    assert behaviours[-1] == "combat"
    assert actions[-1].turn_deg < 0
    assert any("FIRE" in action.keys for action in play("explore", 0, 40, ahead)[0])


def test_a_shut_door_is_faced_used_and_walked_through():
    player = ScriptedPlayer(random.Random(0), room(), "explore")
    before = PlayerView(ROOM - 40, 256, 0.0, 640, shut_sectors=frozenset({1}))
    player.start("nav")
    used = [player.act(before) for _ in range(40)]
    assert player.current.name == "door"
    assert any("USE" in action.keys for action in used)
    assert "W" in player.act(PlayerView(ROOM - 40, 256, 0.0, 640)).keys, "open: go"
    player.act(PlayerView(ROOM + 80, 256, 0.0, 640))
    assert player.current.name == "nav"


def test_a_door_that_does_not_open_is_given_up():
    player = ScriptedPlayer(random.Random(0), room(), "camera")
    before = PlayerView(ROOM - 40, 256, 0.0, 640, shut_sectors=frozenset({1}))
    for _ in range(3):
        player.start("nav")
        player.act(before)
        assert player.current.name == "door"
    player.start("nav")
    player.act(before)
    assert player.current.name != "door"
    assert isinstance(player.walk.door, Door)


def test_walking_against_a_wall_ends_in_another_way():
    player = ScriptedPlayer(random.Random(0), room(), "camera")
    player.start("nav", 200)
    blocked = PlayerView(256, 256, 90.0, 640)
    behaviours = []
    for _ in range(60):
        player.act(blocked)
        behaviours.append(player.behaviour)
    assert "unstick" in behaviours or "W" not in player.act(blocked).keys
