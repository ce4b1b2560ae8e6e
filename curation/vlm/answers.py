"""The cache of replies, OUT/sidecar/answers/<key>.json: one small object for each reply, so that no question is asked twice.

Each reply is a separate object, because a run may be killed after any of them and an object store cannot append. To store a
million of them costs about as much as two hours of one GPU.
"""

import json
from dataclasses import asdict

from curation import storage
from curation.vlm.protocol import Reply

_folder: str | None = None


def use_folder(folder: str | None) -> None:
    """Store this process's replies under `folder`. None switches the cache off."""
    global _folder
    _folder = folder


def get(key: str) -> Reply | None:
    """Return the stored reply with its original cost, or None if there is none or only half of one."""
    if _folder is None:
        return None
    try:
        return Reply(**json.loads(storage.read(_uri(key))))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def put(key: str, reply: Reply) -> None:
    """Store a reply. Do nothing if the cache is off."""
    if _folder is not None:
        storage.put(_uri(key), json.dumps(asdict(reply)).encode())


def _uri(key: str) -> str:
    assert _folder is not None
    return storage.join(_folder, key[:2], f"{key}.json")
