import av
import cv2
import numpy as np
import pytest

from curation.partition.recorders import QualityRecorder, ScanFrame
from curation.quality.backends import load_iqa
from curation.quality.iqa import (
    FAULTS,
    PATCH,
    Iqa,
    IqaSettings,
    aggregate_quality,
    frozen_share,
    luma_plane,
    pair_change,
    select_patches,
)

RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def rate() -> Iqa:
    return load_iqa(IqaSettings())


def scenery(height=360, width=640, seed=0):
    """Draw sharp and clean shapes of all sizes over rough ground, like a game."""
    rng = np.random.default_rng(seed)
    picture = cv2.resize(rng.integers(60, 120, (12, 20), np.uint8), (4 * width, 4 * height), interpolation=cv2.INTER_CUBIC)
    for _ in range(400):
        x, y, r = rng.integers(4 * width), rng.integers(4 * height), int(rng.exponential(90)) + 6
        cv2.circle(picture, (int(x), int(y)), r, int(rng.integers(20, 235)), -1, cv2.LINE_AA)
        cv2.rectangle(picture, (int(y), int(x) // 2), (int(y) + 2 * r, int(x) // 2 + r), int(rng.integers(20, 235)), -1)
    rough = cv2.GaussianBlur(rng.normal(0, 60, picture.shape).astype(np.float32), (0, 0), 3)
    return cv2.resize(np.clip(picture + rough, 0, 255).astype(np.uint8), (width, height), interpolation=cv2.INTER_AREA)


def frame(luma, form="gray"):
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(luma), "gray").reformat(format=form)


def score(rate, luma):
    return float(rate([frame(luma)])[0, 0])


def jpeg(luma, quality):
    return cv2.imdecode(cv2.imencode(".jpg", luma, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)


def smaller(luma, factor):
    small = cv2.resize(luma, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, luma.shape[::-1], interpolation=cv2.INTER_CUBIC)


def noisy(luma, sigma):
    return np.clip(luma + np.random.default_rng(1).normal(0, sigma, luma.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("worse", "amounts", "fault"),
    [
        (lambda luma, sigma: cv2.GaussianBlur(luma, (0, 0), sigma), (1.5, 3, 5), "blurred"),
        (noisy, (8, 16, 28), "noisy"),
        (lambda luma, step: (luma // step * step + step // 2).astype(np.uint8), (14, 28, 48), "banded"),
        (jpeg, (15, 8, 4), "blocky"),
        (smaller, (3, 5, 9), "upscaled"),
    ],
)
def test_the_score_falls_with_each_degradation(rate, worse, amounts, fault):
    clean = scenery()
    scores = [score(rate, clean), *(score(rate, worse(clean, amount)) for amount in amounts)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.7
    assert scores[-1] < 0.4
    named = aggregate_quality(rate([frame(worse(clean, amounts[1]))]), 0.0).iqa_fault
    assert named in ({"blurred", "upscaled"} if fault in ("blurred", "upscaled") else {fault})


def test_equal_pictures_have_equal_scores(rate):
    picture = scenery(seed=4)
    once, again = rate([frame(picture)]), load_iqa(IqaSettings())([frame(picture)])
    assert once.tobytes() == again.tobytes()
    assert once[0, 0] + once[0, 1:].sum() == pytest.approx(1)


@pytest.mark.parametrize(
    "form", ["yuv420p", "yuv444p", "yuvj420p", "nv12", "yuv420p10le", "yuv422p12le", "rgb24", "gbrp", "gray"]
)
def test_luma_is_had_from_every_format(form):
    ramp = np.tile(np.linspace(30, 200, 128).astype(np.uint8), (96, 1))
    luma = luma_plane(frame(ramp, form))
    assert (luma.shape, luma.dtype) == ((96, 128), np.uint8)
    assert np.corrcoef(luma.ravel(), ramp.ravel())[0, 1] > 0.999


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 4000), (90, 160), (180, 320), (271, 641), (2160, 3840)])
def test_patches_lie_inside_pictures_of_every_size(height, width):
    squares = select_patches(RNG.integers(40, 255, (height, width), np.uint8))
    assert 1 <= len(squares) <= 16
    assert squares.shape[1:] == (PATCH, PATCH)


def test_bars_and_the_margin_are_not_looked_at():
    picture = RNG.integers(100, 200, (720, 1280), np.uint8)
    picture[:90] = picture[-90:] = 16
    picture[90:105] = 255
    assert select_patches(picture).min() >= 100
    assert select_patches(picture).max() < 200


@pytest.mark.parametrize("luma", [0, 16, 128, 255])
def test_an_empty_picture_has_a_score(rate, luma):
    rows = rate([frame(np.full((120, 160), luma, np.uint8))])
    assert np.isfinite(rows).all()


def test_a_picture_smaller_than_a_patch_has_none(rate):
    rows = rate([frame(np.zeros((48, 300), np.uint8))])
    assert np.isnan(rows).all()
    assert aggregate_quality(rows, 0.25) == (None, None, 0.25)
    assert aggregate_quality(rows[:0], 0.0).iqa is None


def test_the_log_rates_what_it_is_given_in_batches():
    class Counting:
        name, batch = "counting", 2
        calls: list[int] = []

        def __call__(self, frames):
            self.calls.append(len(frames))
            return np.full((len(frames), 1 + len(FAULTS)), 0.5, np.float32)

    rate = Counting()
    log, picture = QualityRecorder(rate, every_s=1.0), frame(np.zeros((64, 64), np.uint8))
    for k in range(10):
        log.add(ScanFrame(k, k / 2, (k - 1) / 2 if k else None, None, None, picture, in_chunk=True))
    noted = log.arrays()
    assert noted["iqa_rows"].shape == (5, 1 + len(FAULTS))
    assert noted["iqa_frame"].tolist() == [0, 2, 4, 6, 8]
    assert rate.calls == [2, 2, 1]


def test_stalls_are_frozen_and_a_capture_at_twice_the_rate_is_not():
    times = np.arange(120) / 60
    moving = np.full(120, 5.0)
    assert frozen_share(times, moving, 2.0) == 0
    assert frozen_share(times, np.where(np.arange(120) % 2, 0.0, 5.0), 2.0) == 0
    stalled = moving.copy()
    stalled[31:91] = 0
    assert frozen_share(times, stalled, 2.0) == pytest.approx(61 / 120)
    assert frozen_share(times, np.zeros(120), 2.0) == 1
    assert frozen_share(times[:1], moving[:1], 1 / 60) == 0


def still_with(changes):
    """Return the arguments of `frozen_share` for six seconds of a standing camera, with a change in a part at some moments."""
    times, pairs_s = np.arange(180) / 30, np.arange(60) / 10
    content, levels = np.zeros(180), np.full((60, 12, 16), 0.4)
    for at_s in changes:
        content[round(at_s * 30)] = 1.5
        levels[round(at_s * 10), 4:8, 5:9] = 25.0
    return times, content, 6.0, pair_change(pairs_s, levels)


def test_a_player_who_stands_and_digs_is_not_frozen_between_two_blows():
    times, content, end_s, change = still_with([0.5, 1.5, 2.4, 4.0, 5.2])
    assert frozen_share(times, content, end_s) > 0.9
    assert frozen_share(times, content, end_s, change) == 0


def test_a_picture_that_stops_while_the_camera_moves_is_frozen_although_parts_of_it_changed_before():
    times, content, end_s, change = still_with([])
    content[:90] = 6.0
    change.share[:29] = 0.8
    change.share[29] = 0.2  # the motion runs out: less of the picture changes, and then nothing
    assert frozen_share(times, content, end_s, change) == pytest.approx(91 / 180)


def test_nothing_at_all_is_frozen():
    assert frozen_share(*still_with([])) == 1


def test_time_that_is_frozen_counts_against_a_clip():
    rows = np.full((3, 1 + len(FAULTS)), 0.01, np.float32)
    rows[:, 0] = 0.9
    quality = aggregate_quality(rows, 0.5)
    assert quality.iqa == pytest.approx(0.45)
    assert (quality.iqa_fault, quality.iqa_frozen) == ("frozen", 0.5)


@pytest.mark.parametrize("wrong", [{"backend": "musiq"}, {"every_s": 0.0}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        IqaSettings(**wrong)
