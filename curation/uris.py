"""Names and versions of files: a uri is a path, file:// or s3://, and a version is what must not change while it is read."""

import os
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes, urlsplit

from curation.errors import InputError, SourceChanged


@dataclass(frozen=True, order=True)
class Entry:
    """One listed file: its uri, its size in bytes, and its version: "size-etag" on S3, else "size-mtime in ns"."""

    uri: str
    size: int
    token: str


class Stamped(NamedTuple):
    """A file's bytes, its version, and its age in seconds by the clock of the store that holds it."""

    data: bytes
    version: str
    age_s: float


def is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def join(base: str, *parts: str) -> str:
    return "/".join([base.rstrip("/") if base != "/" else "", *parts])


def normal(uri: str) -> str:
    """Return an s3 uri as it is, and anything else as an absolute path, so that a file has one name.

    InputError for another scheme, such as http://.
    """
    scheme, colon, rest = uri.partition("://")
    if colon and scheme.lower() == "s3":
        return f"s3://{rest}"
    if colon and scheme.lower() == "file":
        uri = os.fsdecode(unquote_to_bytes(urlsplit(uri).path))
    elif colon:
        raise InputError(f"{uri}: only paths, file:// and s3:// can be read; download other sources first")
    return os.path.abspath(os.path.expanduser(uri))


def local_path(uri: str) -> str:
    """Return the path of a local uri. A file:// uri holds bytes that are not UTF-8 as %XX."""
    return normal(uri) if uri.startswith("file://") else uri


def local_uri(path: str) -> str:
    """Return a path as rows can hold it: one that is not UTF-8 becomes a file:// uri."""
    return path if is_text(path) else f"file://{quote(os.fsencode(path))}"


def is_text(path: str) -> bool:
    """Whether a path is UTF-8. File systems allow any bytes; rows and printed lines do not."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    r"""Return a uri, or a message with one, fit to be printed and stored: bytes that are not UTF-8 as \xNN."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def require_version(uri: str, token: str, now: str) -> None:
    """Raise SourceChanged where a file's version `now` is not `token`. An empty token means unknown, and never differs."""
    if token and now != token:
        was, (size, mark) = token.partition("-")[::2], now.partition("-")[::2]
        kind = "ETag" if is_s3(uri) else "mtime"
        raise SourceChanged(
            f"{printable(uri)}: the file changed since it was listed "
            f"(size and {kind} were {was[0]} and {was[1]}, are {size} and {mark})"
        )
