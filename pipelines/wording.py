"""Words that summaries, the report and the command line share."""

from pathlib import PurePosixPath
from urllib.parse import unquote_to_bytes


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def short_name(uri: str) -> str:
    """A uri's file name, by which people know a video; bytes that are no text in hexadecimal."""
    name = PurePosixPath(uri).name
    return unquote_to_bytes(name).decode("utf-8", "backslashreplace") if uri.startswith("file://") else name
