"""Every error this package raises on purpose, and whose fault an error is.

    GamecraftError
    |-- InputError           the user's: a wrong path, key or value. The command line prints one line and exits with 2.
    |-- Unavailable          the machine's: no package, weights, server or store. The unit fails and is tried again.
    |   |-- SourceChanged    the file is no longer the version that was listed
    |   `-- ServerGone       no model answers
    |-- BadSource            the footage's: what its bytes say. It becomes a ledger row with the reason.
    |   |-- UnreadableVideo  no frame can be decoded
    |   `-- NotExact         chunks cannot be joined to what one pass would measure
    |-- AttemptFailed        a model or the game engine made nothing usable; the attempt is a row with the reason
    `-- LeaseLost            another run took over the output folder; this one stops

Anything else that reaches the command line is a bug of ours, and shows its traceback. Classes also derive from the built-in
error that fits, so that `except ValueError` around settings or `except OSError` around a store works as everywhere.
"""

import errno
import os
import sys

# What the operating system answers where a mount, a permission, memory or a connection is missing. FFmpeg also gives EIO, EPERM
# and EINVAL for bytes that it cannot parse, so those three are not here.
_SYSTEM = frozenset(
    getattr(errno, name)
    for name in (
        *("EACCES", "EAGAIN", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EDQUOT", "EHOSTDOWN", "EHOSTUNREACH", "EINTR"),
        *("EISDIR", "ELOOP", "EMFILE", "ENAMETOOLONG", "ENETDOWN", "ENETUNREACH", "ENFILE", "ENODEV", "ENOENT", "ENOMEM"),
        *("ENOSPC", "ENOTCONN", "ENOTDIR", "ENXIO", "EROFS", "ESTALE", "ETIMEDOUT"),
    )
)
_CV2_NO_MEMORY = -4


class GamecraftError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(GamecraftError, ValueError):
    """The user gave a wrong path, key or value. The message is one line that names the value and the remedy."""


class Unavailable(GamecraftError, OSError):
    """Something this machine needs is missing: a package, weights, a server, a store. The next run tries the unit again."""


class SourceChanged(Unavailable):
    """The bytes at a uri are no longer those of the version that was asked for."""


class ServerGone(Unavailable):
    """No model answers at an address."""


class BadSource(GamecraftError, ValueError):
    """The bytes of the footage are at fault. The source or clip becomes a ledger row with this reason."""


class UnreadableVideo(BadSource):
    """No frame can be had from a video."""


class NotExact(BadSource):
    """What was measured in chunks may differ from what one pass measures."""


class AttemptFailed(GamecraftError, RuntimeError):
    """A model or the game engine made nothing that can be used. The attempt becomes a row with this reason."""


class LeaseLost(GamecraftError, RuntimeError):
    """The output folder is no longer held by this run, which must write nothing more there."""


def is_machine_fault(error: BaseException) -> bool:
    """Whether the machine or a service failed, and not the bytes of the footage: the same bytes may work elsewhere or later.

    A missing file, a refused key, a full disk, no memory (of the machine or of a GPU), and a package that is not installed.
    """
    av = sys.modules.get("av")  # this file is imported where no decoder may be; an FFmpeg error exists only where av is loaded
    if av and isinstance(error, av.FFmpegError):
        return error.errno in _SYSTEM
    if isinstance(error, OSError | MemoryError | ImportError):
        return True
    return type(error).__name__ == "OutOfMemoryError" or getattr(error, "code", None) == _CV2_NO_MEMORY


def describe(error: BaseException) -> str:
    """Return an error's class and message. Where it has none, use that of its cause, or of its number."""
    words = str(error).strip()
    if not words and isinstance(error, OSError) and error.errno:
        words = os.strerror(error.errno)
    cause = error.__cause__ or error.__context__
    if not words:
        words = f"because of {describe(cause)}" if cause else "without further words"
    return f"{type(error).__name__}: {words}"
