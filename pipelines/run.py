"""Run the phases over an output folder: list units, leave out the committed ones, run the rest, and count what came of it.

Every step is resumable: a killed run that is started again with the same command continues where it was.
"""

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import av
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from curation import scratch, shards, source_files, storage
from curation.errors import InputError
from curation.output_folder import OutputFolder
from curation.schema import PACKED_VERSION, SCHEMA_VERSION
from curation.worker_state import worker
from pipelines import (
    chunk_units,
    compact,
    dataset_card,
    dead_letters,
    ledger,
    licences,
    lock,
    logs,
    machine,
    near_duplicates,
    planning,
    recipes,
    runners,
    sources,
    synth_units,
    unit_files,
    units,
    worker_pool,
)
from pipelines import totals as totals_module
from pipelines.ledger import Record, Work
from pipelines.lock import hold_lock
from pipelines.phases import Phase
from pipelines.progress import RunProgress
from pipelines.recipes import CLIP_PHASES, PHASES, SYNTH_PHASES, Recipe
from pipelines.report.output import Output, read_output
from pipelines.totals import Totals
from pipelines.units import SUPERSEDED, Group, Unit

_POSE_UNIT = "translation times a camera's scale_to_unit: what the player moves in a second at top speed is 1"
# Records that a summary holds.
_MAX_RECORDS = 100_000
# What may differ from the run before, as long as no clip is planned into a shard.
_CHANGEABLE = ("synth.", "score.", "annotate.", "caption.", "relate.")

log = logging.getLogger(__name__)


@dataclass
class Summary:
    """What a run did, and what the output holds after it.

    records: of the units that this run did; of many, the first ones. work: sums over all of them. Counts are of the whole
    output. changed: units of sources that changed since they were measured, as this run noticed. held: why no new shards were
    planned. notes: (title, words) for the summary and the report. before: committed units by phase that this run found. s3:
    requests by this process and its workers, as `WorkerState.s3_requests` counts them. output: what the report shows.
    """

    out: str
    sources: int = 0
    unreadable: int = 0
    duplicates: int = 0
    clips: int = 0
    kept: int = 0
    rejected: int = 0
    errors: int = 0
    stored: int = 0
    kept_s: float = 0.0
    total_s: float = 0.0
    shards: int = 0
    superseded: int = 0
    near_duplicates: int = 0
    changed: list[str] = field(default_factory=list)
    held: str | None = None
    notes: list[tuple[str, str]] = field(default_factory=list)
    before: dict[str, int] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    work: Work = field(default_factory=Work)
    s3: Counter[str] = field(default_factory=Counter)
    wall_s: float = 0.0
    output: Output | None = field(default=None, repr=False)

    @property
    def finished(self) -> bool:
        """Whether all input is in shards or left out for a reason, and no source changed since it was measured."""
        return not (self.work.failed or self.held or self.changed)

    @property
    def lost(self) -> int:
        """Sources of the output that failed for good: they cannot be read, an operator failed, or workers crashed on them."""
        return self.unreadable

    @property
    def failures(self) -> list[Record]:
        """Units, among the records, that are still to do."""
        return [record for record in self.records if record.is_failure]

    def add(self, record: Record) -> None:
        """Count a unit that this run did."""
        self.work.add(record)
        if len(self.records) < _MAX_RECORDS:
            self.records.append(record)


def curate(
    inputs: Sequence[str],
    out: str,
    recipe: Recipe,
    runner: str = "local",
    phases: Sequence[str] | None = None,
    partial: bool = False,
    wait_s: float = 0.0,
    workers: int = 1,
) -> Summary:
    """Turn sources into shards under `out`. Bad media end in the ledger.

    phases: default all that help; one process has no `scan`, since it gains nothing from chunks. partial: plan shards although
    sources of the input are unfinished. wait_s: how long to wait for another run on `out`. workers: processes of the local
    runner; 0: one for each core. Results do not depend on it.
    Raises InputError for what the user got wrong, and LeaseLost where another run takes `out` from this one.
    """
    phases = phases or (PHASES if _shares_sources(recipe, runner, workers) else CLIP_PHASES)
    exclude = storage.normal(out)

    def list_inputs() -> Inputs:
        found = source_files.find_sources(inputs, exclude=exclude) if {"scan", "partition", "shard"} & set(phases) else []
        entries, growing = sources.split_growing(found)
        listing = sources.Listing(entries, recipe)
        return Inputs(
            pending=lambda name, folder: planning.pending_units(name, folder, recipe, listing),
            prepare=lambda folder: sources.supersede_changed(listing, growing, folder),
            unmade=lambda folder: sources.unmeasured_uris(listing, folder),
            includes=lambda unit: units.UnitName.parse(unit).digest in listing.ids,
            notes=[("still being written, so the next run takes it", uri) for uri in growing],
        )

    return _run(out, recipe, runner, phases, list_inputs, partial, wait_s, workers)


def _shares_sources(recipe: Recipe, runner: str, workers: int) -> bool:
    """Whether several workers can measure chunks of one source at the same time."""
    useful = worker_pool.max_workers(Phase("scan", recipe, ""), units=2)
    return runner == "ray" or min(workers or machine.count_cores(), useful) > 1


def synthesise(
    interactions: Sequence[str],
    frames: Sequence[str],
    out: str,
    recipe: Recipe,
    runner: str = "local",
    phases: Sequence[str] | None = None,
    partial: bool = False,
    wait_s: float = 0.0,
    workers: int = 1,
) -> Summary:
    """Make interactions from initial frames, verify them, and turn those accepted into shards under `out`, as clips of footage.

    InputError for what the user got wrong; what a model or an engine gets wrong ends in the ledger. The rest: as `curate`.
    """
    wanted = synth_units.plan_requests(interactions, frames, recipe)

    def pending(name: str, folder: str) -> Iterator[Group]:
        if name == "generate":
            return synth_units.pending_groups(folder, recipe, wanted)
        return planning.pending_units(name, folder, recipe, sources.Listing([], recipe))

    inputs = Inputs(
        pending=pending,
        prepare=lambda _: None,
        unmade=lambda folder: [unit.name for unit in synth_units.todo(folder, recipe, wanted)[0]],
        includes=lambda _: True,
    )
    return _run(out, recipe, runner, phases or SYNTH_PHASES, lambda: inputs, partial, wait_s, workers)


@dataclass(frozen=True)
class Inputs:
    """The input of a run, as functions of the output folder.

    pending: (phase, out) -> the units left to do, in groups. prepare: called once, before the phases.
    unmade: the inputs that have no unit yet. includes: whether a partition unit belongs to the input. notes: for the summary.
    """

    pending: Callable[[str, str], Iterator[Group]]
    prepare: Callable[[str], None]
    unmade: Callable[[str], list[str]]
    includes: Callable[[str], bool]
    notes: Sequence[tuple[str, str]] = ()


def _run(
    out: str,
    recipe: Recipe,
    runner: str,
    phases: Sequence[str],
    list_inputs: Callable[[], Inputs],
    partial: bool,
    wait_s: float,
    workers: int,
) -> Summary:
    """Run the phases over an output folder, one after the other, under its lock."""
    began, requests = time.monotonic(), worker.s3_requests.copy()
    out = storage.normal(out)
    if recipe.caption.vlm.backend == "vllm" and runner != "ray":
        raise InputError(
            "caption.vlm.backend vllm runs engines on a Ray cluster: use --runner ray, or backend http or transformers"
        )
    inputs = list_inputs()  # before anything is written: an input that is not there is reported at once
    _check_writable(out)
    with hold_lock(out, wait_s), unit_files.pinned(out) as files, runners.local_workers(workers), ExitStack() as stack:
        if wait_s:
            inputs = list_inputs()
        storage.remove_partial_files(out)
        _check_recipe(out, recipe)
        if runner == "ray":
            stack.enter_context(runners.on_cluster())
            runners.warn_of_shortages(Phase(name, recipe, out) for name in phases)
            files.run_tasks = runners.run_tasks
        for condition in licences.conditions_of(recipe, phases):
            log.warning("%s", condition)
        summary, progress = Summary(out), stack.enter_context(RunProgress(out, runner).written())
        before = set(units.list_superseded(out))
        inputs.prepare(out)
        logged, letters = set(storage.names(OutputFolder(out).logs)), set(dead_letters.list_letters(out))
        for name in phases:
            lock.renew_lock(out)  # listing units may delete those of other settings, and plans shards
            if name == "shard":
                summary.held = planning.plan_shards(out, recipe, inputs.unmade(out), partial, inputs.includes)
            with _Shown(progress) as shown:
                for group in inputs.pending(name, out):
                    summary.before[name] = summary.before.get(name, 0) + group.done
                    _delete_logs(out, group.units, logged)
                    dead_letters.delete(out, letters & {(name, unit.name) for unit in group.units})
                    progress.plan(name, len(group.units), group.done, group.planned)
                    for record in _run_phase(Phase(name, recipe, out, files.manifest.number), group.units, runner, shown):
                        summary.add(record)
                    if group.units and group.planned < 1:
                        compact.pack(out)
                    if group.units:
                        files.refresh()
                    lock.renew_lock(out)
            if name == "score":
                near_duplicates.mark_duplicates(out, recipe)
            compact.pack(out)
        lock.renew_lock(out)
        summary.changed = [
            unit for unit in units.list_superseded(out) if unit not in before and ledger.read_unit(out, SUPERSEDED, unit)
        ]
        chunk_units.delete_leftover_chunks(out)
        dead_letters.delete_outdated(out)
        scratch.remove_stale_folders()  # of workers that were killed
        _conclude(summary, recipe)
    summary.notes = [*inputs.notes, *summary.notes]
    summary.s3 = summary.work.s3 + (worker.s3_requests - requests)
    summary.wall_s = time.monotonic() - began
    return summary


def _check_writable(out: str) -> None:
    """Raise InputError now, not after an hour's work, where the output cannot be written, named, or locked."""
    if not storage.is_text(out):
        raise InputError(f"{out!a}: the name of the output must be UTF-8")
    try:
        storage.check_conditions(out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error})") from error


def _check_recipe(out: str, recipe: Recipe) -> None:
    """Refuse an output of another recipe or schema. `score` and later settings may change until shards are planned."""
    dataset = shards.read_dataset(out)
    settings = recipes.settings_of(recipe)
    if dataset is None:
        _write_dataset(out, recipe, [], {})
        return
    if (version := dataset["schema_version"]) not in (SCHEMA_VERSION, PACKED_VERSION):
        raise InputError(
            f"{out} was made with schema version {version}, which this release reads but does not continue: it writes version "
            f"{SCHEMA_VERSION}. Curate into another --out, or use the gamecraft release that made it"
        )
    changed = recipes.differences(dataset["recipe"], settings)
    if not changed:
        return
    if all(item.startswith(_CHANGEABLE) for item in changed) and not shards.list_plans(out):
        _write_dataset(out, recipe, [], dataset.get("counts", {}))
        return
    keep = " (copy its videos, clips/partition and sidecar folders there to keep the measurements)"
    raise InputError(
        f"{out} was made with another recipe ({'; '.join(changed[:3])}). Use that recipe again, or another --out"
        + (keep if all(item.startswith((*_CHANGEABLE, "shard.")) for item in changed) else "")
    )


class _Shown:
    """A progress bar over all groups of a phase, and the progress of the run. A phase without units has none."""

    def __init__(self, progress: RunProgress) -> None:
        self._bar, self._progress = _progress(), progress

    def __enter__(self) -> "_Shown":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar.tasks:
            self._bar.stop()

    def begin(self, phase: str) -> None:
        """Begin a group of the phase."""
        if not self._bar.tasks:
            self._bar.add_task(f"{phase:9}", total=0)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], total=self._progress.total(phase))

    def set_part(self, phase: str, part: float) -> None:
        """Show how much of the current units is done, summed over them."""
        self._bar.update(self._bar.task_ids[0], completed=self._progress.done(phase) + part)
        self._progress.set_part(part)

    def add(self, record: Record) -> None:
        self._progress.add(record)
        self._bar.update(self._bar.task_ids[0], completed=self._progress.done(record.phase))


def _run_phase(phase: Phase, units_: Sequence[Unit], runner: str, shown: _Shown) -> Iterator[Record]:
    """Run units of a phase, and show progress with a rate and the time left. Each kind of failure is logged once."""
    if not units_:
        return
    logged: set[str] = set()
    shown.begin(phase.name)
    show_part = partial(shown.set_part, phase.name)
    for record in runners.run_ray(phase, units_) if runner == "ray" else runners.run_local(phase, units_, show_part):
        shown.add(record)
        _log_record(record, logged)
        yield record


def _log_record(record: Record, logged: set[str]) -> None:
    fields = {name: value for name, value in asdict(record).items() if value}
    log.info("%s %s: %d rows in %.1f s", record.phase, record.unit, record.rows, record.wall_s, extra=fields)
    for words, level in ((record.failure, logging.ERROR), (record.note, logging.WARNING)):
        if words and words not in logged:
            logged.add(words)
            log.log(level, "%s %s: %s", record.phase, record.unit, words, extra={"phase": record.phase, "unit": record.unit})


def _delete_logs(out: str, todo: Sequence[Unit], logged: set[str]) -> None:
    """Delete the tracebacks, of those in `logged`, of units that are tried again."""
    for uri in (OutputFolder(out).log(unit.name) for unit in todo):
        if uri.rpartition("/")[2] in logged:
            storage.delete(uri)


class _Rate(ProgressColumn):
    """Units a minute, from the work of the last moments."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed * 60:.1f} units/min" if task.speed else "", style="progress.data.speed")


def _progress() -> Progress:
    """Return a progress bar on stderr; a hidden one where only errors or JSON lines are wanted."""
    bar = BarColumn(), TextColumn("{task.completed:.1f}/{task.total:.0f}"), _Rate(), TimeRemainingColumn()
    hidden = logs.is_json() or not logs.is_shown(logging.WARNING)
    return Progress(TextColumn("{task.description}"), *bar, console=Console(file=sys.stderr), disable=hidden)


def _conclude(summary: Summary, recipe: Recipe) -> None:
    """Count the whole output, and write dataset.json and the dataset card. The shards that dataset.json lists are committed."""
    out, totals = summary.out, Totals()
    summary.output = read_output(out, totals.add, totals_module.COLUMNS)
    status = totals.statuses
    summary.sources, summary.duplicates = totals.sources, status["duplicate"]
    summary.superseded = status["superseded"]
    summary.unreadable = totals.sources - status["ok"] - status["duplicate"] - status["superseded"]
    summary.clips, summary.kept, summary.errors = totals.clips, totals.kept, totals.errors
    summary.rejected = summary.clips - summary.kept - summary.errors
    summary.stored = totals.stored.clips
    summary.kept_s, summary.total_s = totals.kept_s, totals.total_s
    summary.notes = [*totals.notes(), *totals.captions.lines(summary.work)]
    summary.near_duplicates = totals.near_duplicates
    names = shards.list_committed(out)
    summary.shards = len(names)
    described = storage.at_once(partial(_describe_shard, out), names)
    listed = [entry for entry, _ in described]
    counts = {k: v for k, v in vars(summary).items() if isinstance(v, int) or k in ("kept_s", "total_s")}
    by_category = dict(sorted(totals.stored.categories.items()))
    dataset = _write_dataset(out, recipe, listed, counts | {"stored_by_category": by_category})
    summary.output = replace(summary.output, dataset={"schema_version": SCHEMA_VERSION, **dataset})
    shards.write_wids_index(out, {entry["name"]: entry["clips"] for entry in listed})
    dataset_card.write_card(out, dataset, totals.stored, sum(size for _, size in described))


def _describe_shard(out: str, name: str) -> tuple[dict[str, Any], int]:
    """Return what dataset.json says of a committed shard, and the bytes of its members. Its index is not kept."""
    index = shards.read_index(out, name)
    clips = len(set(index["clip_id"].to_pylist()))
    sha256 = index["tar_sha256"][0].as_py() if len(index) else None
    return {"name": name, "clips": clips, "sha256": sha256}, pc.sum(index["size"]).as_py() or 0


def _write_dataset(out: str, recipe: Recipe, listed: Sequence[dict[str, Any]], counts: dict[str, Any]) -> dict[str, Any]:
    codec = {name: ".".join(map(str, numbers)) for name, numbers in sorted(av.library_versions.items())}
    build = {"gamecraft": code_version(), "pyav": av.__version__, **codec}
    about = {"recipe_name": recipe.name, "recipe": recipes.settings_of(recipe), "build": build, "pose_unit": _POSE_UNIT}
    dataset: dict[str, Any] = {**about, "counts": counts, "shards": list(listed)}
    if unit_files.of(out).manifest.number:
        dataset["schema_version"] = PACKED_VERSION
    lock.renew_lock(out)
    shards.write_dataset(out, dataset)
    return dataset


def code_version() -> str:
    try:
        return version("gamecraft")
    except PackageNotFoundError:
        return "not installed"
