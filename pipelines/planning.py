"""The pending units of each phase: list the wanted units, leave out the committed ones. This reads verdicts, but no pixels.

Listings, and what is derived from verdicts, are kept in `UnitFiles.memo` until units change.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from curation import shards, storage
from curation.schema import digest
from pipelines import chunk_units, ledger, sources, unit_files, units
from pipelines.lock import renew_lock
from pipelines.recipes import Recipe
from pipelines.unit_files import UnitFiles
from pipelines.units import Unit, UnitName

Clip = tuple[str, str | None]
"""A clip's id and the category of its interaction."""

# The lock is renewed after this many deleted units.
_DELETIONS_PER_RENEWAL = 5000


class Pending(NamedTuple):
    """The units of a phase that are still to be done, and how many were done before."""

    units: list[Unit]
    done: int


def pending_units(phase: str, out: str, recipe: Recipe, entries: Sequence[storage.Entry]) -> Pending:
    """List the pending units of a phase. Committed units of other settings or clips are deleted on the way."""
    return _PENDING[phase](out, recipe, entries)


def _pending_chunks(out: str, recipe: Recipe, entries: Sequence[storage.Entry]) -> Pending:
    return Pending(chunk_units.pending_chunks(entries, out, recipe), len(units.list_committed(out, "scan")))


def _pending_sources(out: str, recipe: Recipe, entries: Sequence[storage.Entry]) -> Pending:
    pending = chunk_units.attach_chunks(sources.pending_sources(entries, out, recipe), out, recipe)
    return Pending(pending, len(entries) - len(pending))


def _pending_scores(out: str, recipe: Recipe, _: Sequence[storage.Entry]) -> Pending:
    limits, committed = recipe.digest("score"), units.list_committed(out, "score")
    _delete_units(out, "score", units.find_stale(units.list_committed(out, "partition"), committed, limits))
    incomplete = dict(units.find_incomplete(units.list_current(out), committed, limits))
    rows = unit_files.of(out).rows_of("clips/partition", incomplete, ("reject", "error"))
    clips = {unit: int(pc.sum(ledger.kept_mask(table)).as_py() or 0) for unit, table in rows}
    pending = [
        Unit("score", str(name), upstream=(f"partition/{unit}",))
        for unit, present in incomplete.items()
        for name in units.part_names(unit, clips[unit], limits)
        if name.part not in present
    ]
    return Pending(pending, len(committed))


def _pending_annotations(out: str, recipe: Recipe, _: Sequence[storage.Entry]) -> Pending:
    return _pending_of(out, "annotate", _wanted_annotations(out, recipe), _unscored_sources(out, recipe))


def _wanted_annotations(out: str, recipe: Recipe) -> dict[str, Unit]:
    """Return one unit for each scored part that keeps a clip, by name.

    The name hashes the kept clips, not the limits that kept them: after a change of limits only the parts that differ are
    annotated again.
    """
    limits, settings = recipe.digest("score"), recipe.digest("annotate")
    files, key = unit_files.of(out), ("annotations", limits, settings)
    if key not in files.memo:
        source_of = {digest(str(name), limits): str(name) for name in units.list_current(out)}
        duplicates = _paths_by_video(out, (ledger.DUPLICATES,))
        wanted = {}
        for score, kept in _kept_clips(files):
            part = UnitName.parse(score)
            if kept and (unit := source_of.get(part.digest)):
                name = str(part._replace(digest=digest(unit, settings, *kept)))
                wanted[name] = Unit(
                    "annotate", name, upstream=(f"partition/{unit}", f"score/{score}", *duplicates.get(part.video_id, ()))
                )
        # In order of the scored parts: names of later units hash the names of a source's parts.
        files.memo[key] = dict(sorted(wanted.items(), key=lambda item: item[1].upstream))
    result: dict[str, Unit] = files.memo[key]
    return result


def _kept_clips(files: UnitFiles) -> Iterator[tuple[str, list[str]]]:
    """Yield each scored part with the clips that it keeps, and that are not dropped as duplicates."""
    duplicates = {clip for clip, reject in _duplicate_verdicts(files) if reject}
    for piece in files.scan("clips/score", ("clip_id", "reject", "error")):
        clips, is_kept = piece.table["clip_id"].to_pylist(), ledger.kept_mask(piece.table).to_pylist()
        bounds = piece.starts.tolist()
        for unit, begin, end in zip(piece.units, bounds, bounds[1:], strict=False):
            yield (
                unit,
                [
                    clip
                    for clip, kept in zip(clips[begin:end], is_kept[begin:end], strict=True)
                    if kept and clip not in duplicates
                ],
            )


def _duplicate_verdicts(files: UnitFiles) -> Iterator[tuple[str, str | None]]:
    """Yield each clip that repeats another one, with the reason if it is dropped for that."""
    for piece in files.scan(f"clips/{ledger.DUPLICATES}", ("clip_id", "reject")):
        yield from zip(piece.table["clip_id"].to_pylist(), piece.table["reject"].to_pylist(), strict=True)


def _pending_captions(out: str, recipe: Recipe, _: Sequence[storage.Entry]) -> Pending:
    annotations = _wanted_annotations(out, recipe)
    captions = _wanted_captions(out, recipe, annotations)
    return _pending_of(out, "caption", captions, _unannotated_sources(out, recipe, annotations))


def _wanted_captions(out: str, recipe: Recipe, annotations: dict[str, Unit]) -> dict[str, Unit]:
    """Return one unit for each annotated part, by name. The name hashes the name of that part."""
    settings, annotated = recipe.digest("caption"), {str(name) for name in units.list_committed(out, "annotate")}
    wanted = {}
    for name, unit in annotations.items():
        if name in annotated:
            part = UnitName.parse(name)
            caption = str(part._replace(digest=digest(name, settings)))
            wanted[caption] = Unit("caption", caption, upstream=(*unit.upstream, f"annotate/{name}"))
    return wanted


def _pending_relations(out: str, recipe: Recipe, _: Sequence[storage.Entry]) -> Pending:
    annotations = _wanted_annotations(out, recipe)
    unannotated = _unannotated_sources(out, recipe, annotations)
    return _pending_of(out, "relate", _wanted_relations(out, recipe, annotations, unannotated), unannotated)


def _wanted_relations(out: str, recipe: Recipe, annotations: dict[str, Unit], unannotated: set[str]) -> dict[str, Unit]:
    """Return one unit for each video whose kept clips all have captions, by name. The name hashes the caption units' names."""
    settings, captioned = recipe.digest("relate"), {str(name) for name in units.list_committed(out, "caption")}
    parts: dict[str, list[Unit]] = {}
    for unit in _wanted_captions(out, recipe, annotations).values():
        parts.setdefault(unit.upstream[0], []).append(unit)
    wanted = {}
    for source, captions in parts.items():
        if source.removeprefix("partition/") not in unannotated and all(unit.name in captioned for unit in captions):
            name = str(UnitName(UnitName.parse(captions[0].name).video_id, digest(settings, *(unit.name for unit in captions))))
            earlier = [path for unit in captions for path in unit.upstream[1:]]
            wanted[name] = Unit("relate", name, upstream=(source, *earlier, *(f"caption/{unit.name}" for unit in captions)))
    return wanted


def _pending_of(out: str, phase: str, wanted: dict[str, Unit], unfinished: set[str]) -> Pending:
    """Return the wanted units that are not committed, and delete committed units that are not wanted.

    Two kinds are not deleted: units of videos whose partition unit is `unfinished`, since their new units cannot be named yet,
    and units of superseded sources, since shards may hold their clips.
    """
    committed = units.list_committed(out, phase)
    kept_videos = {UnitName.parse(unit).video_id for unit in (*unfinished, *units.list_superseded(out))}
    _delete_units(out, phase, [name for name in committed if str(name) not in wanted and name.video_id not in kept_videos])
    done = {str(name) for name in committed}
    return Pending([unit for name, unit in wanted.items() if name not in done], len(done & set(wanted)))


def _pending_shards(out: str, _recipe: Recipe, _: Sequence[storage.Entry]) -> Pending:
    """List the planned shards that are not committed, each with those of its clips that are still kept."""
    committed = set(shards.list_committed(out))
    planned: dict[str, list[str]] = {}
    for row in shards.read_plan(out).to_pylist():
        if row["shard"] not in committed:
            planned.setdefault(row["shard"], []).append(row["clip_id"])
    if not planned:
        return Pending([], len(committed))
    wanted = pa.array([clip for ids in planned.values() for clip in ids], pa.string())
    unit_of: dict[str, str] = {}
    for part in ledger.scan(out, ("reject", "error")):
        kept = ledger.kept_clips(part.clips)
        kept = kept.filter(pc.is_in(kept["clip_id"], wanted))
        unit_of.update(zip(kept["clip_id"].to_pylist(), kept["unit_id"].to_pylist(), strict=True))
    later_paths = _paths_by_video(out, (ledger.DUPLICATES, "annotate", "caption", "relate"))
    pending = []
    for name, ids in sorted(planned.items()):
        clips = tuple(clip for clip in ids if clip in unit_of)
        paths = _upstream_paths({unit_of[clip] for clip in clips}, later_paths)
        pending.append(Unit("shard", name, upstream=paths, clips=clips))
    return Pending(pending, len(committed))


def _paths_by_video(out: str, phases: Sequence[str]) -> dict[str, list[str]]:
    """Return the paths "phase/name" of committed units, by video_id."""
    paths: dict[str, list[str]] = {}
    for phase in phases:
        for name in units.list_committed(out, phase):
            paths.setdefault(name.video_id, []).append(f"{phase}/{name}")
    return paths


def _upstream_paths(partition_units: Iterable[str], later_paths: dict[str, list[str]]) -> tuple[str, ...]:
    """Return the paths of all units with rows about the clips of these sources, in order of phase."""
    partitions = sorted(partition_units)
    return tuple(f"partition/{unit}" for unit in partitions) + tuple(
        path for unit in partitions for path in later_paths.get(UnitName.parse(unit).video_id, ())
    )


def plan_shards(
    out: str,
    recipe: Recipe,
    pending_inputs: Sequence[str],
    partial: bool = False,
    is_input: Callable[[str], bool] = lambda _: True,
) -> str | None:
    """Cut the kept clips that no shard has yet into shards, in order of content, and commit that as the next plan.

    A plan never changes. So none is made while a part of the input is unfinished: `pending_inputs`, which have no unit yet, or
    sources that have not been through every phase and for whose partition unit `is_input` is true. Return why there is no plan.
    partial: plan the clips of the sources that are finished.
    """
    unfinished = _unfinished_sources(out, recipe)
    unfinished_inputs = [unit for unit in sorted(unfinished) if is_input(unit)]
    if (pending_inputs or unfinished_inputs) and not partial:
        return _describe_unfinished(out, pending_inputs, unfinished_inputs)
    planned, committed = shards.read_plan(out).to_pylist(), set(shards.list_committed(out))
    stored = _stored_clips(out)
    # A clip that was dropped before its shard was committed can be planned again, once it is kept again (`gamecraft retry`).
    known = {row["clip_id"] for row in planned if row["shard"] not in committed or row["clip_id"] in stored}
    kept = list(_plannable(out, unfinished, known, recipe.shard.max_category_ratio is None))
    balanced = _balance_categories(kept, known, recipe.shard.max_category_ratio)
    new = [clip_id for clip_id, _ in balanced if clip_id not in known]
    if new:
        first = 1 + max((int(row["shard"]) for row in planned), default=-1)
        size = recipe.shard.clips_per_shard
        rows = [{"shard": f"{first + i // size:06d}", "clip_id": clip_id} for i, clip_id in enumerate(new)]
        renew_lock(out)
        shards.put_plan(out, len(shards.list_plans(out)), pa.Table.from_pylist(rows, schema=shards.PLAN))
    return None


def _stored_clips(out: str) -> set[str]:
    """Return the clips that a shard holds."""
    stored: set[str] = set()
    for piece in unit_files.of(out).scan("clips/shard", ("clip_id", "shard")):
        stored.update(piece.table.filter(pc.is_valid(piece.table["shard"]))["clip_id"].to_pylist())
    return stored


def _plannable(out: str, unfinished: set[str], known: set[str], only_new: bool) -> Iterator[Clip]:
    """Yield the kept clips of finished sources, in order of content. only_new: without those that are planned already."""
    for part in ledger.scan(out, ("interaction_category", "reject", "error")):
        kept = ledger.kept_clips(part.clips)
        names = ("clip_id", "unit_id", "interaction_category")
        for clip_id, unit, category in zip(*(kept[name].to_pylist() for name in names), strict=True):
            if unit not in unfinished and not (only_new and clip_id in known):
                yield clip_id, category


def _describe_unfinished(out: str, pending_inputs: Sequence[str], partition_units: Sequence[str]) -> str:
    uris = [(ledger.read_video(out, unit) or {}).get("uri") or unit for unit in partition_units[:3]]
    names = ", ".join([*pending_inputs, *uris][:3])
    count = len(pending_inputs) + len(partition_units)
    sources, more = "source is" if count == 1 else "sources are", ", ..." if count > 3 else ""
    return f"{count} {sources} not finished ({names}{more}); run the same command again, or use --partial to plan without"


def _balance_categories(kept: Sequence[Clip], known: set[str], ratio: float | None) -> list[Clip]:
    """Limit the clips of each category to `ratio` times the count of the rarest category.

    Clips that are planned already come first. Clips of no known category are not limited.
    """
    sizes = Counter(category for _, category in kept if category)
    if ratio is None or not sizes:
        return list(kept)
    max_count, counts, balanced = int(ratio * min(sizes.values())), Counter[str](), []
    for clip_id, category in sorted(kept, key=lambda clip: clip[0] not in known):
        counts[category or ""] += 1
        if not category or counts[category] <= max_count:
            balanced.append((clip_id, category))
    return balanced


def _unfinished_sources(out: str, recipe: Recipe) -> set[str]:
    """Return the partition units with clips that have not been through every phase."""
    related, annotations = {str(name) for name in units.list_committed(out, "relate")}, _wanted_annotations(out, recipe)
    unannotated = _unannotated_sources(out, recipe, annotations)
    relations = _wanted_relations(out, recipe, annotations, unannotated)
    done = {unit.upstream[0] for name, unit in relations.items() if name in related}
    with_kept_clips = {unit.upstream[0] for unit in annotations.values()}
    return unannotated | {path.removeprefix("partition/") for path in with_kept_clips - done}


def _unannotated_sources(out: str, recipe: Recipe, annotations: dict[str, Unit]) -> set[str]:
    """Return the partition units whose parts are not all scored, or not all annotated."""
    done = {str(name) for name in units.list_committed(out, "annotate")}
    pending = [unit for name, unit in annotations.items() if name not in done]
    return _unscored_sources(out, recipe) | {unit.upstream[0].removeprefix("partition/") for unit in pending}


def _unscored_sources(out: str, recipe: Recipe) -> set[str]:
    """Return the partition units whose parts are not all scored."""
    scored, limits = units.list_committed(out, "score"), recipe.digest("score")
    return {unit for unit, _ in units.find_incomplete(units.list_current(out), scored, limits)}


def _delete_units(out: str, phase: str, names: Sequence[UnitName]) -> None:
    """Delete units of other settings or clips: first their rows, which are the commit."""
    folders = (f"clips/{phase}", *(("sidecar/camera",) if phase == "annotate" else ()))
    for first in range(0, len(names), _DELETIONS_PER_RENEWAL):
        renew_lock(out)
        some = [str(name) for name in names[first : first + _DELETIONS_PER_RENEWAL]]
        unit_files.of(out).delete(dict.fromkeys(folders, some))


_PENDING: dict[str, Callable[[str, Recipe, Sequence[storage.Entry]], Pending]] = {
    "scan": _pending_chunks,
    "partition": _pending_sources,
    "score": _pending_scores,
    "annotate": _pending_annotations,
    "caption": _pending_captions,
    "relate": _pending_relations,
    "shard": _pending_shards,
}
