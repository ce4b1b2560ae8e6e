"""Files by uri, the same for a path, file:// and s3:// (boto3): list, open, read, and put whole or not at all.

A put is atomic: a reader sees the old object, the new one or none, never half of one. With `if_absent` it also says who was
first, which is all that commits need. A file has a version (`Entry.token`): reads that are given one never mix two versions.
"""

import errno
import fcntl
import glob
import hashlib
import io
import logging
import math
import os
import random
import re
import shutil
import stat
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast
from urllib.parse import quote, unquote_to_bytes, urlsplit

from curation.errors import SourceChanged
from curation.processes import per_process

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3gp", "asf", "avi", "flv", "gif", "h264", "hevc", "ivf", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg"),
        *("mpd", "mts", "mxf", "nut", "ogv", "ts", "vob", "webm", "wmv", "y4m"),  # mpd: to say how its parts are joined
    )
)
LIST_SUFFIXES = frozenset({".txt", ".lst", ".list"})
_TABLE_SUFFIXES, _DATA_SUFFIXES = frozenset({".csv", ".tsv"}), frozenset({".json", ".jsonl", ".ndjson", ".yaml", ".yml"})
_LOOKED_AT_BYTES = 4 << 10
T = TypeVar("T")
U = TypeVar("U")

requests: Counter[str] = Counter()
"""Requests to S3 of this process: "all", and those among them that the store "throttled"."""

_WAITING = 16  # requests under way at once
_ID_BLOCKS, _ID_BLOCK_BYTES, _ID_EDGE_BYTES = 16, 64 << 10, 1 << 20
_COMPARED_BYTES = 8 << 20
# One range request each: smaller makes a sequential decode wait on round trips, larger wastes a seek.
_RANGE_BYTES = 4 << 20
# A read whose answer is short or of other bytes is tried so often, each time on fresh connections.
_READ_TRIES = 3
# So often a request is sent that the store puts off or does not answer; the last pauses are up to so long.
_REQUEST_TRIES, _LONGEST_PAUSE_S = 12, 20.0
# S3's answers to a conditional write that is not done; 409: two at once, and the other one is on its way.
_NOT_WRITTEN = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
_UNKNOWN_TO_STORE = ("NotImplemented", "501")
# S3's answers to more requests than it takes.
_THROTTLED = (503, 429)
_SAID_FROM, _SAID_EVERY_S, _said_s = 5, 60.0, -math.inf
_FULL = (errno.ENOSPC, errno.EDQUOT)
# What file systems without hard links answer.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True, order=True)
class Entry:
    """One listed file: its uri, its size in bytes, and its version: "size-etag" on S3, else "size-mtime in ns"."""

    uri: str
    size: int
    token: str


def is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def join(base: str, *parts: str) -> str:
    return "/".join([base.rstrip("/") if base != "/" else "", *parts])


def shown(text: str) -> str:
    """Return a uri, or a message with one, fit to be read and stored: bytes that are no UTF-8 are spelled by number."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def normal(uri: str) -> str:
    """An s3 uri as it is; everything else as an absolute path, so that a file has one name."""
    scheme, colon, rest = uri.partition("://")
    if colon and scheme.lower() == "s3":
        return f"s3://{rest}"
    if colon and scheme.lower() == "file":
        uri = os.fsdecode(unquote_to_bytes(urlsplit(uri).path))
    elif colon:
        raise ValueError(f"{uri}: only paths, file:// and s3:// can be read; download other sources first")
    return os.path.abspath(os.path.expanduser(uri))


def local_path(uri: str) -> str:
    """The path of a local uri as it is listed: a path, or file:// with what is not UTF-8 in it as %XX."""
    return normal(uri) if uri.startswith("file://") else uri


def _local_uri(path: str) -> str:
    """A path as rows can hold it: one that is not UTF-8 as a file:// uri."""
    return path if is_text(path) else f"file://{quote(os.fsencode(path))}"


def is_text(path: str) -> bool:
    """Whether a path is UTF-8: file systems allow any bytes, rows and printed lines do not."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def version(uri: str) -> str:
    """Return the version that a file has now, as `Entry.token` gives it. FileNotFoundError where there is no file."""
    if is_s3(uri):
        return _s3_version(uri)
    status = os.stat(local_path(uri))
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(f"{uri}: is not a file")
    return _local_version(status)


def check_version(uri: str, token: str) -> None:
    """Raise SourceChanged where a file's version is not `token`. An empty token is unknown and never differs."""
    if token:
        _require_version(uri, token, version(uri))


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Name the local file in errors of writing it, which the system leaves out, and the remedy where the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            words = f"{os.strerror(error.errno)}; free some space, and the same command resumes"
            raise OSError(error.errno, words, path) from error
        if error.errno and error.filename is None:
            raise OSError(error.errno, os.strerror(error.errno), path) from error
        raise


def describe(error: BaseException) -> str:
    """Return an error's class and words; where it has none, those of what caused it or of its number."""
    words = str(error).strip()
    if not words and isinstance(error, OSError) and error.errno:
        words = os.strerror(error.errno)
    behind = error.__cause__ or error.__context__
    if not words:
        words = f"because of {describe(behind)}" if behind else "without further words"
    return f"{type(error).__name__}: {words}"


def read(uri: str, start: int = 0, length: int | None = None, token: str = "") -> bytes:
    """Return the bytes from `start`, all of the rest or `length`, fewer where the file ends before.

    token: the version that they must be of; else SourceChanged. FileNotFoundError where there is no file.
    """
    if is_s3(uri):
        return _s3_read(uri, start, length, token)
    with _LocalFile(uri, token) as file:
        file.seek(start)
        return file.read(-1 if length is None else length)


def open_binary(uri: str, token: str = "") -> BinaryIO:
    """Open a seekable file for reading; on S3 each read fetches ranges, so a short span of a long video costs little.

    All that is read is of one version: `token`, or the one at opening. SourceChanged where the file has another: raised by
    opening and reading on S3, by opening and closing locally. Leaving a `with` block by another error raises that one.
    """
    if is_s3(uri):
        return io.BufferedReader(_RangeFile(uri, token), _RANGE_BYTES)
    return cast(BinaryIO, _LocalFile(uri, token))


def put(uri: str, data: bytes, if_absent: bool = False) -> bool:
    """Write an object whole; with `if_absent` only where none is. Returns whether this call wrote it."""
    if is_s3(uri):
        return _s3_put(uri, data, if_absent)
    return _place(uri, if_absent, lambda temporary: Path(temporary).write_bytes(data))


class Stamped(NamedTuple):
    """A file's bytes, its version, and how long ago it was written by the clock of the store that holds it."""

    data: bytes
    version: str
    age_s: float


def read_stamped(uri: str) -> Stamped:
    """Read a small file with its version and its age. FileNotFoundError where there is none."""
    if is_s3(uri):
        return _s3_read_stamped(uri)
    with open(uri, "rb") as file:
        data, status = file.read(), os.fstat(file.fileno())
    return Stamped(data, _local_version(status), _local_now(uri) - status.st_mtime)


def replace(uri: str, data: bytes, token: str) -> str:
    """Write a small object whole, but only where its version is still `token`; empty: only where there is none.

    Return the new version, or "" where the file has another. Of several that replace one version at once, one succeeds. OSError
    within a minute where the store does not answer. An answer can get lost on the way: after an error, and after "", read
    the file to know whether it was written all the same.
    """
    if is_s3(uri):
        return _s3_replace(uri, data, token)
    if not token:
        return version(uri) if put(uri, data, if_absent=True) else ""
    if not os.path.exists(uri):
        return ""
    with _guarded(uri):
        if not os.path.exists(uri) or version(uri) != token:
            return ""
        put(uri, data)
        return version(uri)


def check_conditions(folder: str) -> None:
    """Raise ValueError where the store of a folder cannot write "only if absent" and "only this version", or OSError.

    Commits, plans and locks depend on both. Writes a probe of a few bytes and takes it away.
    """
    uri = join(folder, f"probe-{uuid.uuid4().hex}.tmp")
    try:
        first = _tried(uri, b"1", "")
        if not first or _tried(uri, b"2", ""):
            raise ValueError(_unknown_condition(folder, "If-None-Match"))
        second = _tried(uri, b"3", first)
        if not second or _tried(uri, b"4", first):
            raise ValueError(_unknown_condition(folder, "If-Match"))
    finally:
        with suppress(OSError):
            delete(uri)


def _tried(uri: str, data: bytes, token: str) -> str:
    """As `replace`; empty also where the store says that it does not know how."""
    try:
        return replace(uri, data, token)
    except OSError as error:
        if _is_refusal(error):
            return ""
        raise


def put_file(uri: str, path: str, if_absent: bool = False) -> bool:
    """As `put`, from a local file, which is moved away from `path` where it can be."""
    if is_s3(uri):
        with open(path, "rb") as file:
            return _s3_put(uri, file, if_absent)
    return _place(uri, if_absent, lambda temporary: shutil.move(path, temporary))


def delete(uri: str) -> None:
    """Remove an object; one that is not there is no error."""
    if is_s3(uri):
        bucket, key = _bucket_key(uri)
        with _s3_errors(uri):
            _s3().delete_object(Bucket=bucket, Key=key)
    else:
        Path(uri).unlink(missing_ok=True)


def sweep(folder: str) -> None:
    """Remove what puts that were killed half-way left in a local folder; S3 keeps no half objects."""
    for path in [] if is_s3(folder) else Path(folder).rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def exists(uri: str) -> bool:
    if not is_s3(uri):
        return os.path.isfile(local_path(uri))
    try:
        return bool(version(uri))
    except FileNotFoundError:
        return False


def list_files(prefix: str) -> list[Entry]:
    """Every file under a folder or s3 prefix (or the one file so named), sorted by uri.

    What is hidden below it, file or folder, is left out. PermissionError where a folder cannot be listed: what it holds
    would be missing in silence.
    """
    found = _s3_list(prefix) if is_s3(prefix) else _local_list(prefix)
    return sorted(entry for entry in found if "/." not in local_path(entry.uri)[len(prefix.rstrip("/")) :])


def names(prefix: str) -> list[str]:
    """The base names of the files under a folder or prefix, sorted: what a commit needs to know, and no more."""
    return sorted(PurePosixPath(entry.uri).name for entry in list_files(prefix.rstrip("/") + "/"))


def at_once(fn: Callable[[T], U], items: Iterable[T]) -> list[U]:
    """`fn` of every item, in order, several at a time: each waits on the store, not on this machine."""
    with ThreadPoolExecutor(_WAITING) as pool:
        return list(pool.map(fn, items))


def find_sources(inputs: Iterable[str], exclude: str | None = None) -> list[Entry]:
    """The videos that files, folders, globs, list files and s3 prefixes name, each once, sorted by uri.

    A folder gives the files with a video's suffix; a file named outright is taken whatever its suffix. `exclude` is a
    folder to leave out (our own output). Raises ValueError for an input that names nothing.
    """
    found = {}
    for item in inputs:
        named = _expand(item)
        entries = [e for e in named if not (exclude and e.uri.startswith(exclude.rstrip("/") + "/"))]
        if not entries:
            raise ValueError(f"{item}: all {len(named)} videos lie in the output {exclude}" if named else _nothing_at(item))
        found.update({entry.uri: entry for entry in entries})
    return sorted(found.values())


def content_id(entry: Entry) -> str:
    """Name a source by its bytes: SHA-256 over size, first and last MiB and sixteen blocks between (16 hex digits).

    Of a file that is longer than the entry says, its beginning is named. SourceChanged where the file is no longer the listed
    version.
    """
    sha = hashlib.sha256(str(entry.size).encode())
    for start, length in _sampled_ranges(entry.size):
        sha.update(read(entry.uri, start, min(length, entry.size - start), entry.token))
    return sha.hexdigest()[:16]


@lru_cache(maxsize=4096)
def same_bytes(one: Entry, other: Entry) -> bool:
    """Whether two listed files hold the same bytes, all of them: equal samples do not say so. OSError where one cannot be read.

    Two recordings of one seed, without compression, differ only where something happens.
    """
    if one.size != other.size:
        return False
    if is_s3(one.uri) and is_s3(other.uri):
        if one.token == other.token:  # the size and a hash of the bytes
            return True
    elif not (is_s3(one.uri) or is_s3(other.uri)) and os.path.samefile(local_path(one.uri), local_path(other.uri)):
        return True
    blocks = range(0, one.size, _COMPARED_BYTES)
    return all(
        read(one.uri, at, _COMPARED_BYTES, one.token) == read(other.uri, at, _COMPARED_BYTES, other.token) for at in blocks
    )


@lru_cache(maxsize=4096)
def whole_id(entry: Entry) -> str:
    """Name a source by all of its bytes (16 hex digits): for one whose `content_id` another source has already."""
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
        raise ValueError(
            f"{item}: is a table, not a video; give a list: a .txt file with one path or s3:// uri a line (what is behind http "
            "links must be downloaded first)"
        )
    return _local_list(path)


def _is_table(path: str) -> bool:
    """Whether a file is a table by its name, or data with links in it."""
    suffix = Path(path).suffix.lower()
    if suffix not in _DATA_SUFFIXES:
        return suffix in _TABLE_SUFFIXES
    return re.search(rb"\b(?:https?|s3)://", read(path, 0, _LOOKED_AT_BYTES)) is not None


def _expand_match(path: str) -> list[Entry]:
    """A file that a glob matched counts if it is a video; a folder it matched gives its videos."""
    return [entry for entry in list_files(path) if _is_video(entry.uri)]


def _read_list(path: str) -> list[Entry]:
    """One input a line, relative to the list's own folder; blank lines and lines that begin with # are left out."""
    entries = []
    for number, line in enumerate(_lines(path), 1):
        item = line.strip()
        if not item or item.startswith("#"):
            continue
        if "://" not in item:
            item = os.path.join(os.path.dirname(path), os.path.expanduser(item))
        try:
            if _is_list(item):
                raise ValueError(f"{item} is a list itself; name its videos here")
            here = _expand(item)
            if not here:
                raise ValueError(_nothing_at(item))
        except (ValueError, OSError) as error:
            kind = ValueError if isinstance(error, ValueError) else type(error)
            raise kind(f"{path}, line {number}: {error}") from error
        entries += here
    return entries


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: a list of inputs must be UTF-8 text ({error.reason} at byte {error.start})") from None


def _is_list(item: str) -> bool:
    path = normal(item)
    return not is_s3(path) and Path(path).suffix.lower() in LIST_SUFFIXES and os.path.isfile(path)


def _is_video(uri: str) -> bool:
    return PurePosixPath(uri).suffix.lower() in VIDEO_SUFFIXES


def _nothing_at(item: str) -> str:
    if is_s3(normal(item)):
        advice = "; name a prefix, patterns are not matched on s3://" if glob.has_magic(item) else ""
        return f"{item}: no video found there{advice}"
    path = normal(item)
    if os.path.isdir(path):
        return f"{item}: the folder holds no video ({len(list_files(path))} other files)"
    if os.path.exists(path):
        return f"{item}: the list names no video" if _is_list(path) else f"{item}: is neither a file nor a folder"
    return f"{item}: no video matches" if glob.has_magic(path) else f"{item}: no such file or folder"


def _local_list(prefix: str) -> list[Entry]:
    if os.path.isfile(prefix):
        return [_local_entry(prefix)]
    paths = (os.path.join(folder, name) for folder, names in _walk(prefix) for name in names)
    return [_local_entry(path) for path in paths if os.path.isfile(path)]


def _walk(top: str) -> Iterator[tuple[str, list[str]]]:
    """Folders below `top` and their file names. Links are followed, but none to a folder that holds it: that has no end."""
    for folder, folders, files in os.walk(top, followlinks=True, onerror=_unlisted):
        here = os.path.realpath(folder)
        folders[:] = [name for name in folders if not _leads_up(os.path.join(folder, name), here)]
        yield folder, files


def _leads_up(folder: str, here: str) -> bool:
    return os.path.islink(folder) and f"{here}/".startswith(os.path.realpath(folder).rstrip("/") + "/")


def _unlisted(error: OSError) -> None:
    """What is gone, or never was, holds nothing; what may not be listed may hold anything."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _local_entry(path: str) -> Entry:
    status = os.stat(path)
    return Entry(_local_uri(path), status.st_size, _local_version(status))


def _local_version(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _require_version(uri: str, token: str, now: str) -> None:
    if token and now != token:
        was, (size, mark) = token.partition("-")[::2], now.partition("-")[::2]
        kind = "ETag" if is_s3(uri) else "mtime"
        raise SourceChanged(
            f"{shown(uri)}: the file changed since it was listed "
            f"(size and {kind} were {was[0]} and {was[1]}, are {size} and {mark})"
        )


class _LocalFile(io.BufferedReader):
    """A local file that is checked when it is opened and when it is closed: it must have one version all the time."""

    def __init__(self, uri: str, token: str) -> None:
        file = io.FileIO(local_path(uri))
        try:
            self._uri, self._token = uri, _local_version(os.fstat(file.fileno()))
            _require_version(uri, token, self._token)
        except BaseException:
            file.close()
            raise
        super().__init__(file)

    def close(self) -> None:
        """Close it; SourceChanged where what was read may be of two versions."""
        if self.closed:
            return
        try:
            now = _local_version(os.fstat(self.fileno()))
        finally:
            super().close()
        _require_version(self._uri, self._token, now)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(SourceChanged) if error else nullcontext():
            self.close()


def _place(uri: str, if_absent: bool, write: Any) -> bool:
    """Write beside the target under a hidden name, then link (only if absent) or rename: both are atomic."""
    folder, name = os.path.split(uri)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        with naming(uri):
            os.makedirs(folder, exist_ok=True)
            write(temporary)
            if if_absent:
                return _moved_if_absent(temporary, uri)
            os.replace(temporary, uri)
            return True
    finally:
        Path(temporary).unlink(missing_ok=True)


def _moved_if_absent(temporary: str, uri: str) -> bool:
    try:
        os.link(temporary, uri)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    with _guarded(uri):  # every process that puts here takes this way, since none can link
        if os.path.exists(uri):
            return False
        os.replace(temporary, uri)
        return True


@contextmanager
def _guarded(uri: str) -> Iterator[None]:
    """Keep out the other processes that replace a file of this folder, on this machine and on those that share it by NFS.

    A folder can be locked on a local disk. On NFS only a file that is open for writing can: a hidden one beside the target.
    """
    folder, name = os.path.split(uri)
    held = _locked(folder, os.O_RDONLY)
    if held is None:
        held = _locked(os.path.join(folder, f".{name}.guard"), os.O_RDWR | os.O_CREAT)
    try:
        yield
    finally:
        if held is not None:
            os.close(held)


def _locked(path: str, flags: int) -> int | None:
    """A descriptor that holds the lock of a file or folder; None where the file system knows no such lock."""
    descriptor = os.open(path, flags, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _local_now(uri: str) -> float:
    """The time, s, by the clock of the file system that holds a file: a file server has its own."""
    folder, name = os.path.split(uri)
    probe = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        Path(probe).write_bytes(b"")
        return os.stat(probe).st_mtime
    finally:
        Path(probe).unlink(missing_ok=True)


@per_process
def _s3(brief: bool = False) -> Any:
    """Build an S3 client of this process; the endpoint and the keys come from the usual AWS environment.

    brief: one that gives up within a minute, for locks, whose holder must know in time that they cannot be kept.
    """
    import boto3
    from botocore.config import Config

    # Not "adaptive": with 16 threads on a store that puts off 30 % of the requests it made 1.2 a second, "standard" 21. But
    # "standard" gives requests up while the process repeats many of them: `_repeat` goes on (docs/log.md).
    patient = Config(max_pool_connections=_WAITING, retries={"total_max_attempts": _REQUEST_TRIES, "mode": "standard"})
    short = Config(connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 4, "mode": "standard"})
    # A session of its own: the default one is shared with a forked child, and is not safe between threads.
    client = boto3.Session().client("s3", config=short if brief else patient)
    client.meta.events.register("response-received.s3", _count_response)
    if not brief:
        client.meta.events.register_last("needs-retry.s3", _repeat)
    return client


def _count_response(response_dict: dict[str, Any] | None, **_: Any) -> None:
    """Count every answer, those to repeated requests too, and say now and then that the store throttles."""
    global _said_s
    requests["all"] += 1
    if not response_dict or response_dict.get("status_code") not in _THROTTLED:
        return
    requests["throttled"] += 1
    if requests["throttled"] >= _SAID_FROM and time.monotonic() >= _said_s + _SAID_EVERY_S:
        _said_s = time.monotonic()
        logging.getLogger(__name__).warning("%s", throttling(requests))


def _repeat(attempts: int, response: Any, caught_exception: Exception | None, **_: Any) -> float | None:
    """How long to wait, s, before a request is sent again that the store put off or did not answer; None: it is not.

    botocore asks its own handler first.
    """
    status = response[0].status_code if response else None
    trouble = status in (*_THROTTLED, 500, 502, 504) or isinstance(caught_exception, _unanswered())
    if not trouble or attempts >= _REQUEST_TRIES:
        return None
    return random.random() * min(2.0 ** (attempts - 1), _LONGEST_PAUSE_S)  # noqa: S311  spreads requests, hides nothing


def _unanswered() -> tuple[type[Exception], ...]:
    from botocore.exceptions import ConnectionError as NoConnection
    from botocore.exceptions import HTTPClientError

    return NoConnection, HTTPClientError


def throttling(counts: Mapping[str, int]) -> str:
    """How many of these `requests` S3 put off, in words; empty where it put off none."""
    if not counts.get("throttled"):
        return ""
    return (
        f"S3 throttled {counts['throttled']} of {counts['all']} requests (503 or 429); they are repeated later, which takes "
        "time. Fewer workers, or sources spread over more prefixes, help"
    )


def _bucket_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


@contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    """S3's refusals, and a store that cannot be reached, as the errors that a local file gives: callers handle one kind."""
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ClientError as error:
        raise _as_os_error(uri, error) from error
    except (BotoCoreError, HTTPError) as error:
        raise OSError(f"{uri}: {str(error) or describe(error)}") from error


def _s3_list(prefix: str) -> list[Entry]:
    bucket, key = _bucket_key(prefix)
    with _s3_errors(prefix):
        pages = _s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
        listed = [item for page in pages for item in page.get("Contents", [])]
    inside = [i for i in listed if not key or i["Key"] == key or i["Key"].startswith(key.rstrip("/") + "/")]
    return [
        Entry(f"s3://{bucket}/{i['Key']}", i["Size"], f"{i['Size']}-{_plain_etag(i['ETag'])}")
        for i in inside
        if not i["Key"].endswith("/")
    ]


def _s3_version(uri: str) -> str:
    bucket, key = _bucket_key(uri)
    with _s3_errors(uri):
        head = _s3().head_object(Bucket=bucket, Key=key)
    return f"{head['ContentLength']}-{_plain_etag(head['ETag'])}"


def _plain_etag(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _quoted_etag(token: str) -> str:
    """The ETag of a version as headers spell it."""
    return f'"{token.partition("-")[2]}"'


class _WrongAnswer(Exception):
    """The store answered a read with other bytes than those asked for, or with too few."""


def _s3_read(uri: str, start: int, length: int | None, token: str = "") -> bytes:
    """A range of an object, checked; `_WrongAnswer`s are tried again before they are an OSError."""
    if length == 0:
        return b""  # a range names at least one byte
    trouble = ""
    for _ in range(_READ_TRIES):
        try:
            return _s3_range(uri, start, length, token)
        except _WrongAnswer as error:
            trouble = str(error)
            _s3().close()  # closes the idle connections of the pool: one that is out of step stays so
            check_version(uri, token)
    raise OSError(f"{uri}: {trouble}, {_READ_TRIES} times")


def _s3_range(uri: str, start: int, length: int | None, token: str) -> bytes:
    from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError
    from urllib3.exceptions import HTTPError

    bucket, key = _bucket_key(uri)
    whole = start == 0 and length is None
    wanted = {} if whole else {"Range": f"bytes={start}-{'' if length is None else start + length - 1}"}
    if token:
        wanted["IfMatch"] = _quoted_etag(token)
    with _s3_errors(uri):
        try:
            answer = _s3().get_object(Bucket=bucket, Key=key, **wanted)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in ("PreconditionFailed", "412") and token:
                check_version(uri, token)
                raise OSError(f"{uri}: the store refuses If-Match with the ETag that it gives itself") from error
            if code != "InvalidRange":
                raise
            check_version(uri, token)
            return b""
        with closing(answer["Body"]) as body:  # closed before its end, a connection is not used again
            expected = _expected_bytes(answer, None if whole else (start, length), token)
            try:
                data: bytes = body.read()
            except (HTTPClientError, IncompleteReadError, HTTPError, ConnectionError) as error:
                raise _WrongAnswer(f"the answer broke off ({describe(error)})") from error
    if len(data) != expected:
        raise _WrongAnswer(f"{len(data)} bytes came instead of {expected}")
    return data


def _expected_bytes(answer: Any, span: tuple[int, int | None] | None, token: str) -> int:
    """How many bytes an answer must have to be the range (start, length), or the whole, of this version of the object."""
    size, _, etag = token.partition("-")
    if token and _plain_etag(answer.get("ETag", "")) != etag:
        raise _WrongAnswer(f"asked for ETag {etag}, the answer has {answer.get('ETag')}")
    if span is None:
        first, last, total = 0, answer["ContentLength"] - 1, answer["ContentLength"]
    else:
        said = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.get("ContentRange") or "")
        if not said:
            raise _WrongAnswer(f"asked for a range, the answer has Content-Range {answer.get('ContentRange')}")
        first, last, total = (int(number) for number in said.groups())
    start, length = span or (0, None)
    end = total if length is None else min(start + length, total)
    if (first, last + 1) != (start, end) or (token and total != int(size)):
        wanted = f"bytes {start} to {end} of {size or total}"
        raise _WrongAnswer(f"asked for {wanted}, the answer has {first} to {last + 1} of {total}")
    return end - start


def _s3_put(uri: str, data: bytes | BinaryIO, if_absent: bool) -> bool:
    from botocore.exceptions import ClientError

    bucket, key = _bucket_key(uri)
    condition = {"IfNoneMatch": "*"} if if_absent else {}
    with _s3_errors(uri):
        try:
            _s3().put_object(Bucket=bucket, Key=key, Body=data, **condition)
        except ClientError as error:
            if error.response["Error"]["Code"] not in _NOT_WRITTEN:
                raise
            return False
    return True


def _s3_replace(uri: str, data: bytes, token: str) -> str:
    from botocore.exceptions import ClientError

    bucket, key = _bucket_key(uri)
    condition = {"IfMatch": _quoted_etag(token)} if token else {"IfNoneMatch": "*"}
    with _s3_errors(uri):
        try:
            answer = _s3(brief=True).put_object(Bucket=bucket, Key=key, Body=data, **condition)
        except ClientError as error:
            if error.response["Error"]["Code"] in (*_NOT_WRITTEN, "NoSuchKey", "404"):
                return ""
            raise
    return f"{len(data)}-{_plain_etag(answer['ETag'])}"


def _s3_read_stamped(uri: str) -> Stamped:
    bucket, key = _bucket_key(uri)
    with _s3_errors(uri):
        answer = _s3(brief=True).get_object(Bucket=bucket, Key=key)
        data: bytes = answer["Body"].read()
    said = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    now = parsedate_to_datetime(said).timestamp() if said else time.time()
    return Stamped(data, f"{len(data)}-{_plain_etag(answer['ETag'])}", now - answer["LastModified"].timestamp())


def _is_refusal(error: OSError) -> bool:
    """Whether a store does not know conditional writes, rather than that it could not do this one now."""
    said = getattr(error.__cause__, "response", {}).get("Error", {})
    return said.get("Code") in _UNKNOWN_TO_STORE or "If-" in said.get("Message", "")


def _unknown_condition(folder: str, condition: str) -> str:
    return (
        f"{folder}: this store does not know conditional writes ({condition}); without them two runs could write at the same "
        "time. Use a store that does, as AWS S3 and MinIO do, or a local folder for --out"
    )


def _as_os_error(uri: str, error: Any) -> OSError:
    code = error.response["Error"]["Code"]
    if code in ("NoSuchKey", "NoSuchBucket", "404"):
        return FileNotFoundError(f"{uri}: {code}")
    if code in ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
        return PermissionError(f"{uri}: {code}")
    return OSError(f"{uri}: {code}: {error}")


class _RangeFile(io.RawIOBase):
    """One version of an S3 object as a raw read-only file: each `readinto` is one range request with If-Match."""

    def __init__(self, uri: str, token: str = "") -> None:
        self._uri, self._token, self._at = uri, version(uri), 0
        _require_version(uri, token, self._token)
        self._size = int(self._token.partition("-")[0])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._at)
        if length <= 0:
            return 0
        data = read(self._uri, self._at, length, self._token)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
