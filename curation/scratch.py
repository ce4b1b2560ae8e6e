"""A folder of this process for files that wait: removed by it, or by another process once this one is gone.

Whoever uses a folder holds a lock on the file beside it, which ends with the process however that ends. A process number would
say nothing: containers that share a temporary folder count their processes anew.
"""

import atexit
import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

_mine: list[tuple[int, int, Path, str]] = []

_PREFIX, _LOCK = "gamecraft-scratch-", ".lock"


def folder() -> Path:
    """The scratch folder of this process; its children have their own."""
    return _own(os.getpid())


@cache
def _own(pid: int) -> Path:
    sweep()
    file, path = _locked_file()
    mine = Path(path.removesuffix(_LOCK))
    mine.mkdir()
    _mine.append((pid, file, mine, path))
    atexit.register(remove)
    return mine


def _locked_file() -> tuple[int, str]:
    """A new file beside which a folder may be made, locked. One that another process swept before it was locked is given up."""
    while True:
        file, path = tempfile.mkstemp(suffix=_LOCK, prefix=_PREFIX)
        with suppress(OSError):  # a file system without locks: then nobody else can tell that it is left, and nobody sweeps it
            fcntl.flock(file, fcntl.LOCK_EX)
        if _is_at(file, path):
            return file, path
        os.close(file)


def _is_at(file: int, path: str) -> bool:
    try:
        there, mine = os.stat(path), os.fstat(file)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def _remove(pid: int, file: int, mine: Path, path: str) -> None:
    if os.getpid() == pid and Path(path).exists():  # a forked child inherits what is registered here, but not the folder
        shutil.rmtree(mine, ignore_errors=True)
        Path(path).unlink(missing_ok=True)
        os.close(file)


def remove() -> None:
    """Remove the scratch folder of this process, if it has one; it may be asked for again."""
    while _mine:
        _remove(*_mine.pop())
    _own.cache_clear()


def sweep() -> None:
    """Remove the scratch folders of processes that are gone: those whose locks can be had."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*{_LOCK}"):
        with suppress(OSError):  # another process's, or just removed
            file = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(file, str(path)):
                    shutil.rmtree(str(path).removesuffix(_LOCK), ignore_errors=True)
                    path.unlink(missing_ok=True)
            finally:
                os.close(file)
