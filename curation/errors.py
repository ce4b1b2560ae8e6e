"""Every error that this package raises on purpose, by whose fault it is.

    GamecraftError
    |-- InputError           the user: a wrong path, key or value. The command line prints one line and exits with 2.
    |-- Unavailable          the machine: a package, weights, a server or a store is missing. The next run tries the unit again.
    |   |-- SourceChanged    the file is no longer the version that was listed
    |   `-- ServerGone       no model answers
    |-- BadSource            the footage: its bytes are at fault. The source or clip becomes a ledger row with the reason.
    |   |-- UnreadableVideo  no frame can be decoded
    |   `-- NotExact         measurements of chunks may differ from those of one pass
    |-- AttemptFailed        a model or the game engine made nothing usable. The attempt becomes a row with the reason.
    `-- LeaseLost            another run took over the output folder. This run stops.

Any other error that reaches the command line is a bug in this package, and shows its traceback. The classes also derive from
the built-in error that fits, so that `except ValueError` around settings and `except OSError` around a store work as usual.
"""

import errno
import os
import sys

# Errors of the operating system when a mount, a permission, memory or a connection is missing. FFmpeg also gives EIO, EPERM and
# EINVAL for bytes that it cannot parse, so those three are not here.
_SYSTEM_ERRORS = frozenset(
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
    """The bytes at a uri are no longer those of the requested version."""


class ServerGone(Unavailable):
    """No model answers at an address."""


class BadSource(GamecraftError, ValueError):
    """The bytes of the footage are at fault. The source or clip becomes a ledger row with this reason."""


class UnreadableVideo(BadSource):
    """No frame of a video can be decoded."""


class NotExact(BadSource):
    """Measurements in chunks may differ from those of one pass."""


class AttemptFailed(GamecraftError, RuntimeError):
    """A model or the game engine made nothing usable. The attempt becomes a row with this reason."""


class LeaseLost(GamecraftError, RuntimeError):
    """Another run has taken over the output folder, and this one must write nothing more there."""


def is_machine_fault(error: BaseException) -> bool:
    """Whether the machine or a service is at fault, and not the footage: the same bytes may work elsewhere or later.

    True for a missing file, a refused key, a full disk, a lack of memory (of the machine or a GPU), and a missing package.
    """
    av = sys.modules.get(
        "av"
    )  # not imported: this file must not load a decoder, and an FFmpeg error exists only once av is loaded
    if av and isinstance(error, av.FFmpegError):
        return error.errno in _SYSTEM_ERRORS
    if isinstance(error, OSError | MemoryError | ImportError):
        return True
    return type(error).__name__ == "OutOfMemoryError" or getattr(error, "code", None) == _CV2_NO_MEMORY


def describe(error: BaseException) -> str:
    """Return an error's class and message. If it has no message, use the text of its number, or its cause."""
    message = str(error).strip()
    if not message and isinstance(error, OSError) and error.errno:
        message = os.strerror(error.errno)
    cause = error.__cause__ or error.__context__
    if not message:
        message = f"because of {describe(cause)}" if cause else "without a message"
    return f"{type(error).__name__}: {message}"
