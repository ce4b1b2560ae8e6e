"""The judge on trial: hand-made judges with known biases, on drawn takes, must be exposed as what they are."""

import csv
import io
import json
import re

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `train` is not installed")

from bench import judge as bench_judge
from curation.errors import InputError
from curation.vlm import Reply, VlmSettings
from model.evaluation.cases import Case, read_cases
from model.evaluation.interbench import faults, pairwise, trial, voting
from model.evaluation.interbench.faults import FAULTS, Take, make
from model.evaluation.interbench.judge import JudgeSettings, RecordedVlm
from model.evaluation.interbench.scores import DIMENSIONS, TITLES
from model.evaluation.interbench.trial import CONTROLS, Specimen, evaluate

SETTINGS = JudgeSettings(VlmSettings("http", "program"), frames=4, width_px=96)


def take(subset="human", seed=0, frames=40):
    grain = np.random.default_rng(seed).integers(60, 160, (12, 20, 3), np.uint8)
    scene = cv2.resize(grain, (160, 96), interpolation=cv2.INTER_CUBIC)
    background = np.repeat(scene[None], frames, 0)
    pictures = background.copy()
    for frame in range(10, frames):
        if subset == "snow":
            pictures[frame] = np.clip(pictures[frame].astype(int) + 70, 0, 255)
        else:
            cv2.rectangle(pictures[frame], (70 + frame // 4, 30), (90 + frame // 4, 70), (250, 250, 250), -1)
    scope = "global" if subset == "snow" else "local"
    return Take(f"{subset}-{seed}", subset, pictures, background, 10, scope, "A room.")


def changed(pictures, background):
    return (np.abs(pictures.astype(int) - background).max(3) > 24).mean((1, 2))


@pytest.mark.parametrize("subset", ["human", "snow"])
def test_a_fault_changes_what_it_says(subset):
    one = take(subset)
    share = {kind: changed(make(one, kind), one.background) for kind in ("true", *FAULTS)}
    assert share["no_trigger"].max() == 0
    assert share["late"][:32].max() == 0
    assert share["late"][-1] == pytest.approx(share["true"][-1])
    assert share["vanishing"][20] == share["true"][20]
    assert share["vanishing"][-10:].max() == 0
    assert np.diff(share["flicker"] > 0).sum() > 10
    assert (share["wrong_object"] == share["true"]).all()
    if subset == "snow":
        assert share["wrong_scope"].max() < 0.1 < share["true"].max()
    else:
        assert share["wrong_scope"][-1] > 4 * share["true"][-1]
        masks = [np.abs(p.astype(int) - one.background[0]).max(2) > 24 for p in make(one, "teleport")[12:36:4]]
        centres = [np.argwhere(mask)[:, 1].mean() for mask in masks if mask.any()]
        assert np.abs(np.diff(centres)).max() > 15
        assert (make(one, "interpenetration") != one.pictures).any()
    assert set(faults.possible("local", "lasting")) == set(FAULTS)
    assert set(FAULTS) - set(faults.possible("global", "passing")) == {"vanishing", "flicker", "teleport", "interpenetration"}
    assert "wrong_scope" not in faults.possible("either", "either")
    with pytest.raises(ValueError, match="unknown fault"):
        make(one, "boredom")


def specimens(judge, takes=6):
    """Specimens scored by a function of kind and number of the take."""
    rows = []
    for number in range(takes):
        for kind in ("true", *FAULTS, *CONTROLS):
            rows.append(Specimen(str(number), kind, judge(kind, number)))
    return rows


def scores(trigger=1, **others):
    return {n: (trigger if n == "trigger" else others.get(n, 5) if trigger else 0) for n in DIMENSIONS}


def honest(kind, number):
    if kind in CONTROLS or kind in ("no_trigger", "wrong_object"):
        return scores(0)
    return scores(1, **({FAULTS[kind][0]: 1} if FAULTS.get(kind, ("",))[0] else {}))


def beliefs(judge):
    result = evaluate(specimens(judge))
    return result, {one.dimension: one for one in result.beliefs}


def test_an_honest_judge_is_believed():
    result, found = beliefs(honest)
    assert {one.verdict for one in found.values()} == {"believe"}
    assert all(one.belief == 1 and one.ranked == 1 for one in found.values())
    assert all(one.halo == 0 for name, one in found.items() if name not in ("trigger",) and np.isfinite(one.halo))
    assert {part.share for part in result.false_triggers.values()} == {0}
    assert set(result.false_triggers) == set(CONTROLS)


def test_a_judge_that_always_praises_is_exposed():
    result, found = beliefs(lambda kind, number: scores(1))
    assert {one.verdict for one in found.values()} == {"doubt"}
    assert all(one.belief == 0 and not one.varies for one in found.values())
    assert {part.share for part in result.false_triggers.values()} == {1}


def test_a_judge_that_rolls_dice_is_exposed():
    rng = np.random.default_rng(0)
    dice = lambda kind, number: scores(int(rng.integers(2)), **{n: int(rng.choice((1, 3, 5))) for n in DIMENSIONS[1:]})  # noqa: E731
    result = evaluate(specimens(dice, 60))
    for one in result.beliefs:
        assert abs(one.belief) < 0.3
        assert one.verdict == "doubt"
        assert one.ranked_interval.low < one.ranked_interval.high


def test_a_judge_blind_to_one_dimension_is_exposed_there_only():
    blind = lambda kind, number: scores(1) if FAULTS.get(kind, ("",))[0] == "physics" else honest(kind, number)  # noqa: E731
    _, found = beliefs(blind)
    assert {name for name, one in found.items() if one.verdict != "believe"} == {"physics"}


def test_a_halo_is_measured():
    def haloed(kind, number):
        return (
            scores(1, **dict.fromkeys(DIMENSIONS[1:], 1))
            if FAULTS.get(kind, ("",))[0] in DIMENSIONS[2:]
            else honest(kind, number)
        )

    _, found = beliefs(haloed)
    assert found["align"].halo == pytest.approx(4 * 5 / 6)  # 5 of the 6 faults elsewhere lower it; a late one does not
    _, found = beliefs(honest)
    assert found["align"].halo == 0


def test_a_judge_that_believes_the_prompt_has_false_triggers():
    gullible = lambda kind, number: scores(1) if kind in ("unrelated", "absent_object") else honest(kind, number)  # noqa: E731
    result, found = beliefs(gullible)
    shares = {name: part.share for name, part in result.false_triggers.items()}
    assert shares == {"no_instruction": 0, "unrelated": 1, "absent_object": 1}
    assert found["trigger"].found.share == pytest.approx(2 / 4)


def test_invalid_replies_are_counted_and_nothing_else():
    result = evaluate(specimens(lambda kind, number: None if number else honest(kind, number), 3))
    assert (result.specimens, result.invalid) == (3 * 12, 2 * 12)
    empty = evaluate([])
    assert {one.verdict for one in empty.beliefs} == {"unknown"}


class LookingJudge:
    """A judge that looks at the frames: is there white or brightness that was not there, is it there at the end?"""

    name = "looking"

    def __init__(self, bias=""):
        self.bias, self.asked = bias, 0

    def replies(self, prompts):
        for number, prompt in enumerate(prompts):
            self.asked += 1
            yield number, Reply(self.pair(prompt) if "better" in prompt.schema["properties"] else self.rate(prompt))

    def rate(self, prompt):
        frames = [cv2.imdecode(np.frombuffer(f, np.uint8), 1).astype(int) for f in prompt.frames]
        share = [(np.abs(f - frames[0]).max(2) > 40).mean() for f in frames]
        trigger = int(max(share) > 0.01) if self.bias != "praise" else 1
        values = dict.fromkeys(DIMENSIONS[1:], 5) | ({} if share[-1] > 0.01 or self.bias == "praise" else {"end_state": 1})
        rows = {"trigger": trigger, **values}
        return json.dumps({name: {"evidence": f"{max(share):.2f}", "score": value} for name, value in rows.items()})

    def pair(self, prompt):
        if self.bias == "first":
            return json.dumps({"evidence": "", "better": "first"})
        half = len(prompt.frames) // 2
        frames = [cv2.imdecode(np.frombuffer(f, np.uint8), 1).astype(int) for f in prompt.frames]
        end = [(np.abs(part[-1] - part[0]).max(2) > 40).mean() for part in (frames[:half], frames[half:])]
        word = "tie" if abs(end[0] - end[1]) < 0.005 else "first" if end[0] > end[1] else "second"
        return json.dumps({"evidence": "", "better": word})


def test_a_whole_trial_with_a_judge_that_looks(tmp_path):
    takes = [take("human", 1), take("human", 2), take("snow", 3)]
    vlm = LookingJudge()
    dimensions, triggers, pairs = bench_judge.run(takes, vlm, SETTINGS, tmp_path, pairs=True)
    verdicts = {row.label: row.cells[-1] for row in dimensions.rows}
    assert verdicts[TITLES["end_state"]] == "too few videos"  # right on all three takes, and a coin could be
    assert verdicts[TITLES["physics"]].startswith("doubt")
    assert verdicts[TITLES["fluency"]].startswith("doubt")
    shares = {row.label: row.cells[0] for row in triggers.rows}
    assert shares["False trigger, nothing happens in the video"] == 0
    assert shares["False trigger, another interaction happens"] == 1  # it looks, and cannot tell what it sees
    order = [row.label for row in pairs.rows]
    assert order.index("without a fault") < order.index("vanishing")
    assert order[-1] in ("vanishing", "no_trigger")
    asked = vlm.asked
    bench_judge.run(takes, vlm, SETTINGS, tmp_path, pairs=True)
    assert vlm.asked == asked
    assert (tmp_path / "judge-dimensions.csv").exists()


def cases(tmp_path, kinds, folder):
    rows = []
    for number, kind in enumerate(kinds):
        path = tmp_path / folder / "human" / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bench_judge.to_mp4(make(take("human", number), kind), 10))
        rows.append(Case(f"human/{number}", str(path), "human", base_prompt="A room."))
    return rows


@pytest.fixture
def two_models(tmp_path):
    good = cases(tmp_path, ["true"] * 4, "good")
    bad = cases(tmp_path, ["vanishing", "vanishing", "no_trigger", "true"], "bad")
    return pairwise.pair_cases({"good": good, "bad": bad})


def test_pairs_in_both_orders(two_models, tmp_path):
    vlm = LookingJudge()
    verdicts = pairwise.compare(RecordedVlm(vlm, str(tmp_path / "r")), two_models, SETTINGS)
    assert [v.score for v in verdicts] == [1, 1, 1, 0.5]
    assert [v.reason for v in verdicts] == ["both orders", "both orders", "static", "both orders"]
    assert vlm.asked == 6  # nothing is asked about a video that stands still
    summary = pairwise.summarise(verdicts)
    assert [s.name for s in summary.strengths] == ["good", "bad"]
    assert summary.strengths[0].interval.low <= summary.strengths[0].strength <= summary.strengths[0].interval.high
    assert summary.consistent == 1
    assert summary.first_share == 0.5


def test_a_judge_that_prefers_the_first_place_decides_nothing(two_models, tmp_path):
    verdicts = pairwise.compare(RecordedVlm(LookingJudge("first"), str(tmp_path / "r")), two_models, SETTINGS)
    assert [v.score for v in verdicts] == [0.5, 0.5, 1, 0.5]
    summary = pairwise.summarise(verdicts)
    assert summary.consistent == 0
    assert summary.first_share == 1
    assert "1.00 of preferences for the video shown first" in pairwise.table(summary, "biased").note


def test_an_invalid_reply_decides_no_pair(two_models, tmp_path):
    class Mute:
        name = "mute"

        def replies(self, prompts):
            return ((number, Reply("?")) for number in range(len(prompts)))

    verdicts = pairwise.compare(RecordedVlm(Mute(), str(tmp_path / "r")), two_models[:1], SETTINGS)
    assert (verdicts[0].score, verdicts[0].reason) == (None, "invalid")
    assert pairwise.summarise(verdicts).strengths == []


def test_the_voting_page_is_blind_and_its_votes_are_read(two_models, tmp_path):
    page, key = str(tmp_path / "vote.html"), str(tmp_path / "key.json")
    voting.write_page(two_models, page, key, seed=3)
    text = (tmp_path / "vote.html").read_text()
    assert "good" not in re.sub(r"--good|var\(--good\)", "", text)
    assert str(tmp_path) not in text
    keys = json.loads((tmp_path / "key.json").read_text())
    assert {side["left"] for side in keys.values()} == {"good", "bad"}
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["pair", "vote", "seconds", "voter"])
    for pair, sides in keys.items():
        writer.writerow([pair, "1" if sides["left"] == "good" else "2", "3.2", "ab"])
    (tmp_path / "votes.csv").write_text(buffer.getvalue())
    comparisons = voting.read_votes([str(tmp_path / "votes.csv")], key)
    assert all(score == (1.0 if left == "good" else 0.0) for left, _, score in comparisons)
    (tmp_path / "votes.csv").write_text("pair,vote,seconds,voter\n99,1,2,x\n")
    with pytest.raises(InputError, match="line 2 is no vote of this page"):
        voting.read_votes([str(tmp_path / "votes.csv")], key)


def test_every_case_that_both_have_is_a_pair(film):
    folder = film("snow/a")
    film("snow/b")
    other = film("snow/a", folder="other")
    pairs = pairwise.pair_cases({"x": read_cases(folder), "y": read_cases(other)})
    assert [(p.first.name, p.second_model) for p in pairs] == [("snow/a", "y")]
    assert faults.FAULTS.keys().isdisjoint(CONTROLS)
    assert trial.MIN_BELIEF > 0
