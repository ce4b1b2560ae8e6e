"""Files of this machine and of file servers: list, open with one version, write whole or not at all. For `curation.storage`."""

import errno
import fcntl
import io
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from curation.errors import SourceChanged
from curation.uris import Entry, local_path, local_uri, require_version

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# What file systems without hard links answer.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Add the file's name to errors of writing it, which the system leaves out, and the remedy where the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            words = f"{os.strerror(error.errno)}; free some space, and the same command resumes"
            raise OSError(error.errno, words, path) from error
        if error.errno and error.filename is None:
            raise OSError(error.errno, os.strerror(error.errno), path) from error
        raise


def list_files(prefix: str) -> list[Entry]:
    """Every file under a folder, or the one file with this name, in no order.

    PermissionError where a folder cannot be listed.
    """
    if os.path.isfile(prefix):
        return [_entry(prefix)]
    paths = (os.path.join(folder, name) for folder, names in _walk(prefix) for name in names)
    return [_entry(path) for path in paths if os.path.isfile(path)]


def list_names(folder: str) -> list[str]:
    """The base names of the files under a folder, except hidden ones and those in hidden folders, in no order.

    It asks for no size and no date, which is most of the time of `list_files`.
    """
    names: list[str] = []
    folders = [folder]
    while folders:
        here = folders.pop()
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_file():
                        names.append(entry.name)
                    elif entry.is_dir() and not _leads_up(entry.path, os.path.realpath(here)):
                        folders.append(entry.path)
        except OSError as error:
            _raise_unless_absent(error)
    return names


def _walk(top: str) -> Iterator[tuple[str, list[str]]]:
    """Folders below `top` and their file names. Links are followed, except to a folder that holds the link: that never ends."""
    for folder, folders, files in os.walk(top, followlinks=True, onerror=_raise_unless_absent):
        here = os.path.realpath(folder)
        folders[:] = [name for name in folders if not _leads_up(os.path.join(folder, name), here)]
        yield folder, files


def _leads_up(folder: str, here: str) -> bool:
    return os.path.islink(folder) and f"{here}/".startswith(os.path.realpath(folder).rstrip("/") + "/")


def _raise_unless_absent(error: OSError) -> None:
    """Ignore a folder that is gone or never was, since it holds nothing. One that may not be listed may hold anything."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _entry(path: str) -> Entry:
    status = os.stat(path)
    return Entry(local_uri(path), status.st_size, version_of(status))


def version_of(status: os.stat_result) -> str:
    """Return a file's version, as `Entry.token` has it."""
    return f"{status.st_size}-{status.st_mtime_ns}"


class LocalFile(io.BufferedReader):
    """A local file, opened for reading, whose version is checked on opening and on closing: it must be the same throughout."""

    def __init__(self, uri: str, token: str) -> None:
        file = io.FileIO(local_path(uri))
        try:
            self._uri, self._token = uri, version_of(os.fstat(file.fileno()))
            require_version(uri, token, self._token)
        except BaseException:
            file.close()
            raise
        super().__init__(file)

    def close(self) -> None:
        """Close the file. SourceChanged where the bytes that were read may be of two versions."""
        if self.closed:
            return
        try:
            now = version_of(os.fstat(self.fileno()))
        finally:
            super().close()
        require_version(self._uri, self._token, now)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(SourceChanged) if error else nullcontext():
            self.close()


def place(uri: str, if_absent: bool, write: Callable[[str], Any]) -> bool:
    """Have `write` write a hidden file next to the target, then link it (`if_absent`) or rename it. Both steps are atomic.

    Returns whether the target is now this file.
    """
    folder, name = os.path.split(uri)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        with naming(uri):
            os.makedirs(folder, exist_ok=True)
            write(temporary)
            if if_absent:
                return _move_if_absent(temporary, uri)
            os.replace(temporary, uri)
            return True
    finally:
        Path(temporary).unlink(missing_ok=True)


def _move_if_absent(temporary: str, uri: str) -> bool:
    try:
        os.link(temporary, uri)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    with exclusive(uri):  # every process that puts here takes this way, since none of them can link
        if os.path.exists(uri):
            return False
        os.replace(temporary, uri)
        return True


@contextmanager
def exclusive(uri: str) -> Iterator[None]:
    """Keep out other processes that replace a file of this folder, on this machine and on those that share it by NFS.

    A folder can be locked on a local disk. On NFS only a file that is open for writing can: a hidden one next to the target.
    """
    folder, name = os.path.split(uri)
    held = _lock(folder, os.O_RDONLY)
    if held is None:
        held = _lock(os.path.join(folder, f".{name}.guard"), os.O_RDWR | os.O_CREAT)
    try:
        yield
    finally:
        if held is not None:
            os.close(held)


def _lock(path: str, flags: int) -> int | None:
    """Return a descriptor that holds the lock of a file or folder, or None where the file system has no such lock."""
    descriptor = os.open(path, flags, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def now_at(uri: str) -> float:
    """Return the time, s, by the clock of the file system that holds a file: a file server has its own."""
    folder, name = os.path.split(uri)
    probe = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        Path(probe).write_bytes(b"")
        return os.stat(probe).st_mtime
    finally:
        Path(probe).unlink(missing_ok=True)


def remove_partial_files(folder: str) -> None:
    """Remove the hidden files of writes that were killed half-way."""
    for path in Path(folder).rglob(".*.tmp"):
        path.unlink(missing_ok=True)
