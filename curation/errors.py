"""Whose fault an error is: the footage's, which becomes a row with its reason, or the machine's, which fails the unit."""

import errno

from av import FFmpegError

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


class Unavailable(OSError):
    """What the machine or a service did, not the footage: the unit fails and the next run tries it again."""


def is_machine_fault(error: BaseException) -> bool:
    """Whether the machine or a service failed, and not the bytes of the footage: the same bytes may work elsewhere or later.

    A missing file, a refused key, a full disk, no memory (of the machine or of a GPU), and a package that is not installed.
    """
    if isinstance(error, FFmpegError):
        return error.errno in _SYSTEM
    if isinstance(error, OSError | MemoryError | ImportError):
        return True
    return type(error).__name__ == "OutOfMemoryError" or getattr(error, "code", None) == _CV2_NO_MEMORY
