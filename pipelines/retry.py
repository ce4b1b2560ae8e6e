"""Clear failures, so that the next run tries them again.

The phase that failed stored its reason in the row of a source (quarantined, unreadable) or of a clip. Clearing it deletes that
phase's unit. The next listing deletes what later phases derived from it. A shard stays as it is: a clip that it was committed
without goes into a later one.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from curation import storage
from curation.output_folder import OutputFolder
from curation.schema import CLIP, Row
from pipelines import ledger, units
from pipelines.lock import hold_lock
from pipelines.recipes import CLIP_PHASES

_COLUMNS = ("reject", "error", "consistency_status", "caption_error", "action_error", "interaction_error", "camera_status")
_FAILED_SOURCES = ("quarantined", "unreadable", "error")


@dataclass(frozen=True)
class TakenBack:
    """A reason that stands no more: the phase that wrote it, the clip or "" for a source, the source, and the words."""

    phase: str
    video_id: str
    clip_id: str
    uri: str
    reason: str


def retry(out: str, reason: str = "", source: str = "") -> list[TakenBack]:
    """Take back the rows whose reason fits the pattern `reason`, of sources whose uri fits `source`; both are as a shell's.

    Without `reason` that is all that failed (errors, quarantines, sources that could not be read), and nothing that a rule
    rejected. A source that is not there any more as it was measured is left alone. ValueError where another run is writing
    there.
    """
    out = storage.normal(out)
    with hold_lock(out):
        rows = {phase: ledger.read_all(OutputFolder(out).clips(phase), CLIP)[0].to_pylist() for phase in CLIP_PHASES}
        uris = {row["clip_id"]: row["source_uri"] or "" for row in rows["partition"]}
        gone = _not_there(out)
        taken = [
            (row["unit_id"], TakenBack(phase, row["video_id"], row["clip_id"], uris.get(row["clip_id"], ""), words))
            for phase in CLIP_PHASES
            for row in rows[phase]
            for words in _reasons(row, reason)[:1]
        ]
        taken += _sources(out, reason)
        taken = [
            (unit, one)
            for unit, one in taken
            if not source or fnmatchcase(one.uri, source) or one.uri == storage.normal(source)
        ]
        taken = [(unit, one) for unit, one in taken if one.video_id not in gone]
        _remove(out, taken)
    return [one for _, one in taken]


def _not_there(out: str) -> set[str]:
    """The video_ids of sources that are not there any more as they were measured: what is known of them must stay."""
    made = OutputFolder(out).made_videos + "/"
    rows = [row for row in ledger.videos(out).to_pylist() if not row["uri"].startswith(made)]
    there = storage.at_once(lambda row: _is_there(row["uri"], row["token"] or ""), rows)
    gone = {row["video_id"] for row, is_there in zip(rows, there, strict=True) if not is_there}
    return gone | {units.Name.parse(unit).video_id for unit in units.superseded(out)}


def _is_there(uri: str, token: str) -> bool:
    try:
        return not token or storage.version(uri) == token
    except OSError:
        return False


def _sources(out: str, reason: str) -> Iterator[tuple[str, TakenBack]]:
    for row in ledger.videos(out).to_pylist():
        if row["status"] in _FAILED_SOURCES and _wanted(f"{row['status']}: {row['reason']}", row["reason"] or "", reason):
            yield row["unit_id"], TakenBack("partition", row["video_id"], "", row["uri"], f"{row['status']}: {row['reason']}")


def _reasons(row: Row, pattern: str) -> list[str]:
    """The row's reasons that fit; without a pattern those of failures."""
    reasons = [(name, row[name]) for name in _COLUMNS if row[name]]
    if pattern:
        return [words for _, words in reasons if fnmatchcase(words, pattern)]
    return [words for name, words in reasons if name.endswith("error") or words.startswith(("quarantined", "failed:"))]


def _wanted(whole: str, words: str, pattern: str) -> bool:
    return not pattern or fnmatchcase(whole, pattern) or fnmatchcase(words, pattern)


def _remove(out: str, taken: list[tuple[str, TakenBack]]) -> None:
    """Remove the units, the last phase first: what is left of a run that is killed here still fits together."""
    clips: dict[tuple[str, str], list[str]] = defaultdict(list)
    for unit, one in taken:
        clips[one.phase, unit].append(one.clip_id)
    for phase, unit in sorted(clips, key=lambda key: -CLIP_PHASES.index(key[0])):
        if phase == "shard":
            ledger.remove_clips(out, phase, unit, clips[phase, unit])
        elif phase == "partition":
            ledger.take_back(out, unit)
        else:
            storage.delete(OutputFolder(out).clip_rows(phase, unit))
