"""What causal training draws where a text changes."""

import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from model.noise import NoiseSpec  # noqa: E402 (after the package is known to be here)
from model.training.objectives import draw_levels, vary_changes  # noqa: E402


def generators(count):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@pytest.mark.parametrize(("expert", "boundary"), [("high", 0.0), ("high", 0.9), ("low", 0.9)])
def test_levels_are_higher_where_the_text_changes_and_stay_those_of_the_expert(expert, boundary):
    noise = NoiseSpec(shift=3.0, boundary=boundary)
    changed = torch.tensor([[False, True]]).expand(400, -1)
    levels = draw_levels(noise, expert, changed, generators(400))
    plain, at_change = levels.mean(0).tolist()
    assert at_change > plain
    low, high = (boundary, 1.0) if expert == "high" else (0.0, boundary)
    assert low <= levels.min()
    assert levels.max() <= high
    none = draw_levels(noise, expert, torch.zeros_like(changed), generators(400))
    assert torch.equal(none[:, 0], levels[:, 0])


def test_frames_are_left_out_from_the_change_on_and_the_one_before_may_be_held():
    numbers = torch.arange(20, 26).expand(400, -1)
    rows = vary_changes(numbers, [[(0, ""), (23, "night falls"), (40, "")]] * 400, 49, 10, generators(400))
    skipped = rows[:, 3:] - numbers[:, 3:]
    assert (skipped == skipped[:, :1]).all()
    assert set(skipped[:, 0].tolist()) == set(range(11))
    assert 0.35 < float((skipped[:, 0] > 0).float().mean()) < 0.55
    before = {tuple(row) for row in rows[:, :3].tolist()}
    assert before == {(20, 21, 22), (20, 22, 22), (22, 22, 22)}


def test_frames_are_not_varied_beyond_the_sample_or_without_a_change():
    late = torch.arange(42, 48).expand(50, -1)
    rows = vary_changes(late, [[(0, ""), (44, "night falls")]] * 50, 49, 10, generators(50))
    assert set(rows[:, -1].tolist()) == {47, 48}
    for spans in ([(0, "night falls")], [(0, ""), (60, "night falls")], [(0, ""), (42, "night falls")]):
        assert torch.equal(vary_changes(late, [spans] * 50, 49, 10, generators(50)), late)
