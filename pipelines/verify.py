"""Check an output folder: nothing is missing, damaged, there twice, or left over from a run that was killed.

`verify` reads. `repair` moves what does not count to OUT/trash, and takes back shards that are damaged, so that the next run
makes them again, with the same bytes.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa

from curation import shards, storage
from curation.errors import InputError, describe
from curation.output_folder import OutputFolder
from curation.schema import is_dropped
from curation.storage import Entry
from pipelines import ledger, lock, unit_files
from pipelines.ledger import DUPLICATES
from pipelines.lock import hold_lock
from pipelines.unit_files import UnitFiles
from pipelines.units import SUPERSEDED, UnitName

_LATER_PHASES = ("score", DUPLICATES, "annotate", "caption", "relate")
# Side files, and the folder with the units that they belong to.
_SIDE_FILES = {
    "sidecar/thumbs": "clips/partition",
    "sidecar/signals": "clips/partition",
    "sidecar/camera": "clips/annotate",
}
_MAX_LISTED = 5

MOVE, REDO, RUN, NONE = "move to trash", "make again", "run again", "none"
"""What mends a problem: `repair` does the first two, the next run the third."""


@dataclass(frozen=True)
class Problem:
    """Something that is wrong in an output.

    kind: what the table counts. uri: of the file, or the unit, clip or shard that it is about. folder: for a unit that is not
    committed rightly: its folder. shard: to be made again.
    """

    kind: str
    uri: str
    words: str
    remedy: str = NONE
    folder: str = ""
    shard: str = ""


@dataclass
class Verification:
    """What was checked, and what is wrong."""

    problems: list[Problem] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)  # by status
    units: int = 0
    clips: int = 0
    kept: int = 0
    stored: int = 0
    waiting: int = 0  # kept clips that no committed shard is to hold
    shards: int = 0
    bytes_read: int = 0

    @property
    def lost(self) -> int:
        """Sources that gave no clips because they failed."""
        return sum(count for status, count in self.sources.items() if status not in ("ok", "duplicate", SUPERSEDED))


def verify(out: str, deep: bool = False, on_step: Callable[[str], None] = lambda _: None) -> Verification:
    """Check an output. deep: also read every shard and segment in full, and compare hashes.

    on_step: gets the name of each step. InputError where a run is writing there now, or where there is no output.
    """
    out = storage.normal(out)
    if lock.is_held(out):
        raise InputError(f"{out}: a run is writing there; verify it when that run has ended")
    return _verify(out, deep, on_step)


def _verify(out: str, deep: bool, on_step: Callable[[str], None]) -> Verification:
    result = Verification()
    with unit_files.shared(out) as files:
        on_step("segments")
        result.problems += _check_segments(files, deep, result)
        if any(problem.remedy == NONE for problem in result.problems):
            return result  # rows cannot be read
        try:
            for problem in _check_contents(files, deep, on_step, result):
                result.problems.append(problem)
        except (OSError, pa.ArrowException) as error:
            words = f"rows or an index cannot be read: {describe(error)}; --deep names the file"
            result.problems.append(Problem("unreadable", out, words))
    return result


def _check_contents(files: UnitFiles, deep: bool, on_step: Callable[[str], None], result: Verification) -> Iterator[Problem]:
    on_step("units")
    yield from _check_units(files, result)
    on_step("shards")
    stored = _Stored(files.out)
    result.shards = len(stored.indexes)
    yield from _check_shards(stored, deep, result)
    on_step("clips")
    yield from _check_clips(stored, result)
    on_step("leftovers")
    yield from _check_leftovers(files)


def repair(out: str, deep: bool = False) -> tuple[Verification, int]:
    """Verify an output under its lock and mend what can be mended without footage. Return what was wrong, and how many were.

    Files that do not count are moved to OUT/trash/<time>/. InputError where another run holds the output.
    """
    out = storage.normal(out)
    trash = storage.join(out, "trash", time.strftime("%Y%m%d-%H%M%S", time.gmtime()))
    with hold_lock(out), unit_files.pinned(out) as files:
        result = _verify(out, deep, lambda _: None)
        for problem in result.problems:
            if problem.remedy == MOVE:
                _move_to_trash(files, problem, trash)
        for shard in sorted({problem.shard for problem in result.problems if problem.remedy == REDO}):
            _take_back_shard(files, shard, trash)
    return result, sum(problem.remedy in (MOVE, REDO) for problem in result.problems)


def _move_to_trash(files: UnitFiles, problem: Problem, trash: str) -> None:
    lock.renew_lock(files.out)
    _move(files.out, problem.uri, trash)
    if problem.folder:  # a unit: if it is packed there was no file to move
        files.delete({problem.folder: [problem.uri.rpartition("/")[2].removesuffix(".parquet")]})


def _take_back_shard(files: UnitFiles, shard: str, trash: str) -> None:
    """Remove a shard, its commit first. Its plan stays, so that the next run makes it of the same clips."""
    folder = OutputFolder(files.out)
    lock.renew_lock(files.out)
    for uri in (folder.shard_index(shard), folder.tar(shard), folder.clip_rows("shard", shard)):
        _move(files.out, uri, trash)
    files.delete({"clips/shard": [shard]})


def _move(out: str, uri: str, trash: str) -> None:
    if storage.exists(uri):
        storage.move(uri, storage.join(trash, uri[len(out) :].lstrip("/")))


def _check_segments(files: UnitFiles, deep: bool, result: Verification) -> Iterator[Problem]:
    """Check that each segment of the manifest is there as it was written, and that there is no other."""
    folder = OutputFolder(files.out)
    present = {entry.uri: entry.size for entry in storage.list_files(folder.segments)}
    for name, segments in files.manifest.segments.items():
        for segment in segments:
            rows, units = folder.segment(name, segment.name), folder.segment_units(name, segment.name)
            size = present.pop(rows, None)
            if size != segment.size:
                words = "is missing" if size is None else f"has {size} bytes instead of {segment.size}"
                yield Problem("segment damaged", rows, f"{words}; restore it from a copy, or curate into another --out")
            if present.pop(units, None) is None:
                yield Problem("segment damaged", units, "is missing; restore it from a copy, or curate into another --out")
            if deep and size == segment.size:
                result.bytes_read += segment.size
                if problem := files.check_segment(name, segment):
                    yield Problem("segment damaged", rows, problem)
    for uri in present:
        yield Problem("left over", uri, "a segment that the newest manifest does not list", MOVE)


def _check_units(files: UnitFiles, result: Verification) -> Iterator[Problem]:
    """Check that units belong to sources, and side files to units."""
    out = files.out
    sources = set(files.names("clips/partition"))
    videos = {UnitName.parse(unit).video_id for unit in sources}
    rows = set(files.names("videos"))
    result.units += len(sources)
    yield from _units("left over", out, "videos", rows - sources, "a source that was not committed")
    without = sources - rows
    for unit, clips in files.rows_of("clips/partition", without, ("clip_id",)):
        # An attempt at an interaction that made no video has a clip's row with the reason, and no source.
        if not len(clips):
            yield Problem("source without a row", unit, "its unit is committed, but videos/ has no row of it")
    doubles = Counter(UnitName.parse(unit).video_id for unit in sources - set(files.names(f"clips/{SUPERSEDED}")))
    yield from _check_doubles(files, [video for video, count in doubles.items() if count > 1])
    for phase in _LATER_PHASES:
        names = files.names(f"clips/{phase}")
        result.units += len(names)
        orphans = [unit for unit in names if UnitName.parse(unit).video_id not in videos]
        yield from _units("orphan", out, f"clips/{phase}", orphans, "clips of a source that is not in the output")
    for side, of in _SIDE_FILES.items():
        leftover = set(files.names(side)) - set(files.names(of))
        yield from _units("left over", out, side, leftover, f"of no unit in {of}")
    made = storage.names(OutputFolder(out).made_videos)
    for name in (name for name in made if name.partition(".")[0] not in videos):
        uri = storage.join(OutputFolder(out).made_videos, name)
        yield Problem("left over", uri, "a synthetic video that was not committed", MOVE)


def _units(kind: str, out: str, folder: str, units: Iterable[str], words: str) -> Iterator[Problem]:
    for unit in sorted(units):
        yield Problem(kind, storage.join(out, folder, f"{unit}.parquet"), words, MOVE, folder)


def _check_doubles(files: UnitFiles, videos: Sequence[str]) -> Iterator[Problem]:
    """Check that of several units with the same recording only one has clips: the others record duplicates."""
    for video in videos:
        units = [unit for unit in files.names("clips/partition") if unit.startswith(f"{video}-")]
        with_clips = [unit for unit, table in files.rows_of("clips/partition", units, ("clip_id",)) if len(table)]
        if len(with_clips) > 1:
            yield Problem("twice", video, f"{len(with_clips)} units hold clips of this source: {', '.join(with_clips)}")


class _Stored:
    """What the shards hold."""

    def __init__(self, out: str) -> None:
        self.out = out
        self.files = {entry.uri: entry for entry in storage.list_files(OutputFolder(out).shards)}
        names = shards.list_committed(out)
        self.indexes = dict(zip(names, storage.at_once(partial(shards.read_index, out), names), strict=True))
        self.planned: dict[str, str] = {row["clip_id"]: row["shard"] for row in shards.read_plan(out).to_pylist()}
        self.shard_of: dict[str, str] = {}

    def tar(self, shard: str) -> Entry | None:
        return self.files.get(OutputFolder(self.out).tar(shard))


def _check_shards(stored: _Stored, deep: bool, result: Verification) -> Iterator[Problem]:
    """Check each shard against its index, and dataset.json against the shards."""
    folder = OutputFolder(stored.out)
    for shard, index in stored.indexes.items():
        tar = stored.tar(shard)
        end = max((row["offset"] + row["size"] for row in index.select(["offset", "size"]).to_pylist()), default=0)
        if tar is None or tar.size < end:
            words = "is missing" if tar is None else f"has {tar.size} bytes, its index needs {end}"
            yield Problem("shard damaged", folder.tar(shard), words, REDO, shard=shard)
        elif deep:
            result.bytes_read += tar.size
            if words := _compare_tar(tar, index):
                yield Problem("shard damaged", folder.tar(shard), words, REDO, shard=shard)
        for clip in dict.fromkeys(index["clip_id"].to_pylist()):
            if clip in stored.shard_of:
                yield Problem("twice", clip, f"this clip is in shard {stored.shard_of[clip]} and in {shard}")
            stored.shard_of[clip] = shard
    for uri in stored.files:
        name = uri.rpartition("/")[2]
        if name.endswith(".tar") and name.removesuffix(".tar") not in stored.indexes:
            yield Problem("left over", uri, "a tar without an index: its shard was not committed", MOVE)
    dataset = shards.read_dataset(stored.out)
    if dataset is None:
        raise InputError(f"{stored.out}: no dataset.json there; is it an output of `gamecraft curate`?")
    listed = {item["name"]: item["sha256"] for item in dataset["shards"]}
    hashes = {name: index["tar_sha256"][0].as_py() if len(index) else None for name, index in stored.indexes.items()}
    if listed != hashes:
        differ = sorted(name for name in listed.keys() | hashes.keys() if listed.get(name, "") != hashes.get(name, ""))
        names = ", ".join(differ[:_MAX_LISTED])
        yield Problem("dataset.json outdated", folder.dataset, f"it disagrees with the indexes of shards {names}", RUN)


def _compare_tar(tar: Entry, index: pa.Table) -> str:
    """Return how a tar differs from what its index says, by its hash. Empty where it does not."""
    sha = hashlib.sha256()
    with storage.open_binary(tar.uri) as file:
        while block := file.read(8 << 20):
            sha.update(block)
    expected = index["tar_sha256"][0].as_py() if len(index) else None
    return "" if expected in (None, sha.hexdigest()) else f"its SHA-256 is {sha.hexdigest()}, its index has {expected}"


def _check_clips(stored: _Stored, result: Verification) -> Iterator[Problem]:
    """Check that each clip is either in the shard that it was planned for or has a reason, and that it is there once."""
    unseen = dict(stored.shard_of)
    for part in ledger.scan(stored.out, ("reject", "error", "shard")):
        result.sources.update(part.videos["status"].to_pylist())
        seen: set[str] = set()  # a clip's id hashes its video_id, and a part has all clips of its videos
        for row in part.clips.select(["clip_id", "reject", "error", "shard"]).to_pylist():
            clip, shard, reason = row["clip_id"], unseen.pop(row["clip_id"], None), row["reject"] or row["error"]
            result.clips += 1
            result.kept += not is_dropped(row)
            result.stored += shard is not None
            if clip in seen:
                yield Problem("twice", clip, "the ledger has two rows of this clip")
                continue
            seen.add(clip)
            if row["shard"] != shard:
                yield Problem("ledger disagrees", clip, f"its row says shard {row['shard']}, the indexes say {shard}")
            elif shard and reason:
                yield Problem("ledger disagrees", clip, f"it is in shard {shard} although it was dropped: {reason}")
            elif shard and stored.planned.get(clip) != shard:
                yield Problem("plan disagrees", clip, f"it is in shard {shard}, planned for {stored.planned.get(clip)}")
            elif not shard and not reason:
                result.waiting += 1
                if (planned := stored.planned.get(clip)) in stored.indexes:
                    words = f"kept and planned for shard {planned}, which does not hold it; the next run plans it again"
                    yield Problem("clip missing", clip, words, RUN)
    for clip, shard in unseen.items():
        yield Problem("ledger disagrees", clip, f"it is in shard {shard}, but the ledger has no row of it")


def _check_leftovers(files: UnitFiles) -> Iterator[Problem]:
    """Find what killed runs leave: chunks of sources that are done, files of packed units, half-written files, a dead lock."""
    out, folder = files.out, OutputFolder(files.out)
    done = {UnitName.parse(unit).video_id for unit in files.names("clips/partition")}
    for name in storage.names(folder.sidecars("chunks")):
        if UnitName.parse(name.removesuffix(".npz")).video_id in done:
            yield Problem("left over", storage.join(folder.sidecars("chunks"), name), "a chunk of a source that is done", MOVE)
    for packed in unit_files.FOLDERS:
        for unit in files.replaced(packed):
            yield Problem("left over", storage.join(out, packed, f"{unit}.parquet"), "its unit is in a segment", MOVE)
    if not storage.is_s3(out):
        for path in sorted(path for path in Path(out).rglob(".*.tmp") if Path(out, "trash") not in path.parents):
            yield Problem("left over", str(path), "a file that was half written", MOVE)
    if storage.exists(folder.lock) and not lock.is_held_here(out):
        yield Problem("left over", folder.lock, "the lock of a run that died; the next run takes it over", RUN)
