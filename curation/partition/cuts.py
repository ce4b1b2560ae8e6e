"""Detect cuts in a source (paper section 3.4, partition).

PySceneDetect's content score is computed while the source is decoded. Games flash, jolt and turn fast, and a content score
mistakes these for cuts. So a frame that scores high is a cut only if no optical flow, however large, warps the frames before
into it, while flow does work for the frames around it. The decision is a pure function of three arrays. PySceneDetect's own
detectors can be chosen instead (`curation.partition.detectors`).
"""

import math
from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np

from curation.partition.optical_flow import pixel_grid

# Share of the picture that must have changed. In the dark, a grey level of coding noise swings the hue, and with it the content
# score, but no cut changes so little.
_MIN_CHANGED = 0.05
_MATCH_WIDTH = 160  # px; DIS and local correlation work as well at half the analysis width, in a quarter of the time
_PATCH_PX = 7  # the window of the local correlation: larger ones blur small things, smaller ones match by chance
_FLAT = 9.0  # grey levels squared; a patch that varies less, both before and after, does not count
GOOD_MATCH = 0.5  # no cut of the tuning set comes near it (0.38 at most), so there is no need to search further
_LAYOUT_SIZE = (8, 6)  # px, width and height
# Frames next to a cut are matched from this content score. In games one frame in three reaches it.
_MIN_NEIGHBOUR_SCORE = 15.0
FLASH_FRAMES = 3  # if the picture is back after so many frames, it was a flash, an explosion or a hit, not a cut
_NEIGHBOURS = 2  # frames on either side with which a frame's flow match is compared
# The frames after a frame that decide whether it is a cut. Its own flow match may depend on as many.
LOOK_AHEAD = FLASH_FRAMES + _NEIGHBOURS
# The frames before a frame that its flow match may depend on: on the flash before a possible cut two frames earlier.
LOOK_BACK = FLASH_FRAMES + 1 + _NEIGHBOURS

DETECTORS = ("game", "adaptive", "content", "hash", "threshold", "transnet")


def _check_filter_mode(mode: str) -> None:
    if mode not in ("merge", "suppress"):
        raise ValueError(f"filter_mode must be merge or suppress, not {mode!r}")


@dataclass(frozen=True)
class AdaptiveSettings:
    """PySceneDetect's AdaptiveDetector, with its names and defaults."""

    adaptive_threshold: float = 3.0  # a cut's content score, as a multiple of the mean score of the frames around it
    window_width: int = 2  # frames on either side, of which the mean is taken
    min_content_val: float = 15.0  # the content score below which a frame is never a cut

    def __post_init__(self) -> None:
        if self.window_width < 1:
            raise ValueError(f"window_width must be at least 1, not {self.window_width}")


@dataclass(frozen=True)
class ContentSettings:
    """PySceneDetect's ContentDetector, with its names and defaults."""

    threshold: float = 27.0  # the content score from which a frame is a cut
    # merge: cuts that follow each other within min_scene_s are one, at the last of them. suppress: at the first.
    filter_mode: str = "merge"

    def __post_init__(self) -> None:
        _check_filter_mode(self.filter_mode)


@dataclass(frozen=True)
class HashSettings:
    """PySceneDetect's HashDetector, with its names and defaults; hashes have 8 x 8 bits."""

    threshold: float = 0.35  # the share of bits in which the hashes of a cut and of the frame before differ


@dataclass(frozen=True)
class ThresholdSettings:
    """PySceneDetect's ThresholdDetector, with its names and defaults. It detects fades, not cuts."""

    threshold: int = 12  # the mean of red, green and blue (0 to 255) below which the picture has faded out
    fade_bias: float = 0.0  # where between fade-out (-1) and fade-in (1) a new scene begins
    method: str = "floor"  # floor: scenes fade to black. ceiling: to white, a mean of at least `threshold`.

    def __post_init__(self) -> None:
        if self.method not in ("floor", "ceiling"):
            raise ValueError(f"method must be floor or ceiling, not {self.method!r}")
        if not -1 <= self.fade_bias <= 1:
            raise ValueError(f"fade_bias must be from -1 to 1, not {self.fade_bias:g}")


@dataclass(frozen=True)
class TransnetSettings:
    """PySceneDetect's TransnetV2Detector, with its names and defaults. It needs onnxruntime (the extra `onnx`)."""

    model_path: str = ""  # the network as an ONNX file, a path or s3:// (docs/scenes.md says where it is)
    threshold: float = 0.5  # the network's output from which a frame belongs to a cut
    # merge: cuts that follow each other within min_scene_s are one, at the last of them. suppress: at the first.
    filter_mode: str = "merge"

    def __post_init__(self) -> None:
        _check_filter_mode(self.filter_mode)


@dataclass(frozen=True)
class SceneSettings:
    """How cuts are detected and scenes divided into clips.

    The limits on cuts were chosen on recordings of Doom (279 cuts in 93 minutes), max_flow_match also on other engines
    (`synth.engines.label_set`, 118 cuts in 68 minutes): 84 % of those are found, with 0.2 false ones a minute.
    """

    # game: ours, for games, with the limits below. adaptive, content, hash, threshold, transnet: PySceneDetect's, each with the
    # section of its name, on pictures 320 px wide. All of them use min_scene_s.
    detector: str = "game"
    adaptive: AdaptiveSettings = field(default_factory=AdaptiveSettings)
    content: ContentSettings = field(default_factory=ContentSettings)
    hash: HashSettings = field(default_factory=HashSettings)
    threshold: ThresholdSettings = field(default_factory=ThresholdSettings)
    transnet: TransnetSettings = field(default_factory=TransnetSettings)
    # The content score below which a frame is never a cut. Frames that change less show doors and walls close up, with little
    # structure to match.
    min_content: float = 21.0
    # The largest flow match of a cut, as a share of the mean match of the two frames on either side.
    max_flow_match: float = 0.45
    # How much lower that share is where the coarse layout of colours is the same as in the frame before.
    same_layout_penalty: float = 0.10
    # Seconds; of cuts closer together than this, one is kept: by `game` the one with the lowest flow match.
    min_scene_s: float = 0.3
    clip_s: float = 6.0  # seconds; the length of a clip that is aimed for
    min_clip_s: float = 3.0  # seconds; shorter clips, which fill a whole scene, are rejected
    # Seconds by which a clip's length may differ from clip_s at little cost. No clip is longer than clip_s and twice this.
    slack_s: float = 1.0

    @property
    def longest_s(self) -> float:
        """The length in seconds that a clip may have to keep an interaction whole."""
        return self.clip_s + 2 * self.slack_s

    def __post_init__(self) -> None:
        if self.detector not in DETECTORS:
            raise ValueError(f"detector must be one of {', '.join(DETECTORS)}, not {self.detector!r}")
        if self.detector == "transnet" and not self.transnet.model_path:
            raise ValueError("transnet.model_path is missing: the ONNX file of the network (docs/scenes.md says where it is)")
        if self.slack_s < 0 or self.min_scene_s < 0:
            raise ValueError(f"slack_s and min_scene_s must not be negative, not {self.slack_s:g}, {self.min_scene_s:g}")
        if not 0 < 2 * self.min_clip_s <= self.clip_s + self.slack_s:
            largest = (self.clip_s + self.slack_s) / 2
            raise ValueError(
                f"min_clip_s must be positive and at most (clip_s + slack_s) / 2 = {largest:g}, not {self.min_clip_s:g}"
            )


class ContentScore:
    """PySceneDetect's content score of consecutive frames: mean absolute change of hue, saturation and value.

    It is computed here and not by their ContentDetector, which takes 218 us for a frame of 320 x 180 px where this takes 75.
    The two are equal to the bit at 320 x 180, and within 2e-14 at every size: OpenCV multiplies by one over the area.
    """

    def __init__(self) -> None:
        self._before: np.ndarray | None = None

    def __call__(self, rgb: np.ndarray) -> float:
        """Return the score of a frame uint8 [H, W, 3] against the one before; 0 for the first."""
        hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
        before, self._before = self._before, hsv
        return 0.0 if before is None else sum(cv2.mean(cv2.absdiff(hsv, before))[:3]) / 3


class LayoutSimilarity:
    """Correlation of the coarse layouts of colours of a frame and the one before, -1 to 1."""

    def __init__(self) -> None:
        self._before: np.ndarray | None = None

    def __call__(self, rgb: np.ndarray) -> float:
        """Return the similarity of a frame uint8 [H, W, 3] to the one before; 1 for the first."""
        coarse = cv2.resize(rgb, _LAYOUT_SIZE, interpolation=cv2.INTER_AREA).astype(np.float64)
        coarse -= coarse.mean()
        before, self._before = self._before, coarse
        if before is None:
            return 1.0
        spread = math.sqrt(float((before * before).sum() * (coarse * coarse).sum()))
        return float((before * coarse).sum()) / spread if spread else 0.0


class FlowMatcher:
    """Measures how well optical flow warps one frame into another: 1 fully, 0 not at all. All frames have one size."""

    def __init__(self) -> None:
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._dis.setFinestScale(1)  # the preset's 2 is for frames twice as wide

    def __call__(self, before: np.ndarray, after: np.ndarray) -> float:
        """Return the local correlation of two `match_image`s along the flow between them, over what changed (so not the HUD).

        A poor match is tried again from the large shifts that fit best, because DIS alone loses track at about 40 px.
        """
        changed = _changed_mask(before, after)
        if changed.mean() < _MIN_CHANGED:
            return 1.0
        match = self._match_from((0.0, 0.0), before, after, changed)
        if match >= GOOD_MATCH:
            return match
        return max(match, *(self._match_from(shift, before, after, changed) for shift in _large_shifts(before, after)))

    def _match_from(self, shift: tuple[float, float], before: np.ndarray, after: np.ndarray, changed: np.ndarray) -> float:
        # Always pass a start: without one, OpenCV 5 starts from the result of the call before.
        start = np.full((*before.shape, 2), shift, np.float32)
        return _correlation(before, after, self._dis.calc(after, before, start), changed)


def match_image(rgb: np.ndarray) -> np.ndarray:
    """Convert a frame for `FlowMatcher`: uint8 [H, W, 3] -> gray uint8 [h, 160]."""
    size = _MATCH_WIDTH, max(8, round(rgb.shape[0] * _MATCH_WIDTH / rgb.shape[1]))
    return cv2.cvtColor(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)


def _changed_mask(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return where two frames differ, in patches rather than single pixels: bool [h, w]."""
    differs = (cv2.absdiff(before, after) > 8).astype(np.uint8)
    return cv2.erode(cv2.dilate(differs, np.ones((5, 5))), np.ones((3, 3))) > 0


def _correlation(before: np.ndarray, after: np.ndarray, flow: np.ndarray, changed: np.ndarray) -> float:
    """Return the mean local correlation of `after` with `before` warped along the flow. Negative values count as 0.

    A flash does not lower it. The mean is over what changed and was in view before: after a fast turn half the picture is
    new, and the other half decides.
    """
    at = pixel_grid(*before.shape) + flow
    a, b = cv2.remap(before, at, None, cv2.INTER_LINEAR).astype(np.float32), after.astype(np.float32)
    mean_a, mean_b = _box(a), _box(b)
    spread_a, spread_b = (np.maximum(_box(image * image) - mean**2, 0) for image, mean in ((a, mean_a), (b, mean_b)))
    correlation = (_box(a * b) - mean_a * mean_b) / (np.sqrt(spread_a * spread_b) + 1)
    counts = changed & (np.maximum(spread_a, spread_b) > _FLAT)
    counts &= (at >= 0).all(2) & (at[..., 0] <= before.shape[1] - 1) & (at[..., 1] <= before.shape[0] - 1)
    return float(np.clip(correlation[counts], 0, 1).mean()) if counts.any() else 0.0


def _box(image: np.ndarray) -> np.ndarray:
    return cv2.boxFilter(image, -1, (_PATCH_PX, _PATCH_PX))


def _large_shifts(before: np.ndarray, after: np.ndarray) -> list[tuple[float, float]]:
    """Return where the upper and where the lower part of `after` was in `before`: px right and down, up to half the picture.

    For each part, the best match of three pieces is taken. The parts are separate because the lower one is often a weapon,
    which does not move.
    """
    a, b = (cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for image in (before, after))
    height, width = a.shape
    shifts = []
    for top in (height // 8, height // 2):
        matches = [_find_piece(a, b, left, top) for left in (0, width // 4, width // 2)]
        _, x, y = max(matches)
        shifts.append((2.0 * x, 2.0 * y))
    return shifts


def _find_piece(a: np.ndarray, b: np.ndarray, left: int, top: int) -> tuple[float, int, int]:
    """Find in `a` the piece of `b` at (left, top), which is half as wide and high as the picture.

    Returns how well it matches, and how far away it is: px right and down.
    """
    piece = b[top : top + a.shape[0] // 2, left : left + a.shape[1] // 2]
    _, best, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(a, piece, cv2.TM_CCOEFF_NORMED))
    return best, x - left, y - top


class CutMeasures(NamedTuple):
    """What `cut_frames` decides by: content scores, flow matches and layout similarities of N frames, each float64 [N]."""

    content_N: np.ndarray
    flow_match_N: np.ndarray
    layout_N: np.ndarray


class CutMeter:
    """Measures what `cut_frames` needs of consecutive frames, as they are decoded.

    Only frames that may decide about a cut are matched; the others have a flow match of 1. These are the frames with a high
    content score, and where one of them matches poorly, its neighbours. A flow match is the best of three matches: with the
    frame before; with the frame before a flash that may have ended here; and of the frame after a flash that may have begun
    here with the frame before it. At a cut all three are poor.
    """

    def __init__(self, min_content: float = SceneSettings.min_content) -> None:
        """min_content: the content score from which a frame may be a cut, as in `SceneSettings`."""
        self._min_content = min_content
        self._score, self._similarity, self._match = ContentScore(), LayoutSimilarity(), FlowMatcher()
        self._last: deque[np.ndarray] = deque(maxlen=LOOK_BACK + LOOK_AHEAD + 1)
        self._content, self._flow_match, self._layout = array("d"), array("d"), array("d")
        self._matched: set[int] = set()  # of the last frames

    def __len__(self) -> int:
        return len(self._content)

    def add(self, rgb: np.ndarray) -> None:
        """Measure a frame uint8 [H, W, 3], of the same size as those before."""
        self._layout.append(self._similarity(rgb))
        self._content.append(self._score(rgb))
        self._flow_match.append(1.0)
        self._last.append(match_image(rgb))
        self._match_candidate(len(self) - 1 - FLASH_FRAMES)
        self._match_neighbours(len(self) - 1 - LOOK_AHEAD)
        self._matched.discard(len(self) - 1 - len(self._last))

    def finish(self) -> None:
        """Match the last frames, as far as the frames after them exist. No frame is added after it."""
        for index in range(len(self) - FLASH_FRAMES, len(self)):
            self._match_candidate(index)
        for index in range(len(self) - LOOK_AHEAD, len(self)):
            self._match_neighbours(index)

    def measures(self, first: int = 0, last: int | None = None) -> CutMeasures:
        """Return a copy of the measures of frames [first, last); by default of all."""
        return CutMeasures(*(np.array(values[first:last]) for values in (self._content, self._flow_match, self._layout)))

    def _match_candidate(self, index: int) -> None:
        if index > 0 and self._content[index] >= self._min_content:
            self._match_frame(index)

    def _match_neighbours(self, index: int) -> None:
        """Match the frames around a frame that matches poorly."""
        if index < 0 or self._flow_match[index] >= GOOD_MATCH:
            return
        if self._content[index] < self._min_content:
            return  # a neighbour itself
        for near in range(max(1, index - _NEIGHBOURS), min(index + _NEIGHBOURS + 1, len(self))):
            if self._content[near] >= _MIN_NEIGHBOUR_SCORE:
                self._match_frame(near)

    def _match_frame(self, index: int) -> None:
        """Match a frame until a match is good enough."""
        if index in self._matched:
            return
        self._matched.add(index)
        pairs = ((index - 1, index), (index - 1 - FLASH_FRAMES, index), (index - 1, index + FLASH_FRAMES))
        oldest, best = len(self) - len(self._last), 0.0
        for before, after in pairs:
            if best < GOOD_MATCH and after < len(self):
                # At the source's start, the flash before may have begun with the first frame.
                best = max(best, self._match(self._last[max(before - oldest, 0)], self._last[after - oldest]))
        self._flow_match[index] = best


def cut_frames(
    scores_N: np.ndarray, flow_match_N: np.ndarray, layout_N: np.ndarray, fps: float, settings: SceneSettings
) -> list[int]:
    """Return the frames at which a new scene begins, never frame 0, from content scores, flow matches and layout similarities.

    Flow that also fails around a frame has lost track (an explosion, a fast spin), which is no sign of a cut. So a frame is
    compared with its neighbours. An explosion or a wall close up keeps the layout, which a cut seldom does. Of cuts too near
    to each other, the one with the lowest flow match is kept.
    """
    candidates = np.flatnonzero(cut_candidates(scores_N, flow_match_N, layout_N, settings))
    return keep_apart(sorted(candidates.tolist(), key=lambda f: float(flow_match_N[f])), settings.min_scene_s * fps)


def cut_candidates(scores_N: np.ndarray, flow_match_N: np.ndarray, layout_N: np.ndarray, settings: SceneSettings) -> np.ndarray:
    """Return which frames are cuts, whatever the distance between them: bool [N]."""
    limit = settings.max_flow_match - settings.same_layout_penalty * np.maximum(layout_N, 0)
    return (scores_N >= settings.min_content) & (flow_match_N <= limit * _neighbour_mean(flow_match_N))


def _neighbour_mean(values_N: np.ndarray) -> np.ndarray:
    """Return the mean of the two values on either side of each; beyond the ends they are 1, a full match."""
    padded = np.pad(values_N, _NEIGHBOURS, constant_values=1.0)
    return (padded[:-4] + padded[1:-3] + padded[3:-1] + padded[4:]) / 4


def keep_apart(frames: list[int], min_distance: float) -> list[int]:
    """Return, sorted, the frames at least so far from the start and from each other. The first in the list take precedence."""
    chosen = [0]
    for frame in frames:
        if all(abs(frame - other) >= max(min_distance, 1) for other in chosen):
            chosen.append(frame)
    return sorted(chosen[1:])
