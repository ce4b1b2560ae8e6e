"""Files by uri, the same for a path, file:// and s3://: list, open, read, and write whole or not at all.

A write is atomic: a reader sees the old object, the new one or none, never half of one. With `if_absent` a write also tells who
was first, which is all that commits need. A file has a version (`Entry.token`): a read that is given one never mixes two.
`local_files` and `s3` are the two implementations.
"""

import io
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar, cast

from curation import local_files, s3
from curation.errors import InputError
from curation.local_files import LocalFile, naming
from curation.s3 import RangeFile
from curation.uris import Entry, Stamped, is_s3, is_text, join, local_path, normal, printable, require_version

__all__ = [
    "Entry",
    "RangeFile",
    "Stamped",
    "at_once",
    "check_conditions",
    "check_version",
    "delete",
    "delete_all",
    "exists",
    "is_s3",
    "is_text",
    "join",
    "list_files",
    "local_path",
    "move",
    "names",
    "naming",
    "normal",
    "open_binary",
    "open_ranges",
    "printable",
    "put",
    "put_file",
    "read",
    "read_stamped",
    "remove_partial_files",
    "replace",
    "version",
]

T = TypeVar("T")
U = TypeVar("U")


def version(uri: str) -> str:
    """Return the current version of a file, as `Entry.token` has it. FileNotFoundError where there is no file."""
    if is_s3(uri):
        return s3.version(uri)
    status = os.stat(local_path(uri))
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(f"{uri}: is not a file")
    return local_files.version_of(status)


def check_version(uri: str, token: str) -> None:
    """Raise SourceChanged where a file's version is not `token`. An empty token means unknown, and never differs."""
    if token:
        require_version(uri, token, version(uri))


def read(uri: str, start: int = 0, length: int | None = None, token: str = "") -> bytes:
    """Return `length` bytes from `start` (None: all of the rest), fewer where the file ends before.

    token: the version that they must be of, else SourceChanged. FileNotFoundError where there is no file.
    """
    if is_s3(uri):
        return s3.read(uri, start, length, token)
    with LocalFile(uri, token) as file:
        file.seek(start)
        return file.read(-1 if length is None else length)


def open_binary(uri: str, token: str = "") -> BinaryIO:
    """Open a seekable file for reading. On S3 each read fetches ranges, so a short span of a long video costs little.

    All bytes are of one version: `token`, or the one at opening. SourceChanged where the file has another: raised by opening
    and reading on S3, by opening and closing locally. A `with` block that is left by another error raises that one.
    """
    if is_s3(uri):
        return io.BufferedReader(s3.RangeFile(uri, token), s3.BUFFER_BYTES)
    return cast(BinaryIO, LocalFile(uri, token))


def open_ranges(uri: str, token: str = "") -> RangeFile:
    """Open an object on S3 as `open_binary` does, without a buffer. For a reader that has one, and accepts short reads."""
    return s3.RangeFile(uri, token)


def put(uri: str, data: bytes, if_absent: bool = False) -> bool:
    """Write an object whole, or with `if_absent` only where there is none. Return whether this call wrote it."""
    if is_s3(uri):
        return s3.put(uri, data, if_absent)
    return local_files.place(uri, if_absent, lambda temporary: Path(temporary).write_bytes(data))


def put_file(uri: str, path: str, if_absent: bool = False) -> bool:
    """Write an object from a local file, as `put` does. The file is moved away from `path` where it can be."""
    if is_s3(uri):
        with open(path, "rb") as file:
            return s3.put(uri, file, if_absent)
    return local_files.place(uri, if_absent, lambda temporary: shutil.move(path, temporary))


def read_stamped(uri: str) -> Stamped:
    """Read a small file with its version and its age. FileNotFoundError where there is none."""
    if is_s3(uri):
        return s3.read_stamped(uri)
    with open(uri, "rb") as file:
        data, status = file.read(), os.fstat(file.fileno())
    return Stamped(data, local_files.version_of(status), local_files.now_at(uri) - status.st_mtime)


def replace(uri: str, data: bytes, token: str) -> str:
    """Write a small object whole, but only where its version is still `token` (empty: only where there is none).

    Return the new version, or "" where the file has another. Of several processes that replace one version at once, one
    succeeds. OSError within a minute where the store does not answer. An answer can get lost on the way: after an error, and
    after "", read the file to learn whether it was written all the same.
    """
    if is_s3(uri):
        return s3.replace(uri, data, token)
    if not token:
        return version(uri) if put(uri, data, if_absent=True) else ""
    if not os.path.exists(uri):
        return ""
    with local_files.exclusive(uri):
        if not os.path.exists(uri) or version(uri) != token:
            return ""
        put(uri, data)
        return version(uri)


def check_conditions(folder: str) -> None:
    """Raise InputError where the store of a folder cannot write "only if absent" and "only over this version".

    Commits, plans and locks depend on both. This writes a probe of a few bytes and removes it. OSError where it cannot be
    written at all.
    """
    uri = join(folder, f"probe-{uuid.uuid4().hex}.tmp")
    try:
        first = _try_replace(uri, b"1", "")
        if not first or _try_replace(uri, b"2", ""):
            raise InputError(_unknown_condition(folder, "If-None-Match"))
        second = _try_replace(uri, b"3", first)
        if not second or _try_replace(uri, b"4", first):
            raise InputError(_unknown_condition(folder, "If-Match"))
    finally:
        with suppress(OSError):
            delete(uri)


def _try_replace(uri: str, data: bytes, token: str) -> str:
    """Call `replace`. Return "" also where the store answers that it has no such condition."""
    try:
        return replace(uri, data, token)
    except OSError as error:
        if s3.is_refusal(error):
            return ""
        raise


def _unknown_condition(folder: str, condition: str) -> str:
    return (
        f"{folder}: this store does not know conditional writes ({condition}); without them two runs could write at the same "
        "time. Use a store that does, as AWS S3 and MinIO do, or a local folder for --out"
    )


def move(uri: str, target: str) -> None:
    """Move a file to another name in the same store. FileNotFoundError where there is none."""
    if is_s3(uri):
        s3.copy(uri, target)
        s3.delete(uri)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.replace(uri, target)


def delete(uri: str) -> None:
    """Remove an object. One that is absent is no error."""
    if is_s3(uri):
        s3.delete(uri)
    else:
        Path(uri).unlink(missing_ok=True)


def delete_all(uris: Iterable[str]) -> None:
    """Remove objects of one store, several at a time. Those that are absent are no error."""
    listed = list(uris)
    if listed and is_s3(listed[0]):
        s3.delete_all(listed)
    else:
        for uri in listed:
            delete(uri)


def remove_partial_files(folder: str) -> None:
    """Remove what is left in a local folder of writes that were killed half-way. S3 keeps no half objects."""
    if not is_s3(folder):
        local_files.remove_partial_files(folder)


def exists(uri: str) -> bool:
    if not is_s3(uri):
        return os.path.isfile(local_path(uri))
    try:
        return bool(version(uri))
    except FileNotFoundError:
        return False


def list_files(prefix: str) -> list[Entry]:
    """Every file under a folder or s3 prefix (or the one file with this name), sorted by uri.

    Hidden files, and files in hidden folders below it, are left out. PermissionError where a folder cannot be listed, since
    its files would be missing without a word.
    """
    entries = s3.list_files(prefix) if is_s3(prefix) else local_files.list_files(prefix)
    return sorted(entry for entry in entries if "/." not in local_path(entry.uri)[len(prefix.rstrip("/")) :])


def names(prefix: str) -> list[str]:
    """The base names of the files under a folder or prefix, sorted."""
    if is_s3(prefix):
        return sorted(PurePosixPath(entry.uri).name for entry in list_files(prefix.rstrip("/") + "/"))
    return sorted(local_files.list_names(prefix))


def at_once(fn: Callable[[T], U], items: Iterable[T]) -> list[U]:
    """Return `fn` of every item, in order, several at a time: each call waits for the store, not for this machine."""
    with ThreadPoolExecutor(s3.MAX_CONNECTIONS) as pool:
        return list(pool.map(fn, items))
