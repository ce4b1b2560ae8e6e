"""Which sources are the same recording: equal bytes, all of them, or the same coded video in two containers.

OBS remuxes each MKV to an MP4 beside it: their bytes differ, their video does not. Only files that may be such twins are
opened: another suffix, nearly the same size, and then equal first packets. A separate process reads packets, so that a file
that crashes the demuxer does not crash the driver; then no file of that batch counts as a remux.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import PurePosixPath

from curation import source_files, storage
from curation.media.container import packet_digest
from curation.storage import Entry

# What containers add beside the same packets: a few bytes a packet, and an index.
_OVERHEAD, _OVERHEAD_BYTES = 0.03, 64 << 10
_FIRST_PACKETS = 16

SAME_BYTES, SAME_PACKETS = "the same bytes", "the same video packets"
SAME_SAMPLES = "the same size and sampled bytes; the original is gone, so the whole files could not be compared"

_known: dict[tuple[Entry, int | None], str] = {}


def original(
    entry: Entry, video_id: str, owner_of: Callable[[str], Entry | None], twin_of: Mapping[str, Entry]
) -> tuple[str, Entry | None, str | None]:
    """Return (id, original, why): the source's id, the earlier source with the same recording, and what is equal.

    original and why are None for the first of its kind. video_id: by `source_files.content_id`, whose samples do not tell all
    sources apart. Two that differ elsewhere are both curated: the second is named by all of its bytes. OSError where one cannot
    be read now. owner_of: the source that an id belongs to, if there is one; twin_of: as `twins` gives it.
    """
    owner = owner_of(video_id)
    if owner is not None and owner.uri != entry.uri:
        try:
            same = source_files.same_bytes(owner, entry)
        except FileNotFoundError:
            return video_id, owner, SAME_SAMPLES
        if not same:
            video_id = source_files.whole_id(entry)
            owner = owner_of(video_id)
    if owner is None and entry.uri in twin_of:
        return video_id, twin_of[entry.uri], SAME_PACKETS
    return video_id, owner, SAME_BYTES if owner else None


def twins(new: Sequence[Entry], committed: Iterable[Entry]) -> dict[str, Entry]:
    """By uri of a new source, the one with the same video packets that stays: a committed one, else the first."""
    old = set(committed)
    suspects = _suspects([*old, *new], {entry.uri for entry in new})
    for most in (_FIRST_PACKETS, None):
        digests = _digests(suspects, most)
        by_digest = defaultdict(list)
        for entry, digest in zip(suspects, digests, strict=True):
            by_digest[digest].append(entry)
        groups = [group for digest, group in by_digest.items() if digest and len(group) > 1]
        suspects = [entry for group in groups for entry in group]
    found: dict[str, Entry] = {}
    for group in groups:
        first, *others = sorted(group, key=lambda entry: (entry not in old, entry.uri))
        found.update({entry.uri: first for entry in others if entry not in old})
    return found


def _suspects(entries: Sequence[Entry], new: set[str]) -> list[Entry]:
    """Sources of which another one, in another container, has nearly the size; one of the two is new."""
    ordered = sorted(entries, key=lambda entry: entry.size)
    sizes = [entry.size for entry in ordered]
    found: set[Entry] = set()
    for i, entry in enumerate(ordered):
        end = bisect_right(sizes, entry.size * (1 + _OVERHEAD) + _OVERHEAD_BYTES)
        for other in ordered[i + 1 : end]:
            if _suffix(other) != _suffix(entry) and new & {entry.uri, other.uri}:
                found |= {entry, other}
    return sorted(found)


def _suffix(entry: Entry) -> str:
    return PurePosixPath(entry.uri).suffix.lower()


def _digests(entries: Sequence[Entry], most: int | None) -> list[str]:
    """The sources' packet digests, empty where they cannot be had."""
    unknown = [entry for entry in entries if (entry, most) not in _known]
    if unknown:
        try:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                digests = process.submit(_all, [entry.uri for entry in unknown], most).result()
        except BrokenProcessPool:
            digests = [""] * len(unknown)
        _known.update({(entry, most): digest for entry, digest in zip(unknown, digests, strict=True)})
    return [_known[entry, most] for entry in entries]


def _all(uris: Sequence[str], most: int | None) -> list[str]:
    return storage.at_once(lambda uri: _digest(uri, most), uris)


def _digest(uri: str, most: int | None) -> str:
    try:
        return packet_digest(uri, most)
    except Exception:  # whatever it is, `partition` will meet it and say so
        return ""
