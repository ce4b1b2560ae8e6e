"""Read shards by WebDataset: s3:// uris, split over nodes and workers, with videos and cameras decoded.

Use it by `curation.shards.open`. Importing this module lets WebDataset open s3:// uris by `curation.storage`, unless another
handler for them is registered. Worker processes import it too, since the pipeline contains functions of it.
"""

import importlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, BinaryIO, cast

import av
import numpy as np
import webdataset
from webdataset.cache import FileCache, StreamingOpen
from webdataset.filters import detshuffle

from curation import storage
from curation.cameras.camera import from_npz
from curation.errors import InputError

# A frame belongs to a tick up to this much before it, since times of stored frames are rounded to 1 / 90000 s.
_TOLERANCE_S = 5e-4
# WebDataset reads a path as a url, and so loses what stands behind one of these. Such paths get a scheme of ours.
_LOST_IN_URLS = frozenset("#?;")
_PATH_SCHEME = "gamecraft-path"


def _open_s3(url: str, mode: str = "rb", bufsize: int = 8192, **_options: Any) -> BinaryIO:  # noqa: ARG001 - their signature
    """Open an s3:// uri for WebDataset. Reads fetch ranges of one version, as all of our reads."""
    if mode != "rb":
        raise ValueError(f"{url}: shards on S3 can be read here, not written; `gamecraft curate` writes them")
    return storage.open_binary(url)


def _open_path(url: str, mode: str = "rb", bufsize: int = 8192, **_options: Any) -> BinaryIO:  # noqa: ARG001 - as above
    return cast(BinaryIO, open(url.removeprefix(f"{_PATH_SCHEME}:"), mode))


# The attribute `webdataset.gopen` is a function of the same name as its module.
_schemes = importlib.import_module("webdataset.gopen").gopen_schemes
_schemes.setdefault("s3", _open_s3)
_schemes[_PATH_SCHEME] = _open_path


def open_tars(
    tars: Sequence[str], decode: bool, fps: float | None, shuffle: int, options: dict[str, Any]
) -> webdataset.WebDataset:
    """Return a WebDataset of these tars (paths or s3:// uris). See `curation.shards.open`."""
    if fps is not None and not (decode and fps > 0):
        raise InputError(f"fps must be over 0, and needs decode=True, not {fps!r} with decode={decode}")
    if shuffle < 0:
        raise InputError(f"shuffle must not be negative, not {shuffle}")
    seed = options.get("seed")
    defaults = {
        "detshuffle": seed is not None,
        "shardshuffle": len(tars) if shuffle and not options.get("resampled") else False,
        "nodesplitter": _split_by_node,
        "workersplitter": webdataset.split_by_worker,
        "handler": webdataset.reraise_exception,
    }
    options = defaults | options
    dataset = webdataset.WebDataset(list(tars), **options)
    opener = next(at for at, stage in enumerate(dataset.pipeline) if isinstance(stage, (StreamingOpen, FileCache)))
    dataset.pipeline.insert(opener + 1, _closed_after_reading)
    if shuffle:
        # Before decoding: a decoded clip takes a hundred times the memory.
        dataset = dataset.shuffle(shuffle) if seed is None else dataset.compose(detshuffle(shuffle, seed=seed))
    if decode:
        dataset = dataset.map(partial(decode_sample, fps=fps), handler=options["handler"])
    return dataset


def _closed_after_reading(opened: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Close each tar once its clips are read, or the reading ends early; WebDataset leaves that to the garbage collector."""
    for tar in opened:
        with tar["stream"]:
            yield tar


def _split_by_node(tars: Iterable[Any], group: Any = None) -> Iterator[Any]:
    """Split tars over nodes as WebDataset does. As a function of this module it makes worker processes import it."""
    yield from webdataset.split_by_node(tars, group=group)


def decode_sample(sample: dict[str, Any], fps: float | None = None) -> dict[str, Any]:
    """Decode the members of a sample of WebDataset, or of `wids`, whose extensions begin with a dot.

    json: the clip's columns, a dict. mp4: uint8 [F, H, W, 3]. camera.npz, where the clip has one: a
    `curation.cameras.camera.Camera`. A new member, times_s: float64 [F], seconds from the clip's start to each frame.

    fps: frames per second of mp4 that are kept, each the first after its tick; None: all. ValueError names the clip and the
    member that cannot be decoded.
    """
    decoded = dict(sample)
    for name, value in sample.items():
        extension = name.removeprefix(".")
        data = value.read() if hasattr(value, "read") else value
        if name.startswith("__") or not isinstance(data, bytes):
            continue
        try:
            if extension == "json":
                decoded[name] = json.loads(data)
            elif extension == "camera.npz":
                decoded[name] = from_npz(data)
            elif extension == "mp4":
                decoded[name], decoded[name.replace("mp4", "times_s")] = decode_video(data, fps)
            else:
                decoded[name] = data
        except ValueError as error:
            raise ValueError(f"clip {sample.get('__key__')}: {extension}: {error}") from error
    return decoded


def decode_video(mp4: bytes, fps: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the frames of a stored clip, uint8 [F, H, W, 3], and when each comes on screen, float64 [F] in seconds.

    fps: frames per second that are kept, each the first after its tick; None: all. ValueError where no frame can be decoded.
    """
    frames: list[np.ndarray] = []
    times_s: list[float] = []
    tick = 0
    try:
        with cast(av.container.InputContainer, av.open(io.BytesIO(mp4))) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # a data loader has workers; more threads in each would only wait
            for frame in container.decode(stream):
                time_s = frame.time or 0.0
                if fps is None or (time_s + _TOLERANCE_S) * fps >= tick:
                    tick = math.floor((time_s + _TOLERANCE_S) * fps) + 1 if fps else 0
                    frames.append(frame.to_ndarray(format="rgb24"))
                    times_s.append(time_s)
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"cannot be decoded: {getattr(error, 'strerror', None) or error}") from error
    if not frames:
        raise ValueError("holds no frame")
    return np.stack(frames), np.array(times_s)


def webdataset_url(uri: str) -> str:
    """Return a tar's uri as WebDataset can open it. InputError for a local file that is absent."""
    tar = storage.normal(uri)
    if storage.is_s3(tar):
        return tar
    if not os.path.isfile(tar):
        raise InputError(f"{uri}: there is no such shard")
    return f"{_PATH_SCHEME}:{tar}" if _LOST_IN_URLS & set(tar) or tar.startswith("//") else tar
