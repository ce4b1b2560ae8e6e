"""Source videos: the files that an input names, and ids of sources by their bytes."""

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

from curation import local_files
from curation.errors import InputError
from curation.storage import Entry, is_s3, list_files, local_path, normal, read

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3gp", "asf", "avi", "flv", "gif", "h264", "hevc", "ivf", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg"),
        *("mts", "mxf", "nut", "ogv", "ts", "vob", "webm", "wmv", "y4m"),
        "mpd",  # refused later, with advice
    )
)
LIST_SUFFIXES = frozenset({".txt", ".lst", ".list"})
_TABLE_SUFFIXES, _DATA_SUFFIXES = frozenset({".csv", ".tsv"}), frozenset({".json", ".jsonl", ".ndjson", ".yaml", ".yml"})
_SEARCHED_BYTES = 4 << 10  # the part of a data file that is searched for links
_ID_BLOCKS, _ID_BLOCK_BYTES, _ID_EDGE_BYTES = 16, 64 << 10, 1 << 20
_COMPARED_BYTES = 8 << 20


def find_sources(inputs: Iterable[str], exclude: str | None = None) -> list[Entry]:
    """List the videos that files, folders, globs, list files and s3 prefixes name, each once, sorted by uri.

    A folder gives the files with the suffix of a video. A file that is named itself may have any suffix. exclude: a folder to
    leave out (our own output). InputError for an input that names no video.
    """
    sources = {}
    for item in inputs:
        named = _expand(item)
        entries = [e for e in named if not (exclude and e.uri.startswith(exclude.rstrip("/") + "/"))]
        if not entries:
            raise InputError(f"{item}: all {len(named)} videos lie in the output {exclude}" if named else _explain_empty(item))
        sources.update({entry.uri: entry for entry in entries})
    return sorted(sources.values())


def content_id(entry: Entry) -> str:
    """Identify a source by its bytes: SHA-256 over size, first and last MiB and sixteen blocks between (16 hex digits).

    If the file is longer than the entry's size, only its beginning counts. SourceChanged if the file is no longer the listed
    version.
    """
    sha = hashlib.sha256(str(entry.size).encode())
    for start, length in _sampled_ranges(entry.size):
        sha.update(read(entry.uri, start, min(length, entry.size - start), entry.token))
    return sha.hexdigest()[:16]


@lru_cache(maxsize=4096)
def same_bytes(one: Entry, other: Entry) -> bool:
    """Whether two listed files hold the same bytes. OSError if one cannot be read.

    This compares all bytes: two uncompressed recordings of one game seed differ only where something happens, which the samples
    of `content_id` can miss.
    """
    if one.size != other.size:
        return False
    if is_s3(one.uri) and is_s3(other.uri):
        if one.token == other.token:  # it has the size and a hash of the bytes
            return True
    elif not (is_s3(one.uri) or is_s3(other.uri)) and os.path.samefile(local_path(one.uri), local_path(other.uri)):
        return True
    blocks = range(0, one.size, _COMPARED_BYTES)
    return all(
        read(one.uri, at, _COMPARED_BYTES, one.token) == read(other.uri, at, _COMPARED_BYTES, other.token) for at in blocks
    )


@lru_cache(maxsize=4096)
def whole_id(entry: Entry) -> str:
    """Identify a source by all of its bytes (16 hex digits), if another source has the same `content_id`."""
    sha = hashlib.sha256(f"whole {entry.size}".encode())
    for at in range(0, entry.size, _COMPARED_BYTES):
        sha.update(read(entry.uri, at, _COMPARED_BYTES, entry.token))
    return sha.hexdigest()[:16]


def _sampled_ranges(size: int) -> Iterator[tuple[int, int]]:
    yield 0, _ID_EDGE_BYTES
    inside = size - 2 * _ID_EDGE_BYTES
    for block in range(_ID_BLOCKS if inside > 0 else 0):
        yield _ID_EDGE_BYTES + inside * block // _ID_BLOCKS, _ID_BLOCK_BYTES
    if size > _ID_EDGE_BYTES:
        yield max(_ID_EDGE_BYTES, size - _ID_EDGE_BYTES), _ID_EDGE_BYTES


def _expand(item: str) -> list[Entry]:
    path = normal(item)
    if is_s3(path):
        return [e for e in list_files(path) if e.uri == path or _is_video(e.uri)]
    if os.path.isdir(path):
        return [e for e in list_files(path) if _is_video(e.uri)]
    if not os.path.exists(path) and glob.has_magic(path):
        return [e for match in sorted(glob.glob(path, recursive=True)) for e in _expand_match(match)]
    if _is_list(path):
        return _read_list(path)
    if os.path.isfile(path) and _is_table(path):
        raise InputError(
            f"{item}: is a table, not a video; give a list: a .txt file with one path or s3:// uri a line (download "
            "http links first)"
        )
    return local_files.list_files(path)


def _is_table(path: str) -> bool:
    """Whether a file has the suffix of a table, or is a data file that contains links."""
    suffix = Path(path).suffix.lower()
    if suffix not in _DATA_SUFFIXES:
        return suffix in _TABLE_SUFFIXES
    return re.search(rb"\b(?:https?|s3)://", read(path, 0, _SEARCHED_BYTES)) is not None


def _expand_match(path: str) -> list[Entry]:
    """List the videos of a match of a glob: the file itself if it is a video, or the videos in the folder."""
    return [entry for entry in list_files(path) if _is_video(entry.uri)]


def _read_list(path: str) -> list[Entry]:
    """List the videos of a list file: one input per line, relative to its folder. Blank lines and # comments are skipped.

    Where lines name nothing that can be read, the error tells the first of them and how many there are.
    """
    entries, errors = [], list[tuple[int, Exception]]()
    for number, line in enumerate(_lines(path), 1):
        item = line.strip()
        if not item or item.startswith("#"):
            continue
        if "://" not in item:
            item = os.path.join(os.path.dirname(path), os.path.expanduser(item))
        try:
            if _is_list(item):
                raise InputError(f"{item} is a list itself; name its videos here")
            named = _expand(item)
            if not named:
                raise InputError(_explain_empty(item))
        except (ValueError, OSError) as error:
            errors.append((number, error))
        else:
            entries += named
    if errors:
        number, first = errors[0]
        kind = InputError if isinstance(first, ValueError) else type(first)
        others = f" ({len(errors)} lines like this)" if len(errors) > 1 else ""
        raise kind(f"{path}, line {number}: {first}{others}") from first
    return entries


def _lines(path: str) -> list[str]:
    try:
        # Not `splitlines`: it also splits at U+2028 and other characters that a file's name may have.
        return [line.rstrip("\r") for line in Path(path).read_text(encoding="utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: a list of inputs must be UTF-8 text ({error.reason} at byte {error.start})") from None


def _is_list(item: str) -> bool:
    path = normal(item)
    return not is_s3(path) and Path(path).suffix.lower() in LIST_SUFFIXES and os.path.isfile(path)


def _is_video(uri: str) -> bool:
    return PurePosixPath(uri).suffix.lower() in VIDEO_SUFFIXES


def _explain_empty(item: str) -> str:
    """Say why an input names no video."""
    if is_s3(normal(item)):
        advice = "; name a prefix, patterns are not matched on s3://" if glob.has_magic(item) else ""
        return f"{item}: no video found there{advice}"
    path = normal(item)
    if os.path.isdir(path):
        return f"{item}: the folder holds no video ({len(list_files(path))} other files)"
    if os.path.exists(path):
        return f"{item}: the list names no video" if _is_list(path) else f"{item}: is neither a file nor a folder"
    return f"{item}: no video matches" if glob.has_magic(path) else f"{item}: no such file or folder"
