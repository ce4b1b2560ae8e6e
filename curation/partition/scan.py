"""Scan a source once: a single decode feeds every measurement that needs all pixels.

The result grows with the source by about 26 kB a second and holds no picture larger than a thumbnail. It is a content score
and a luma histogram for each frame, flow in cells of 20 px ten times a second, eight pictures of 24 x 32 px and one small JPEG
a second, and running sums for the viewport (`curation.partition.recorders`). A long source may be measured in chunks instead
(`curation.partition.chunks`), which join to the same result, bit for bit.
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
    cached_flow,
    cached_iqa,
    check_seams,
    concatenate,
    measure,
)
from curation.partition.fingerprint import Fingerprint, fingerprint
from curation.partition.optical_flow import FlowMotion, camera_motion
from curation.quality.iqa import combed_share
from curation.worker_state import worker

_NOTED_COMBED = 0.05  # share of a source's samples; a single one may be chance


@dataclass(frozen=True)
class Thumbnail:
    """A small JPEG of the frame at `time_s`."""

    time_s: float
    jpeg: bytes


@dataclass(frozen=True, eq=False)
class Signals:
    """What a scan measured.

    N frames, P pairs of frames for optical flow, R x C cells of 20 px at 320 wide, B luma bins, S samples of picture quality.
    """

    source: Source
    times_s: np.ndarray  # [N]
    content: np.ndarray  # [N], content scores
    flow_match: np.ndarray  # [N], by `cuts.CutMeter`; 1 for frames that decide about no cut
    layout_similarity: np.ndarray  # [N], by `cuts.LayoutSimilarity`
    luma_bins: np.ndarray  # [N, B]
    pair_frame: np.ndarray  # [P], the later frame of each pair; there is no pair across a gap in time
    cells: np.ndarray  # [P, R, C, 2], flow in px/frame at 320 wide
    change_cells: np.ndarray  # [P, R, C, 4], as `change_cells` packs them
    viewport: Viewport
    iqa_frame: np.ndarray  # [S], the frames that were sampled
    iqa_rows: np.ndarray  # [S, 1 + FAULTS], by an `iqa.Iqa`
    combing: np.ndarray  # [S]
    deinterlaced: np.ndarray  # [N], frames that were two fields
    small_frame: np.ndarray  # [K], the frames of the fingerprint
    small_lumas: np.ndarray  # [K, 24, 32]
    thumbnails: tuple[Thumbnail, ...]
    flow: str  # the backend
    iqa: str  # the backend
    fps: float  # one by the median step
    segments: tuple[Segment, ...]  # the frames between gaps in time
    end_s: float  # end of the last frame
    damage: dict[str, int]  # as `WorkerState.damage` counts it
    # [N, ...], what PySceneDetect's hash, threshold or transnet detector wants of each frame (`frame_measure`); None for
    # other detectors
    detector_measure: np.ndarray | None = None
    dis_cells: np.ndarray | None = None  # as `cells`, by DIS; None where `cells` are by DIS

    @cached_property
    def pair_times_s(self) -> np.ndarray:
        """The times [P] of the later frames of the pairs."""
        return self.times_s[self.pair_frame]

    @property
    def gap_s(self) -> float:
        """Seconds between the first frame and the last that lie in gaps."""
        return float(sum(length_s for _, length_s in time_gaps.gaps(self.segments)))

    @property
    def notes(self) -> list[str]:
        """What a reader of the ledger should know about the source."""
        return [
            *(f"{count} {what}" for what, count in self.damage.items()),
            *filter(None, [time_gaps.describe_gaps(self.segments), *self._interlacing_notes(), *self._source_notes()]),
        ]

    def _interlacing_notes(self) -> Iterator[str]:
        count, total = int(self.deinterlaced.sum()), len(self.deinterlaced)
        if count:
            yield (
                "interlaced: deinterlaced" if count == total else f"interlaced in part: {count} of {total} frames deinterlaced"
            )
        if (share := combed_share(self.combing) or 0) > _NOTED_COMBED:
            yield f"looks interlaced and is not marked so: {share:.0%} of its samples are combed"

    def _source_notes(self) -> Iterator[str]:
        if self.source.transfer:
            yield f"HDR ({self.source.transfer.upper()}): its pictures are mapped to SDR"
        if self.source.other_tracks:
            yield f"video tracks not taken: {', '.join(self.source.other_tracks)}"

    @cached_property
    def motion(self) -> FlowMotion:
        """The camera's motion in each pair, with HUD and bars masked."""
        return camera_motion(self.cells, static_weight(self.viewport, *self.cells.shape[1:3]))

    @property
    def fingerprint(self) -> Fingerprint:
        """What copies of the source share."""
        height, width = self.viewport.static.shape
        return fingerprint(self.times_s[self.small_frame], self.small_lumas, self.viewport.picture, (width, height))


def scan(uri: str, settings: ScanSettings) -> Signals:
    """Decode a source once and measure it. The worker keeps the last result, so that consecutive operators share one scan.

    Raises `UnreadableVideo` where no frame can be decoded.
    """
    if not worker.has_scan((uri, settings)):
        worker.scan = None  # two results at once would be the peak of memory
        worker.scan = (uri, settings), join_chunks(probe(uri), [measure(uri, settings)])
    return finished_scan(uri, settings)


def finished_scan(uri: str, settings: ScanSettings) -> Signals:
    """Return the scan that this process has made of a source, for its commit. RuntimeError where it is gone."""
    signals: Signals = worker.finished(worker.scan, (uri, settings))
    return signals


def use_chunks(uri: str, settings: ScanSettings, chunks: Sequence[Chunk]) -> None:
    """Use chunks of the source as the result of the next `scan`. `NotExact` where they may differ from what it would give."""
    worker.scan = (uri, settings), join_chunks(probe(uri), chunks)


def join_chunks(source: Source, chunks: Sequence[Chunk]) -> Signals:
    """Join consecutive chunks to what one scan measures. `NotExact` where they may differ from it."""
    check_seams(chunks)
    arrays = concatenate(chunks)
    times_s = arrays["times_s"]
    step_s = time_gaps.frame_step(times_s, source.fps)
    segments = tuple(time_gaps.split_at_gaps(times_s, step_s))
    # The flow of a pair across a gap is not motion.
    pairs: Any = slice(None)
    if len(segments) > 1:
        pairs = ~np.isin(arrays["pair_frame"], [segment.first for segment in segments[1:]])
    thumbnail_times_s = times_s[arrays["thumbnail_frame"]].tolist()
    return Signals(
        source=source,
        times_s=times_s,
        content=arrays["content"],
        flow_match=arrays["flow_match"],
        layout_similarity=arrays["layout_similarity"],
        luma_bins=arrays["luma_bins"],
        pair_frame=arrays["pair_frame"][pairs],
        cells=arrays["cells"][pairs],
        change_cells=arrays["change_cells"][pairs],
        viewport=find_viewport(reduce(add, (chunk.viewport_sums for chunk in chunks))),
        iqa_frame=arrays["iqa_frame"],
        iqa_rows=arrays["iqa_rows"],
        combing=arrays["combing"],
        deinterlaced=arrays["deinterlaced"],
        small_frame=arrays["small_frame"],
        small_lumas=arrays["small_lumas"],
        thumbnails=tuple(map(Thumbnail, thumbnail_times_s, arrays["jpegs"].tolist())),
        flow=chunks[0].flow,
        iqa=chunks[0].iqa,
        fps=1 / step_s,
        segments=segments,
        end_s=float(times_s[-1]) + step_s,
        damage=chunks[0].damage,
        detector_measure=arrays.get("detector_measure"),
        dis_cells=arrays["dis_cells"][pairs] if "dis_cells" in arrays else None,
    )


def load_models(settings: ScanSettings) -> None:
    """Load the models of a scan first, so that missing weights are reported as a setup error and not as a bad video."""
    cached_flow(settings.flow)
    cached_iqa(settings.iqa)


def static_weight(viewport: Viewport, rows: int, columns: int) -> np.ndarray:
    """Return how much each cell counts for camera motion, [R, C]: the share of it that is in the view and not static."""
    moving = np.zeros(viewport.static.shape, np.float32)
    x, y, w, h = viewport.view
    moving[y : y + h, x : x + w] = 1
    moving[viewport.static] = 0
    share = cv2.resize(moving, (columns, rows), interpolation=cv2.INTER_AREA)
    return np.where(share > 0.5, share, 0)


def clear_caches() -> None:
    """Drop the cached scan and everything cached of sources, which frees memory. Files may have changed since."""
    worker.scan = worker.chunk = None
    decode.clear_caches()
