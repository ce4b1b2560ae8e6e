"""Initial frames: maps of the game engine, pictures of a folder, quiet moments of curated clips, or painted on demand."""

from collections.abc import Sequence
from pathlib import PurePosixPath

import cv2
import numpy as np

from curation import storage, video
from curation.video import Span
from synth.requests import PAINT, Frame

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def frames(inputs: Sequence[str]) -> list[Frame]:
    """The frames that `--frames` names, each once, in order. ValueError for an input that names none."""
    found = {frame.name: frame for item in inputs for frame in _named(item)}
    kinds = {frame.kind for frame in found.values()}
    if len(kinds) > 1:
        raise ValueError(f"frames of one kind at a time, not {', '.join(sorted(kinds))}: run the command once for each")
    return list(found.values())


def _named(item: str) -> list[Frame]:
    if item == PAINT:
        return [Frame(PAINT)]
    if item.partition(":")[0] == "doom":
        return _maps(item)
    listed = storage.list_files(storage.normal(item))
    pictures = [entry for entry in listed if PurePosixPath(entry.uri).suffix.lower() in PICTURES]
    if not pictures:
        raise ValueError(
            f"{item}: no picture there ({', '.join(PICTURES)}); other frames: doom, doom:WAD:MAP, paint, OUT of curate"
        )
    return [Frame(entry.uri, entry.uri, token=storage.content_id(entry)) for entry in pictures]


def _maps(item: str) -> list[Frame]:
    from synth.doom.engine import wads
    from synth.doom.wad import map_names

    known = [f"doom:{wad}:{name}" for wad, path in wads().items() for name in map_names(path)]
    found = [Frame(name) for name in known if name == item or name.startswith(f"{item}:")]
    if not found:
        raise ValueError(f"{item}: no such map; doom, doom:WAD or doom:WAD:MAP, with WAD one of {', '.join(wads())}")
    return found


def pixels(frame: Frame) -> np.ndarray:
    """A picture's or a clip's frame as uint8 [H, W, 3] RGB. ValueError for a file that is no picture."""
    if frame.kind == "clip":
        span = Span(frame.time_s, frame.time_s + 1.0)
        return video.read_frames(frame.uri, span, 1.0).rgb[0]
    found = cv2.imdecode(np.frombuffer(storage.read(frame.uri), np.uint8), cv2.IMREAD_COLOR)
    if found is None:
        raise ValueError(f"{frame.name}: not a picture that can be read")
    return np.ascontiguousarray(found[:, :, ::-1])
