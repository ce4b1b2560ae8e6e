"""Two models on the same cases: which video shows the interaction better, asked in both orders.

A video in which nothing moves loses without a question: smoothness is often the absence of motion. A verdict counts only if it
is the same in both orders; else it is a tie, and the judge's bias to a position is reported.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from curation.vlm import Prompt, ask, question_files
from model.evaluation.cases import Case
from model.evaluation.interbench import suite
from model.evaluation.interbench.judge import JudgeSettings, RecordedVlm, frame_labels, grab
from model.evaluation.interbench.signals import VideoSignals, measure
from model.evaluation.statistics import Strength, bradley_terry
from model.evaluation.tables import Column, Row, Table

_PAIRS = "model.evaluation.interbench:pairs"
_STILL = 0.01  # share of the picture


class Pair(NamedTuple):
    """The same case made by two models."""

    first_model: str
    first: Case
    second_model: str
    second: Case


class PairVerdict(NamedTuple):
    """The verdict on a pair. score: of the first model, 1, 0.5 or 0; None where no reply is valid.

    reason: both orders | orders disagree | static | invalid. positions: what each valid reply preferred (first, second or
    tie), in the order in which the videos were shown.
    """

    pair: Pair
    score: float | None
    reason: str
    positions: tuple[str, ...] = ()


def reply_schema() -> dict[str, Any]:
    """Return the schema of a reply."""
    fields = {"evidence": {"type": "string", "maxLength": 240}, "better": {"enum": ["first", "second", "tie"]}}
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def pair_cases(models: Mapping[str, Sequence[Case]]) -> list[Pair]:
    """Return all pairs of models on the cases that both have, by name."""
    pairs = []
    names = list(models)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            others = {case.name: case for case in models[second]}
            pairs += [Pair(first, case, second, others[case.name]) for case in models[first] if case.name in others]
    return pairs


def compare(vlm: RecordedVlm, pairs: Sequence[Pair], settings: JudgeSettings) -> list[PairVerdict]:
    """Judge pairs. OSError where the model cannot be reached."""
    verdicts: list[PairVerdict | None] = [_without_question(pair) for pair in pairs]
    asked = [number for number, verdict in enumerate(verdicts) if verdict is None]
    prompts = [prompt for number in asked for prompt in _both_orders(pairs[number], settings)]
    answers = ask(vlm, prompts)
    for place, number in enumerate(asked):
        replies = [answer.value["better"] if answer.value else None for answer in answers[2 * place : 2 * place + 2]]
        verdicts[number] = _verdict(pairs[number], replies)
    return [verdict for verdict in verdicts if verdict is not None]


def _without_question(pair: Pair) -> PairVerdict | None:
    still = [_is_still(measure(case.video)) for case in (pair.first, pair.second)]
    if not any(still):
        return None
    return PairVerdict(pair, 0.5 if all(still) else float(still[1]), "static")


def _is_still(signals: VideoSignals) -> bool:
    return signals.change_peak < _STILL and signals.largest_step < _STILL


def _both_orders(pair: Pair, settings: JudgeSettings) -> list[Prompt]:
    shown = [grab(case.video, settings) for case in (pair.first, pair.second)]
    return [question(pair.first, a, b) for a, b in ((shown[0], shown[1]), (shown[1], shown[0]))]


def question(
    case: Case, first: tuple[tuple[bytes, ...], tuple[float, ...]], second: tuple[tuple[bytes, ...], tuple[float, ...]]
) -> Prompt:
    """Return the question which of two videos of a case is better. first, second: frames as JPEG, and their times."""
    subset = suite.find_subset(case.subset)
    interaction = case.interaction_prompt or subset.interaction
    text = question_files.render(
        _PAIRS,
        count=str(len(first[0])),
        prompt=suite.full_prompt(case.base_prompt, interaction).replace('"', "'"),
        interaction=interaction.replace('"', "'"),
        end_state=subset.end_state,
    )
    labels = [
        f"{word} video, {label}" for word, part in (("First", first), ("Second", second)) for label in frame_labels(part[1])
    ]
    return Prompt("interbench pair", text, reply_schema(), (*first[0], *second[0]), tuple(labels))


def _verdict(pair: Pair, replies: Sequence[str | None]) -> PairVerdict:
    straight, swapped = replies
    positions = tuple(reply for reply in replies if reply)
    if straight is None or swapped is None:
        return PairVerdict(pair, None, "invalid", positions)
    value = {"first": 1.0, "second": 0.0, "tie": 0.5}
    a, b = value[straight], 1 - value[swapped]
    return PairVerdict(pair, a if a == b else 0.5, "both orders" if a == b else "orders disagree", positions)


class PairSummary(NamedTuple):
    """All verdicts: strengths of the models, and how much the judge's answer depends on the order.

    consistent: share of asked pairs with the same verdict in both orders. first_share: share of preferences for the video that
    is shown first, 0.5 without a bias.
    """

    strengths: list[Strength]
    consistent: float
    first_share: float
    static: int
    invalid: int
    pairs: int


def summarise(verdicts: Sequence[PairVerdict]) -> PairSummary:
    """Return strengths and biases."""
    rows = [(v.pair.first_model, v.pair.second_model, v.score) for v in verdicts if v.score is not None]
    asked = [v for v in verdicts if v.reason in ("both orders", "orders disagree")]
    preferences = [p == "first" for v in verdicts for p in v.positions if p != "tie"]
    return PairSummary(
        bradley_terry(rows) if rows else [],
        float(np.mean([v.reason == "both orders" for v in asked])) if asked else float("nan"),
        float(np.mean(preferences)) if preferences else float("nan"),
        sum(v.reason == "static" for v in verdicts),
        sum(v.reason == "invalid" for v in verdicts),
        len(verdicts),
    )


def table(summary: PairSummary, judge: str) -> Table:
    """Return the strengths as a table."""
    columns = [Column("Strength", "up", 2), Column("Comparisons")]
    rows = [Row(s.name, [s.strength, s.comparisons], [s.interval, None]) for s in summary.strengths]
    note = (
        f"Bradley-Terry, natural logarithm, mean 0, bootstrap over pairs. {judge}: {summary.pairs} pairs, {summary.static} "
        f"decided because a video stands still, {summary.invalid} invalid, {summary.consistent:.2f} of the asked ones equal in "
        f"both orders, {summary.first_share:.2f} of preferences for the video shown first."
    )
    return Table("Pairwise comparison", columns, rows, note)
