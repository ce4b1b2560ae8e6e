"""Partition, and everything else that one scan of the source measures (paper section 3.4, first stage).

The first operator scans the source, the second turns the source's row into the rows of its clips, and the others add columns.
All of them call `scan`, which caches its result.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from curation.actions.detect import Actions, ActionSettings, boundary_costs, detect_actions, unknown_reason
from curation.actions.spans import InteractionSettings
from curation.captions import engine_events
from curation.media.viewport import Rect
from curation.partition import chunks
from curation.partition.change_cells import unpack
from curation.partition.chunks import ScanSettings
from curation.partition.clip_spans import divide_scene
from curation.partition.cuts import CutMeasures, SceneSettings
from curation.partition.scan import Signals, scan
from curation.quality.iqa import aggregate_quality, combed_share, frozen_share, pair_change
from curation.quality.luminance import luminance, whole_flash_share, without_bars
from curation.schema import Row, clip_id
from operators.op import each

# In smaller pictures flow and cuts measure noise. The smallest format that was ever sold as video is about twice as large.
MIN_SIDE_PX = 64


@each
def scan_chunk(row: Row, settings: ScanSettings) -> Row:
    """Measure a part of a source. The worker keeps the result until the commit stores it (`chunks.finished_chunk`)."""
    chunks.scan_chunk(row["source_uri"], settings, row["start_s"], row["end_s"])
    return row


@each
def scan_source(row: Row, settings: ScanSettings) -> Row:
    """Scan the source once. Later operators reuse the scan, so its CPU time is counted here."""
    signals = scan(row["source_uri"], settings)
    source = signals.source
    return {**row, "fps": signals.fps, "width": source.width, "height": source.height, "transfer": source.transfer or "sdr"}


def split_scenes(
    rows: list[Row], settings: ScanSettings, scene: SceneSettings, actions: ActionSettings, settings_digest: str
) -> list[Row]:
    """Divide sources into clips: first at cuts, then into touching spans of about six seconds, where little happens.

    A source with an engine's log of events is also divided where they begin and end.
    """
    return [clip for row in rows for clip in _clips(row, scan(row["source_uri"], settings), scene, actions, settings_digest)]


def _clips(row: Row, signals: Signals, scene: SceneSettings, actions: ActionSettings, settings_digest: str) -> list[Row]:
    spans = clip_spans(signals, scene, actions, engine_events.boundaries_s(row["source_uri"]))
    return [_clip(row, signals, scene, settings_digest, index, *span) for index, span in enumerate(spans)]


def clip_spans(
    signals: Signals, scene: SceneSettings, actions: ActionSettings, events_s: Sequence[float] = ()
) -> list[tuple[int, float, float]]:
    """Return scene number, start and end in seconds of every clip. Each holds a frame; only gaps in time have no clip.

    events_s: when events begin or end; clips begin there as well.
    """
    times_s, cost = boundary_costs(signals, detect_actions(signals, actions))
    return [
        (number, *span)
        for number, bounds in enumerate(scene_bounds(signals, scene))
        for part in _parts(*bounds, events_s)
        for span in _start_on_frames(divide_scene(*part, scene, times_s, cost), signals.times_s)
    ]


def _parts(start_s: float, end_s: float, events_s: Sequence[float]) -> list[tuple[float, float]]:
    """Divide a scene at the events that it holds. Half a frame at 240 a second is no part."""
    inside = [event_s for event_s in sorted(set(events_s)) if start_s + 2e-3 < event_s < end_s - 2e-3]
    return list(pairwise([start_s, *inside, end_s]))


def scene_bounds(signals: Signals, scene: SceneSettings) -> list[tuple[float, float]]:
    """Return start and end of each scene in seconds. A gap in time ends a scene; together they are the source without gaps."""
    from curation.partition.detectors import detect_cuts  # here: it loads PySceneDetect, which drivers do without

    measures = CutMeasures(signals.content, signals.flow_match, signals.layout_similarity)
    detector_measure = signals.detector_measure
    bounds: list[tuple[float, float]] = []
    for segment in signals.segments:
        inside = slice(segment.first, segment.last)
        own_measure = None if detector_measure is None else detector_measure[inside]
        cuts = detect_cuts(CutMeasures(*(values[inside] for values in measures)), signals.fps, scene, own_measure)
        starts = signals.times_s[segment.first + np.array([0, *cuts], np.int64)].tolist()
        bounds += zip(starts, [*starts[1:], segment.end_s], strict=True)
    return bounds


def _start_on_frames(spans: list[tuple[float, float]], times_s: np.ndarray) -> list[tuple[float, float]]:
    """Move the starts of touching spans to frames. Where frames are too far apart for the division, some spans merge."""
    frames = np.searchsorted(times_s, [start_s for start_s, _ in spans])
    starts = sorted({float(times_s[frame]) for frame in frames if times_s[frame] < spans[-1][1]})
    return list(zip(starts, [*starts[1:], spans[-1][1]], strict=True))


def _clip(
    row: Row,
    signals: Signals,
    scene: SceneSettings,
    settings_digest: str,
    index: int,
    scene_index: int,
    start_s: float,
    end_s: float,
) -> Row:
    start, end = np.searchsorted(signals.times_s, [start_s, end_s])
    clip = {
        **row,
        "clip_id": clip_id(row["video_id"], start_s, end_s, settings_digest),
        "source": "curated",
        "index": index,
        "scene_index": scene_index,
        "start_s": start_s,
        "end_s": end_s,
        "start_frame": int(start),
        "end_frame": int(end),
    }
    if min(row["width"], row["height"]) < MIN_SIDE_PX:
        clip["reject"] = f"too small: {row['width']}x{row['height']} px has a side under {MIN_SIDE_PX}"
    elif end_s - start_s < scene.min_clip_s - 1e-6:
        clip["reject"] = f"too short: {end_s - start_s:.2f} s < {scene.min_clip_s:g} s"
    return clip


@each
def locate_viewport(row: Row, settings: ScanSettings) -> Row:
    """Add the rectangles of the picture (without bars) and of the 3-D view (without panels), in px of the source."""
    viewport = scan(row["source_uri"], settings).viewport
    height, width = viewport.static.shape
    scale = row["width"] / width, row["height"] / height
    whole = viewport.picture == (0, 0, width, height)
    frame = Rect(0, 0, row["width"], row["height"])
    picture = frame if whole else viewport.picture.scaled(*scale, even=True).within(frame)
    x, y, w, h = viewport.view
    return {
        **row,
        "picture": picture._asdict(),
        "viewport": viewport.view.scaled(*scale).within(frame)._asdict(),
        "static_share": float(viewport.static[y : y + h, x : x + w].mean()),
    }


def measure_motion(rows: list[Row], settings: ScanSettings, actions: ActionSettings) -> list[Row]:
    """Add how much the camera and everything else moves, and the actions: camera regimes and interactions."""
    scans = {uri: scan(uri, settings) for uri in {row["source_uri"] for row in rows}}
    detected = {uri: detect_actions(signals, actions) for uri, signals in scans.items()}
    limits = actions.interactions
    return [_with_motion(row, scans[row["source_uri"]], detected[row["source_uri"]], limits) for row in rows]


def _with_motion(row: Row, signals: Signals, actions: Actions, limits: InteractionSettings) -> Row:
    motion, pairs = signals.motion, _pairs_of(row, signals)
    camera, other = motion.camera[pairs], motion.object[pairs]
    spans = actions.spans_within(row["start_s"], row["end_s"])
    confidence = actions.confidence(row["start_s"], row["end_s"])
    unknown = unknown_reason(actions, row["start_s"], row["end_s"], limits)
    return {
        **row,
        "flow_backend": signals.flow,
        "motion_camera": float(camera.mean()) if len(camera) else None,
        "motion_object": float(other.mean()) if len(other) else None,
        "action_detector": actions.detector,
        "action_distance": actions.distance if np.isfinite(actions.distance) else None,
        "action_confidence": confidence,
        "action_unknown": unknown,
        "action_spans": [span._asdict() for span in spans if not (unknown and span.kind == "interaction")],
    }


def _pairs_of(row: Row, signals: Signals) -> slice:
    """Return the pairs of frames in a clip. Per clip, only these are computed with: a source can have hours of pairs."""
    first, end = np.searchsorted(signals.pair_times_s, [row["start_s"], row["end_s"]])
    return slice(int(first), int(end))


@each
def measure_luminance(row: Row, settings: ScanSettings) -> Row:
    """Add brightness over the clip's frames, without letterbox bars."""
    signals = scan(row["source_uri"], settings)
    frames = slice(row["start_frame"], row["end_frame"])
    height, width = signals.viewport.static.shape
    bars = 1 - signals.viewport.picture.w * signals.viewport.picture.h / (width * height)
    whole_flashes = whole_flash_share(unpack(signals.change_cells[_pairs_of(row, signals)])[..., 0])
    bins = without_bars(signals.luma_bins[frames], bars)
    scores: dict[str, Any] = luminance(signals.times_s[frames], bins, whole_flashes)._asdict()
    return {**row, **scores}


@each
def measure_quality(row: Row, settings: ScanSettings) -> Row:
    """Add picture quality over the clip's samples, the share of time in which it is frozen, and what interlacing left in it."""
    signals = scan(row["source_uri"], settings)
    frames = slice(row["start_frame"], row["end_frame"])
    pairs = _pairs_of(row, signals)
    change = pair_change(signals.pair_times_s[pairs], unpack(signals.change_cells[pairs])[..., 2])
    frozen = frozen_share(signals.times_s[frames], signals.content[frames], row["end_s"], change)
    samples_s = signals.times_s[signals.iqa_frame]
    inside = (samples_s >= row["start_s"]) & (samples_s < row["end_s"])
    fields = {
        "deinterlaced": float(signals.deinterlaced[frames].mean()),
        "combed": combed_share(signals.combing[inside]),
    }
    return {**row, **aggregate_quality(signals.iqa_rows[inside], frozen)._asdict(), "iqa_backend": signals.iqa, **fields}
