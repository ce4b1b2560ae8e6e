"""Measure a part of a source exactly as a scan of the whole would, so that several workers can share one long video.

A chunk [start, end) is decoded from a little before it to a few frames after it, and keeps only its own entries. Where that may
differ from what one scan gives, `NotExact` is raised, and the source is scanned as a whole instead.
"""

import io
import json
import math
import zipfile
import zlib
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from itertools import pairwise

import numpy as np

from curation.errors import NotExact, UnreadableVideo
from curation.media import decode
from curation.media.decode import FrameConverter
from curation.media.seek import open_part
from curation.media.source import Source, probe
from curation.media.viewport import ViewportAccumulator, ViewportSums, find_viewport
from curation.partition.cuts import SceneSettings
from curation.partition.fingerprint import Fingerprint, fingerprint
from curation.partition.optical_flow import MAX_HEIGHT, WIDTH, Flow, FlowSettings, load_flow
from curation.partition.recorders import (
    FRAMES_AFTER,
    FRAMES_BEFORE,
    SECONDS_BEFORE,
    FingerprintRecorder,
    FlowRecorder,
    Recorder,
    ScanFrame,
    new_recorders,
)
from curation.quality.backends import load_iqa
from curation.quality.iqa import Iqa, IqaSettings
from curation.quality.luminance import luma
from curation.worker_state import worker

# Part of every chunk file's name. It gets a new number when a recorder's arrays change, or where chunks begin, so that no run
# joins old chunks to new.
FORMAT = 6
# A chunk is decoded from so long before it. All footage but stills has the frames there that recorders look back at, and it is
# a hundredth of a chunk's time.
_LEAD_IN_S = 3.0
_VIEWPORT_EVERY_S = 0.5


@dataclass(frozen=True)
class ScanSettings:
    """What a scan computes: which optical flow, which measure of picture quality, and for which detector of cuts."""

    flow: FlowSettings = field(default_factory=FlowSettings)  # optical flow between pairs of frames
    iqa: IqaSettings = field(default_factory=IqaSettings)  # picture quality of sampled frames
    detector: str = "game"  # `SceneSettings.detector`; hash and threshold need a measure of their own
    # The content score from which frames are matched along optical flow: `SceneSettings.min_content`, infinite for detectors
    # that do not read these matches.
    min_cut_content: float = SceneSettings.min_content


@dataclass(frozen=True)
class Chunk:
    """What was measured in [start_s, end_s) of a source."""

    start_s: float
    end_s: float
    flow: str  # the backend
    iqa: str  # the backend
    arrays: dict[str, np.ndarray]  # all recorders' entries of the chunk, by name; frame indices count from its first frame
    viewport_sums: ViewportSums
    # Float64 [K, 2]: time and CRC-32 of the frames on both sides of the chunk's start and end. They are empty at the start and
    # the end of the source.
    before: np.ndarray
    after: np.ndarray
    damage: dict[str, int]  # as `WorkerState.damage` counts it, of a whole source only


class _Seams:
    """The frames around a chunk's start and end. Its neighbours decode them too, and must get the same times and pictures."""

    def __init__(self) -> None:
        self.lead = self.own = self.trailing = 0  # frames before the chunk, in it, and after it
        self._first_s = self._lead_s = 0.0
        self._last: deque[tuple[float, np.ndarray]] = deque(maxlen=FRAMES_BEFORE + FRAMES_AFTER)
        self.before = np.empty((0, 2))

    def add(self, frame: ScanFrame) -> None:
        self._last.append((frame.time_s, frame.rgb))
        if frame.in_chunk:
            self.own += 1
            if self.own == FRAMES_AFTER and self.lead:
                self.before = self.last_frames()
        elif self.own:
            self.trailing += 1
        else:
            self.lead, self._lead_s = self.lead + 1, frame.time_s
            self._first_s = self._first_s if frame.number else frame.time_s

    def has_enough_lead(self, start_s: float) -> bool:
        """Return whether enough frames came before the chunk.

        These are the frames of a match, and of a sample's period unless the source begins there.
        """
        enough = self.lead >= FRAMES_BEFORE and self.own >= FRAMES_AFTER
        return enough and (start_s <= _LEAD_IN_S or self._lead_s - self._first_s >= SECONDS_BEFORE)

    def last_frames(self) -> np.ndarray:
        """Return time and CRC-32 of the last frames."""
        return np.array([(time_s, zlib.crc32(rgb.data)) for time_s, rgb in self._last], np.float64)


def analysis_size(source: Source) -> tuple[int, int]:
    """Return 320 px and the height of the same aspect, within bounds: a strip of 1 x 5000 px must not become huge."""
    return WIDTH, int(np.clip(round(source.height * WIDTH / source.width / 2) * 2, 16, MAX_HEIGHT))


@lru_cache(maxsize=1)
def cached_flow(settings: FlowSettings) -> Flow:
    """Return the flow backend, loaded once a process."""
    return load_flow(settings)


@lru_cache(maxsize=1)
def cached_iqa(settings: IqaSettings) -> Iqa:
    """Return the picture quality backend, loaded once a process."""
    return load_iqa(settings)


def scan_chunk(uri: str, settings: ScanSettings, start_s: float, end_s: float) -> Chunk:
    """Measure a part of a source. The worker keeps the last result. `NotExact` where a scan of the whole might differ."""
    lead_s = max(0.0, start_s - _LEAD_IN_S)
    with open_part(uri, lead_s, end_s, end_s - _LEAD_IN_S) as frames:
        if frames is None:
            raise NotExact("can only be decoded from its start")
        source = probe(uri)
        chunk = _measure(source, settings, start_s, end_s, decode.decode_part(source, frames, lead_s, "scan chunk"))
    worker.chunk = (uri, settings, start_s, end_s), chunk
    return chunk


def finished_chunk(uri: str, settings: ScanSettings, start_s: float, end_s: float) -> Chunk:
    """Return the chunk that this process has measured last, for its commit. RuntimeError where it is gone."""
    chunk: Chunk = worker.finished(worker.chunk, (uri, settings, start_s, end_s))
    return chunk


def measure(uri: str, settings: ScanSettings) -> Chunk:
    """Scan a source. Raises `UnreadableVideo` where no frame can be decoded."""
    return _measure(probe(uri), settings, 0.0, math.inf, decode.decode(uri, purpose="scan"))


def _measure(
    source: Source, settings: ScanSettings, start_s: float, end_s: float, decoded: Iterator[decode.TimedFrame]
) -> Chunk:
    """Measure a source or a part of it from its frames, and those around the part."""
    flow, iqa = cached_flow(settings.flow), cached_iqa(settings.iqa)
    recorders = new_recorders(
        flow, settings.flow.pairs_per_s, iqa, settings.iqa.every_s, settings.detector, settings.min_cut_content
    )
    viewport, seams = ViewportAccumulator(), _Seams()
    damage = worker.damage.copy()
    for frame in _frames_around(source, start_s, end_s, decoded):
        if frame.number == 0 and start_s > _LEAD_IN_S:
            # Frames between where a seek lands and here may lack their references. The chunk before decoded them with these.
            damage = worker.damage.copy()
        for recorder in recorders:
            recorder.add(frame)
        if frame.first_in(_VIEWPORT_EVERY_S):
            viewport.add(frame.gray, counts=frame.in_chunk)
        seams.add(frame)
    chunk = Chunk(
        start_s=start_s,
        end_s=end_s,
        flow=flow.name,
        iqa=iqa.name,
        arrays={
            name: values for recorder in recorders for name, values in _own_entries(recorder, seams.lead, seams.own).items()
        },
        viewport_sums=viewport.sums,
        before=seams.before,
        after=seams.last_frames() if seams.trailing else np.empty((0, 2)),
        damage=dict(worker.damage - damage),
    )
    _check(chunk, seams)
    return chunk


def measure_flow(uri: str, settings: FlowSettings) -> dict[str, np.ndarray]:
    """Measure only a source's flow. Return the times of all its frames, and the arrays of `recorders.FlowRecorder`."""
    recorder, times_s = FlowRecorder(cached_flow(settings), settings.pairs_per_s), []
    for frame in _all_frames(uri):
        recorder.add(frame)
        times_s.append(frame.time_s)
    return {"times_s": np.array(times_s), **recorder.arrays()}


def measure_fingerprint(uri: str) -> Fingerprint:
    """Measure only a source's fingerprint, as a scan does."""
    recorder, viewport, times_s = FingerprintRecorder(), ViewportAccumulator(), list[float]()
    for frame in _all_frames(uri):
        recorder.add(frame)
        times_s.append(frame.time_s)
        if frame.first_in(_VIEWPORT_EVERY_S):
            viewport.add(frame.gray)
    small = recorder.arrays()
    picture = find_viewport(viewport.sums).picture
    return fingerprint(np.array(times_s)[small["small_frame"]], small["small_lumas"], picture, analysis_size(probe(uri)))


def _all_frames(uri: str) -> Iterator[ScanFrame]:
    return _frames_around(probe(uri), 0.0, math.inf, decode.decode(uri, purpose="scan"))


def _frames_around(source: Source, start_s: float, end_s: float, decoded: Iterator[decode.TimedFrame]) -> Iterator[ScanFrame]:
    """Yield the frames of a part, with those before and after it that its entries depend on."""
    converter = FrameConverter(source, analysis_size(source))
    before_s, trailing = None, 0
    for index, (time_s, frame) in enumerate(decoded):
        trailing += time_s >= end_s
        if trailing > FRAMES_AFTER:
            return
        rgb = converter(frame)
        yield ScanFrame(index, time_s, before_s, rgb, luma(rgb), frame, start_s <= time_s < end_s)
        before_s = time_s


def _own_entries(recorder: Recorder, lead: int, count: int) -> dict[str, np.ndarray]:
    """Return a recorder's entries of the `count` frames after the first `lead`: views, except for indices of frames."""
    first, last = bisect_left(recorder.frames, lead), bisect_left(recorder.frames, lead + count)
    arrays = {name: values[first:last] for name, values in recorder.arrays().items()}
    return {name: values - lead if name.endswith("_frame") else values for name, values in arrays.items()}


def _check(chunk: Chunk, seams: _Seams) -> None:
    """Refuse a chunk that lacks frames on which its entries depend, or whose source is damaged."""
    whole = chunk.start_s == 0 and math.isinf(chunk.end_s)
    if not seams.own and whole:
        raise UnreadableVideo("no frame could be decoded")
    if not whole and chunk.damage:
        raise NotExact("is damaged: " + ", ".join(sorted(chunk.damage)))
    if chunk.start_s > 0 and not seams.has_enough_lead(chunk.start_s):
        raise NotExact(f"has too few frames within {_LEAD_IN_S:g} s before a chunk")
    if not math.isinf(chunk.end_s) and (seams.own < FRAMES_BEFORE or seams.trailing < FRAMES_AFTER):
        raise NotExact("has too few frames at the end of a chunk")


def check_seams(chunks: Sequence[Chunk]) -> None:
    """Raise `NotExact` unless the chunks are all of a source, in order, and neighbours decoded the same frames."""
    if chunks[0].start_s != 0 or not math.isinf(chunks[-1].end_s):
        raise NotExact("lacks a chunk")
    for one, other in pairwise(chunks):
        if one.end_s != other.start_s or not np.array_equal(one.after, other.before):
            raise NotExact("decodes differently in two neighbouring chunks")
        if (one.flow, one.iqa) != (other.flow, other.iqa) or one.arrays.keys() != other.arrays.keys():
            raise NotExact("was measured with different settings")


def concatenate(chunks: Sequence[Chunk]) -> dict[str, np.ndarray]:
    """Concatenate the arrays of consecutive chunks. Those of a single chunk are not copied."""
    if len(chunks) == 1:
        return chunks[0].arrays
    firsts = np.cumsum([0, *(len(chunk.arrays["times_s"]) for chunk in chunks)])
    return {name: _concatenate(name, [chunk.arrays[name] for chunk in chunks], firsts) for name in chunks[0].arrays}


def _concatenate(name: str, parts: list[np.ndarray], firsts: np.ndarray) -> np.ndarray:
    if name.endswith("_frame"):
        parts = [part + first for part, first in zip(parts, firsts, strict=False)]
    # A part without entries does not have the right shape.
    return np.concatenate([part for part in parts if len(part)] or parts[:1])


def to_bytes(chunk: Chunk) -> bytes:
    """Write a chunk as a compressed npz."""
    about = {"start_s": chunk.start_s, "end_s": chunk.end_s, "flow": chunk.flow, "iqa": chunk.iqa}
    sums = {f"viewport.{name}": np.asarray(value) for name, value in vars(chunk.viewport_sums).items()}
    # NumPy pads byte strings of different lengths with zeros. A JPEG does not end in one.
    arrays = {name: values.astype("S") if values.dtype == object else values for name, values in chunk.arrays.items()}
    file = io.BytesIO()
    np.savez_compressed(file, about=json.dumps(about), before=chunk.before, after=chunk.after, **sums, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def from_bytes(data: bytes) -> Chunk:
    """Read the chunk that `to_bytes` wrote. `NotExact` for anything else."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays.pop("about")))
        *sums, frames, steps = (arrays.pop(f"viewport.{part.name}") for part in fields(ViewportSums))
        viewport_sums = ViewportSums(sums[0], sums[1], sums[2], int(frames), int(steps))
        before, after = arrays.pop("before"), arrays.pop("after")
    except (EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise NotExact(f"has a chunk file that cannot be read ({error})") from error
    arrays = {name: values.astype(object) if values.dtype.kind == "S" else values for name, values in arrays.items()}
    return Chunk(arrays=arrays, viewport_sums=viewport_sums, before=before, after=after, damage={}, **about)
