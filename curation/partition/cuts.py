"""Where a source is cut (paper section 3.4, partition).

PySceneDetect's content score is computed while the source streams by. Games flash, jolt and turn fast, which content scores
take for cuts; so a frame that scores high is a cut only if no flow, however large, leads to it from the frames before, while
flow does lead to the frames around it. The decision is a pure function of three arrays, however these were measured.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from curation.partition.optical_flow import grid

# In the dark a grey level of coding noise turns the hue about, and the content score with it; no cut changes so little.
_LEAST_CHANGED = 0.05
_MATCH_WIDTH = 160  # px; DIS and local correlation see as much at half the analysis width, for a quarter of the time
_PATCH_PX = 7  # the window of the local correlation: larger ones blur small things, smaller ones match by chance
_FLAT = 9.0  # grey levels squared; a patch that varies less, before and after, speaks neither for nor against a match
EXPLAINED = 0.5  # a match that no cut of the tuning set comes near (0.38 at most): it is not worth a further search
_LAYOUT = (8, 6)


@dataclass(frozen=True)
class SceneSettings:
    """How cuts are found and scenes divided: the content score from which a frame may be a cut; how far flow may explain a cut,
    as a share of how far it explains the two frames on either side; how much less it may where the frame before had the same
    coarse layout; and seconds.

    Chosen on the detector's training recordings (279 cuts in 93 minutes): 98 % found, 0.23 false a minute. By a plain share of
    0.34 it was 94 % and 0.28. Frames that changed less than a score of 21 are doors and walls close up, with little to match.
    """

    min_content: float = 21.0
    max_explained: float = 0.41
    less_if_alike: float = 0.10
    min_scene_s: float = 0.3
    clip_s: float = 6.0
    min_clip_s: float = 3.0
    slack_s: float = 1.0

    @property
    def longest_s(self) -> float:
        """How long a clip may be, to leave an interaction whole."""
        return self.clip_s + 2 * self.slack_s

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


class Layout:
    """How alike a frame and the one before are in their coarse layout of colours: correlation, -1 to 1; 1 for the first."""

    def __init__(self) -> None:
        self._before: np.ndarray | None = None

    def __call__(self, rgb: np.ndarray) -> float:
        """Of a frame uint8 [H, W, 3]."""
        coarse = cv2.resize(rgb, _LAYOUT, interpolation=cv2.INTER_AREA).astype(np.float64)
        coarse -= coarse.mean()
        before, self._before = self._before, coarse
        if before is None:
            return 1.0
        spread = math.sqrt(float((before * before).sum() * (coarse * coarse).sum()))
        return float((before * coarse).sum()) / spread if spread else 0.0


class Matcher:
    """How well a frame is the one before, moved: 1 wholly, 0 not at all. One matcher sees frames of one size."""

    def __init__(self) -> None:
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._dis.setFinestScale(1)  # the preset's 2 is for frames twice as wide

    def __call__(self, before: np.ndarray, after: np.ndarray) -> float:
        """Local correlation of two `small` frames along the flow between them, over what changed, so a HUD does not count.

        Where flow finds little it is tried again from the large shifts that fit best: DIS alone loses track at about 40 px.
        """
        changed = _changed(before, after)
        if changed.mean() < _LEAST_CHANGED:
            return 1.0
        match = self._from((0.0, 0.0), before, after, changed)
        if match >= EXPLAINED:
            return match
        return max(match, *(self._from(shift, before, after, changed) for shift in _large_shifts(before, after)))

    def _from(self, shift: tuple[float, float], before: np.ndarray, after: np.ndarray, changed: np.ndarray) -> float:
        # A start is always given: without one, OpenCV 5 starts from what the call before left behind.
        start = np.full((*before.shape, 2), shift, np.float32)
        return _correlation(before, after, self._dis.calc(after, before, start), changed)


def small(rgb: np.ndarray) -> np.ndarray:
    """A frame as matched: uint8 [H, W, 3] -> gray uint8 [h, 160]."""
    size = _MATCH_WIDTH, max(8, round(rgb.shape[0] * _MATCH_WIDTH / rgb.shape[1]))
    return cv2.cvtColor(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)


def _changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Where two frames differ, in patches rather than pixels: bool [h, w]."""
    differs = (cv2.absdiff(before, after) > 8).astype(np.uint8)
    return cv2.erode(cv2.dilate(differs, np.ones((5, 5))), np.ones((3, 3))) > 0


def _correlation(before: np.ndarray, after: np.ndarray, flow: np.ndarray, changed: np.ndarray) -> float:
    """Mean local correlation (a flash keeps it) of `after` with `before` fetched along the flow, negative as 0.

    Over what changed and was in view before: after a fast turn half the picture is new, the other half decides.
    """
    at = grid(*before.shape) + flow
    a, b = cv2.remap(before, at, None, cv2.INTER_LINEAR).astype(np.float32), after.astype(np.float32)
    mean_a, mean_b = _box(a), _box(b)
    spread_a, spread_b = (np.maximum(_box(image * image) - mean**2, 0) for image, mean in ((a, mean_a), (b, mean_b)))
    correlation = (_box(a * b) - mean_a * mean_b) / (np.sqrt(spread_a * spread_b) + 1)
    speaks = changed & (np.maximum(spread_a, spread_b) > _FLAT)
    speaks &= (at >= 0).all(2) & (at[..., 0] <= before.shape[1] - 1) & (at[..., 1] <= before.shape[0] - 1)
    return float(np.clip(correlation[speaks], 0, 1).mean()) if speaks.any() else 0.0


def _box(image: np.ndarray) -> np.ndarray:
    return cv2.boxFilter(image, -1, (_PATCH_PX, _PATCH_PX))


def _large_shifts(before: np.ndarray, after: np.ndarray) -> list[tuple[float, float]]:
    """Where the upper, and where the lower part of `after` was in `before`: px right and down, up to half the picture.

    Of three pieces of each part, the one found best. The lower part is often a weapon that stays, so each part has its say.
    """
    a, b = (cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for image in (before, after))
    height, width = a.shape
    shifts = []
    for top in (height // 8, height // 2):
        found = [_find(a, b, left, top) for left in (0, width // 4, width // 2)]
        _, x, y = max(found)
        shifts.append((2.0 * x, 2.0 * y))
    return shifts


def _find(a: np.ndarray, b: np.ndarray, left: int, top: int) -> tuple[float, int, int]:
    """How well, and how far away in `a`, the piece of `b` at (left, top) is found; half as wide and high as the picture."""
    piece = b[top : top + a.shape[0] // 2, left : left + a.shape[1] // 2]
    _, best, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(a, piece, cv2.TM_CCOEFF_NORMED))
    return best, x - left, y - top


def cut_frames(
    scores_N: np.ndarray, explained_N: np.ndarray, layout_N: np.ndarray, fps: float, settings: SceneSettings
) -> list[int]:
    """Frames at which a new scene begins, never frame 0: from content scores, how far flow explains each frame, and layouts.

    Flow that also fails around a frame has lost track (a blast, a whirl), which says nothing about a cut; so the frame is held
    against its neighbours. A blast or a wall close up leaves the layout as it is, which a cut seldom does. Of frames too near
    to each other the least explained stands.
    """
    limit = settings.max_explained - settings.less_if_alike * np.maximum(layout_N, 0)
    alone = explained_N <= limit * _around(explained_N)
    found = np.flatnonzero((scores_N >= settings.min_content) & alone)
    return _apart(sorted(found.tolist(), key=lambda f: float(explained_N[f])), settings.min_scene_s * fps)


def _around(values_N: np.ndarray) -> np.ndarray:
    """Mean of the two values on either side of each; beyond the ends they are 1, explained."""
    padded = np.pad(values_N, 2, constant_values=1.0)
    return (padded[:-4] + padded[1:-3] + padded[3:-1] + padded[4:]) / 4


def _apart(frames: list[int], least: float) -> list[int]:
    """Frames at least so far from the start and from each other, sorted; those that come first in the list win."""
    chosen = [0]
    for frame in frames:
        if all(abs(frame - other) >= max(least, 1) for other in chosen):
            chosen.append(frame)
    return sorted(chosen[1:])
