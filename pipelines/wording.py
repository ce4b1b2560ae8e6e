"""Wording that summaries, the report and the command line share."""

from pathlib import PurePosixPath
from urllib.parse import unquote_to_bytes


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: 1 clip, 2,000 clips."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def short_name(uri: str) -> str:
    """Return the file name of a uri. Bytes that are not UTF-8 are shown in hexadecimal."""
    name = PurePosixPath(uri).name
    return unquote_to_bytes(name).decode("utf-8", "backslashreplace") if uri.startswith("file://") else name
