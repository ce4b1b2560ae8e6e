"""Run InterBench over the cases of a folder: signals and judgements of each video, then scores, tables and a page.

OUT/videos/<id>.json holds what is known of a video, OUT/replies the raw replies, OUT/ceilings the videos of the ceilings. All
are kept and not made again.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from curation import storage
from curation.schema import digest
from curation.vlm import load
from model.evaluation.cases import Case
from model.evaluation.interbench import ceilings, page, signals, suite
from model.evaluation.interbench import judge as judging
from model.evaluation.interbench.judge import Judgement, RecordedVlm
from model.evaluation.interbench.results import BenchSettings, VideoResult, from_json, to_json
from model.evaluation.interbench.scores import (
    DIMENSIONS,
    SCALE,
    TITLES,
    GroupScore,
    VideoScore,
    aggregate,
    overall,
    reference_rows,
)
from model.evaluation.interbench.signals import VideoSignals
from model.evaluation.items import Items, write_items
from model.evaluation.statistics import krippendorff_alpha, pair_agreement
from model.evaluation.tables import Column, Row, Table, write

_CASES_PER_JOB = 8  # their questions are asked at once
_COLUMNS = [Column(TITLES[name], "up") for name in DIMENSIONS] + [Column("Overall", "up"), Column("Videos"), Column("Invalid")]


def run(
    cases: Sequence[Case],
    out: str,
    settings: BenchSettings,
    each: Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]] = map,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Evaluate the cases, write tables and the page into `out`, and return what interbench.json holds.

    each: runs a function over jobs, here or on a cluster. What a killed run has finished is not done again.
    """
    out = storage.normal(out)
    for case in cases:
        suite.find_subset(case.subset)
    limits = ceilings.cases_of(cases, settings.ceilings, out)
    groups_of = {"": list(cases), **limits}
    todo = [(label, case) for label, part in groups_of.items() for case in part]
    jobs = [tuple(todo[k : k + _CASES_PER_JOB]) for k in range(0, len(todo), _CASES_PER_JOB)]
    by_label: dict[str, list[VideoResult]] = {label: [] for label in groups_of}
    asked = 0
    for part, new in each(_Job(out, settings), jobs):
        for label, result in part:
            by_label[label].append(result)
        asked += new
        log(f"{sum(map(len, by_label.values()))} of {len(todo)} videos")
    by_label = {label: sorted(part, key=lambda result: result.case.name) for label, part in by_label.items()}
    results = by_label.pop("")
    summary = _summary(results, settings, asked, [result for part in by_label.values() for result in part])
    storage.put(storage.join(out, "interbench.json"), json.dumps(summary, indent=1).encode())
    made = tables(results, settings, by_label)
    for name, table in made.items():
        write(table, out, name)
    write_items(out, _items(results, settings))
    page.write_page(out, results, summary, settings.name, made.get("interbench"))
    return summary


@dataclass(frozen=True)
class _Job:
    """Evaluates some cases, in the process that runs it."""

    out: str
    settings: BenchSettings

    def __call__(self, labelled: Sequence[tuple[str, Case]]) -> tuple[list[tuple[str, VideoResult]], int]:
        cases = [case for _, case in labelled]
        results = [self._stored(case) for case in cases]
        missing = [number for number, result in enumerate(results) if result is None]
        measured = {number: _measure(cases[number]) for number in missing}
        asked = self._judge([(number, cases[number], *measured[number]) for number in missing], results)
        assert all(result is not None for result in results)
        return [(label, result) for (label, _), result in zip(labelled, results, strict=True) if result is not None], asked

    def _judge(self, todo: Sequence[tuple[int, Case, VideoSignals | None, str]], results: list[VideoResult | None]) -> int:
        judgements: list[list[Judgement]] = [[] for _ in todo]
        asked = 0
        if self.settings.judge.vlm.enabled and todo:
            vlm = RecordedVlm(load(self.settings.judge.vlm), storage.join(self.out, "replies"))
            judgements = judging.judge(vlm, [case for _, case, _, _ in todo], self.settings.judge)
            asked = vlm.asked
        for (number, case, measured, error), judged in zip(todo, judgements, strict=True):
            result = VideoResult(case, measured, tuple(judged), _flags(case, measured, judged), error)
            if error or all(one.raw or one.unreadable for one in judged):  # else a server failed, and is asked again
                storage.put(self._uri(case), json.dumps(to_json(result)).encode())
            results[number] = result
        return asked

    def _stored(self, case: Case) -> VideoResult | None:
        try:
            result = from_json(json.loads(storage.read(self._uri(case))))
        except FileNotFoundError:
            return None
        return result._replace(case=case)

    def _uri(self, case: Case) -> str:
        """Name a result by everything that it depends on: the video's version, what was asked, the judge and its settings."""
        judge = self.settings.judge
        about = asdict(replace(case, video="", camera="", real="", seconds=0.0))
        asked = [judging.rubric_hash(), judge.vlm.backend, judge.vlm.model, judge.vlm.temperature, judge.vlm.max_tokens]
        shown = [judge.frames, judge.width_px, judge.repeats]
        key = digest(case.video, storage.version(case.video), json.dumps([about, asked, shown], sort_keys=True))
        return storage.join(self.out, "videos", f"{key}.json")


def _measure(case: Case) -> tuple[VideoSignals | None, str]:
    try:
        return signals.measure(case.video), ""
    except ValueError as error:
        return None, str(error)


def _flags(case: Case, measured: VideoSignals | None, judgements: Sequence[Judgement]) -> tuple[str, ...]:
    scores = judging.mean_scores(judgements)
    if scores is None or measured is None:
        return ()
    named = dict(zip(DIMENSIONS, scores, strict=True))
    return tuple(signals.contradictions(named, measured, suite.find_subset(case.subset)))


def _named(scores: tuple[float, ...]) -> dict[str, float]:
    return dict(zip(TITLES.values(), scores, strict=True)) | {"Overall": overall(scores)}


def _items(results: Sequence[VideoResult], settings: BenchSettings) -> Items:
    """Return the values by item: scores, or without a judge the signals, of which none is better in either direction."""
    if any(result.judgements for result in results):
        values = {r.case.name: _named(r.scores) for r in results if r.scores is not None}
        return Items(settings.name, "interbench", dict.fromkeys([*TITLES.values(), "Overall"], "up"), values)
    measured = {r.case.name: {k: float(v) for k, v in r.signals._asdict().items()} for r in results if r.signals}
    return Items(settings.name, "interbench without a judge", dict.fromkeys(VideoSignals._fields, ""), measured)


def groups(results: Sequence[VideoResult], settings: BenchSettings) -> list[GroupScore]:
    """Return the scores of subsets, categories and the whole."""
    scored = [VideoScore(result.case.name, result.case.subset, result.scores) for result in results]
    return aggregate(scored, settings.weighting)


def _summary(
    results: Sequence[VideoResult], settings: BenchSettings, asked: int, limits: Sequence[VideoResult]
) -> dict[str, Any]:
    judgements = [one for result in results for one in result.judgements]
    paid = [one for result in (*results, *limits) for one in result.judgements]
    summary: dict[str, Any] = {
        "model": settings.name,
        "judge": settings.judge.vlm.model or None,
        "judge_settings": {
            "frames": settings.judge.frames,
            "width_px": settings.judge.width_px,
            "repeats": settings.judge.repeats,
            "temperature": settings.judge.vlm.temperature,
        },
        "rubric": {"version": judging.rubric()["version"], "hash": judging.rubric_hash()},
        "suite_version": suite.data()["version"],
        "weighting": settings.weighting,
        "videos": len(results),
        "unreadable": [{"name": r.case.name, "error": r.error} for r in results if r.error],
        "flagged": sum(bool(result.flags) for result in results),
        "cost": {
            "replies": len([one for one in paid if one.raw]),
            "new_questions": asked,
            "invalid": sum(one.scores is None for one in judgements),
            "forced_to_zero": sum(one.forced for one in judgements),
            "prompt_tokens": sum(one.prompt_tokens for one in paid),
            "completion_tokens": sum(one.completion_tokens for one in paid),
        },
        "agreement": agreement(results),
        "groups": [
            {
                "level": group.level,
                "name": group.name,
                **dict(zip(DIMENSIONS, group.means, strict=True)),
                "overall": group.overall,
                "overall_interval": list(group.interval),
                "videos": group.videos,
                "invalid": group.invalid,
            }
            for group in (groups(results, settings) if judgements else [])
        ],
    }
    return _without_nan(summary)


def _without_nan(value: Any) -> Any:
    """Replace NaN by None, which JSON has."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def agreement(results: Sequence[VideoResult]) -> dict[str, dict[str, float]]:
    """Return for each dimension how far the valid repeats of a video agree: share of equal pairs, and Krippendorff's alpha."""
    valid = [[one.scores for one in result.judgements if one.scores] for result in results]
    table = {}
    for name in DIMENSIONS:
        repeats = [[scores[name] for scores in item] for item in valid]
        scale = (0, 1) if name == "trigger" else SCALE
        table[name] = {"equal_pairs": pair_agreement(repeats), "alpha": krippendorff_alpha(repeats, scale)}
    return table


def tables(
    results: Sequence[VideoResult], settings: BenchSettings, limits: Mapping[str, Sequence[VideoResult]]
) -> dict[str, Table]:
    """Return the tables by file name: `interbench` with scores and table 5, `signals` with what needs no judge.

    limits: the results of the ceilings by label.
    """
    made = {"signals": _signal_table(results, limits)}
    if any(result.judgements for result in results):
        scores = {label: groups(part, settings)[-1] for label, part in limits.items()}
        made["interbench"] = _score_table(groups(results, settings), scores, settings)
    return made


def _score_table(scored: Sequence[GroupScore], limits: Mapping[str, GroupScore], settings: BenchSettings) -> Table:
    titles = {**{name: subset.title for name, subset in suite.subsets().items()}, **suite.categories(), "all": "All categories"}
    rows = []
    for group in sorted(scored, key=lambda g: ("global", "category", "subset").index(g.level)):
        label = f"{settings.name}: {titles[group.name]}"
        intervals = [None] * len(DIMENSIONS) + [group.interval]
        rows.append(Row(label, [*group.means, group.overall, group.videos, group.invalid], intervals))
    for label, whole in limits.items():
        intervals = [None] * len(DIMENSIONS) + [whole.interval]
        rows.append(Row(label, [*whole.means, whole.overall, whole.videos, whole.invalid], intervals, "ceiling"))
    for category in ("", *suite.categories()):
        for method, means in reference_rows(category):
            label = f"{method}, paper: {suite.categories().get(category, 'All categories')}"
            rows.append(Row(label, [*means, overall(means), None, None], kind="reference"))
    note = (
        f"Judge {settings.judge.vlm.model}, rubric {judging.rubric()['version']} ({judging.rubric_hash()}), "
        f"{settings.judge.frames} frames, {settings.judge.repeats} repeats; rows of the paper are from another judge. "
        + (f"Ceilings: {settings.ceilings} cases of each subset." if settings.ceilings else "No ceilings were judged.")
    )
    return Table("InterBench", _COLUMNS, rows, note)


def _signal_table(results: Sequence[VideoResult], limits: Mapping[str, Sequence[VideoResult]]) -> Table:
    columns = [Column(name.replace("_", " ")) for name in VideoSignals._fields]
    parts = [("All videos", results, "result")]
    parts += [(s.title, [r for r in results if r.case.subset == name], "result") for name, s in suite.subsets().items()]
    parts += [(label, part, "ceiling") for label, part in limits.items()]
    rows = []
    for label, part, kind in parts:
        measured = [r.signals for r in part if r.signals]
        if measured:
            means = np.mean(np.array(measured, float), 0)
            rows.append(Row(label, [*(float(v) for v in means), len(measured)], kind=kind))
    return Table("Signals without a judge", [*columns, Column("Videos")], rows, "Means over videos; see docs/evaluation.md.")
