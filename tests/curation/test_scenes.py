from itertools import pairwise

import cv2
import numpy as np
import pytest
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector, ContentDetector

from curation.scenes import ContentScore, SceneSettings, cut_frames, divide, explained


def texture(seed, shape=(180, 320, 3)):
    noise = np.random.default_rng(seed).integers(0, 256, (shape[0] // 6, shape[1] // 6, 3), np.uint8)
    return cv2.resize(noise, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


def nominal(low_s, high_s, nominal_s):
    assert low_s <= nominal_s <= high_s
    return nominal_s


def test_the_content_score_is_pyscenedetects():
    frames = [texture(i // 3) for i in range(9)]
    theirs, ours = ContentDetector(), ContentScore()
    for i, frame in enumerate(frames):
        theirs.process_frame(FrameTimecode(i, 30.0), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        assert ours(frame) == pytest.approx(theirs._frame_score or 0.0, abs=1e-9)


def test_cuts_replayed_from_scores_are_the_detectors_own():
    scores = np.abs(np.random.default_rng(0).normal(5, 2, 300))
    scores[[40, 41, 120, 200, 290]] = [60, 8, 45, 30, 80]
    settings = SceneSettings(adaptive_threshold=3.0, min_content=15.0, min_scene_s=0.0)

    class Told(AdaptiveDetector):
        def _calculate_frame_score(self, timecode, frame_img):
            return float(scores[timecode.frame_num])

    theirs = Told(adaptive_threshold=3.0, min_content_val=15.0, min_scene_len=1)
    blank = np.zeros((2, 2, 3), np.uint8)
    cuts = [c.frame_num for i in range(300) for c in theirs.process_frame(FrameTimecode(i, 30.0), blank)]
    assert cut_frames(scores, np.zeros(300), 30.0, settings) == cuts == [40, 120, 200, 290]


def test_a_change_that_flow_explains_is_no_cut_and_hides_none():
    scores, known = np.full(100, 2.0), np.zeros(100)
    scores[[30, 40]], known[30] = 60.0, 0.9
    assert cut_frames(scores, known, 30.0, SceneSettings()) == [40]


def test_of_two_cuts_too_near_the_less_explained_stands():
    scores, known = np.full(100, 2.0), np.zeros(100)
    scores[[30, 36]], known[30], known[36] = 60.0, 0.5, 0.1
    assert cut_frames(scores, known, 30.0, SceneSettings(min_scene_s=0.5)) == [36]


def test_flow_explains_a_pan_and_a_flash_but_not_a_cut():
    before = texture(1)
    panned, flow = np.roll(before, 12, axis=1), np.zeros((180, 320, 2), np.float32)
    flow[..., 0] = -12
    assert explained(before, panned, flow) > 0.8
    flash = cv2.convertScaleAbs(before, alpha=0.5, beta=120)
    assert explained(before, flash, np.zeros_like(flow)) > 0.9
    assert explained(before, texture(2), np.zeros_like(flow)) < 0.3


def test_a_still_hud_does_not_explain_a_cut():
    before, after = texture(1), texture(2)
    before[90:] = after[90:] = texture(3)[90:]
    assert explained(before, after, np.zeros((180, 320, 2), np.float32)) < 0.3


@pytest.mark.parametrize("length_s", [0.4, 2.9, 3.0, 6.0, 6.99, 7.0, 7.01, 8.0, 9.0, 12.5, 13.9, 60.0, 61.3])
def test_spans_cover_the_scene_and_only_a_short_scene_is_too_short(length_s):
    settings = SceneSettings()
    spans = divide(10.0, 10.0 + length_s, settings, nominal)
    assert spans[0][0] == 10.0
    assert spans[-1][1] == 10.0 + length_s
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    lengths = [b - a for a, b in spans]
    assert max(lengths) <= settings.clip_s + settings.slack_s
    assert min(lengths) >= min(length_s, settings.min_clip_s) - 1e-9


@pytest.mark.parametrize("end", ["low", "high"])
def test_boundaries_may_sit_anywhere_in_their_window(end):
    spans = divide(0.0, 100.0, SceneSettings(), lambda low, high, _: low if end == "low" else high)
    assert all(3.0 - 1e-9 <= b - a <= 7.0 + 1e-9 for a, b in spans)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"min_clip_s": 5.0}, r"at most \(clip_s \+ slack_s\) / 2 = 3.5, not 5"), ({"slack_s": -1}, "must not be negative")],
)
def test_settings_that_cannot_work_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        SceneSettings(**change)
