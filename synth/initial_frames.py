"""Initial frames: maps of the game engine, pictures of a folder, quiet moments of curated clips, or painted on demand."""

from collections.abc import Sequence
from pathlib import PurePosixPath

import cv2
import numpy as np

from curation import source_files, storage
from curation.media import decode
from curation.media.decode import Span
from curation.schema import Row
from synth.media import from_bytes
from synth.requests import PAINT, Frame

# How long before an interaction its clip is quiet still.
_BEFORE_S = 0.4
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
    return [Frame(entry.uri, entry.uri, token=source_files.content_id(entry)) for entry in pictures]


def _maps(item: str) -> list[Frame]:
    from synth.doom.engine import wads
    from synth.doom.wad import map_names

    known = [f"doom:{wad}:{name}" for wad, path in wads().items() for name in map_names(path)]
    found = [Frame(name) for name in known if name == item or name.startswith(f"{item}:")]
    if not found:
        raise ValueError(f"{item}: no such map; doom, doom:WAD or doom:WAD:MAP, with WAD one of {', '.join(wads())}")
    return found


def quiet(clips: Sequence[Row]) -> list[Frame]:
    """A moment of each curated clip at which nothing happens yet: just before its first interaction, else its beginning."""
    return [_quiet(row) for row in clips]


def _quiet(row: Row) -> Frame:
    starts = [span["start_s"] for span in row["action_spans"] or [] if span["kind"] == "interaction"]
    time_s = max(row["start_s"], min(starts) - _BEFORE_S) if starts else row["start_s"]
    name = f"clip:{row['clip_id']}@{time_s - row['start_s']:.2f}"
    picture = row["picture"]
    return Frame(name, row["source_uri"], time_s, name, (picture["x"], picture["y"], picture["w"], picture["h"]))


def fitted(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    """A picture cut at its sides to a shape, about its middle, and scaled to it."""
    have_h, have_w = rgb.shape[:2]
    scale = max(width / have_w, height / have_h)
    cut_w, cut_h = min(have_w, round(width / scale)), min(have_h, round(height / scale))
    x, y = (have_w - cut_w) // 2, (have_h - cut_h) // 2
    cut = np.ascontiguousarray(rgb[y : y + cut_h, x : x + cut_w])
    return cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def pixels(frame: Frame) -> np.ndarray:
    """A picture's or a clip's frame as uint8 [H, W, 3] RGB. ValueError for a file that is no picture."""
    if frame.kind == "clip":
        return _of_clip(frame)
    found = from_bytes(storage.read(frame.uri))
    if found is None:
        raise ValueError(f"{frame.name}: not a picture that can be read")
    return found


def _of_clip(frame: Frame) -> np.ndarray:
    """The frame shown at a moment of a source, without its bars."""
    for _, shown in decode.at_rate(frame.uri, Span(frame.time_s, frame.time_s + 1.0), 1.0, "synth"):
        picture, (x, y, w, h) = decode.Painter(decode.probe(frame.uri))(shown), frame.crop
        return np.ascontiguousarray(picture[y : y + h, x : x + w])
    raise ValueError(f"{frame.name}: no frame at {frame.time_s:.2f} s of its source")
