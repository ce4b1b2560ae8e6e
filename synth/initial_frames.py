"""Initial frames: places of game engines, pictures of a folder, quiet moments of curated clips, or painted by a model."""

from collections.abc import Sequence
from pathlib import PurePosixPath

import cv2
import numpy as np

from curation import source_files, storage
from curation.errors import BadSource, InputError
from curation.media import decode
from curation.media.decode import Span
from curation.media.source import probe
from curation.schema import Row
from synth import procedural
from synth.media import decode_picture
from synth.requests import ENGINES, PAINT, InitialFrame

# The frame is taken this long before the first interaction of a clip.
_BEFORE_S = 0.4
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def find_frames(inputs: Sequence[str]) -> list[InitialFrame]:
    """Return the frames that the values of `--frames` name, each once, in order.

    Raises InputError for a value that names no frame, and for frames of several kinds.
    """
    frames = {frame.name: frame for item in inputs for frame in _frames_of(item)}
    kinds = {frame.kind for frame in frames.values()}
    if len(kinds) > 1:
        raise InputError(f"frames of one kind at a time, not {', '.join(sorted(kinds))}: run the command once for each")
    return list(frames.values())


def _frames_of(item: str) -> list[InitialFrame]:
    if item == PAINT:
        return [InitialFrame(PAINT)]
    if item.partition(":")[0] in ENGINES:
        return [InitialFrame(name) for name in procedural.places(item)]
    files = storage.list_files(storage.normal(item))
    pictures = [file for file in files if PurePosixPath(file.uri).suffix.lower() in PICTURES]
    if not pictures:
        raise InputError(
            f"{item}: no picture found ({', '.join(PICTURES)}); --frames also takes doom, doom:WAD:MAP, minetest,"
            " minetest:MAPGEN:SEED, paint, or the output folder of a curate run"
        )
    return [InitialFrame(file.uri, file.uri, token=source_files.content_id(file)) for file in pictures]


def quiet_frames(clips: Sequence[Row]) -> list[InitialFrame]:
    """Return one moment of each curated clip at which nothing happens yet: just before its first interaction, or its start."""
    return [_quiet_frame(row) for row in clips]


def _quiet_frame(row: Row) -> InitialFrame:
    starts = [span["start_s"] for span in row["action_spans"] or [] if span["kind"] == "interaction"]
    time_s = max(row["start_s"], min(starts) - _BEFORE_S) if starts else row["start_s"]
    name = f"clip:{row['clip_id']}@{time_s - row['start_s']:.2f}"
    picture = row["picture"]
    return InitialFrame(name, row["source_uri"], time_s, name, (picture["x"], picture["y"], picture["w"], picture["h"]))


def crop_and_resize(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    """Crop a picture around its centre to the aspect ratio of this size, and resize it."""
    have_h, have_w = rgb.shape[:2]
    scale = max(width / have_w, height / have_h)
    cut_w, cut_h = min(have_w, round(width / scale)), min(have_h, round(height / scale))
    x, y = (have_w - cut_w) // 2, (have_h - cut_h) // 2
    cut = np.ascontiguousarray(rgb[y : y + cut_h, x : x + cut_w])
    return cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def read_pixels(frame: InitialFrame) -> np.ndarray:
    """Read a picture, or a clip's frame, as uint8 [H, W, 3] RGB. Raises BadSource if it cannot be decoded."""
    if frame.kind == "clip":
        return _read_clip_frame(frame)
    picture = decode_picture(storage.read(frame.uri))
    if picture is None:
        raise BadSource(f"{frame.name}: not a picture that can be read")
    return picture


def _read_clip_frame(frame: InitialFrame) -> np.ndarray:
    """Read the frame that is shown at a moment of a source, and crop its black bars."""
    for _, shown in decode.frames_at_rate(frame.uri, Span(frame.time_s, frame.time_s + 1.0), 1.0, "synth"):
        picture, (x, y, w, h) = decode.FrameConverter(probe(frame.uri))(shown), frame.crop
        return np.ascontiguousarray(picture[y : y + h, x : x + w])
    raise BadSource(f"{frame.name}: no frame at {frame.time_s:.2f} s of its source")
