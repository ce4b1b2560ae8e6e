"""Partition and everything else that one pass over the source can tell (paper section 3.4, first stage).

The first operator makes the pass, the second turns the source's row into the rows of its clips, the others add columns. All of
them ask `scan` for the same pass, which is made once.
"""

from typing import Any

import numpy as np

from curation.actions import spans as action
from curation.actions.detect import ActionSettings, Happenings, boundary_costs, happenings
from curation.media.viewport import Rect
from curation.partition import chunks
from curation.partition import cuts as scenes
from curation.partition.chunks import ScanSettings
from curation.partition.clip_spans import divide
from curation.partition.cuts import SceneSettings
from curation.partition.scan import Signals, scan
from curation.quality.iqa import aggregate_quality, combed_share, frozen_share
from curation.quality.luminance import luminance, without_bars
from curation.schema import Row, clip_id
from operators.op import each

# Under this side flow and cuts measure noise; the smallest format that was ever sold as video is about twice as large.
MIN_SIDE_PX = 64


@each
def scan_chunk(row: Row, how: ScanSettings) -> Row:
    """Measure a part of a source; what was found is kept until it is stored (`curation.partition.chunks`)."""
    chunks.scan_chunk(row["source_uri"], how, row["start_s"], row["end_s"])
    return row


@each
def scan_source(row: Row, how: ScanSettings) -> Row:
    """Make the pass over a source that the operators behind this one drink from; its cost stands under this name."""
    signals = scan(row["source_uri"], how)
    about = signals.source
    return {**row, "fps": signals.fps, "width": about.width, "height": about.height, "transfer": about.transfer or "sdr"}


def split_scenes(
    rows: list[Row], how: ScanSettings, scene: SceneSettings, actions: ActionSettings, settings_digest: str
) -> list[Row]:
    """Sources to clips: cuts, then touching spans of about six seconds whose boundaries sit where little happens."""
    return [clip for row in rows for clip in _clips(row, scan(row["source_uri"], how), scene, actions, settings_digest)]


def _clips(row: Row, signals: Signals, scene: SceneSettings, actions: ActionSettings, settings_digest: str) -> list[Row]:
    return [
        _clip(row, signals, scene, settings_digest, index, *span)
        for index, span in enumerate(clip_spans(signals, scene, actions))
    ]


def clip_spans(signals: Signals, scene: SceneSettings, actions: ActionSettings) -> list[tuple[int, float, float]]:
    """Scene number, start and end in seconds of every clip. Each holds a frame; what no clip covers is a hole in time."""
    times_s, cost = boundary_costs(signals, happenings(signals, actions))
    return [
        (number, *span)
        for number, bounds in enumerate(scene_bounds(signals, scene))
        for span in _from_frames(divide(*bounds, scene, times_s, cost), signals.times_s)
    ]


def scene_bounds(signals: Signals, scene: SceneSettings) -> list[tuple[float, float]]:
    """Start and end of each scene in seconds. A hole in time ends one; together they are the source without its holes."""
    content, explained, layout = signals.content, signals.explained, signals.layout
    bounds: list[tuple[float, float]] = []
    for part in signals.stretches:
        inside = slice(part.first, part.last)
        cuts = scenes.cut_frames(content[inside], explained[inside], layout[inside], signals.fps, scene)
        starts = signals.times_s[part.first + np.array([0, *cuts], np.int64)].tolist()
        bounds += zip(starts, [*starts[1:], part.end_s], strict=True)
    return bounds


def _from_frames(spans: list[tuple[float, float]], times_s: np.ndarray) -> list[tuple[float, float]]:
    """Touching spans, each from a frame on: where frames lie too far apart for the division, some move and some merge."""
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
def locate_viewport(row: Row, how: ScanSettings) -> Row:
    """Where the picture (without bars) and the 3-D view (without panels) are, in px of the source."""
    viewport = scan(row["source_uri"], how).viewport
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


def measure_motion(rows: list[Row], how: ScanSettings, actions: ActionSettings) -> list[Row]:
    """How much the camera and how much else moves, what the player does with the camera, and what happens."""
    passes = {uri: scan(uri, how) for uri in {row["source_uri"] for row in rows}}
    found = {uri: happenings(signals, actions) for uri, signals in passes.items()}
    return [_with_motion(row, passes[row["source_uri"]], found[row["source_uri"]]) for row in rows]


def _with_motion(row: Row, signals: Signals, found: Happenings) -> Row:
    motion, times_s = signals.motion, signals.pair_times_s
    inside = (times_s >= row["start_s"]) & (times_s < row["end_s"])
    spans = action.clip_spans(found.spans, row["start_s"], row["end_s"])
    return {
        **row,
        "flow_backend": signals.flow,
        "motion_camera": float(motion.camera[inside].mean()) if inside.any() else None,
        "motion_object": float(motion.object[inside].mean()) if inside.any() else None,
        "action_detector": found.detector,
        "action_distance": found.distance if np.isfinite(found.distance) else None,
        "action_spans": [span._asdict() for span in spans],
    }


@each
def measure_luminance(row: Row, how: ScanSettings) -> Row:
    """Brightness over the clip's frames, letterbox bars left out."""
    signals = scan(row["source_uri"], how)
    frames = slice(row["start_frame"], row["end_frame"])
    height, width = signals.viewport.static.shape
    bars = 1 - signals.viewport.picture.w * signals.viewport.picture.h / (width * height)
    scores: dict[str, Any] = luminance(signals.times_s[frames], without_bars(signals.luma_bins[frames], bars))._asdict()
    return {**row, **scores}


@each
def measure_quality(row: Row, how: ScanSettings) -> Row:
    """How clean the picture looks over the clip's samples, how much of its time it stands still, and what fields left in it."""
    signals = scan(row["source_uri"], how)
    frames = slice(row["start_frame"], row["end_frame"])
    frozen = frozen_share(signals.times_s[frames], signals.content[frames], row["end_s"])
    samples_s = signals.times_s[signals.iqa_frame]
    inside = (samples_s >= row["start_s"]) & (samples_s < row["end_s"])
    fields = {
        "deinterlaced": float(signals.deinterlaced[frames].mean()),
        "combed": combed_share(signals.combing[inside]),
    }
    return {**row, **aggregate_quality(signals.iqa_rows[inside], frozen)._asdict(), "iqa_backend": signals.iqa, **fields}
