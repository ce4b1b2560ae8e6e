import numpy as np
import pytest

from curation.quality.luminance import LuminanceLimits, flashes, histogram, luma, luminance, reject_reason, without_bars

FPS = 30


def clip(levels, contrast=40):
    """Return times and histograms of frames whose luma is spread evenly around each level."""
    ramp = np.linspace(-contrast, contrast, 32 * 18)
    frames = [np.clip(level + ramp, 0, 255).astype(np.uint8).reshape(18, 32) for level in levels]
    return np.arange(len(levels)) / FPS, np.array([histogram(frame) for frame in frames])


def test_luma_is_rec_709():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    assert luma(colours)[0].tolist() == pytest.approx([54, 182, 18, 255], abs=1)


def test_an_even_clip():
    scores = luminance(*clip([128] * 60))
    assert scores.luma_mean == pytest.approx(128, abs=2)
    assert scores.luma_range == pytest.approx(80, abs=6)
    assert (scores.black_share, scores.white_share, scores.flashes_hz, scores.fade_share) == (0, 0, 0, 0)
    assert reject_reason(scores._asdict(), LuminanceLimits()) is None


@pytest.mark.parametrize(
    ("levels", "contrast", "reason"),
    [
        ([4] * 60, 4, "too dark: mean luma"),
        ([252] * 60, 3, "too bright: mean luma"),
        ([120] * 60, 3, "flat picture: luma range"),
        ([128] * 20 + [1] * 300, 1, "mostly black: share"),
        ([128] * 60 + [249] * 120, 6, "mostly white: share"),
        ([60, 60, 60, 160, 60, 60] * 20, 40, "flashing: per second"),
        ([float(v) for v in np.linspace(2, 120, 90)], 2, "fading: share of the time"),
    ],
)
def test_each_rule_has_its_reason_with_both_numbers(levels, contrast, reason):
    scores = luminance(*clip(levels, contrast))._asdict()
    only = dict.fromkeys(LuminanceLimits.__dataclass_fields__)
    limit = {"too dark": "min_mean", "too bright": "max_mean", "flat": "min_range", "mostly black": "max_black_share",
             "mostly white": "max_white_share", "flashing": "max_flashes_hz", "fading": "max_fade_share"}  # fmt: skip
    field = next(name for words, name in limit.items() if reason.startswith(words))
    why = reject_reason(scores, LuminanceLimits(**{**only, field: getattr(LuminanceLimits(), field)}))
    assert why is not None
    assert why.startswith(reason)
    assert f" {getattr(LuminanceLimits(), field):g}" in why


def test_a_rule_that_is_switched_off_rejects_nothing():
    off = LuminanceLimits(*[None] * 7)
    assert reject_reason(luminance(*clip([2] * 30, 1))._asdict(), off) is None


def test_a_missing_score_is_no_verdict():
    assert reject_reason({"luma_mean": None}, LuminanceLimits()) is None


def test_flashes_are_counted_once_and_steps_are_none():
    times = np.arange(90) / FPS
    level = np.full(90, 80.0)
    level[[20, 50, 51]] += 60
    assert flashes(times, level) == 2
    level[70:] += 60
    assert flashes(times, level) == 2


def test_bars_do_not_count_as_black():
    picture = np.full((180, 320), 120, np.uint8)
    picture[:36] = picture[-36:] = 16
    bins = without_bars(histogram(picture)[None], share=0.4)
    scores = luminance(np.zeros(1), bins)
    assert scores.luma_mean == pytest.approx(121.5, abs=1)
    assert scores.black_share == 0


def test_one_frame_is_enough():
    scores = luminance(*clip([100]))
    assert np.isfinite(list(scores)).all()
