import numpy as np
import pytest

from curation.quality.luminance import (
    LuminanceLimits,
    flashes,
    histogram,
    luma,
    luminance,
    reject_reason,
    whole_flash_share,
    without_bars,
)

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


def changes(part, rest):
    """Return the change of 12 x 16 cells, of which a third changes by `part` and the others by `rest`, at each moment."""
    cells = np.repeat(np.array(rest, float)[:, None, None], 12, 1).repeat(16, 2)
    cells[:, :4] = np.array(part, float)[:, None, None]
    return cells


def test_gunfire_that_lights_a_part_of_the_picture_is_no_flashing():
    fire = [60, 60, 60, 160, 60, 60] * 20
    assert luminance(*clip(fire)).flashes_hz == pytest.approx(5, rel=0.05)
    share = whole_flash_share(changes([0, 180, -180, 0, 120, -120], [0, 1, 0, 2, 1, -1]))
    assert luminance(*clip(fire), share).flashes_hz == share == 0


def test_a_strobe_changes_all_of_the_picture_and_counts():
    assert whole_flash_share(changes([0, 100, -100], [0, 60, -60])) == 1
    assert whole_flash_share(changes([200, 80], [0, 70])) == 0.5
    assert whole_flash_share(changes([2, -3], [1, 0])) == 1, "no jump was sampled: the count stands"
    assert whole_flash_share(np.zeros((0, 12, 16))) == 1


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
