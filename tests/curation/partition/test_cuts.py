import cv2
import numpy as np
import pytest
from scenedetect import FrameTimecode
from scenedetect.detectors import ContentDetector

from curation.partition.cuts import ContentScore, FlowMatcher, LayoutSimilarity, SceneSettings, cut_frames, match_image


def texture(seed, shape=(180, 320, 3)):
    noise = np.random.default_rng(seed).integers(0, 256, (shape[0] // 6, shape[1] // 6, 3), np.uint8)
    return cv2.resize(noise, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


def test_the_content_score_is_pyscenedetects_to_the_bit():
    frames = [texture(i // 3) for i in range(9)]
    theirs, ours = ContentDetector(), ContentScore()
    for i, frame in enumerate(frames):
        theirs.process_frame(FrameTimecode(i, 30.0), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        assert ours(frame) == theirs._frame_score


@pytest.mark.parametrize("height", [26, 240])
def test_at_sizes_whose_area_has_no_exact_reciprocal_it_is_so_to_the_last_digits(height):
    theirs, ours = ContentDetector(), ContentScore()
    for i in range(6):
        frame = texture(i, (height, 320, 3))
        theirs.process_frame(FrameTimecode(i, 30.0), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        assert ours(frame) == pytest.approx(theirs._frame_score, abs=1e-13)


def signals(count, **frames):
    """Content scores, matches and layouts of `count` quiet frames, but for f7=(score, match) of another layout."""
    scores, known, layout = np.full(count, 2.0), np.ones(count), np.ones(count)
    for name, values in frames.items():
        frame = int(name[1:])
        scores[frame], known[frame], layout[frame] = *values, 0.0
    return scores, known, layout


def test_a_change_that_flow_explains_is_no_cut():
    assert cut_frames(*signals(100, f30=(60.0, 0.6), f60=(60.0, 0.2)), 30.0, SceneSettings()) == [60]


def test_a_change_too_small_to_tell_is_no_cut():
    assert cut_frames(*signals(100, f30=(17.0, 0.1)), 30.0, SceneSettings()) == []


def test_a_cut_is_found_however_high_the_frames_around_it_score():
    turn = {f"f{i}": (45.0, 0.7) for i in range(25, 40)}
    assert cut_frames(*signals(100, **turn | {"f30": (40.0, 0.2)}), 30.0, SceneSettings()) == [30]


def test_where_flow_has_lost_track_nothing_is_a_cut():
    blast = {f"f{i}": (50.0, 0.4) for i in range(28, 34)}
    assert cut_frames(*signals(100, **blast | {"f30": (60.0, 0.25)}), 30.0, SceneSettings()) == []


def test_of_two_cuts_too_near_the_less_explained_stands():
    known = signals(100, f30=(60.0, 0.3), f36=(60.0, 0.1))
    assert cut_frames(*known, 30.0, SceneSettings(min_scene_s=0.5)) == [36]
    assert cut_frames(*known, 30.0, SceneSettings(min_scene_s=0.0)) == [30, 36]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_hardly_any_frames_have_no_cut(count):
    assert cut_frames(np.zeros(count), np.ones(count), np.ones(count), 30.0, SceneSettings()) == []


def match(before, after):
    return FlowMatcher()(match_image(before), match_image(after))


@pytest.mark.parametrize("step", [(0, 12), (0, 60), (0, -60), (0, 110), (50, 0), (-40, 40)])
def test_a_pan_is_explained_even_a_very_fast_one(step):
    world = texture(1, (480, 640, 3))
    before, after = (world[150 + y : 330 + y, 160 + x : 480 + x] for y, x in ((0, 0), step))
    assert match(before, after) > 0.6


@pytest.mark.parametrize("flash", [{"alpha": 0.5, "beta": 120}, {"alpha": 0.3, "beta": 0}])
def test_a_flash_is_explained(flash):
    assert match(texture(1), cv2.convertScaleAbs(texture(1), **flash)) > 0.7


def test_a_red_flash_is_explained():
    tinted = (texture(1) * [0.4, 0.4, 0.4] + [140, 0, 0]).astype(np.uint8)
    assert match(texture(1), tinted) > 0.7


@pytest.mark.parametrize("seed", range(2, 8))
def test_a_cut_is_not_explained_though_both_sides_look_alike(seed):
    assert match(texture(1), texture(seed)) < 0.34


def test_a_still_hud_does_not_explain_a_cut():
    before, after = texture(1), texture(2)
    before[100:] = after[100:] = texture(3)[100:]
    assert match(before, after) < 0.34


def test_noise_in_the_dark_is_explained():
    noise = np.random.default_rng(0).integers(0, 6, (2, 180, 320, 3), np.uint8)
    assert match(*noise) == 1.0


def test_flat_pictures_explain_nothing():
    assert match(np.full((180, 320, 3), 20, np.uint8), np.full((180, 320, 3), 200, np.uint8)) == 0.0


def test_a_match_does_not_depend_on_those_before_it():
    matcher, world = FlowMatcher(), texture(1, (180, 640, 3))
    pair = match_image(texture(4)), match_image(texture(5))
    first = matcher(*pair)
    matcher(match_image(world[:, :320]), match_image(world[:, 80:400]))
    assert matcher(*pair) == first


@pytest.mark.parametrize("shape", [(16, 320, 3), (720, 320, 3), (320, 320, 3), (134, 320, 3)])
def test_any_shape_of_frame_can_be_matched(shape):
    assert match(texture(1, shape), texture(2, shape)) < 0.5


def test_where_the_layout_stays_a_cut_must_be_less_explained():
    scores, known, layout = signals(100, f30=(60.0, 0.36))
    assert cut_frames(scores, known, layout, 30.0, SceneSettings()) == [30]
    assert cut_frames(scores, known, np.ones(100), 30.0, SceneSettings()) == []


def test_layouts_of_moved_and_of_other_pictures():
    alike, world = LayoutSimilarity(), texture(1, (180, 640, 3))
    assert alike(world[:, :320]) == 1.0
    assert alike(world[:, 4:324]) > 0.9
    assert alike(texture(2)) < 0.5
    assert alike(np.full((180, 320, 3), 7, np.uint8)) == 0.0


@pytest.mark.parametrize(
    ("change", "words"),
    [({"min_clip_s": 5.0}, r"at most \(clip_s \+ slack_s\) / 2 = 3.5, not 5"), ({"slack_s": -1}, "must not be negative")],
)
def test_settings_that_cannot_work_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        SceneSettings(**change)
