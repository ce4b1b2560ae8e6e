"""Recording gameplay: equal bytes for equal seeds, one truth line per frame, true cuts, clear errors."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

pytest.importorskip("vizdoom", reason='the game engine is in the extra "demo"')

from synth.doom.__main__ import main
from synth.doom.engine import Screen, start_game, wads
from synth.doom.record import Recording, check_recording, record
from synth.doom.truth import discontinuities, forward_speed, read_truth, strafe_speed
from synth.doom.wad import read_level

ONE_MAP = Recording(maps=(("freedoom2", "MAP01", 4.0),), seed=3, width=320, height=240)
TWO_MAPS = Recording(
    maps=(("freedoom2", "MAP01", 2.0), ("freedoom1", "E1M1", 1.0)),
    seed=3,
    width=320,
    height=240,
    style="static",
    hud=False,
    weapon=False,
    monsters=False,
    depth_every=35,
)


def picture_changes(video: Path) -> np.ndarray:
    """Mean absolute difference of the luminance from each frame to the next."""
    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="gray").astype(float) for frame in container.decode(video=0)]
    return np.array([np.abs(after - before).mean() for before, after in itertools.pairwise(frames)])


@pytest.fixture(scope="module")
def walk(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("walk") / "walk.mp4"
    record(out, ONE_MAP)
    return out


@pytest.fixture(scope="module")
def two_maps(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("maps") / "maps.mp4"
    record(out, TWO_MAPS)
    return out


def test_equal_seeds_give_equal_bytes_and_others_do_not(walk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "again.mp4", ONE_MAP)
    record(tmp_path / "other.mp4", replace(ONE_MAP, seed=4))
    for suffix in (".mp4", ".jsonl"):
        first = walk.with_suffix(suffix).read_bytes()
        assert (tmp_path / "again").with_suffix(suffix).read_bytes() == first
        assert (tmp_path / "other").with_suffix(suffix).read_bytes() != first
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["again.jsonl", "again.mp4", "other.jsonl", "other.mp4"], "engine and recorder leave nothing behind"


def test_each_picture_has_its_line(walk):
    truth = read_truth(walk.with_suffix(".jsonl"))
    with av.open(str(walk)) as container:
        stream = container.streams.video[0]
        times = [frame.time for frame in container.decode(stream)]
        assert (stream.codec_context.pix_fmt, stream.average_rate) == ("yuv420p", 35)
    assert len(times) == len(truth) == 140
    np.testing.assert_allclose(times, truth.time_s, atol=1e-3)


def test_the_picture_answers_an_action_in_the_next_frame(two_maps):
    """Frame i is the picture before action i: the first turn of the head shows from frame i + 1 on."""
    truth, changed = read_truth(two_maps.with_suffix(".jsonl")), picture_changes(two_maps)
    first = next(i for i, keys in enumerate(truth.keys) if truth.mouse_dx_deg[i] or keys & {"TURN_LEFT", "TURN_RIGHT"})
    assert 10 < first < 60
    assert np.flatnonzero(np.diff(truth.yaw_deg))[0] == first, "the engine took the very first action"
    assert changed[:first].max() < 0.3 < 1.0 < changed[first]


def test_a_change_of_map_is_the_true_cut(two_maps):
    truth, changed = read_truth(two_maps.with_suffix(".jsonl")), picture_changes(two_maps)
    assert truth.cuts == (70,)
    assert truth.events[0].frame == 70
    assert truth.events[0].name == "level_change"
    assert changed[69] > 10
    assert np.argmax(changed) == 69


def test_depth_is_kept_for_every_nth_frame(two_maps):
    with np.load(two_maps.with_name("maps_depth.npz")) as depths:
        assert sorted(depths, key=int) == ["0", "35", "70"]
        assert depths["35"].shape == (240, 320)
        assert depths["35"].std() > 0


def test_speed_in_the_body_frame_integrates_to_the_recorded_position(walk):
    truth = read_truth(walk.with_suffix(".jsonl"))
    assert not discontinuities(truth)
    yaw = np.radians(truth.yaw_deg[:-1])
    ahead, right = forward_speed(truth)[:-1], strafe_speed(truth)[:-1]
    step = np.stack([ahead * np.cos(yaw) + right * np.sin(yaw), ahead * np.sin(yaw) - right * np.cos(yaw)], axis=1)
    positions = truth.position[0, :2] + np.cumsum(step / truth.fps, axis=0)
    np.testing.assert_allclose(positions, truth.position[1:, :2], atol=1e-6)
    assert np.ptp(positions, axis=0).max() > 100, "the player walked"


def test_speed_agrees_with_the_velocity_the_engine_reports(walk):
    truth = read_truth(walk.with_suffix(".jsonl"))
    states = [json.loads(line)["state"] for line in walk.with_suffix(".jsonl").read_text().splitlines()[1:-1]]
    engine = np.array([np.hypot(state["VELOCITY_X"], state["VELOCITY_Y"]) for state in states]) * truth.fps
    speed = np.hypot(forward_speed(truth), strafe_speed(truth))
    assert np.corrcoef(speed[:-1], engine[1:])[0, 1] > 0.95


def test_sectors_have_the_same_numbers_in_the_file_and_in_the_engine():
    wad = wads()["freedoom1"]
    screen = Screen(width=160, height=120, hud=True, weapon=True, depth=False)
    with start_game(wad, "E1M1", 1, 2, False, screen) as game:
        heights = game.observe().heights
    assert heights == tuple((sector.floor, sector.ceiling) for sector in read_level(wad, "E1M1").sectors)


def test_nothing_is_left_after_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("synth.doom.record._frame_line", lambda *_: pytest.fail("the recorder breaks"))
    with pytest.raises(pytest.fail.Exception):
        record(tmp_path / "broken.mp4", ONE_MAP)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": ()}, "give at least one map"),
        ({"maps": (("quake", "E1M1", 1.0),)}, "unknown map collection 'quake'; known: freedoom1, freedoom2"),
        ({"maps": (("freedoom2", "E1M1", 1.0),)}, "unknown map 'E1M1' in freedoom2; known: MAP01, MAP02"),
        ({"maps": (("freedoom2", "MAP01", 0.0),)}, "at least one frame"),
        ({"style": "dance"}, "unknown style 'dance'; known styles: explore, fight, static, camera"),
        ({"width": 641}, "unsupported resolution 641x240; supported: 160x120, "),
        ({"width": 1400, "height": 787}, "unsupported resolution 1400x787"),
        ({"crf": 60}, "crf must be between 0 and 51, not 60"),
        ({"skill": 0}, "skill must be between 1 and 5, not 0"),
        ({"seed": -1}, "seed must be between 0 and 1000000, not -1"),
    ],
)
def test_bad_arguments_are_refused_with_what_would_do(change, message):
    with pytest.raises(ValueError, match=message):
        check_recording(replace(ONE_MAP, **change))


def test_only_mp4_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"must be named \*.mp4, not 'walk.mkv'"):
        record(tmp_path / "walk.mkv", ONE_MAP)


def test_the_command_records_with_the_options_its_header_repeats(tmp_path, capsys):
    options = ["--map", "freedoom2:MAP02:0.2", "--seed", "5", "--style", "static", "--size", "160x120"]
    assert main([str(tmp_path / "a.mp4"), *options, "--no-hud", "--no-monsters"]) == 0
    assert "7 frames, 0 cuts" in capsys.readouterr().out
    header = read_truth(tmp_path / "a.jsonl").header
    assert main([str(tmp_path / "b.mp4"), *header["argv"]]) == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--map", "freedoom2:MAP01"], "'freedoom2:MAP01' is not WAD:MAP:SECONDS"),
        (["--map", "freedoom2:MAP01:1", "--size", "big"], "'big' is not WIDTHxHEIGHT"),
        (["--map", "freedoom2:MAP99:1"], "unknown map 'MAP99'"),
        ([], "required: --map"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(tmp_path, capsys, options, message):
    try:
        status = main([str(tmp_path / "a.mp4"), *options])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert message in error
    assert error.count("\n") == 1


def test_without_the_engine_the_command_says_what_to_install(tmp_path):
    program = "import sys; sys.modules['vizdoom'] = None; from synth.doom.__main__ import main; sys.exit(main())"
    arguments = [str(tmp_path / "a.mp4"), "--map", "freedoom2:MAP01:1"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        'synth.doom: recording needs the game engine VizDoom; install it with: pip install "gamecraft[demo]"\n'
    )
