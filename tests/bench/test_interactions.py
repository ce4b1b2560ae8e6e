"""The bench of interactions and the training's own arithmetic, on made-up recordings."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bench import interactions
from bench.interactions import Recording, clip_verdicts, confidence_lines, recall_within_time, regime_figures
from bench.labelled_ticks import LabelledTicks, since_last, split_of
from curation.actions.learned import KINDS, REGIMES, Prediction
from synth.engines.labels import LabelSpan

torch = pytest.importorskip("torch", reason="the network is trained with torch")
from bench.shipped_weights import calibrate_interactions, train_interactions  # noqa: E402


def ticks(engine="minetest", seconds=20, kind="place", at_s=(5.0, 6.0)):
    count = round(seconds * 10)
    kinds = np.zeros((count, len(KINDS)), bool)
    kinds[round(at_s[0] * 10) : round(at_s[1] * 10), KINDS.index(kind)] = True
    planes = np.zeros((count, 11, 12, 16), np.float16)
    return LabelledTicks(
        engine,
        np.arange(count) / 10,
        planes,
        kinds.any(1),
        kinds,
        np.ones(len(KINDS), bool),
        np.zeros(count, int),
        np.ones(count, bool),
    )


def recording(at_s=(5.0, 6.0), seconds=20, regimes=None):
    fps, one = 30, ticks(seconds=seconds, at_s=at_s)
    event = np.zeros(seconds * fps, bool)
    event[round(at_s[0] * fps) : round(at_s[1] * fps)] = True
    labels = SimpleNamespace(
        engine="minetest", event=event, truth=SimpleNamespace(fps=fps), regimes=regimes or ["still"] * len(event),
        spans=(LabelSpan("place", round(at_s[0] * fps), round(at_s[1] * fps)),), known=np.ones(len(event), bool),
    )  # fmt: skip
    return Recording(None, one, labels)


def predicted(event, seconds=20, regime="still"):
    count = seconds * 10
    regimes = np.full((count, len(REGIMES)), 0.01)
    regimes[:, REGIMES.index(regime)] = 0.9
    return Prediction(np.arange(count) / 10, event, regimes, np.full((count, len(KINDS)), 0.1), np.ones(count), np.zeros(count))


def event_at(at_s, high=0.9, seconds=20):
    times = np.arange(seconds * 10) / 10
    return np.where((times >= at_s[0] - 1e-6) & (times < at_s[1] - 1e-6), high, 0.01)


def test_an_event_between_two_ticks_is_not_lost():
    flags = np.zeros(60, bool)
    flags[11] = True
    frames = np.arange(0, 60, 6)
    assert since_last(flags, frames).tolist() == [False, False, True] + [False] * 7
    assert since_last(np.stack([flags, ~flags], 1), frames).shape == (10, 2)


def test_the_name_of_a_game_says_nothing_about_the_split():
    names = ("minetest-train00-build", "minetest-test02-build", "openarena-valid05-fight", "train07", "valid00", "my_clip")
    assert [split_of(Path(f"{name}.mp4")) for name in names] == ["train", "test", "valid", "train", "valid", "train"]


def test_recall_counts_only_spans_of_at_most_two_and_a_half_times_the_events_time():
    one = recording()
    assert recall_within_time([one], [predicted(event_at((5.0, 6.0)))]) == (1, pytest.approx(1.2, abs=0.01))
    everywhere = predicted(np.full(200, 0.5))
    assert recall_within_time([one], [everywhere]) == (0, 0)
    elsewhere = predicted(event_at((12.0, 13.0)))
    assert recall_within_time([one], [elsewhere])[0] == 0


def test_clips_are_true_where_something_is_visible_in_them():
    detector = SimpleNamespace(confidence_rule=(np.zeros(6), 2.0))
    verdicts = [*clip_verdicts(detector, recording(), predicted(event_at((5.0, 6.0))))]
    assert [verdict.true for verdict in verdicts] == [True, False, False]
    assert [verdict.score > 0.8 for verdict in verdicts] == [True, False, False]
    assert verdicts[0].confidence == pytest.approx(1 / (1 + np.exp(-2)))
    assert [verdict.start_s for verdict in verdicts] == [0, 6, 12]


def test_a_clip_without_an_event_in_which_something_else_may_be_seen_has_no_verdict():
    detector, one = SimpleNamespace(confidence_rule=(np.zeros(6), 2.0)), recording()
    one.labels.known[[*range(60, 120), *range(300, 320)]] = False
    verdicts = [*clip_verdicts(detector, one, predicted(event_at((5.0, 6.0))))]
    assert [(verdict.start_s, verdict.true) for verdict in verdicts] == [(0, True), (12, False)]


def test_a_change_of_regime_is_matched_in_time():
    regimes = ["still"] * 300 + ["forward"] * 300
    prediction = predicted(np.zeros(200))
    prediction.regime_probability[100:] = np.roll(prediction.regime_probability[100:], 1, axis=1)
    hits, right = regime_figures(recording(regimes=regimes), prediction)
    assert (hits.hit, hits.true, hits.detected) == (1, 1, 1)
    assert right == 1
    late = predicted(np.zeros(200))
    late.regime_probability[110:] = np.roll(late.regime_probability[110:], 1, axis=1)
    hits, right = regime_figures(recording(regimes=regimes), late)
    assert (hits.hit, hits.false) == (0, 1)
    assert right == pytest.approx(0.95)


def verdict(engine, true, score, doubt):
    return interactions.ClipVerdict(engine, true, score, 1 - doubt, np.array([doubt, 0, 0, 0, 0, 0]))


def test_the_confidence_is_fitted_to_tell_wrong_verdicts_from_right_ones():
    rng = np.random.default_rng(0)
    doubts = rng.uniform(0, 1, 200)
    verdicts = [verdict("doom", True, 0.9 if rng.random() > doubt else 0.1, doubt) for doubt in doubts]
    weight, bias = calibrate_interactions.fit_verdicts(verdicts)
    assert weight[0] < -1
    assert bias > 0.5
    assert (weight[1:] == 0).all(), "what does not vary weighs nothing"
    table = [*confidence_lines(verdicts)]
    assert float(table[0].split("AUC ")[1].split(" ")[0]) > 0.75


def test_windows_are_quiet_in_three_of_ten_and_else_show_each_engine_and_kind_alike():
    parts = [
        ticks("doom", 60, "shot", (10, 40)),
        ticks("minetest", 60, "place", (10, 10.3)),
        ticks("minetest", 60, "door", (30, 30.3)),
    ]
    windows = train_interactions.Windows(parts, 0)
    picks = [windows._pick() for _ in range(600)]
    shares = np.bincount([number for number, _ in picks], minlength=3) / len(picks)
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], atol=0.07)
    batch = windows.batch(4)
    assert batch["planes"].shape == (4, train_interactions.TICKS, 11, 12, 16)
    assert batch["knows_kind"].shape == (4, 1, len(KINDS))


def test_weights_are_the_mean_over_the_last_two_thirds_of_the_steps(monkeypatch):
    after_steps = []

    class Recorder(torch.optim.AdamW):
        def step(self, *given):
            super().step(*given)
            after_steps.append(torch.cat([part.detach().flatten().clone() for part in self.param_groups[0]["params"]]))

    monkeypatch.setattr(torch.optim, "AdamW", Recorder)
    monkeypatch.setattr(train_interactions, "BATCH", 1)
    net = train_interactions.train([ticks()], 0, 6)
    weights = torch.cat([part.detach().flatten() for part in net.parameters()])
    torch.testing.assert_close(weights, torch.stack(after_steps[2:]).mean(0))
    assert not torch.equal(weights, after_steps[-1])


@pytest.mark.parametrize(("without", "engines"), [("", {"doom", "minetest", "painted"}), ("doom", {"minetest", "painted"})])
def test_a_build_trains_on_all_but_the_test_and_the_engine_left_out(tmp_path, monkeypatch, without, engines):
    for engine in ("doom", "minetest", "painted"):
        for split in ("train", "valid", "test"):
            for ending in (".mp4", ".jsonl"):
                (tmp_path / f"{engine}-{split}00-walk{ending}").touch()
    (tmp_path / "doom-train01-walk.mp4").touch()  # it has no truth
    trained, exported = [], []
    monkeypatch.setattr(train_interactions, "labelled_ticks", lambda path: ticks(path.name.partition("-")[0]))
    monkeypatch.setattr(train_interactions, "train", lambda *given: trained.append(given) or train_interactions.Net())
    monkeypatch.setattr(train_interactions, "export", lambda *given: exported.append(given))
    train_interactions.build([tmp_path], tmp_path / "out.npz", without, networks=2, steps=10)
    assert [(seed, steps) for _, seed, steps in trained] == [(0, 10 * len(engines)), (1, 10 * len(engines))]
    assert sorted(one.engine for one in trained[0][0]) == sorted([*engines, *engines])
    [(nets, known, _)] = exported
    assert len(nets) == 2
    assert {one.engine for one in known} == engines - {"painted"}


def test_a_recording_shorter_than_a_window_is_lengthened_by_ticks_that_do_not_count():
    short = train_interactions.padded(ticks(seconds=4, at_s=(1, 2)))
    assert len(short.event) == train_interactions.TICKS
    assert not short.known[40:].any()
    net = train_interactions.Net().eval()
    planes = torch.from_numpy(short.planes).float()[None]

    def loss(one):
        batch = {name: torch.from_numpy(getattr(one, name))[None] for name in ("event", "kinds", "regime", "known")}
        batch["knows_kind"] = torch.from_numpy(one.knows_kind)[None, None]
        return train_interactions.loss_of(net(planes), batch).item()

    changed = replace(short, event=short.event | (np.arange(len(short.event)) > 45))
    assert loss(changed) == pytest.approx(loss(short))


def test_a_game_played_faster_moves_more_in_fewer_ticks():
    batch = train_interactions.Windows([ticks("doom", 60, "shot", (10, 40))], 0).batch(2)
    fast = train_interactions.play_faster(batch, 1.5)
    count = train_interactions.TICKS
    torch.testing.assert_close(torch.sinh(fast["planes"][:, 10, 0]), 1.5 * torch.sinh(batch["planes"][:, 15, 0].float()))
    torch.testing.assert_close(fast["planes"][:, 10, 3], batch["planes"][:, 15, 3].float())
    assert (fast["event"][:, 10] == batch["event"][:, 15]).all()
    assert not fast["known"][:, round(count / 1.5) + 1 :].any()
    slow = train_interactions.play_faster(batch, 0.5)
    assert (slow["event"][:, 10] == batch["event"][:, 5]).all()
