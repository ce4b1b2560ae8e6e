"""Drift of long videos as curves, and two events that have a name: sink-collapse and lock-in.

Sink-collapse: the picture jumps back to the first frame, by a cut or a short blend that the controls do not explain. Attention
sinks cause it where the phases of rotary positions meet again. A player who turns back to the start view is none: the picture
moves there. Lock-in: the camera is moved, and nothing new appears. `python -m bench.drift_events` measures both on recordings.

F frames. Pictures are compared by correlation of their luma at 32 px wide, so that detail does not count.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from model.evaluation.general.metric import Metric

SINK_COLLAPSE = Metric(
    "Sink-collapse",
    "events",
    "down",
    "Rises of the similarity to the first frame by over 0.35 to over 0.6, from a frame to the next or within 0.3 s in which the"
    " camera hardly turns, to a picture that is not a shifted part of the one before, while the camera is elsewhere.",
    "The failure that LoL (2026) describes for causal video models with attention sinks; our detector.",
)
LOCK_IN = Metric(
    "Lock-in",
    "events",
    "down",
    "Spans of two seconds or more in which the camera is moved and every frame is like one from at least a second before.",
    "Our definition and detector.",
)
_WIDTH = 32
# How much the similarity rises, and to what: pictures of other places are alike by chance, but less so.
_JUMP, _LEVEL = 0.35, 0.6
# A blend is as short as this. While it lasts the controls turn by less: a turn of a quarter of the view explains much.
_BLEND_S, _MAX_TURN_DEG = 0.3, 15.0
# A picture is explained by motion if its middle is found in the picture before with this correlation.
_EXPLAINED = 0.8
_APART_S = 0.5  # events that follow each other sooner are one
_NEW, _LAG_S, _SPAN_S = 0.02, 1.0, 2.0


class DriftEvent(NamedTuple):
    """An event. kind: sink_collapse | lock_in. value: the rise of similarity, or the largest novelty in the span."""

    kind: str
    start_s: float
    end_s: float
    value: float


class DriftCurve(NamedTuple):
    """A long video over time, [F] each: similarity to the first frame, novelty, mean luma, sharpness, and two matches.

    step_match, blend_match: correlation of the picture's middle with the best place for it in the frame before, and in that of
    0.3 s before; 1 where there is none.
    """

    similarity: np.ndarray
    novelty: np.ndarray
    luma: np.ndarray
    sharpness: np.ndarray
    step_match: np.ndarray
    blend_match: np.ndarray


def thumbnails(video_FHW3: np.ndarray) -> np.ndarray:
    """Return luma thumbnails float32 [F, h, w], 32 px wide, for the comparisons."""
    size = (_WIDTH, max(4, round(_WIDTH * video_FHW3.shape[1] / video_FHW3.shape[2])))
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY).astype(np.float32) for frame in video_FHW3]
    return np.stack([cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in grey])


def correlations(thumbnails_Fhw: np.ndarray) -> np.ndarray:
    """Return the correlation of every picture with every other, [F, F]. A picture without structure is like none."""
    flat = thumbnails_Fhw.reshape(len(thumbnails_Fhw), -1).astype(np.float64)
    flat -= flat.mean(1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return flat @ flat.T


def drift_curve(video_FHW3: np.ndarray, fps: float) -> DriftCurve:
    """Measure a uint8 video. Novelty: 1 - the largest similarity to a frame of a second or more before; at first 1."""
    small = thumbnails(video_FHW3)
    alike = correlations(small)
    lag = max(1, round(_LAG_S * fps))
    novelty = np.array([1 - alike[f, : f - lag + 1].max() if f >= lag else 1.0 for f in range(len(small))])
    sharp = [cv2.Laplacian(cv2.cvtColor(np.ascontiguousarray(f), cv2.COLOR_RGB2GRAY), cv2.CV_32F).std() for f in video_FHW3]
    matches = (_matches(small, steps) for steps in (1, _blend_steps(fps)))
    return DriftCurve(alike[:, 0], novelty, small.mean((1, 2)), np.array(sharp, float), *matches)


def _blend_steps(fps: float) -> int:
    return max(2, round(_BLEND_S * fps))


def _matches(thumbnails_Fhw: np.ndarray, steps: int) -> np.ndarray:
    """Return the best correlation of each picture's middle with a part of the picture some steps before, [F]."""
    height, width = thumbnails_Fhw.shape[1:]
    middle = thumbnails_Fhw[:, height // 4 : height - height // 4, width // 4 : width - width // 4]
    pairs = zip(thumbnails_Fhw[:-steps], middle[steps:], strict=True)
    best = [float(cv2.matchTemplate(before, part, cv2.TM_CCOEFF_NORMED).max()) for before, part in pairs]
    return np.array([1.0] * (len(thumbnails_Fhw) - len(best)) + best)


def events(
    curve: DriftCurve, fps: float, pose_F44: np.ndarray | None = None, moves_F: np.ndarray | None = None
) -> list[DriftEvent]:
    """Return the events of a video, in order of time.

    pose: of the controls; near the first one, or near any pose of a second or more before, a familiar picture is right. Without
    poses only cuts to the first frame count, no blends. moves: whether the controls move the camera at each frame; by default
    from the poses, and without poses there is no lock-in.
    """
    frames = len(curve.similarity)
    at_start, known, turned_deg = np.zeros(frames, bool), np.zeros(frames, bool), np.arange(frames) * 180.0
    if pose_F44 is not None:
        at_start, known = revisits(pose_F44, max(1, round(_LAG_S * fps)))
        turned_deg = _lengths(pose_F44[:, :3, 3], pose_F44[:, :3, 2])[1]
    if moves_F is None:
        moves_F = np.zeros(frames, bool) if pose_F44 is None else moving(pose_F44)
    found = [*_collapses(curve, at_start, turned_deg, fps), *_lock_ins(curve.novelty, moves_F & ~known, fps)]
    return sorted(found, key=lambda event: event.start_s)


def _collapses(curve: DriftCurve, at_start_F: np.ndarray, turned_deg_F: np.ndarray, fps: float) -> list[DriftEvent]:
    found: list[DriftEvent] = []
    blend = _blend_steps(fps)
    for frame in np.flatnonzero((curve.similarity > _LEVEL) & ~at_start_F).tolist():
        for steps, match in ((1, curve.step_match[frame]), (blend, curve.blend_match[frame])):
            if frame < steps or (steps > 1 and turned_deg_F[frame] - turned_deg_F[frame - steps] > _MAX_TURN_DEG):
                continue
            rise = float(curve.similarity[frame] - curve.similarity[frame - steps])
            if rise > _JUMP and match < _EXPLAINED:
                _add(found, DriftEvent("sink_collapse", (frame - steps) / fps, frame / fps, rise))
                break
    return found


def _add(found: list[DriftEvent], event: DriftEvent) -> None:
    """Add an event, or extend the one before where it is the same."""
    if found and event.start_s <= found[-1].end_s + _APART_S:
        found[-1] = found[-1]._replace(end_s=event.end_s, value=max(event.value, found[-1].value))
    else:
        found.append(event)


def _lock_ins(novelty_F: np.ndarray, counts_F: np.ndarray, fps: float) -> list[DriftEvent]:
    stuck = (novelty_F < _NEW) & counts_F
    edges = np.flatnonzero(np.diff(np.concatenate([[False], stuck, [False]]).astype(int)))
    spans = zip(edges[::2], edges[1::2], strict=True)
    return [
        DriftEvent("lock_in", float(a / fps), float(b / fps), float(novelty_F[a:b].max()))
        for a, b in spans
        if (b - a) / fps >= _SPAN_S
    ]


def moving(pose_F44: np.ndarray) -> np.ndarray:
    """Return whether each frame's camera has moved since the one before: by 0.1 degrees, or a hundredth of the fastest step."""
    steps = np.linalg.inv(pose_F44[:-1]) @ pose_F44[1:]
    lengths = np.linalg.norm(steps[:, :3, 3], axis=1)
    cosine = np.clip((np.trace(steps[:, :3, :3], axis1=1, axis2=2) - 1) / 2, -1, 1)
    moved = (np.degrees(np.arccos(cosine)) > 0.1) | (lengths > max(1e-9, 0.01 * lengths.max(initial=0.0)))
    return np.concatenate([moved[:1], moved])


def revisits(pose_F44: np.ndarray, lag: int, max_deg: float = 20.0, max_share: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Return for each frame whether its camera has come back to the first one, and whether to any that is `lag` frames older.

    Back: within an angle and a share of the whole path's extent, and nearer than half of the way and of the turn between them.
    """
    positions, axes = pose_F44[:, :3, 3], pose_F44[:, :3, 2]
    extent = max(float(np.ptp(positions, axis=0).max()), 1e-9)
    apart = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    turned = np.degrees(np.arccos(np.clip(axes @ axes.T, -1, 1)))
    way, turn = (np.abs(total[:, None] - total[None]) for total in _lengths(positions, axes))
    back = (apart <= max_share * extent) & (apart <= way / 2 + 1e-9) & (turned <= max_deg) & (turned <= turn / 2 + 1e-3)
    older = np.tri(len(pose_F44), k=-lag, dtype=bool)
    at_start = back[:, 0].copy()
    at_start[:lag] = True  # near the first frame in time
    return at_start, (back & older).any(1)


def _lengths(positions_F3: np.ndarray, axes_F3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the way walked and the degrees turned until each frame."""
    steps = np.linalg.norm(np.diff(positions_F3, axis=0), axis=1)
    turns = np.degrees(np.arccos(np.clip((axes_F3[1:] * axes_F3[:-1]).sum(1), -1, 1)))
    return np.concatenate([[0.0], np.cumsum(steps)]), np.concatenate([[0.0], np.cumsum(turns)])


def drift_table(curve: DriftCurve, real: DriftCurve, skip: int) -> dict[str, float]:
    """Return how far a video's curves are from those of the real one of the same controls, after the first `skip` frames."""
    ours, theirs = (DriftCurve(*(part[skip:] for part in each)) for each in (curve, real))
    return {
        "similarity_difference": float(np.abs(ours.similarity - theirs.similarity).mean()),
        "luma_difference": float(np.abs(ours.luma - theirs.luma).mean()),
        "sharpness_share": float((ours.sharpness / np.maximum(theirs.sharpness, 1e-6)).mean()),
    }


def count(found: Sequence[DriftEvent], kind: str) -> int:
    """Return how many events of a kind there are."""
    return sum(event.kind == kind for event in found)
