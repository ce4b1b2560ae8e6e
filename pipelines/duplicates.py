"""Which sources are the same recording: their bytes are all equal, or two containers hold the same coded video.

OBS remuxes each MKV to an MP4 in the same folder: the bytes differ, the video does not. Only files that may be remuxes of each
other are opened: files of another suffix, nearly the same size, and then equal first packets. A separate process reads the
packets, so that a file that crashes the demuxer does not crash the driver. After such a crash no file of that batch counts as
a remux.
"""

import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import numpy as np

from curation import source_files, storage
from curation.media.container import packet_digest
from curation.storage import Entry

# A container adds at most this much to the same packets: a share of the size for a few bytes per packet, and an index.
_OVERHEAD, _OVERHEAD_BYTES = 0.03, 64 << 10
_FIRST_PACKETS = 16

SAME_BYTES, SAME_PACKETS = "the same bytes", "the same video packets"
SAME_SAMPLES = "the same size and sampled bytes; the original is gone, so the whole files could not be compared"

_digest_cache: dict[tuple[Entry, int | None], str] = {}


def find_original(
    entry: Entry, video_id: str, owner_of: Callable[[str], Entry | None], remux_of: Mapping[str, Entry]
) -> tuple[str, Entry | None, str | None]:
    """Return the source's id, the earlier source with the same recording, and what is equal (None, None: there is none).

    video_id: by `source_files.content_id`. Its samples do not distinguish all sources: if two sources differ elsewhere, both
    are curated, and the second is identified by all of its bytes. owner_of: returns the source with an id, if there is one.
    remux_of: as `find_remuxes` returns it. OSError if a source cannot be read now.
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
    if owner is None and entry.uri in remux_of:
        return video_id, remux_of[entry.uri], SAME_PACKETS
    return video_id, owner, SAME_BYTES if owner else None


def find_remuxes(new: Sequence[Entry], committed: Iterable[Entry]) -> dict[str, Entry]:
    """Find new sources with the video packets of another one. Return the original of each by uri: a committed source, else
    the first one.
    """
    entries = [*committed, *new]
    candidates = _candidates(entries, np.arange(len(entries)) >= len(entries) - len(new))
    unmeasured = set(new)
    for max_packets in (_FIRST_PACKETS, None):
        digests = _packet_digests(candidates, max_packets)
        by_digest = defaultdict(list)
        for entry, digest in zip(candidates, digests, strict=True):
            by_digest[digest].append(entry)
        groups = [group for digest, group in by_digest.items() if digest and len(group) > 1]
        candidates = [entry for group in groups for entry in group]
    originals: dict[str, Entry] = {}
    for group in groups:
        first, *others = sorted(group, key=lambda entry: (entry in unmeasured, entry.uri))
        originals.update({entry.uri: first for entry in others if entry in unmeasured})
    return originals


def _candidates(entries: Sequence[Entry], is_new_N: np.ndarray) -> list[Entry]:
    """Return the sources for which another one, in another container, has nearly the same size. One of the two is new."""
    suffixes, kind_N = np.unique([_suffix(entry) for entry in entries], return_inverse=True)
    if len(suffixes) < 2:
        return []
    sizes_N = np.array([entry.size for entry in entries], float)
    chosen_N = np.zeros(len(entries), bool)
    for kind in range(len(suffixes)):
        ours, others = np.flatnonzero(kind_N == kind), kind_N != kind
        any_other, new_other = (_is_near(sizes_N[ours], np.sort(sizes_N[mask])) for mask in (others, others & is_new_N))
        chosen_N[ours] = np.where(is_new_N[ours], any_other, new_other)
    return sorted(entries[number] for number in np.flatnonzero(chosen_N))


def _is_near(sizes_N: np.ndarray, sorted_M: np.ndarray) -> np.ndarray:
    """Return for each size whether one of the sorted ones is nearly the same, bool [N]."""
    smallest = (sizes_N - _OVERHEAD_BYTES) / (1 + _OVERHEAD)
    largest = sizes_N * (1 + _OVERHEAD) + _OVERHEAD_BYTES
    near: np.ndarray = np.searchsorted(sorted_M, largest, "right") > np.searchsorted(sorted_M, smallest, "left")
    return near


def _suffix(entry: Entry) -> str:
    return posixpath.splitext(entry.uri)[1].lower()


def _packet_digests(entries: Sequence[Entry], max_packets: int | None) -> list[str]:
    """Return the packet digests of sources, empty for a source whose packets cannot be read."""
    unknown = [entry for entry in entries if (entry, max_packets) not in _digest_cache]
    if unknown:
        try:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                digests = process.submit(_digest_all, [entry.uri for entry in unknown], max_packets).result()
        except BrokenProcessPool:
            digests = [""] * len(unknown)
        _digest_cache.update({(entry, max_packets): digest for entry, digest in zip(unknown, digests, strict=True)})
    return [_digest_cache[entry, max_packets] for entry in entries]


def _digest_all(uris: Sequence[str], max_packets: int | None) -> list[str]:
    return storage.at_once(lambda uri: _digest(uri, max_packets), uris)


def _digest(uri: str, max_packets: int | None) -> str:
    try:
        return packet_digest(uri, max_packets)
    except Exception:  # `partition` will meet the same error and report it
        return ""
