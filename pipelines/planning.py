"""What is left to do in each phase: list units, leave out the committed ones. Verdicts are read, pixels and scores are not.

The verdicts are read once a listing: `_wanted_annotations` reads them, and what follows from its units is handed on.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from curation import shards, storage
from curation.output_folder import OutputFolder
from curation.schema import Row, digest, is_dropped
from pipelines import chunk_units, ledger, sources, units
from pipelines.lock import renew_lock
from pipelines.recipes import Recipe
from pipelines.units import Name, Unit

# How many units are taken back before the lock is looked at again.
_UNITS_A_CHECK = 64


def todo(phase: str, out: str, recipe: Recipe, entries: Sequence[storage.Entry]) -> tuple[list[Unit], int]:
    """The units of a phase that are still to be done, and how many were done before."""
    return _TODO[phase](out, recipe, entries)


def _chunks(out: str, recipe: Recipe, entries: Sequence[storage.Entry]) -> tuple[list[Unit], int]:
    return chunk_units.chunk_units(entries, out, recipe), len(units.done(out, "scan"))


def _sources(out: str, recipe: Recipe, entries: Sequence[storage.Entry]) -> tuple[list[Unit], int]:
    left = chunk_units.with_chunks(sources.source_units(entries, out, recipe), out, recipe)
    return left, len(entries) - len(left)


def _scores(out: str, recipe: Recipe, _: Sequence[storage.Entry]) -> tuple[list[Unit], int]:
    limits, finished = recipe.digest("score"), units.done(out, "score")
    _drop(out, "score", units.stale(units.done(out, "partition"), finished, limits))
    open_ = units.incomplete(units.measured(out), finished, limits)
    rows = storage.at_once(lambda item: ledger.read_unit(out, "partition", item[0]), open_)
    left = [
        Unit("score", str(name), upstream=(f"partition/{unit}",))
        for (unit, have), clips in zip(open_, rows, strict=True)
        for name in units.part_names(unit, sum(not is_dropped(row) for row in clips), limits)
        if name.part not in have
    ]
    return left, len(finished)


def _annotations(out: str, recipe: Recipe, _: Sequence[storage.Entry]) -> tuple[list[Unit], int]:
    return _left(out, "annotate", _wanted_annotations(out, recipe), _unscored(out, recipe))


def _wanted_annotations(out: str, recipe: Recipe) -> dict[str, Unit]:
    """One unit a scored part that keeps a clip, by name.

    The name hashes the kept clips, not the limits that kept them: other limits cost only the parts that they change.
    """
    limits, settings = recipe.digest("score"), recipe.digest("annotate")
    source = {digest(str(name), limits): str(name) for name in units.measured(out)}
    scored = [name for name in units.done(out, "score") if name.digest in source]
    rows = storage.at_once(lambda name: ledger.read_unit(out, "score", str(name)), scored)
    wanted = {}
    for part, clips in zip(scored, rows, strict=True):
        if kept := [row["clip_id"] for row in clips if not is_dropped(row)]:
            unit = source[part.digest]
            name = str(part._replace(digest=digest(unit, settings, *kept)))
            wanted[name] = Unit("annotate", name, upstream=(f"partition/{unit}", f"score/{part}"))
    return wanted


def _captions(out: str, recipe: Recipe, _: Sequence[storage.Entry]) -> tuple[list[Unit], int]:
    annotations = _wanted_annotations(out, recipe)
    return _left(out, "caption", _wanted_captions(out, recipe, annotations), _waiting(out, recipe, annotations))


def _wanted_captions(out: str, recipe: Recipe, annotations: dict[str, Unit]) -> dict[str, Unit]:
    """One unit an annotated part, by name; the name hashes that part's."""
    settings, annotated = recipe.digest("caption"), {str(name) for name in units.done(out, "annotate")}
    wanted = {}
    for name, unit in annotations.items():
        if name in annotated:
            part = Name.parse(name)
            own = str(part._replace(digest=digest(name, settings)))
            wanted[own] = Unit("caption", own, upstream=(*unit.upstream, f"annotate/{name}"))
    return wanted


def _relations(out: str, recipe: Recipe, _: Sequence[storage.Entry]) -> tuple[list[Unit], int]:
    annotations = _wanted_annotations(out, recipe)
    waiting = _waiting(out, recipe, annotations)
    return _left(out, "relate", _wanted_relations(out, recipe, annotations, waiting), waiting)


def _wanted_relations(out: str, recipe: Recipe, annotations: dict[str, Unit], waiting: set[str]) -> dict[str, Unit]:
    """One unit a video whose kept clips all have captions, by name; the name hashes those of the captions' units."""
    settings, done = recipe.digest("relate"), {str(name) for name in units.done(out, "caption")}
    parts: dict[str, list[Unit]] = {}
    for unit in _wanted_captions(out, recipe, annotations).values():
        parts.setdefault(unit.upstream[0], []).append(unit)
    wanted = {}
    for source, captions in parts.items():
        if source.removeprefix("partition/") not in waiting and all(unit.name in done for unit in captions):
            name = str(Name(Name.parse(captions[0].name).video_id, digest(settings, *(unit.name for unit in captions))))
            before = [path for unit in captions for path in unit.upstream[1:]]
            wanted[name] = Unit("relate", name, upstream=(source, *before, *(f"caption/{unit.name}" for unit in captions)))
    return wanted


def _left(out: str, phase: str, wanted: dict[str, Unit], waiting: set[str]) -> tuple[list[Unit], int]:
    """What of the wanted units is not there; units of other settings or clips go. Those of videos that are `waiting`, by
    partition unit, stay, since their new ones cannot be named yet; so do superseded ones, of which clips may be in shards.
    """
    finished, open_ = units.done(out, phase), {Name.parse(unit).video_id for unit in (*waiting, *units.superseded(out))}
    _drop(out, phase, [name for name in finished if str(name) not in wanted and name.video_id not in open_])
    done = {str(name) for name in finished}
    return [unit for name, unit in wanted.items() if name not in done], len(done & set(wanted))


def _shards(out: str, _recipe: Recipe, _: Sequence[storage.Entry]) -> tuple[list[Unit], int]:
    """The planned shards that are not committed, each with those of its clips that nothing has taken out since."""
    finished = set(shards.list_committed(out))
    planned: dict[str, list[str]] = {}
    for row in shards.read_plan(out).to_pylist():
        if row["shard"] not in finished:
            planned.setdefault(row["shard"], []).append(row["clip_id"])
    if not planned:
        return [], len(finished)
    kept = ledger.kept(ledger.clips(out)).select(["clip_id", "unit_id"])
    unit_of = dict(zip(kept["clip_id"].to_pylist(), kept["unit_id"].to_pylist(), strict=True))
    later = _by_video(out, ("annotate", "caption", "relate"))
    left = []
    for name, ids in sorted(planned.items()):
        clips = tuple(clip for clip in ids if clip in unit_of)
        left.append(Unit("shard", name, upstream=_paths({unit_of[clip] for clip in clips}, later), clips=clips))
    return left, len(finished)


def _by_video(out: str, phases: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for phase in phases:
        for name in units.done(out, phase):
            found.setdefault(name.video_id, []).append(f"{phase}/{name}")
    return found


def _paths(partition_units: Iterable[str], later: dict[str, list[str]]) -> tuple[str, ...]:
    """The units that hold all there is about the clips of these sources, in order of phase."""
    first = sorted(partition_units)
    return tuple(f"partition/{unit}" for unit in first) + tuple(
        path for unit in first for path in later.get(Name.parse(unit).video_id, ())
    )


def plan(
    out: str, recipe: Recipe, unmade: Sequence[str], partial: bool = False, holds: Callable[[str], bool] = lambda _: True
) -> str | None:
    """Cut the kept clips that no shard has yet into shards, in order of content, and commit that as the next plan.

    A plan never changes. So none is made while anything of the input is unfinished: `unmade`, the inputs that have no unit yet,
    or sources that have not been through every phase, if `holds` is true of their partition units. Returns why there is none;
    `partial` plans what is finished.
    """
    clips = ledger.clips(out).select(["clip_id", "unit_id", "interaction_category", "reject", "error", "shard"])
    planned, finished = shards.read_plan(out).to_pylist(), set(shards.list_committed(out))
    stored = set(clips.filter(pc.is_valid(clips["shard"]))["clip_id"].to_pylist())
    # A clip that its shard was committed without is free again, once nothing takes it out (`gamecraft retry`).
    known = {row["clip_id"] for row in planned if row["shard"] not in finished or row["clip_id"] in stored}
    open_ = _open(out, recipe)
    kept = [row for row in ledger.kept(clips).to_pylist() if row["unit_id"] not in open_]
    new = [row for row in _balanced(kept, known, recipe.shard.max_category_ratio) if row["clip_id"] not in known]
    unfinished = [unit for unit in sorted(open_) if holds(unit)]
    if (unmade or unfinished) and not partial:
        return _held(out, unmade, unfinished)
    if new:
        first = 1 + max((int(row["shard"]) for row in planned), default=-1)
        size = recipe.shard.clips_per_shard
        rows = [{"shard": f"{first + i // size:06d}", "clip_id": row["clip_id"]} for i, row in enumerate(new)]
        renew_lock(out)
        shards.put_plan(out, len(shards.list_plans(out)), pa.Table.from_pylist(rows, schema=shards.PLAN))
    return None


def _held(out: str, unmade: Sequence[str], unfinished: Sequence[str]) -> str:
    uris = [(ledger.read_video(out, unit) or {}).get("uri") or unit for unit in unfinished[:3]]
    names = ", ".join([*unmade, *uris][:3])
    count = len(unmade) + len(unfinished)
    sources, more = "source is" if count == 1 else "sources are", ", ..." if count > 3 else ""
    return f"{count} {sources} not finished ({names}{more}); run the same command again, or use --partial to plan without"


def _balanced(kept: Sequence[Row], known: set[str], ratio: float | None) -> list[Row]:
    """The clips that may be in shards: of each category at most `ratio` times as many as there are of the rarest.

    Those that are planned already count first; clips of no known category are not counted.
    """
    sizes = Counter(row["interaction_category"] for row in kept if row["interaction_category"])
    if ratio is None or not sizes:
        return list(kept)
    most, taken, chosen = int(ratio * min(sizes.values())), Counter[str](), []
    for row in sorted(kept, key=lambda row: row["clip_id"] not in known):
        category = row["interaction_category"]
        taken[category] += 1
        if not category or taken[category] <= most:
            chosen.append(row)
    return chosen


def _open(out: str, recipe: Recipe) -> set[str]:
    """The partition units about whose clips not everything is known yet."""
    related, annotations = {str(name) for name in units.done(out, "relate")}, _wanted_annotations(out, recipe)
    waiting = _waiting(out, recipe, annotations)
    relations = _wanted_relations(out, recipe, annotations, waiting)
    done = {unit.upstream[0] for name, unit in relations.items() if name in related}
    kept = {unit.upstream[0] for unit in annotations.values()}
    return waiting | {path.removeprefix("partition/") for path in kept - done}


def _waiting(out: str, recipe: Recipe, annotations: dict[str, Unit]) -> set[str]:
    """The partition units that are not scored or not annotated to their end."""
    done = {str(name) for name in units.done(out, "annotate")}
    open_ = [unit for name, unit in annotations.items() if name not in done]
    return _unscored(out, recipe) | {unit.upstream[0].removeprefix("partition/") for unit in open_}


def _unscored(out: str, recipe: Recipe) -> set[str]:
    parts = units.incomplete(units.measured(out), units.done(out, "score"), recipe.digest("score"))
    return {unit for unit, _ in parts}


def _drop(out: str, phase: str, names: Iterable[Name]) -> None:
    """Take back units whose settings or clips are no longer these; their rows first, which are the commit."""
    for number, name in enumerate(names):
        if number % _UNITS_A_CHECK == 0:
            renew_lock(out)
        storage.delete(OutputFolder(out).clip_rows(phase, str(name)))
        if phase == "annotate":
            storage.delete(OutputFolder(out).sidecar("camera", str(name)))


_TODO: dict[str, Callable[[str, Recipe, Sequence[storage.Entry]], tuple[list[Unit], int]]] = {
    "scan": _chunks,
    "partition": _sources,
    "score": _scores,
    "annotate": _annotations,
    "caption": _captions,
    "relate": _relations,
    "shard": _shards,
}
