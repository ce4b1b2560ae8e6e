"""The pending units of each phase: list the wanted units, leave out the committed ones. This reads verdicts, but no pixels.

Units are planned in groups: those of a range of video_ids, of some sources of the input, or some shards. The next group is
planned after the one before was done, so units, their names and their verdicts are in memory for one group at a time. Where one
group is all, what is derived from verdicts is kept in `UnitFiles.memo` until units change.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import shards
from curation.schema import digest
from pipelines import chunk_units, ledger, sources, unit_files, units
from pipelines.ids import Ids, column_to_array
from pipelines.lock import renew_lock
from pipelines.recipes import Recipe
from pipelines.sources import Listing
from pipelines.unit_files import UnitFiles
from pipelines.units import Group, Range, Unit, UnitName

# The lock is renewed after this many deleted units.
_DELETIONS_PER_RENEWAL = 5000
# Whose rows go into a shard, next to those of `partition`.
_LATER_PHASES = (ledger.DUPLICATES, "annotate", "caption", "relate")
# Shards that are planned together. One of 64 one-clip sources takes 40 kB as a unit.
_SHARDS_AT_ONCE = 4096


def pending_units(phase: str, out: str, recipe: Recipe, listing: Listing) -> Iterator[Group]:
    """Yield the pending units of a phase in groups, at least one. Committed units of other settings or clips are deleted on the
    way.
    """
    if phase in _PENDING_IN_RANGE:
        ranges = list(_ranges(out))
        for number, videos in enumerate(ranges, 1):
            yield _PENDING_IN_RANGE[phase](out, recipe, videos)._replace(planned=number / len(ranges))
    else:
        yield from _PENDING[phase](out, recipe, listing)


def _ranges(out: str) -> Iterator[Range]:
    """Yield ranges of video_ids, each with about as many units as are planned together."""
    return (Range(low, high) for low, high in ledger.ranges(unit_files.of(out), sources.GROUP))


def _pending_chunks(out: str, recipe: Recipe, listing: Listing) -> Iterator[Group]:
    yield Group([], sum(map(len, unit_files.of(out).parts_of_names("clips/scan", 0))), planned=0.0)
    yield from chunk_units.pending_chunks(listing, out, recipe)


def _pending_sources(out: str, recipe: Recipe, listing: Listing) -> Iterator[Group]:
    for group in sources.pending_groups(listing, out, recipe):
        yield group._replace(units=chunk_units.attach_chunks(group.units, out, recipe))


def _pending_scores(out: str, recipe: Recipe, videos: Range) -> Group:
    limits, committed = recipe.digest("score"), units.list_committed(out, "score", videos)
    _delete_units(out, "score", units.find_stale(units.list_committed(out, "partition", videos), committed, limits))
    incomplete = dict(units.find_incomplete(units.list_current(out, videos), committed, limits))
    rows = unit_files.of(out).rows_of("clips/partition", incomplete, ("reject", "error"))
    clips = {unit: int(pc.sum(ledger.kept_mask(table)).as_py() or 0) for unit, table in rows}
    pending = [
        Unit("score", str(name), upstream=(f"partition/{unit}",))
        for unit, present in incomplete.items()
        for name in units.part_names(unit, clips[unit], limits)
        if name.part not in present
    ]
    return Group(pending, len(committed))


def _pending_annotations(out: str, recipe: Recipe, videos: Range) -> Group:
    wanted = _wanted_annotations(out, recipe, videos)
    return _pending_of(out, "annotate", wanted, _unscored_sources(out, recipe, videos), videos)


def _wanted_annotations(out: str, recipe: Recipe, videos: Range = units.ALL) -> dict[str, Unit]:
    """Return one unit for each scored part that keeps a clip, by name.

    The name hashes the kept clips, not the limits that kept them: after a change of limits only the parts that differ are
    annotated again.
    """
    limits, settings = recipe.digest("score"), recipe.digest("annotate")
    files, key = unit_files.of(out), ("annotations", limits, settings)
    if videos == units.ALL and key in files.memo:
        known: dict[str, Unit] = files.memo[key]
        return known
    source_of = {digest(str(name), limits): str(name) for name in units.list_current(out, videos)}
    duplicates = _paths_by_video(out, (ledger.DUPLICATES,), videos)
    wanted = {}
    for score, kept in _kept_clips(files, videos):
        part = UnitName.parse(score)
        if kept and (unit := source_of.get(part.digest)):
            name = str(part._replace(digest=digest(unit, settings, *kept)))
            wanted[name] = Unit(
                "annotate", name, upstream=(f"partition/{unit}", f"score/{score}", *duplicates.get(part.video_id, ()))
            )
    # In order of the scored parts: names of later units hash the names of a source's parts.
    wanted = dict(sorted(wanted.items(), key=lambda item: item[1].upstream))
    if videos == units.ALL:
        files.memo[key] = wanted
    return wanted


def _kept_clips(files: UnitFiles, videos: Range) -> Iterator[tuple[str, list[str]]]:
    """Yield each scored part with the clips that it keeps, and that are not dropped as duplicates."""
    duplicates = {clip for clip, reject in _duplicate_verdicts(files, videos) if reject}
    for piece in files.scan("clips/score", ("clip_id", "reject", "error"), *videos):
        clips, is_kept = piece.table["clip_id"].to_pylist(), ledger.kept_mask(piece.table).to_pylist()
        for unit, begin, end in piece.spans():
            yield (
                unit,
                [
                    clip
                    for clip, kept in zip(clips[begin:end], is_kept[begin:end], strict=True)
                    if kept and clip not in duplicates
                ],
            )


def _duplicate_verdicts(files: UnitFiles, videos: Range) -> Iterator[tuple[str, str | None]]:
    """Yield each clip that repeats another one, with the reason if it is dropped for that."""
    for piece in files.scan(f"clips/{ledger.DUPLICATES}", ("clip_id", "reject"), *videos):
        yield from zip(piece.table["clip_id"].to_pylist(), piece.table["reject"].to_pylist(), strict=True)


def _pending_captions(out: str, recipe: Recipe, videos: Range) -> Group:
    annotations = _wanted_annotations(out, recipe, videos)
    captions = _wanted_captions(out, recipe, annotations, videos)
    return _pending_of(out, "caption", captions, _unannotated_sources(out, recipe, annotations, videos), videos)


def _wanted_captions(out: str, recipe: Recipe, annotations: dict[str, Unit], videos: Range) -> dict[str, Unit]:
    """Return one unit for each annotated part, by name. The name hashes the name of that part."""
    settings, annotated = recipe.digest("caption"), {str(name) for name in units.list_committed(out, "annotate", videos)}
    wanted = {}
    for name, unit in annotations.items():
        if name in annotated:
            part = UnitName.parse(name)
            caption = str(part._replace(digest=digest(name, settings)))
            wanted[caption] = Unit("caption", caption, upstream=(*unit.upstream, f"annotate/{name}"))
    return wanted


def _pending_relations(out: str, recipe: Recipe, videos: Range) -> Group:
    annotations = _wanted_annotations(out, recipe, videos)
    unannotated = _unannotated_sources(out, recipe, annotations, videos)
    return _pending_of(out, "relate", _wanted_relations(out, recipe, annotations, unannotated, videos), unannotated, videos)


def _wanted_relations(
    out: str, recipe: Recipe, annotations: dict[str, Unit], unannotated: set[str], videos: Range
) -> dict[str, Unit]:
    """Return one unit for each video whose kept clips all have captions, by name. The name hashes the caption units' names."""
    settings, captioned = recipe.digest("relate"), {str(name) for name in units.list_committed(out, "caption", videos)}
    parts: dict[str, list[Unit]] = {}
    for unit in _wanted_captions(out, recipe, annotations, videos).values():
        parts.setdefault(unit.upstream[0], []).append(unit)
    wanted = {}
    for source, captions in parts.items():
        if source.removeprefix("partition/") not in unannotated and all(unit.name in captioned for unit in captions):
            name = str(UnitName(UnitName.parse(captions[0].name).video_id, digest(settings, *(unit.name for unit in captions))))
            earlier = [path for unit in captions for path in unit.upstream[1:]]
            wanted[name] = Unit("relate", name, upstream=(source, *earlier, *(f"caption/{unit.name}" for unit in captions)))
    return wanted


def _pending_of(out: str, phase: str, wanted: dict[str, Unit], unfinished: set[str], videos: Range) -> Group:
    """Return the wanted units that are not committed, and delete committed units that are not wanted.

    Two kinds are not deleted: units of videos whose partition unit is `unfinished`, since their new units cannot be named yet,
    and units of superseded sources, since shards may hold their clips.
    """
    committed = units.list_committed(out, phase, videos)
    kept_videos = {UnitName.parse(unit).video_id for unit in (*unfinished, *units.list_superseded(out, videos))}
    _delete_units(out, phase, [name for name in committed if str(name) not in wanted and name.video_id not in kept_videos])
    done = {str(name) for name in committed}
    return Group([unit for name, unit in wanted.items() if name not in done], len(done & set(wanted)))


def _pending_shards(out: str, _recipe: Recipe, _: Listing) -> Iterator[Group]:
    """List the planned shards that are not committed, each with those of its clips that are still kept.

    A plan is in order of the ledger. So while the ledger is read part by part, only shards that have clips on both sides of a
    part's end are held, one for each plan.
    """
    committed = shards.list_committed(out)
    plan = shards.read_plan(out)
    plan = plan.filter(pc.invert(pc.is_in(plan["shard"], pa.array(committed, pa.string()))))
    names = plan["shard"].unique().to_pylist()
    group, done = list[Unit](), len(committed)
    for planned, unit in enumerate(_planned_shards(out, plan, names) if names else (), 1):
        group.append(unit)
        if len(group) == _SHARDS_AT_ONCE and planned < len(names):
            yield Group(sorted(group, key=lambda unit: unit.name), done, planned / len(names))
            group, done = [], 0
    yield Group(sorted(group, key=lambda unit: unit.name), done)


def _planned_shards(out: str, plan: pa.Table, names: Sequence[str]) -> Iterator[Unit]:
    """Yield the unit of each of these planned shards, as soon as all of its clips were seen in the ledger."""
    number_of = {name: number for number, name in enumerate(names)}
    shard_N = np.array([number_of[name] for name in plan["shard"].to_pylist()], np.int32)
    ids_N = column_to_array(plan["clip_id"])
    order_N = np.argsort(ids_N)
    sorted_N = ids_N[order_N]
    unseen = np.bincount(shard_N, minlength=len(names))
    kept: dict[int, list[tuple[int, str]]] = {}  # by shard: the place in the plan and the source of each clip that is kept
    paths: dict[str, tuple[str, ...]] = {}  # of later units of the sources of these clips

    def unit_of(shard: int) -> Unit:
        places = sorted(kept.pop(shard, []))
        clips = tuple(ids_N[place].decode() for place, _ in places)
        return Unit("shard", names[shard], upstream=_upstream_paths({unit for _, unit in places}, paths), clips=clips)

    for part in ledger.scan(out, ("reject", "error")):
        clips_M = column_to_array(part.clips["clip_id"])
        first_M, last_M = (np.searchsorted(sorted_N, clips_M, side) for side in ("left", "right"))
        is_kept, sources_M = ledger.kept_mask(part.clips).to_pylist(), part.clips["unit_id"].to_pylist()
        seen, videos = set[int](), set[str]()
        for row in np.flatnonzero(first_M < last_M):
            for place in order_N[first_M[row] : last_M[row]].tolist():
                shard = int(shard_N[place])
                unseen[shard] -= 1
                seen.add(shard)
                if is_kept[row]:
                    kept.setdefault(shard, []).append((place, sources_M[row]))
                    videos.add(UnitName.parse(sources_M[row]).video_id)
        if videos:
            later = _paths_by_video(out, _LATER_PHASES, Range.of(min(videos), max(videos)))
            paths |= {video: tuple(later.get(video, ())) for video in videos}
        yield from (unit_of(shard) for shard in sorted(seen) if not unseen[shard])
        open_videos = {UnitName.parse(unit).video_id for places in kept.values() for _, unit in places}
        paths = {video: some for video, some in paths.items() if video in open_videos}
    yield from (unit_of(shard) for shard in np.flatnonzero(unseen).tolist())  # clips of these are in the ledger no more


def _paths_by_video(out: str, phases: Sequence[str], videos: Range) -> dict[str, list[str]]:
    """Return the paths "phase/name" of committed units, by video_id."""
    paths: dict[str, list[str]] = {}
    for phase in phases:
        for name in units.list_committed(out, phase, videos):
            paths.setdefault(name.video_id, []).append(f"{phase}/{name}")
    return paths


def _upstream_paths(partition_units: Iterable[str], later_paths: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
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
    plan, committed = shards.read_plan(out), pa.array(shards.list_committed(out), pa.string())
    # A clip that was dropped before its shard was committed can be planned again, once it is kept again (`gamecraft retry`).
    waiting = plan.filter(pc.invert(pc.is_in(plan["shard"], committed)))
    known = Ids([*_stored_clips(out), column_to_array(waiting["clip_id"])])
    first = 1 + max((int(name) for name in plan["shard"].unique().to_pylist()), default=-1)
    rows = _new_rows(out, recipe, unfinished, known, first)
    if len(rows):
        renew_lock(out)
        shards.put_plan(out, len(shards.list_plans(out)), rows)
    return None


def _new_rows(out: str, recipe: Recipe, unfinished: set[str], known: Ids, first: int) -> pa.Table:
    """Return the rows of the next plan: the kept clips of finished sources that are not known, from shard `first` on."""
    size, clips = recipe.shard.clips_per_shard, 0
    tables = [shards.PLAN.empty_table()]
    for ids in _plannable(out, unfinished, known, recipe.shard.max_category_ratio):
        names = [f"{first + number // size:06d}" for number in range(clips, clips + len(ids))]
        tables.append(pa.table([pa.array(names, pa.string()), pa.array(ids, pa.string())], schema=shards.PLAN))
        clips += len(ids)
    return pa.concat_tables(tables).combine_chunks()


def _stored_clips(out: str) -> Iterator[np.ndarray]:
    """Yield the clips that a shard holds."""
    for piece in unit_files.of(out).scan("clips/shard", ("clip_id", "shard")):
        yield column_to_array(piece.table.filter(pc.is_valid(piece.table["shard"]))["clip_id"])


def _plannable(out: str, unfinished: set[str], known: Ids, ratio: float | None) -> Iterator[list[str]]:
    """Yield the kept clips of finished sources that are not known, in order of content.

    ratio: limits the clips of each category to so many times the count of the rarest category. Clips that are known already
    come first. Clips of no known category are not limited.
    """
    sizes, counts = Counter[str](), Counter[str]()
    if ratio is not None:
        for clips in _finished_clips(out, unfinished):
            is_known = known.mask(column_to_array(clips["clip_id"]))
            for category, counted in zip(clips["interaction_category"].to_pylist(), is_known.tolist(), strict=True):
                sizes[category or ""] += 1
                counts[category or ""] += counted
    most = min((size for category, size in sizes.items() if category), default=None)
    max_count = None if ratio is None or most is None else int(ratio * most)
    for clips in _finished_clips(out, unfinished):
        is_new = ~known.mask(column_to_array(clips["clip_id"]))
        new = clips.filter(pa.array(is_new))
        ids = []
        for clip_id, category in zip(new["clip_id"].to_pylist(), new["interaction_category"].to_pylist(), strict=True):
            counts[category or ""] += 1
            if not category or max_count is None or counts[category] <= max_count:
                ids.append(clip_id)
        if ids:
            yield ids


def _finished_clips(out: str, unfinished: set[str]) -> Iterator[pa.Table]:
    """Yield the kept clips of finished sources, part by part."""
    left_out = pa.array(sorted(unfinished), pa.string())
    for part in ledger.scan(out, ("interaction_category", "reject", "error")):
        kept = ledger.kept_clips(part.clips)
        yield kept.filter(pc.invert(pc.is_in(kept["unit_id"], left_out))) if unfinished else kept


def _describe_unfinished(out: str, pending_inputs: Sequence[str], partition_units: Sequence[str]) -> str:
    uris = [(ledger.read_video(out, unit) or {}).get("uri") or unit for unit in partition_units[:3]]
    names = ", ".join([*pending_inputs, *uris][:3])
    count = len(pending_inputs) + len(partition_units)
    sources, more = "source is" if count == 1 else "sources are", ", ..." if count > 3 else ""
    return f"{count} {sources} not finished ({names}{more}); run the same command again, or use --partial to plan without"


def _unfinished_sources(out: str, recipe: Recipe) -> set[str]:
    """Return the partition units with clips that have not been through every phase."""
    return {unit for videos in _ranges(out) for unit in _unfinished_in_range(out, recipe, videos)}


def _unfinished_in_range(out: str, recipe: Recipe, videos: Range) -> set[str]:
    related = {str(name) for name in units.list_committed(out, "relate", videos)}
    annotations = _wanted_annotations(out, recipe, videos)
    unannotated = _unannotated_sources(out, recipe, annotations, videos)
    relations = _wanted_relations(out, recipe, annotations, unannotated, videos)
    done = {unit.upstream[0] for name, unit in relations.items() if name in related}
    with_kept_clips = {unit.upstream[0] for unit in annotations.values()}
    return unannotated | {path.removeprefix("partition/") for path in with_kept_clips - done}


def _unannotated_sources(out: str, recipe: Recipe, annotations: dict[str, Unit], videos: Range) -> set[str]:
    """Return the partition units whose parts are not all scored, or not all annotated."""
    done = {str(name) for name in units.list_committed(out, "annotate", videos)}
    pending = [unit for name, unit in annotations.items() if name not in done]
    return _unscored_sources(out, recipe, videos) | {unit.upstream[0].removeprefix("partition/") for unit in pending}


def _unscored_sources(out: str, recipe: Recipe, videos: Range) -> set[str]:
    """Return the partition units whose parts are not all scored."""
    scored, limits = units.list_committed(out, "score", videos), recipe.digest("score")
    return {unit for unit, _ in units.find_incomplete(units.list_current(out, videos), scored, limits)}


def _delete_units(out: str, phase: str, names: Sequence[UnitName]) -> None:
    """Delete units of other settings or clips: first their rows, which are the commit."""
    folders = (f"clips/{phase}", *(("sidecar/camera",) if phase == "annotate" else ()))
    for first in range(0, len(names), _DELETIONS_PER_RENEWAL):
        renew_lock(out)
        some = [str(name) for name in names[first : first + _DELETIONS_PER_RENEWAL]]
        unit_files.of(out).delete(dict.fromkeys(folders, some))


_PENDING: dict[str, Callable[[str, Recipe, Listing], Iterator[Group]]] = {
    "scan": _pending_chunks,
    "partition": _pending_sources,
    "shard": _pending_shards,
}
_PENDING_IN_RANGE: dict[str, Callable[[str, Recipe, Range], Group]] = {
    "score": _pending_scores,
    "annotate": _pending_annotations,
    "caption": _pending_captions,
    "relate": _pending_relations,
}
