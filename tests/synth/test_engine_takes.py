"""Recordings with labels: the truth file, what is in view, what engines' logs mean, and takes by installed games."""

import itertools
import json
import random
import shutil

import numpy as np
import pytest

from curation.actions.learned import KINDS
from curation.errors import InputError
from curation.media.decode import Span, read_frames
from synth.doom.truth import interactions, read_truth
from synth.engines import label_set, minetest_scenes, openarena, recorder
from synth.engines.__main__ import main
from synth.engines.labels import LabelSpan, read_labels
from synth.engines.minetest_player import SCENARIOS, Player
from synth.engines.takes import Engine, Take
from synth.engines.truth_file import EventSpan, FrameTruth, Optics, write_truth

OPTICS = Optics(320, 240, 160.0)  # 90 degrees across


def installed(*programs):
    missing = [name for name in programs if not shutil.which(name, path="/usr/games:/usr/local/bin:/usr/bin")]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}: make engines")


def written(folder, events, frames=30, pitch=0.0, hand=True, cuts=(), engine="minetest"):
    path = folder / "take.jsonl"
    frames = [FrameTruth((0.0, 0.0, 1.5), 0.0, pitch * number / 30) for number in range(frames)]
    write_truth(path, {"engine": engine}, OPTICS, 30, frames, events, cuts, hand)
    return path


def test_a_truth_file_reads_as_those_of_doom_do(tmp_path):
    path = written(tmp_path, [EventSpan("place", 5, 13), EventSpan("door", 20, 24, (3.0, 0.5, 1.0), 0.9)], cuts=[15])
    truth = read_truth(path)
    assert (truth.fps, len(truth)) == (30, 30)
    assert np.flatnonzero(interactions(truth)).tolist() == [*range(5, 13), *range(20, 24)]
    assert [event.name for event in truth.events] == ["place", "teleport", "door"]
    np.testing.assert_allclose(truth.position[0], [0, 0, 48])


@pytest.mark.parametrize(
    ("at_m", "radius_m", "in_view"),
    [
        ((4.0, 0.0, 1.5), 0.5, True),
        ((-4.0, 0.0, 1.5), 0.5, False),  # behind
        ((4.0, 4.3, 1.5), 0.5, True),  # its edge is still in the picture
        ((4.0, 5.5, 1.5), 0.5, False),
        ((4.0, 0.0, 8.0), 0.5, False),  # above
        ((40.0, 0.0, 1.5), 0.5, False),  # too small to be seen
        ((40.0, 0.0, 1.5), 3.0, True),  # an explosion is larger
        ((0.1, 0.1, 1.5), 1.0, True),  # around the player
    ],
)
def test_what_is_behind_beside_or_far_away_is_not_in_view(tmp_path, at_m, radius_m, in_view):
    path = written(tmp_path, [EventSpan("explosion", 5, 15, at_m, radius_m)])
    (span,) = json.loads(path.read_text().splitlines()[-1])["spans"]
    assert span["in_view"] is in_view
    assert read_labels(path).event.any() == in_view


def test_an_extent_is_a_share_of_the_pictures_width(tmp_path):
    path = written(tmp_path, [EventSpan("door", 0, 5, (4.0, 0.0, 1.5), 1.0)])
    (span,) = json.loads(path.read_text().splitlines()[-1])["spans"]
    assert span["extent"] == pytest.approx(2 * 1.0 * 160 / 4 / 320)
    assert span["distance_m"] == pytest.approx(4)


def test_what_a_hidden_hand_takes_changes_no_picture_and_what_it_places_does(tmp_path):
    labels = read_labels(written(tmp_path, [EventSpan("wield", 3, 9), EventSpan("place", 12, 20)], hand=False))
    assert labels.spans == (LabelSpan("place", 12, 20),)
    assert labels.kinds[12:20, KINDS.index("place")].all()
    assert not labels.event[:12].any()


def test_a_view_that_tilts_looks_up(tmp_path):
    assert set(read_labels(written(tmp_path, [], pitch=40)).regimes) == {"look_up"}
    assert set(read_labels(written(tmp_path, [], pitch=-40)).regimes) == {"look_down"}
    assert set(read_labels(written(tmp_path, [], pitch=5)).regimes) == {"still"}


def test_openarena_does_not_tell_who_appears(tmp_path):
    labels = read_labels(written(tmp_path, [], engine="openarena"))
    assert [kind for kind, known in zip(KINDS, labels.knows_kind, strict=True) if not known] == ["appear"]


@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name != "house"])
def test_each_scenario_plays_on_and_alike_from_equal_seeds(scenario):
    ready = {"ground": 10, "at": [0.0, 11.0, 0.0]}

    def played(seed):
        player = Player(random.Random(seed), ready)
        return [*itertools.islice(SCENARIOS[scenario](player), 900)]

    assert played(4) == played(4) != played(5)
    assert len({act.keys for act in played(4)}) > 1


def test_an_inventory_is_never_left_open():
    """Every press of its key is followed by another one before anything else is played."""
    player = Player(random.Random(8), {"ground": 10, "at": [0.0, 11.0, 0.0]})
    is_open, held = False, False
    for act in itertools.islice(SCENARIOS["mixed"](player), 6000):
        pressed = "inventory" in act.keys
        is_open ^= pressed and not held
        held = pressed
        assert not (is_open and act.keys - {"inventory"}), player.behaviour


def test_events_of_minetest_are_found_in_what_its_client_knew():
    def frame(events=(), keys=(), slot=1, in_menu=False):
        client = {"events": list(events), "keys": list(keys), "slot": slot, "item": "default:torch"}
        return minetest_scenes._Frame(client, "", (0.0, 0.0), in_menu)

    door = {"name": "changed", "pos": [3, 1, 5], "before": "doors:door_wood_a/1", "now": "doors:door_wood_c/2"}
    grass = {"name": "changed", "pos": [3, 1, 5], "before": "air", "now": "default:grass_1/0"}
    frames = [
        frame(),
        frame([door, grass]),
        frame(keys=["dig"]),
        frame(keys=["dig"]),
        frame(slot=2),
        frame(slot=2, in_menu=True),
    ]
    spans = {span.kind: span for span in minetest_scenes._events(frames)}
    assert {kind: span.start for kind, span in spans.items()} == {"door": 1, "dig": 2, "wield": 4, "menu": 5}
    assert spans["door"].at_m == (3, 5, 1), "east, north, up"


def scene(eye=(0, 0, 50), entities=()):
    lines = ["noise", f"GAMECRAFT_REF 0 0 320 240 90.0 73.7 {eye[0]} {eye[1]} {eye[2]} 0 1 0 -1 0 0 0 0 1 1000"]
    lines += [f"GAMECRAFT_ENT 0 {flags} {model} {x} {y} {z}" for flags, model, (x, y, z) in entities]
    return openarena.read_scene(lines)


def test_the_renderers_lines_are_the_camera():
    drawn = scene(entities=[(4, "models/weapons2/shotgun/shotgun.md3", (1, 2, 3))])
    assert (drawn.yaw_deg, drawn.pitch_deg, drawn.fov_deg) == (90, 0, (90.0, 73.7))
    assert openarena.read_scene(["GAMECRAFT_REF 1 2", "noise"]) is None


def test_shots_weapons_lifts_and_new_lives_are_found_in_what_was_drawn():
    gun, other = "models/weapons2/shotgun/shotgun.md3", "models/weapons2/railgun/railgun.md3"
    flash = "models/weapons2/shotgun/shotgun_flash.md3"
    frames = []
    for number in range(90):
        own = [(4, gun if number < 60 else other, (0, 0, 0))] + ([(4, flash, (0, 0, 0))] if number in (20, 24) else [])
        lift = [(0, "*1", (0, 0, min(max(number - 40, 0), 10)))]
        eye = (0, 0, 50) if number < 80 else (900, 0, 50)
        frames.append(openarena._Frame(scene(eye, [*own, *lift]), openarena._Act(), ""))
    jumps = openarena._jumps(frames)
    spans = {span.kind: span for span in openarena._events(frames, jumps, Take("fight"), [(np.zeros(3), 60.0)] * 2)}
    assert jumps == [80]
    assert (spans["shot"].start, spans["shot"].end) == (20, 25 + openarena._FLASH_SHOWN)
    assert spans["wield"].start < 60 < spans["wield"].end
    assert (spans["door"].start, spans["door"].end) == (41, 51)
    hidden = [span.kind for span in openarena._events(frames, jumps, Take("fight", hand=False), [(np.zeros(3), 60.0)] * 2)]
    assert hidden == ["door"]


def test_test_maps_and_worlds_are_in_no_other_split():
    takes = dict(label_set.takes("openarena", 30))
    places = {split: {take.place for name, take in takes.items() if split in name} for split in ("train", "valid", "test")}
    assert places["test"] <= set(label_set.TEST_MAPS)
    assert not (places["train"] | places["valid"]) & places["test"]
    doom = dict(label_set.takes("doom", 30))
    maps = {
        split: {place[:2] for name, take in doom.items() if split in name for place in take.maps} for split in ("train", "test")
    }
    assert not maps["train"] & maps["test"]
    assert len({take.seed for take in dict(label_set.takes("minetest", 30)).values()}) == len(takes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "quake", "--scenario", "fight"], "unknown engine 'quake'; known: minetest, openarena"),
        (["--scenario", "fly"], "unknown scenario 'fly'; known: walk, jump, spin, build, house, events, inventory, mixed"),
        (["--scenario", "walk", "--size", "63x64"], "the size must be even and at least 64x64, not 63x64"),
        (["--scenario", "walk", "--seconds", "0"], "record at least two frames, not 0.0 s"),
        (["--scenario", "walk", "--crf", "60"], "crf must be between 0 and 51, not 60"),
    ],
)
def test_bad_arguments_are_one_line(words, message, capsys, tmp_path):
    assert main(["take", str(tmp_path / "out.mp4"), *words]) == 2
    assert capsys.readouterr().err == f"synth.engines: {message}\n"
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_a_take_that_fails(monkeypatch, tmp_path):
    def fail(take, encode):
        encode(np.zeros((240, 320, 3), np.uint8))
        raise InputError("as asked")

    monkeypatch.setattr(recorder, "engines", lambda: {"minetest": Engine(("walk",), 30, fail)})
    with pytest.raises(InputError, match="as asked"):
        recorder.record("minetest", tmp_path / "out.mp4", Take("walk"))
    assert not list(tmp_path.iterdir())


def drawn_number(picture):
    return sum(int(picture[234:238, 8 * bit + 2 : 8 * bit + 6].mean() > 127) << bit for bit in range(12))


@pytest.mark.slow
@installed("minetest", "Xvfb", "cc")
def test_minetest_pictures_have_the_number_of_their_own_line_and_show_what_is_placed(tmp_path):
    path = tmp_path / "build.mp4"
    words = ["--scenario", "build", "--seconds", "9", "--seed", "3", "--draw-number", "--no-hud", "--crf", "14"]
    assert main(["take", str(path), *words]) == 0
    rgb = read_frames(str(path), Span(0, 9)).rgb
    lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    logged = [int(line["tic"]) % 4096 for line in lines if "frame" in line]
    assert [drawn_number(picture) for picture in rgb] == logged
    placed = [span for span in read_labels(path.with_suffix(".jsonl")).spans if span.kind == "place"]
    assert placed
    changed = np.abs(np.diff(rgb[:, :200].astype(int), axis=0)).max(-1).mean((1, 2))
    for span in placed:
        assert changed[span.start - 1 : span.end].max() > 3 * np.median(changed), "the hand swings, and a block appears"


@pytest.mark.slow
@installed("openarena", "Xvfb", "cc")
def test_openarena_follows_a_bot_with_the_renderers_own_camera(tmp_path):
    path = tmp_path / "fight.mp4"
    assert main(["take", str(path), "--engine", "openarena", "--scenario", "fight", "--seconds", "6", "--place", "oa_dm4"]) == 0
    truth = read_truth(path.with_suffix(".jsonl"))
    assert len(truth) == 180
    assert np.ptp(truth.position[:, :2], axis=0).max() > 32, "the bot moves"
    assert len(read_frames(str(path), Span(0, 6)).rgb) == 180
