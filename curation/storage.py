"""Files by uri, the same for a path, file:// and s3:// (boto3): list, open, read, and put whole or not at all.

A put is atomic: a reader sees the old object, the new one or none, never half of one. With `if_absent` it also says who was
first, which is all that commits and locks need.
"""

import glob
import hashlib
import io
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote, unquote_to_bytes, urlsplit

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

_WAITING = 16  # requests under way at once
_ID_BLOCKS, _ID_BLOCK_BYTES, _ID_EDGE_BYTES = 16, 64 << 10, 1 << 20
_COMPARED_BYTES = 8 << 20
# One range request each: smaller makes a sequential decode wait on round trips, larger wastes a seek.
_RANGE_BYTES = 4 << 20


@dataclass(frozen=True, order=True)
class Entry:
    """One listed file: its uri, size in bytes, and a token that changes when the file does (etag, or mtime in ns)."""

    uri: str
    size: int
    token: str


def is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def join(base: str, *parts: str) -> str:
    return "/".join([base.rstrip("/") if base != "/" else "", *parts])


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


def read(uri: str, start: int = 0, length: int | None = None) -> bytes:
    """The bytes from `start`, all of the rest or `length`; FileNotFoundError where there is none."""
    if is_s3(uri):
        return _s3_read(uri, start, length)
    with open(local_path(uri), "rb") as file:
        file.seek(start)
        return file.read(-1 if length is None else length)


def open_binary(uri: str) -> BinaryIO:
    """A seekable file for reading; on S3 each read fetches ranges, so a short span of a long video costs little."""
    if is_s3(uri):
        return io.BufferedReader(_RangeFile(uri), _RANGE_BYTES)
    return open(local_path(uri), "rb")


def put(uri: str, data: bytes, if_absent: bool = False) -> bool:
    """Write an object whole; with `if_absent` only where none is. Returns whether this call wrote it."""
    if is_s3(uri):
        return _s3_put(uri, data, if_absent)
    return _place(uri, if_absent, lambda temporary: Path(temporary).write_bytes(data))


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


def process_lives(pid: int) -> bool:
    """Whether the process that left a lock or a scratch folder on this machine still runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sweep(folder: str) -> None:
    """Remove what puts that were killed half-way left in a local folder; S3 keeps no half objects."""
    for path in [] if is_s3(folder) else Path(folder).rglob(".*.tmp"):
        path.unlink(missing_ok=True)


def exists(uri: str) -> bool:
    if not is_s3(uri):
        return os.path.isfile(local_path(uri))
    try:
        return _s3_size(uri) >= 0
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
    """Name a source by its bytes: SHA-256 over size, first and last MiB and sixteen blocks between (16 hex digits)."""
    sha = hashlib.sha256(str(entry.size).encode())
    for start, length in _sampled_ranges(entry.size):
        sha.update(read(entry.uri, start, length))
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
    return all(read(one.uri, at, _COMPARED_BYTES) == read(other.uri, at, _COMPARED_BYTES) for at in blocks)


@lru_cache(maxsize=4096)
def whole_id(entry: Entry) -> str:
    """Name a source by all of its bytes (16 hex digits): for one whose `content_id` another source has already."""
    sha = hashlib.sha256(f"whole {entry.size}".encode())
    for at in range(0, entry.size, _COMPARED_BYTES):
        sha.update(read(entry.uri, at, _COMPARED_BYTES))
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
    stat = os.stat(path)
    return Entry(_local_uri(path), stat.st_size, f"{stat.st_size}-{stat.st_mtime_ns}")


def _place(uri: str, if_absent: bool, write: Any) -> bool:
    """Write beside the target under a hidden name, then link (only if absent) or rename: both are atomic."""
    folder, name = os.path.split(uri)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        write(temporary)
        if not if_absent:
            os.replace(temporary, uri)
            return True
        os.link(temporary, uri)
        return True
    except FileExistsError:
        return False
    finally:
        Path(temporary).unlink(missing_ok=True)


@cache
def _s3() -> Any:
    """One client a process; the endpoint and the keys come from the usual AWS environment."""
    import boto3
    from botocore.config import Config

    return boto3.client("s3", config=Config(retries={"max_attempts": 8, "mode": "adaptive"}))


def _bucket_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


@contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    """S3's refusals, and a store that cannot be reached, as the errors that a local file gives: callers handle one kind."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise _as_os_error(uri, error) from error
    except BotoCoreError as error:
        raise OSError(f"{uri}: {error}") from error


def _s3_list(prefix: str) -> list[Entry]:
    bucket, key = _bucket_key(prefix)
    with _s3_errors(prefix):
        pages = _s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
        listed = [item for page in pages for item in page.get("Contents", [])]
    inside = [i for i in listed if not key or i["Key"] == key or i["Key"].startswith(key.rstrip("/") + "/")]
    return [
        Entry(f"s3://{bucket}/{i['Key']}", i["Size"], f"{i['Size']}-{i['ETag'].strip(chr(34))}")
        for i in inside
        if not i["Key"].endswith("/")
    ]


def _s3_size(uri: str) -> int:
    bucket, key = _bucket_key(uri)
    with _s3_errors(uri):
        size: int = _s3().head_object(Bucket=bucket, Key=key)["ContentLength"]
    return size


def _s3_read(uri: str, start: int, length: int | None) -> bytes:
    from botocore.exceptions import ClientError

    if length == 0:
        return b""  # a range names at least one byte
    bucket, key = _bucket_key(uri)
    wanted = {} if start == 0 and length is None else {"Range": f"bytes={start}-{'' if length is None else start + length - 1}"}
    with _s3_errors(uri):
        try:
            data: bytes = _s3().get_object(Bucket=bucket, Key=key, **wanted)["Body"].read()
        except ClientError as error:
            if error.response["Error"]["Code"] != "InvalidRange":
                raise
            return b""
    return data


def _s3_put(uri: str, data: bytes | BinaryIO, if_absent: bool) -> bool:
    from botocore.exceptions import ClientError

    bucket, key = _bucket_key(uri)
    condition = {"IfNoneMatch": "*"} if if_absent else {}
    with _s3_errors(uri):
        try:
            _s3().put_object(Bucket=bucket, Key=key, Body=data, **condition)
        except ClientError as error:
            # 409 is S3's answer to two conditional puts at once: the other one is on its way.
            if error.response["Error"]["Code"] not in ("PreconditionFailed", "ConditionalRequestConflict"):
                raise
            return False
    return True


def _as_os_error(uri: str, error: Any) -> OSError:
    code = error.response["Error"]["Code"]
    if code in ("NoSuchKey", "NoSuchBucket", "404"):
        return FileNotFoundError(f"{uri}: {code}")
    if code in ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
        return PermissionError(f"{uri}: {code}")
    return OSError(f"{uri}: {code}: {error}")


class _RangeFile(io.RawIOBase):
    """A read-only S3 object as a raw file: each `readinto` is one range request."""

    def __init__(self, uri: str) -> None:
        self._uri, self._size, self._at = uri, _s3_size(uri), 0

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
        data = read(self._uri, self._at, length)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
