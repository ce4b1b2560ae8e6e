"""Pin source versions: a unit reads the version of a source that was measured, or fails with `SourceChanged`.

A worker pins the versions of a unit's sources before the unit runs, and every open of a source checks them here. On S3 each
range request carries the version (If-Match). A local file is checked when it is opened, and again before the unit is committed.
"""

from collections.abc import Mapping

from curation import storage

_pinned: dict[str, str] = {}
_opened: set[str] = set()


def pin(versions: Mapping[str, str | None]) -> bool:
    """Expect these versions (`storage.Entry.token`) from now on. An empty one is not checked.

    Return whether they differ from those pinned before. If so, drop every cache of sources.
    """
    expected = {uri: token for uri, token in versions.items() if token}
    if expected == _pinned:
        return False
    _pinned.clear()
    _pinned.update(expected)
    _opened.clear()
    return True


def register_open(uri: str) -> str:
    """Note that a source is opened, and return the version that it must have ("": any).

    SourceChanged for a local file with another version. For a missing file, the error of the file system.
    """
    token = _pinned.get(uri, "")
    if not storage.is_s3(uri):
        storage.check_version(uri, token)
    _opened.add(uri)
    return token


def check_opened() -> None:
    """Raise SourceChanged if a local file that was opened since `pin` has changed."""
    for uri in sorted(_opened):
        if not storage.is_s3(uri):
            storage.check_version(uri, _pinned.get(uri, ""))
