"""Where a source is cut, and how its scenes become clips of about six seconds (paper section 3.4, partition).

PySceneDetect's content score is computed while the source streams by; its AdaptiveDetector is then replayed over the stored
scores, so that cuts are a pure function of an array and a later chunked run can give the same ones.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector


@dataclass(frozen=True)
class SceneSettings:
    """How cuts are found and scenes divided. Seconds, but for PySceneDetect's own two thresholds."""

    adaptive_threshold: float = 3.0
    min_content: float = 15.0
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

    def __init__(self, scores: np.ndarray, settings: SceneSettings, fps: float) -> None:
        super().__init__(
            adaptive_threshold=settings.adaptive_threshold,
            min_content_val=settings.min_content,
            min_scene_len=max(1, round(settings.min_scene_s * fps)),
        )
        self._scores = scores

    def _calculate_frame_score(self, timecode: FrameTimecode, frame_img: np.ndarray) -> float:
        del frame_img
        return float(self._scores[timecode.frame_num])


def cut_frames(scores: np.ndarray, fps: float, settings: SceneSettings) -> list[int]:
    """Frames at which a new scene begins, from content scores float [N]; frame 0 is not among them."""
    detector = _Replay(scores, settings, fps)
    nothing = np.empty((0, 0, 3), np.uint8)
    cuts = [cut for i in range(len(scores)) for cut in detector.process_frame(FrameTimecode(i, fps), nothing)]
    cuts += detector.post_process(FrameTimecode(len(scores), fps))
    return sorted({cut.frame_num for cut in cuts if 0 < cut.frame_num < len(scores)})


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
