"""The painted game: its truth says what its pictures show."""

import json

import cv2
import numpy as np
import pytest

from curation.actions.learned import KINDS
from curation.media.decode import Span, read_frames
from synth.engines import painted
from synth.engines.__main__ import main
from synth.engines.labels import read_labels
from synth.engines.painted import _ACTS
from synth.engines.painted_stage import Motion, Stage
from synth.engines.takes import Take
from synth.engines.truth_file import OTHER


def stage_of(seed=3, **settings):
    return Stage(Take("mixed", seed, size=(160, 120), **settings))


def pictures(stage, frames, motion=None):
    shown = []
    for number in range(frames):
        stage.number = number
        shown.append(stage.draw())
        stage.move(motion or Motion())
        stage.acts = [act for act in stage.acts if next(act, stage) is None]
    return np.array(shown)


def test_equal_seeds_give_equal_pictures_and_others_do_not():
    def played(seed):
        shown = []
        painted.play(Take("mixed", seed, 1.0, (160, 120)), shown.append)
        return np.array(shown)

    assert (played(4) == played(4)).all()
    assert (played(4) != played(5)).mean() > 0.5


def test_every_kind_of_event_is_acted():
    assert set(KINDS) | {"hurt"} == set(_ACTS)


@pytest.mark.parametrize("kind", sorted(_ACTS))
def test_an_act_is_logged_when_the_picture_changes_and_not_before(kind):
    logged = OTHER if kind == "hurt" else kind
    for seed in range(40):  # where nothing is in view to act on, nothing is logged
        stage = stage_of(seed, hud=False)
        pictures(stage, 2)
        stage.acts.append(_ACTS[kind](stage))
        before = stage.draw().astype(int)
        after = pictures(stage, 24).astype(int)
        if [event.kind for event in stage.events[:1]] == [logged]:
            break
    (event, *_) = stage.events
    assert event.start == 1
    changed = np.abs(after - before).max(-1).mean((1, 2))
    assert changed[0] == 0
    assert changed[1 : event.end + 1].max() > 0.05


@pytest.mark.parametrize(("act", "place"), [(painted._dig, "blocks"), (painted._door, "doors")])
def test_two_at_once_do_not_touch_the_same_thing(act, place):
    for seed in range(40):
        stage = stage_of(seed)
        things = getattr(stage, place)
        del things[1:]
        stage.acts = [act(stage), act(stage)]
        pictures(stage, 60)
        if stage.events:
            break
    assert len(stage.events) == 1


def test_nothing_happens_on_a_walk(tmp_path):
    path = tmp_path / "walk.mp4"
    assert main(["take", str(path), "--engine", "painted", "--scenario", "walk", "--seconds", "3", "--size", "160x120"]) == 0
    labels = read_labels(path.with_suffix(".jsonl"))
    assert labels.engine == "painted"
    assert not labels.spans
    assert labels.known.all()
    assert len(read_frames(str(path), Span(0, 3)).rgb) == 90


@pytest.mark.parametrize(("motion", "way"), [(Motion(turn=60), (-1, 0)), (Motion(turn=-60), (1, 0)), (Motion(look=50), (0, 1))])
def test_the_picture_moves_against_the_view(motion, way):
    stage = stage_of(6, hand=False, hud=False)
    first, second = (cv2.cvtColor(one, cv2.COLOR_RGB2GRAY).astype(np.float32) for one in pictures(stage, 2, motion))
    (dx, dy), _ = cv2.phaseCorrelate(first, second)
    moved = np.array([dx, dy])
    assert moved @ way == pytest.approx(np.linalg.norm(moved), rel=0.15)
    assert np.linalg.norm(moved) > 1


def test_a_wall_stops_the_player():
    stage = stage_of(2)
    pictures(stage, 200, Motion(ahead=6.0))
    assert max(abs(stage.eye.x), abs(stage.eye.y)) < stage.half_m


def test_the_truth_has_a_line_for_each_picture(tmp_path):
    path = tmp_path / "mixed.mp4"
    words = ["--engine", "painted", "--scenario", "mixed", "--seconds", "4", "--size", "160x120", "--seed", "7"]
    assert main(["take", str(path), *words]) == 0
    lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    assert len(lines) == 2 + len(read_frames(str(path), Span(0, 4)).rgb)
    assert len({line["mode"] for line in lines if "frame" in line}) > 1
