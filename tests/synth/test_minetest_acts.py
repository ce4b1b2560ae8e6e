"""Interactions acted out in Minetest: what the player does, what counts as shown, places, and takes by the installed game."""

import random
import shutil
from dataclasses import replace

import numpy as np
import pytest

from curation.errors import AttemptFailed, InputError, Unavailable
from synth import procedural, taxonomy
from synth.acted import ACT_S, KINDS, UNDO_S
from synth.engines import minetest_acts
from synth.engines.minetest_acts import SCRIPTS, MinetestTake, film_takes
from synth.engines.minetest_player import FPS, Player
from synth.engines.truth_file import FrameTruth, Optics
from synth.initial_frames import find_frames
from synth.procedural import Shot
from synth.requests import InitialFrame, Request
from synth.strategies import SynthSettings, synthesise

TAKE = MinetestTake("v7", 3, "place_block", 5, seconds=4.0, width=320, height=240)
OPTICS = Optics(320, 240, 160.0)
VIEW = FrameTruth((0.0, 0.0, 1.5), 0.0, 0.0)  # to the east
ACT, UNDO = round(ACT_S * FPS), round(UNDO_S * FPS)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(minetest_acts, "_FRAME_S", 0.0)


def played(take, shown, dug_at=None):
    player = Player(random.Random(1), {})
    actor = minetest_acts._Actor(player, take, shown, minetest_acts._STAGE_FRAMES)
    acts = []
    for number, act in enumerate(actor.acts()):
        player.state.dug = number == dug_at
        acts.append(act)
    assert len(acts) == len(actor.log)
    assert acts[0].command == f"stage_{shown or take.interaction}"
    return acts[minetest_acts._STAGE_FRAMES :]


def known(count=120, **events):
    """What the client knows: `frame12` gives the events of frame 12."""
    return [minetest_acts._Known(tuple(events.get(f"frame{number}", ())), "", VIEW) for number in range(count)]


def test_every_script_is_an_interaction_of_the_taxonomy_of_each_category():
    assert {taxonomy.built_in()[name].category for name in SCRIPTS} == set(taxonomy.CATEGORIES)
    assert {"place_block", "dig_block", "open_door", "place_torch", "snow", "rain", "explosion", "creature"} <= set(SCRIPTS)


def test_a_stage_and_an_act_are_there_for_each_script():
    """The server's mod has a function for every command that a take can send."""
    text = (minetest_acts.__file__.rpartition("/")[0]) + "/minetest_mods/gamecraft_scenes/stage.lua"
    with open(text) as file:
        mod = file.read()
    for name, script in SCRIPTS.items():
        assert f'"{name}"' in mod, f"no stage for {name}"
        assert script.key or f"act.act_{name}" in mod
        assert not script.can_be_undone or script.undo_key or f"act.undo_{name}" in mod


def test_a_block_is_placed_by_a_key_and_a_take_of_nothing_presses_none():
    acts = played(TAKE, "place_block")
    pressed = [number for number, act in enumerate(acts) if "place" in act.keys]
    assert pressed == [ACT, ACT + 1, ACT + 2]
    assert not any(act.turn_deg or act.command for act in acts)
    assert not any(act.keys or act.command for act in played(replace(TAKE, kind="noop"), None))


def test_digging_ends_when_the_block_is_gone():
    take = replace(TAKE, interaction="dig_block")
    stop = ACT + 12
    acts = played(take, "dig_block", dug_at=minetest_acts._STAGE_FRAMES + stop)
    pressed = [number for number, act in enumerate(acts) if "dig" in act.keys]
    assert pressed[0] == ACT
    assert stop - 1 <= pressed[-1] <= stop


def test_weather_is_acted_and_undone_by_the_server_and_a_camera_turns_or_jumps():
    snow = replace(TAKE, interaction="snow", kind="vanishing")
    commands = {number: act.command for number, act in enumerate(played(snow, "snow")) if act.command}
    assert commands == {ACT: "act_snow", UNDO: "undo_snow"}
    door = played(replace(TAKE, interaction="open_door", kind="vanishing"), "open_door")
    assert [number for number, act in enumerate(door) if "place" in act.keys][3:] == [UNDO, UNDO + 1, UNDO + 2]
    turning = played(replace(TAKE, kind="turning"), "place_block")
    assert sum(act.turn_deg for act in turning) == pytest.approx(49, abs=1)
    jump = played(replace(TAKE, kind="teleport"), None)
    assert [act.command for act in jump if act.command] == ["jump"]


@pytest.mark.parametrize(
    ("name", "event", "counts"),
    [
        ("place_block", {"name": "changed", "pos": [3, 0, 0], "before": "air", "now": "default:cobble/0"}, True),
        ("place_block", {"name": "changed", "pos": [-3, 0, 0], "before": "air", "now": "default:cobble/0"}, False),
        ("place_block", {"name": "changed", "pos": [3, 0, 0], "before": "air", "now": "gamecraft_scenes:light/0"}, False),
        ("dig_block", {"name": "changed", "pos": [3, 0, 0], "before": "default:sand/0", "now": "air"}, True),
        ("place_torch", {"name": "changed", "pos": [3, 1, 0], "before": "air", "now": "default:torch_wall/4"}, True),
        (
            "open_door",
            {"name": "changed", "pos": [3, 1, 0], "before": "doors:door_wood_a/1", "now": "doors:door_wood_c/2"},
            True,
        ),
        ("creature", {"name": "appear", "pos": [7, 1, 0], "radius": 1.1}, True),
        ("creature", {"name": "appear", "pos": [1, 1, 9], "radius": 1.1}, False),
        ("snow", {"name": "weather"}, True),
        ("snow", {"name": "explosion", "pos": [7, 1, 0], "radius": 3}, False),
    ],
)
def test_what_counts_is_what_the_client_got_to_know_in_view(name, event, counts):
    """Positions are east, up, north, as the game has them; the view is to the east."""
    take, log = replace(TAKE, interaction=name), known(frame45=[event])
    if counts:
        assert minetest_acts._check(log, take, name, OPTICS) == name
    else:
        with pytest.raises(AttemptFailed, match=f"the engine does not show {name} in view"):
            minetest_acts._check(log, take, name, OPTICS)


def test_a_stage_on_which_something_still_happens_is_no_start():
    pictures = np.zeros((120, 12, 16, 3), np.uint8)
    pictures[ACT:] = 90
    minetest_acts._check_still(pictures)
    pictures[ACT // 2 :] = 30
    with pytest.raises(AttemptFailed, match="not still before the action: the picture changed by 30"):
        minetest_acts._check_still(pictures)


def test_what_is_in_the_hand_is_told_by_its_name():
    empty, torch = (minetest_acts._Known((), item, VIEW) for item in ("", "default:torch"))
    log = [empty] * (ACT + 5) + [torch] * 80
    assert minetest_acts._check(log, replace(TAKE, interaction="take_out_torch"), "take_out_torch", OPTICS) == "take_out_torch"
    with pytest.raises(AttemptFailed):
        minetest_acts._check(log, replace(TAKE, interaction="take_out_block"), "take_out_block", OPTICS)
    with pytest.raises(AttemptFailed):
        minetest_acts._check([empty] * 120, replace(TAKE, interaction="take_out_torch"), "take_out_torch", OPTICS)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"interaction": "cat"}, "interaction 'cat' cannot be acted out; known: place_block"),
        ({"mapgen": "v5"}, "mapgen 'v5' cannot be acted out; known: v7"),
        ({"world_seed": -1}, "the seed of a world must be between 0"),
        ({"seconds": 1.0}, "lasts at least 4 s"),
        ({"kind": "odd"}, "kind 'odd' cannot be acted out"),
        ({"interaction": "explosion", "kind": "vanishing"}, "explosion cannot be undone"),
    ],
)
def test_what_cannot_be_filmed_is_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        replace(TAKE, **changed)


def test_worlds_are_named_by_how_they_are_generated_and_their_seed(monkeypatch):
    monkeypatch.setattr(minetest_acts, "version", lambda: "minetest 5")
    assert [frame.name for frame in find_frames(["minetest:v7:12"])] == ["minetest:v7:12"]
    assert len(find_frames(["minetest"])) == len(minetest_acts.MAPGENS) * len(minetest_acts.WORLDS)
    for item in ("minetest:v5", "minetest:v7:x", "minetest:v7:1:2"):
        with pytest.raises(InputError, match="no such world; use minetest, minetest:MAPGEN"):
            find_frames([item])


def test_an_engine_that_is_not_installed_is_said_once_and_by_its_packages(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *words, **more: None)
    minetest_acts.version.cache_clear()
    with pytest.raises(Unavailable, match="apt-get install minetest"):
        find_frames(["minetest"])
    assert "apt-get install" in procedural.reason_absent("minetest")


def test_a_take_becomes_a_video_with_its_truth_and_a_failed_one_an_attempt(monkeypatch):
    results = []

    def film(takes, done):
        done(takes[0], results.pop())

    monkeypatch.setattr(minetest_acts, "film_takes", film)
    monkeypatch.setattr(minetest_acts, "version", lambda: "minetest 5")
    request = Request(taxonomy.built_in()["place_block"], "place a block", InitialFrame("minetest:v7:3"), 1)
    results.append(minetest_acts.FilmedTake(np.zeros((4, 8, 8, 3), np.uint8), 30, "place_block", "v7 3 at 1,2"))
    video = synthesise(request, 7, SynthSettings())
    assert (video.models, video.truth, video.fps) == (("minetest 5",), "true: place_block at v7 3 at 1,2", 30)
    results.append(AttemptFailed("the engine does not show place_block in view"))
    with pytest.raises(AttemptFailed, match="does not show"):
        synthesise(request, 7, SynthSettings())


def test_both_engines_have_the_same_kinds_of_take():
    pytest.importorskip("vizdoom", reason='the game engine is in the extra "demo"')
    for name in ("doom", "minetest"):
        engine = procedural.engine(name)
        assert engine.possible_kinds("explosion") == [kind for kind in KINDS if kind != "vanishing"]
        assert engine.possible_kinds("snow") == list(KINDS)
    assert Shot("minetest:v7:3", "snow").engine == "minetest"


missing = [name for name in ("minetest", "Xvfb", "cc") if not shutil.which(name, path="/usr/games:/usr/local/bin:/usr/bin")]


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(900)  # the server runs in real time, also on a busy machine
@pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}: make engines")
def test_the_game_acts_what_it_says(monkeypatch):
    monkeypatch.undo()
    minetest_acts.version.cache_clear()
    small = replace(TAKE, width=160, height=120)
    takes = [
        small,
        replace(small, kind="noop", seed=6),
        replace(small, interaction="take_out_block", seed=7),
        replace(small, interaction="creature", kind="vanishing", seed=8),
    ]
    filmed = {}
    film_takes(takes, lambda take, result: filmed.update({take: result}))
    assert [filmed[take].happened for take in takes] == ["place_block", None, "take_out_block", "creature"]
    changes = {take: np.abs(filmed[take].pictures.astype(int) - filmed[take].pictures[0]).mean((1, 2, 3)) for take in takes}
    assert all(change[: ACT - 1].max() < 1 for change in changes.values()), "nothing happens in the first second"
    assert changes[takes[0]][-1] > 1
    assert changes[takes[1]].max() < 1
    assert changes[takes[2]][-1] > 1
    assert changes[takes[3]][UNDO - 1] > 1
    assert changes[takes[3]][-1] < 1
    assert procedural.engine("minetest").version().startswith("minetest 5")
