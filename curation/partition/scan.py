"""The one pass over a source: a single decode feeds every measurement that needs all pixels.

The result grows with the source by about 20 kB a second and never holds a picture: a content score and a luma histogram per
frame, flow in cells of 20 px ten times a second, one small JPEG a second, and running sums for the viewport
(`curation.partition.recorders`). A long source may be measured in chunks instead (`curation.partition.chunks`), which join to
the same result, bit for bit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from typing import Any

import cv2
import numpy as np

from curation.media import decode, time_gaps
from curation.media.source import Source, probe
from curation.media.time_gaps import Segment
from curation.media.viewport import Viewport, find_viewport
from curation.partition.chunks import (
    Chunk,
    ScanSettings,
    check_seams,
    concatenated,
    loaded_flow,
    loaded_iqa,
    measure,
    scan_chunk,
)
from curation.partition.optical_flow import CameraMotion, camera_motion
from curation.quality.iqa import combed_share

_NOTED_COMBED = 0.05  # of a source's samples; one alone may be chance


@dataclass(frozen=True)
class Thumbnail:
    """A small JPEG of the frame at `time_s`."""

    time_s: float
    jpeg: bytes


@dataclass(frozen=True)
class Signals:
    """What one pass measured. N frames, P pairs of flow, R x C cells of 20 px at 320 wide, B luma bins, S quality samples.

    times_s [N]; content [N]; explained [N] (by `scenes.Matcher`, 1 where it was not asked); layout [N] (`scenes.Layout`);
    luma_bins [N, B]; pair_frame [P], the later frame of a pair; cells [P, R, C, 2] px/frame at 320 wide; looks [P, R, C, 4] as
    `looks` gives them, no pair across a hole; iqa_frame [S], the frames looked at, and iqa_rows [S, 1 + FAULTS] by an
    `iqa.Iqa`, combing [S] of those; deinterlaced [N], frames that were two fields; stretches, the frames between holes in
    time; end_s, the end of the last frame; fps, the median rate; damage, as `video.damage` counts it.
    """

    source: Source
    times_s: np.ndarray
    content: np.ndarray
    explained: np.ndarray
    layout: np.ndarray
    luma_bins: np.ndarray
    pair_frame: np.ndarray
    cells: np.ndarray
    looks: np.ndarray
    viewport: Viewport
    iqa_frame: np.ndarray
    iqa_rows: np.ndarray
    combing: np.ndarray
    deinterlaced: np.ndarray
    thumbnails: tuple[Thumbnail, ...]
    flow: str
    iqa: str
    fps: float
    segments: tuple[Segment, ...]
    end_s: float
    damage: dict[str, int]

    @property
    def pair_times_s(self) -> np.ndarray:
        return self.times_s[self.pair_frame]

    @property
    def gap_s(self) -> float:
        """Seconds between the first frame and the last in which there is none."""
        return float(sum(length_s for _, length_s in time_gaps.gaps(self.segments)))

    @property
    def notes(self) -> list[str]:
        """What a reader of the ledger should know of the source."""
        return [
            *(f"{count} {what}" for what, count in self.damage.items()),
            *filter(None, [time_gaps.describe_gaps(self.segments), *self._fields(), *self._source()]),
        ]

    def _fields(self) -> Iterator[str]:
        count, total = int(self.deinterlaced.sum()), len(self.deinterlaced)
        if count:
            yield (
                "interlaced: deinterlaced" if count == total else f"interlaced in part: {count} of {total} frames deinterlaced"
            )
        if (share := combed_share(self.combing) or 0) > _NOTED_COMBED:
            yield f"looks interlaced and is not marked so: {share:.0%} of its samples are combed"

    def _source(self) -> Iterator[str]:
        if self.source.transfer:
            yield f"HDR ({self.source.transfer.upper()}): its pictures are mapped to SDR"
        if self.source.other_tracks:
            yield f"video tracks not taken: {', '.join(self.source.other_tracks)}"

    @cached_property
    def motion(self) -> CameraMotion:
        """The camera's motion in each pair, HUD and bars masked."""
        return camera_motion(self.cells, static_weight(self.viewport, *self.cells.shape[1:3]))


_kept: tuple[str, ScanSettings, Signals] | None = None


def scan(uri: str, how: ScanSettings) -> Signals:
    """Decode a source once and measure it. The last result is kept, so that operators in a row share one pass.

    Raises `video.UnreadableVideo` where no frame can be had.
    """
    global _kept
    if _kept is None or _kept[:2] != (uri, how):
        _kept = None  # two passes at once would be the peak of memory
        _kept = uri, how, join(probe(uri), [measure(uri, how)])
    return _kept[2]


def adopt(uri: str, how: ScanSettings, chunks: Sequence[Chunk]) -> None:
    """Let chunks of the source stand for the pass that `scan` would make. `chunks.NotExact` where they may not be the same."""
    global _kept
    _kept = uri, how, join(probe(uri), chunks)


def join(source: Source, chunks: Sequence[Chunk]) -> Signals:
    """What one pass measures, from chunks that follow each other; `chunks.NotExact` where they may not be the same."""
    check_seams(chunks)
    notes = concatenated(chunks)
    times_s = notes["times_s"]
    step_s = time_gaps.frame_step(times_s, source.fps)
    parts = tuple(time_gaps.split_at_gaps(times_s, step_s))
    # A pair across a hole shows no motion.
    pairs: Any = slice(None)
    if len(parts) > 1:
        pairs = ~np.isin(notes["pair_frame"], [part.first for part in parts[1:]])
    thumbnail_times_s = times_s[notes["thumbnail_frame"]].tolist()
    return Signals(
        source=source,
        times_s=times_s,
        content=notes["content"],
        explained=notes["explained"],
        layout=notes["layout"],
        luma_bins=notes["luma_bins"],
        pair_frame=notes["pair_frame"][pairs],
        cells=notes["cells"][pairs],
        looks=notes["looks"][pairs],
        viewport=find_viewport(reduce(add, (chunk.evidence for chunk in chunks))),
        iqa_frame=notes["iqa_frame"],
        iqa_rows=notes["iqa_rows"],
        combing=notes["combing"],
        deinterlaced=notes["deinterlaced"],
        thumbnails=tuple(map(Thumbnail, thumbnail_times_s, notes["jpegs"].tolist())),
        flow=chunks[0].flow,
        iqa=chunks[0].iqa,
        fps=1 / step_s,
        segments=parts,
        end_s=float(times_s[-1]) + step_s,
        damage=chunks[0].damage,
    )


def prepare(how: ScanSettings) -> None:
    """Load what a pass needs, before any source is opened: weights that are missing are nobody's footage's fault."""
    loaded_flow(how.flow)
    loaded_iqa(how.iqa)


def static_weight(viewport: Viewport, rows: int, columns: int) -> np.ndarray:
    """How much each cell counts for camera motion [R, C]: the share of it that lies in the view and is not static."""
    open_ = np.zeros(viewport.static.shape, np.float32)
    x, y, w, h = viewport.view
    open_[y : y + h, x : x + w] = 1
    open_[viewport.static] = 0
    share = cv2.resize(open_, (columns, rows), interpolation=cv2.INTER_AREA)
    return np.where(share > 0.5, share, 0)


def forget() -> None:
    """Drop the kept pass (its memory, and a source that changed on disk)."""
    global _kept
    _kept = None
    scan_chunk.cache_clear()
    decode.clear_caches()
