"""The replies that were given: OUT/sidecar/answers/<key>.json, one small object each, so that nothing is asked twice.

One object a reply, because a run may be killed after any of them and an object store cannot append. To put a million of them
costs about as much as two hours of one GPU.
"""

import json
from dataclasses import asdict

from curation import storage
from curation.vlm.protocol import Reply

_folder: str | None = None


def use(folder: str | None) -> None:
    """Keep this process's replies under `folder`; None: nowhere."""
    global _folder
    _folder = folder


def get(key: str) -> Reply | None:
    """The stored reply with what it once cost; None where there is none, or half of one."""
    if _folder is None:
        return None
    try:
        return Reply(**json.loads(storage.read(_uri(key))))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def put(key: str, reply: Reply) -> None:
    if _folder is not None:
        storage.put(_uri(key), json.dumps(asdict(reply)).encode())


def _uri(key: str) -> str:
    assert _folder is not None
    return storage.join(_folder, key[:2], f"{key}.json")
