"""Pin source versions: a unit reads the version of a source that was measured, or fails with `SourceChanged`.

A worker pins the versions of a unit's sources before it runs, and every opening of a source asks here. On S3 each range request
carries the version (If-Match). A local file is checked when it is opened, and once more before the unit is committed.
"""

from collections.abc import Mapping

from curation import storage

_pinned: dict[str, str] = {}
_opened: set[str] = set()


def pin(versions: Mapping[str, str | None]) -> bool:
    """Expect these versions (`storage.Entry.token`) from now on; an empty one is not checked.

    Returns whether they differ from those before: then whatever is cached of sources must go.
    """
    wanted = {uri: token for uri, token in versions.items() if token}
    if wanted == _pinned:
        return False
    _pinned.clear()
    _pinned.update(wanted)
    _opened.clear()
    return True


def opening(uri: str) -> str:
    """Note that a source is opened, and return the version that it must have ("": any).

    Raises `storage.SourceChanged` for a local file that has another one, and what the file system answers for a missing one.
    """
    token = _pinned.get(uri, "")
    if not storage.is_s3(uri):
        storage.check_version(uri, token)
    _opened.add(uri)
    return token


def check_opened() -> None:
    """Raise `storage.SourceChanged` if a local file that was opened since `pin` is not the same any more."""
    for uri in sorted(_opened):
        if not storage.is_s3(uri):
            storage.check_version(uri, _pinned.get(uri, ""))
