"""Where a source is cut, and how its scenes become clips of about six seconds (paper section 3.4, partition).

PySceneDetect's content score is computed while the source streams by; its AdaptiveDetector is then replayed over the stored
scores, so that cuts are a pure function of arrays and a later chunked run can give the same ones. Games flash, jolt and turn
fast, which content scores take for cuts; so a frame counts as one only if optical flow cannot explain it from the frame before.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

# In the dark a grey level of coding noise turns the hue about, and the content score with it; no cut changes so little.
_LEAST_CHANGED = 0.05


@dataclass(frozen=True)
class SceneSettings:
    """How cuts are found and scenes divided: PySceneDetect's two thresholds, the share of a change that flow may explain
    before it is no cut, and seconds.
    """

    adaptive_threshold: float = 2.0
    min_content: float = 25.0
    max_explained: float = 0.6
    min_scene_s: float = 0.5
    clip_s: float = 6.0
    min_clip_s: float = 3.0
    slack_s: float = 1.0

    def __post_init__(self) -> None:
        if self.slack_s < 0 or self.min_scene_s < 0:
            raise ValueError(f"slack_s and min_scene_s must not be negative, not {self.slack_s:g}, {self.min_scene_s:g}")
        if not 0 < 2 * self.min_clip_s <= self.clip_s + self.slack_s:
            most = (self.clip_s + self.slack_s) / 2
            raise ValueError(
                f"min_clip_s must be positive and at most (clip_s + slack_s) / 2 = {most:g}, not {self.min_clip_s:g}"
            )


class ContentScore:
    """PySceneDetect's content score, one frame after the other: mean absolute change of hue, saturation and value."""

    def __init__(self) -> None:
        self._before: np.ndarray | None = None

    def __call__(self, rgb: np.ndarray) -> float:
        """Score of a frame uint8 [H, W, 3] against the one before; 0 for the first."""
        hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
        before, self._before = self._before, hsv
        return 0.0 if before is None else sum(cv2.mean(cv2.absdiff(hsv, before))[:3]) / 3


class _Replay(AdaptiveDetector):
    """The detector with its frame score looked up: scenedetect 0.7.2 has no public way to hand stored scores in."""

    def __init__(self, scores: np.ndarray, settings: SceneSettings) -> None:
        super().__init__(
            adaptive_threshold=settings.adaptive_threshold,
            min_content_val=settings.min_content,
            min_scene_len=1,
        )
        self._scores = scores

    def _calculate_frame_score(self, timecode: FrameTimecode, frame_img: np.ndarray) -> float:
        del frame_img
        return float(self._scores[timecode.frame_num])


def explained(before: np.ndarray, after: np.ndarray, flow: np.ndarray) -> float:
    """How well the frame before, moved by the flow from `after` to it, matches the frame after: 1 wholly, 0 not at all.

    Frames uint8 [H, W, 3], flow float32 [H, W, 2]. Local correlation, so a flash matches; over what changed, so a HUD does
    not count.
    """
    height, width = flow.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    moved = cv2.remap(before, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    a, b = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) for frame in (moved, after))
    covariance = _box(a * b) - _box(a) * _box(b)
    spread = np.sqrt(np.maximum(_box(a * a) - _box(a) ** 2, 0) * np.maximum(_box(b * b) - _box(b) ** 2, 0))
    changed = _changed(before, after)
    if changed.mean() < _LEAST_CHANGED:
        return 1.0
    # One grey level squared of noise a pixel: where nothing has structure, nothing speaks for a match.
    return float((covariance * changed).sum() / (spread[changed].sum() + 1e-3 * a.size))


def _box(image: np.ndarray) -> np.ndarray:
    return cv2.boxFilter(image, -1, (15, 15))


def _changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Where two frames differ, in patches rather than pixels: bool [H, W]."""
    grays = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (before, after)]
    differs = (cv2.absdiff(*grays) > 8).astype(np.uint8)
    return cv2.erode(cv2.dilate(differs, np.ones((9, 9))), np.ones((5, 5))) > 0


def cut_frames(scores: np.ndarray, explained_N: np.ndarray, fps: float, settings: SceneSettings) -> list[int]:
    """Frames at which a new scene begins, from content scores [N] and how far flow explains each frame [N]; never frame 0.

    A frame that flow explains is dropped after the detector, not before: zeroed scores would make its neighbours stand out.
    """
    detector = _Replay(scores, settings)
    nothing = np.empty((0, 0, 3), np.uint8)
    found = [cut for i in range(len(scores)) for cut in detector.process_frame(FrameTimecode(i, fps), nothing)]
    found += detector.post_process(FrameTimecode(len(scores), fps))
    unexplained = [f for f in {cut.frame_num for cut in found} if explained_N[f] <= settings.max_explained]
    return _apart(sorted(unexplained, key=lambda f: float(explained_N[f])), settings.min_scene_s * fps)


def _apart(frames: list[int], least: float) -> list[int]:
    """Frames at least so far from the start and from each other, sorted; those that come first in the list win."""
    chosen = [0]
    for frame in frames:
        if all(abs(frame - other) >= max(least, 1) for other in chosen):
            chosen.append(frame)
    return sorted(chosen[1:])


def divide(
    start_s: float, end_s: float, settings: SceneSettings, quiet: Callable[[float, float, float], float]
) -> list[tuple[float, float]]:
    """Divide a scene [start_s, end_s) into touching spans of about `clip_s`; together they are the scene.

    Each boundary may move by `slack_s` to where `quiet(low, high, nominal)` puts it. The policy for rests: no boundary leaves
    less than `min_clip_s` behind it, it moves further forward instead. So only a whole scene can be too short to keep.
    """
    bounds = [start_s]
    while end_s - bounds[-1] > settings.clip_s + settings.slack_s:
        nominal = bounds[-1] + settings.clip_s
        high = min(nominal + settings.slack_s, end_s - settings.min_clip_s)
        low = max(bounds[-1] + settings.min_clip_s, min(nominal, high) - settings.slack_s)
        bounds.append(quiet(low, high, min(nominal, high)))
    return list(zip(bounds, [*bounds[1:], end_s], strict=True))
