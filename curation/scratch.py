"""A folder per process for files that wait for their commit. The process removes it, or another process does once it is gone.

Every process that uses a folder holds a lock on the file next to it. The lock ends with the process, however that ends. A
process number would not do: containers that share a temporary folder number their processes anew.
"""

import atexit
import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

_own_folders: list[tuple[int, int, Path, str]] = []  # (process, open lock file, folder, path of the lock file)

_PREFIX, _LOCK = "gamecraft-scratch-", ".lock"


def folder() -> Path:
    """Return the scratch folder of this process. Its children have their own."""
    return _folder_of(os.getpid())


@cache
def _folder_of(pid: int) -> Path:
    remove_stale_folders()
    file, lock_path = _create_lock_file()
    path = Path(lock_path.removesuffix(_LOCK))
    path.mkdir()
    _own_folders.append((pid, file, path, lock_path))
    atexit.register(remove_folder)
    return path


def _create_lock_file() -> tuple[int, str]:
    """Create and lock a file, for a folder next to it. Try again if another process removed the file before it was locked."""
    while True:
        file, path = tempfile.mkstemp(suffix=_LOCK, prefix=_PREFIX)
        # On a file system without locks no process can tell that a folder is stale, so none removes it.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if _is_open_at(file, path):
            return file, path
        os.close(file)


def _is_open_at(file: int, path: str) -> bool:
    """Whether the open file is the one at this path."""
    try:
        at_path, opened = os.stat(path), os.fstat(file)
    except FileNotFoundError:
        return False
    return (at_path.st_dev, at_path.st_ino) == (opened.st_dev, opened.st_ino)


def remove_folder() -> None:
    """Remove the scratch folder of this process, if it has one. `folder` makes another when it is called again."""
    while _own_folders:
        pid, file, path, lock_path = _own_folders.pop()
        if os.getpid() == pid and Path(lock_path).exists():  # a forked child inherits the list, but the folder is not its own
            shutil.rmtree(path, ignore_errors=True)
            Path(lock_path).unlink(missing_ok=True)
            os.close(file)
    _folder_of.cache_clear()


def remove_stale_folders() -> None:
    """Remove the scratch folders of processes that are gone: those whose lock is free."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*{_LOCK}"):
        with suppress(OSError):  # a live process holds the lock, or another one just removed the file
            file = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_open_at(file, str(path)):
                    shutil.rmtree(str(path).removesuffix(_LOCK), ignore_errors=True)
                    path.unlink(missing_ok=True)
            finally:
                os.close(file)
