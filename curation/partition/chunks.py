"""A part of a source, measured as the one pass would: what lets one long video keep several workers busy.

A chunk [start, end) is decoded from a little before it to a few frames after it, and keeps what belongs to it. Where that may
not give exactly what one pass gives, it says so (`NotExact`), and the source is measured in one pass instead.
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
from curation.media import container, decode
from curation.media.decode import FrameConverter, Span
from curation.media.seek import can_seek_near
from curation.media.source import Source, probe
from curation.media.viewport import ViewportAccumulator, ViewportSums
from curation.partition.optical_flow import WIDTH, Flow, FlowSettings, load_flow
from curation.partition.recorders import FRAMES_AFTER, FRAMES_BEFORE, SECONDS_BEFORE, Log, Look, logs
from curation.quality.backends import load_iqa
from curation.quality.iqa import Iqa, IqaSettings
from curation.quality.luminance import luma

# Part of every chunk file's name: a new number where what a log notes changes, so that no run joins old notes to new ones.
FORMAT = 3
# Enough for what the logs look back at in all footage but stills; a hundredth of a chunk's time.
_RUN_UP_S = 3.0
_VIEWPORT_EVERY_S = 0.5
_MAX_HEIGHT = 720


@dataclass(frozen=True)
class ScanSettings:
    """What a pass does that costs: which flow, and which look at the picture's quality."""

    flow: FlowSettings = field(default_factory=FlowSettings)
    iqa: IqaSettings = field(default_factory=IqaSettings)


@dataclass(frozen=True)
class Chunk:
    """What was measured in [start_s, end_s) of a source.

    arrays: the entries of all logs that belong to it, by name, indices counted from its first frame; flow, iqa: the backends;
    before, after float64 [K, 2]: time and CRC-32 of the frames on both sides of its start and end, empty at those of the
    source; damage: as `video.damage` counts it, of a whole source only.
    """

    start_s: float
    end_s: float
    flow: str
    iqa: str
    arrays: dict[str, np.ndarray]
    evidence: ViewportSums
    before: np.ndarray
    after: np.ndarray
    damage: dict[str, int]


class _Seams:
    """The frames around a chunk's start and end, which its neighbours see too: they must be the same in time and picture."""

    def __init__(self) -> None:
        self.lead = self.own = self.behind = 0
        self._first_s = self._lead_s = 0.0
        self._last: deque[tuple[float, np.ndarray]] = deque(maxlen=FRAMES_BEFORE + FRAMES_AFTER)
        self.before = np.empty((0, 2))

    def add(self, look: Look) -> None:
        self._last.append((look.time_s, look.rgb))
        if look.own:
            self.own += 1
            if self.own == FRAMES_AFTER and self.lead:
                self.before = self.after()
        elif self.own:
            self.behind += 1
        else:
            self.lead, self._lead_s = self.lead + 1, look.time_s
            self._first_s = self._first_s if look.number else look.time_s

    def looked_back(self, start_s: float) -> bool:
        """Whether enough was seen before the chunk: a match's frames, and a sample's period unless the source begins there."""
        enough = self.lead >= FRAMES_BEFORE and self.own >= FRAMES_AFTER
        return enough and (start_s <= _RUN_UP_S or self._lead_s - self._first_s >= SECONDS_BEFORE)

    def after(self) -> np.ndarray:
        return np.array([(time_s, zlib.crc32(rgb.data)) for time_s, rgb in self._last], np.float64)


def analysis_size(source: Source) -> tuple[int, int]:
    """320 wide, as high as the aspect asks, within reason: a strip of 1 x 5000 must not become a wall."""
    return WIDTH, int(np.clip(round(source.height * WIDTH / source.width / 2) * 2, 16, _MAX_HEIGHT))


@lru_cache(maxsize=1)
def loaded_flow(settings: FlowSettings) -> Flow:
    """The flow that a process uses, loaded once."""
    return load_flow(settings)


@lru_cache(maxsize=1)
def loaded_iqa(settings: IqaSettings) -> Iqa:
    """The backend that looks at pictures, loaded once."""
    return load_iqa(settings)


@lru_cache(maxsize=1)
def scan_chunk(uri: str, how: ScanSettings, start_s: float, end_s: float) -> Chunk:
    """Measure a part of a source; the last result is kept. `NotExact` where one pass might find something else."""
    for bound_s in (start_s, end_s):
        if not (math.isinf(bound_s) or can_seek_near(uri, max(0.0, bound_s - _RUN_UP_S))):
            raise NotExact("cannot be entered but at its start")
    return measure(uri, how, start_s, end_s)


def measure(uri: str, how: ScanSettings, start_s: float = 0.0, end_s: float = math.inf) -> Chunk:
    """One pass over a source or a part of it. Raises `video.UnreadableVideo` where no frame can be had, `NotExact` as above."""
    flow, iqa = loaded_flow(how.flow), loaded_iqa(how.iqa)
    notes, watch, seams = logs(flow, how.flow.pairs_per_s, iqa, how.iqa.every_s), ViewportAccumulator(), _Seams()
    damage = container.damage.copy()
    for look in _looks(uri, start_s, end_s):
        if look.number == 0 and start_s > _RUN_UP_S:
            # What comes out between where a seek lands and here may lack its references; the chunk before saw it with them.
            damage = container.damage.copy()
        for log in notes:
            log.add(look)
        if look.first_in(_VIEWPORT_EVERY_S):
            watch.add(look.gray, counts=look.own)
        seams.add(look)
    chunk = Chunk(
        start_s=start_s,
        end_s=end_s,
        flow=flow.name,
        iqa=iqa.name,
        arrays={name: values for log in notes for name, values in _own(log, seams.lead, seams.own).items()},
        evidence=watch.sums,
        before=seams.before,
        after=seams.after() if seams.behind else np.empty((0, 2)),
        damage=dict(container.damage - damage),
    )
    _check(chunk, seams)
    return chunk


def _looks(uri: str, start_s: float, end_s: float) -> Iterator[Look]:
    """The frames of a part, those that its entries look back at, and those that they look ahead at."""
    painter = FrameConverter(probe(uri), analysis_size(probe(uri)))
    before_s, behind = None, 0
    for index, (time_s, frame) in enumerate(_shown(uri, start_s, end_s)):
        behind += time_s >= end_s
        if behind > FRAMES_AFTER:
            return
        rgb = painter(frame)
        yield Look(index, time_s, before_s, rgb, luma(rgb), frame, start_s <= time_s < end_s)
        before_s = time_s


def _shown(uri: str, start_s: float, end_s: float) -> Iterator[decode.TimedFrame]:
    if start_s == 0 and math.isinf(end_s):
        return decode.decode(uri, purpose="scan")
    return decode.decode(uri, Span(max(0.0, start_s - _RUN_UP_S), math.inf), purpose="scan chunk")


def _own(log: Log, lead: int, count: int) -> dict[str, np.ndarray]:
    """The entries of a log that belong to `count` frames behind the first `lead`; views, save of indices."""
    first, last = bisect_left(log.frames, lead), bisect_left(log.frames, lead + count)
    arrays = {name: values[first:last] for name, values in log.arrays().items()}
    return {name: values - lead if name.endswith("_frame") else values for name, values in arrays.items()}


def _check(chunk: Chunk, seams: _Seams) -> None:
    """Refuse a chunk that did not see all that its entries depend on, or of a source that is not sound."""
    whole = chunk.start_s == 0 and math.isinf(chunk.end_s)
    if not seams.own and whole:
        raise UnreadableVideo("no frame could be decoded")
    if not whole and chunk.damage:
        raise NotExact("is damaged: " + ", ".join(sorted(chunk.damage)))
    if chunk.start_s > 0 and not seams.looked_back(chunk.start_s):
        raise NotExact(f"has too few frames within {_RUN_UP_S:g} s before a chunk")
    if not math.isinf(chunk.end_s) and (seams.own < FRAMES_BEFORE or seams.behind < FRAMES_AFTER):
        raise NotExact("has too few frames at the end of a chunk")


def check_seams(chunks: Sequence[Chunk]) -> None:
    """Refuse chunks (`NotExact`) that are not all of a source, one behind the other, or that saw it differently."""
    if chunks[0].start_s != 0 or not math.isinf(chunks[-1].end_s):
        raise NotExact("lacks a chunk")
    for one, other in pairwise(chunks):
        if one.end_s != other.start_s or not np.array_equal(one.after, other.before):
            raise NotExact("does not look the same to two neighbouring chunks")
        if (one.flow, one.iqa) != (other.flow, other.iqa) or one.arrays.keys() != other.arrays.keys():
            raise NotExact("was measured in different ways")


def concatenated(chunks: Sequence[Chunk]) -> dict[str, np.ndarray]:
    """The arrays of chunks that follow each other as those of one; of a single chunk they are not copied."""
    if len(chunks) == 1:
        return chunks[0].arrays
    firsts = np.cumsum([0, *(len(chunk.arrays["times_s"]) for chunk in chunks)])
    return {name: _concatenated(name, [chunk.arrays[name] for chunk in chunks], firsts) for name in chunks[0].arrays}


def _concatenated(name: str, parts: list[np.ndarray], firsts: np.ndarray) -> np.ndarray:
    if name.endswith("_frame"):
        parts = [part + first for part, first in zip(parts, firsts, strict=False)]
    # A part without entries does not know their shape.
    return np.concatenate([part for part in parts if len(part)] or parts[:1])


def to_bytes(chunk: Chunk) -> bytes:
    """A chunk as a compressed npz."""
    about = {"start_s": chunk.start_s, "end_s": chunk.end_s, "flow": chunk.flow, "iqa": chunk.iqa}
    sums = {f"viewport.{name}": np.asarray(value) for name, value in vars(chunk.evidence).items()}
    # Bytes of different lengths are padded with zeros, which a JPEG does not end in.
    arrays = {name: values.astype("S") if values.dtype == object else values for name, values in chunk.arrays.items()}
    file = io.BytesIO()
    np.savez_compressed(file, about=json.dumps(about), before=chunk.before, after=chunk.after, **sums, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def from_bytes(data: bytes) -> Chunk:
    """The chunk that `to_bytes` wrote; `NotExact` for anything else."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays.pop("about")))
        *sums, frames, steps = (arrays.pop(f"viewport.{part.name}") for part in fields(ViewportSums))
        evidence = ViewportSums(sums[0], sums[1], sums[2], int(frames), int(steps))
        before, after = arrays.pop("before"), arrays.pop("after")
    except (EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise NotExact(f"has a chunk file that cannot be read ({error})") from error
    arrays = {name: values.astype(object) if values.dtype.kind == "S" else values for name, values in arrays.items()}
    return Chunk(arrays=arrays, evidence=evidence, before=before, after=after, damage={}, **about)
