"""Use PySceneDetect's detectors in our scan, and our detector in PySceneDetect.

A scan decodes a source once and keeps measures of its frames, not pictures. So when scenes are divided, PySceneDetect's
detectors get those measures, frame by frame, instead of the pictures from which they would compute them (`detect_cuts`).
`GameDetector` is our detector for their `SceneManager`:

    from scenedetect import SceneManager, open_video
    from curation.partition.detectors import GameDetector

    manager = SceneManager()
    manager.add_detector(GameDetector())
    manager.detect_scenes(open_video("clip.mp4"))
    print(manager.get_scene_list(start_in_scene=True))

Their command line has no way to add a detector.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import cv2
import numpy as np
from scenedetect import FrameTimecode, SceneDetector
from scenedetect.detector import FlashFilter
from scenedetect.detectors import AdaptiveDetector, ContentDetector, HashDetector, ThresholdDetector

from curation import storage
from curation.errors import Unavailable
from curation.partition.cuts import (
    LOOK_AHEAD,
    CutMeasures,
    CutMeter,
    SceneSettings,
    cut_candidates,
    cut_frames,
    keep_apart,
)
from curation.partition.optical_flow import MAX_HEIGHT, WIDTH

_HASH_BITS, _HASH_LOWPASS = 8, 2  # HashDetector's own defaults
_TRANSNET_SIZE = 48, 27  # to which TransnetV2Detector scales pictures, so that ours pass through it unchanged
_MAX_FPS = 240.0  # PySceneDetect's own assumption, where it sizes buffers for a length in seconds
_CONTENT, _FLOW_MATCH, _LAYOUT = "game_content", "game_flow_match", "game_layout"


def frame_measure(detector: str) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return the function that measures a frame uint8 [H, W, 3] for a detector; None where content scores are enough.

    hash: the bits of the perceptual hash, packed, uint8 [8]. threshold: the mean of all channels, float64 [1]. transnet: the
    picture that the network sees, uint8 [27, 48, 3], blue first as PySceneDetect gives it: 0.4 GB an hour at 30 fps.
    """
    return {"hash": _hash, "threshold": _mean, "transnet": _thumbnail}.get(detector)


def _thumbnail(rgb: np.ndarray) -> np.ndarray:
    return cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), _TRANSNET_SIZE, interpolation=cv2.INTER_AREA)


def _hash(rgb: np.ndarray) -> np.ndarray:
    return np.packbits(HashDetector.hash_frame(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), _HASH_BITS, _HASH_LOWPASS))


def _mean(rgb: np.ndarray) -> np.ndarray:
    return np.array([np.mean(rgb)])


def detect_cuts(
    measures: CutMeasures, fps: float, settings: SceneSettings, detector_measure: np.ndarray | None = None
) -> list[int]:
    """Return the frames at which a new scene begins, sorted, never frame 0, by the detector that the settings name.

    measures: of N frames without a gap in time. fps: frames per second. detector_measure [N, K]: what `frame_measure` gave;
    ValueError where the detector needs it and it is None.
    """
    if settings.detector == "game":
        return cut_frames(*measures, fps, settings)
    values = measures.content_N
    if frame_measure(settings.detector):
        if detector_measure is None:
            raise ValueError(f"the scan was not made for the detector {settings.detector!r}; scan with ScanSettings.detector")
        values = detector_measure
    detector, count = _library_detector(settings), len(values)
    cuts: list[FrameTimecode] = []
    for number, value in enumerate(values):
        cuts += detector.process_frame(FrameTimecode(number, fps), np.asarray(value))
    if count:
        cuts += detector.post_process(FrameTimecode(count - 1, fps))
    found = {cut.frame_num for cut in cuts if 0 < cut.frame_num < count}
    return sorted(_apart(found, count, fps, settings) if settings.detector == "transnet" else found)


def _apart(cuts: set[int], count: int, fps: float, settings: SceneSettings) -> set[int]:
    """Return the cuts that PySceneDetect's filter leaves, which sees every frame here, as in its other detectors.

    TransnetV2Detector itself shows it the cuts alone, and loses the first of them. The last frame begins no scene: the network
    sees black pictures behind it.
    """
    mode = FlashFilter.Mode[settings.transnet.filter_mode.upper()]
    flashes = FlashFilter(mode, float(settings.min_scene_s))
    cuts = cuts - {count - 1}
    return {cut.frame_num for number in range(count) for cut in flashes.filter(FrameTimecode(number, fps), number in cuts)}


def _library_detector(settings: SceneSettings) -> SceneDetector:
    min_scene_s = float(settings.min_scene_s)  # an integer would count frames
    adaptive, content, threshold = settings.adaptive, settings.content, settings.threshold
    if settings.detector == "adaptive":
        return _StoredAdaptive(adaptive.adaptive_threshold, min_scene_s, adaptive.window_width, adaptive.min_content_val)
    if settings.detector == "content":
        mode = FlashFilter.Mode[content.filter_mode.upper()]
        return _StoredContent(content.threshold, min_scene_s, filter_mode=mode)
    if settings.detector == "hash":
        return _StoredHash(settings.hash.threshold, _HASH_BITS, _HASH_LOWPASS, min_scene_s)
    if settings.detector == "transnet":
        return _transnet_detector(settings)
    method = ThresholdDetector.Method[threshold.method.upper()]
    # It takes the mean of what it is given, and the mean of a single number is that number.
    return ThresholdDetector(threshold.threshold, min_scene_s, threshold.fade_bias, method=method)


def _transnet_detector(settings: SceneSettings) -> SceneDetector:
    """Return PySceneDetect's TransNetV2. Unavailable where onnxruntime or the file of the network is missing."""
    from scenedetect.detectors.transnet_v2 import TransnetV2Detector

    transnet = settings.transnet
    if not find_spec("onnxruntime"):
        raise Unavailable("the detector transnet needs onnxruntime: pip install 'gamecraft[onnx]'")
    try:
        network = storage.read(transnet.model_path)  # as bytes, so that it may lie in S3
    except FileNotFoundError as error:
        raise Unavailable(f"partition.scenes.transnet.model_path: {transnet.model_path} does not exist") from error
    return TransnetV2Detector(network, None, transnet.threshold, 0.0)  # `_apart` does what a length would


class _StoredScore:
    """Makes a content score of the "frame" that it is given, which is one."""

    def _calculate_frame_score(self, timecode: FrameTimecode, frame_img: np.ndarray) -> float:  # noqa: ARG002 - their signature
        return float(frame_img)


class _StoredContent(_StoredScore, ContentDetector):  # type: ignore[misc]
    pass


class _StoredAdaptive(_StoredScore, AdaptiveDetector):  # type: ignore[misc]
    pass


class _StoredHash(HashDetector):  # type: ignore[misc]
    @staticmethod
    def hash_frame(frame_img: np.ndarray, hash_size: int, factor: int) -> np.ndarray:  # noqa: ARG004 - their signature
        return np.unpackbits(frame_img)


class GameDetector(SceneDetector):  # type: ignore[misc]
    """Our detector of cuts in games, for PySceneDetect's `SceneManager`.

    On equal pictures it gives the cuts of `cut_frames`. They are reported `LOOK_AHEAD` frames and at least `min_scene_s` late.
    SceneManager shrinks frames to 256 px first; `manager.auto_downscale = False` lets the detector average them down to
    320 px wide, as our scan does. With a StatsManager, it stores game_content, game_flow_match (1 where it decides nothing) and
    game_layout of every frame.
    """

    def __init__(self, settings: SceneSettings | None = None) -> None:
        """Make a detector. settings: the limits on cuts; `detector` and the lengths of clips in it are not used."""
        super().__init__()
        self._settings = settings or SceneSettings()
        self._meter = CutMeter(self._settings.min_content)
        self._timecodes: list[FrameTimecode] = []  # of all frames that are not decided
        self._decided = 0
        self._first_number: int | None = None
        # Candidates that are too near to each other to be decided separately: frame, flow match, timecode.
        self._group: list[tuple[int, float, FrameTimecode]] = []

    def get_metrics(self) -> list[str]:
        """Return the names of the measures that a StatsManager gets."""
        return [_CONTENT, _FLOW_MATCH, _LAYOUT]

    @property
    def event_buffer_length(self) -> int:
        """How many frames SceneManager keeps for its callback."""
        return LOOK_AHEAD + int(np.ceil(self._settings.min_scene_s * _MAX_FPS))

    def process_frame(self, timecode: FrameTimecode, frame_img: np.ndarray) -> list[FrameTimecode]:
        """Take the next frame, uint8 [H, W, 3] in BGR. Return the cuts that it decides, all before it."""
        if self._first_number is None:
            self._first_number = timecode.frame_num
        self._timecodes.append(timecode)
        self._meter.add(cv2.cvtColor(_shrink(frame_img), cv2.COLOR_BGR2RGB))
        return self._decide(len(self._meter) - LOOK_AHEAD)

    def post_process(self, timecode: FrameTimecode) -> list[FrameTimecode]:  # noqa: ARG002 - their signature
        """Return the cuts among the last frames."""
        self._meter.finish()
        return [*self._decide(len(self._meter)), *self._close_group()]

    def _decide(self, until: int) -> list[FrameTimecode]:
        """Decide about all frames before `until`, whose measures are final."""
        cuts: list[FrameTimecode] = []
        for index in range(self._decided, until):
            before = min(index, LOOK_AHEAD)
            measures = self._meter.measures(index - before, index + LOOK_AHEAD)
            timecode = self._timecodes.pop(0)
            if self.stats_manager is not None:
                names = (_CONTENT, _FLOW_MATCH, _LAYOUT)
                self.stats_manager.set_metrics(
                    timecode, {name: float(values[before]) for name, values in zip(names, measures, strict=True)}
                )
            frame = timecode.frame_num - (self._first_number or 0)
            if self._group and frame - self._group[-1][0] >= self._min_distance(timecode):
                cuts += self._close_group()
            if cut_candidates(*measures, self._settings)[before] and frame >= self._min_distance(timecode):
                self._group.append((frame, float(measures.flow_match_N[before]), timecode))
        self._decided = max(self._decided, until)
        return cuts

    def _min_distance(self, timecode: FrameTimecode) -> float:
        return max(self._settings.min_scene_s * float(timecode.frame_rate), 1)

    def _close_group(self) -> list[FrameTimecode]:
        """Return the cuts among the candidates so far, which no later frame is near enough to change."""
        if not self._group:
            return []
        timecodes: dict[int, Any] = {frame: timecode for frame, _, timecode in self._group}
        by_match = [frame for frame, _, _ in sorted(self._group, key=lambda candidate: candidate[1])]
        min_distance = self._min_distance(self._group[0][2])
        self._group = []
        return [timecodes[frame] for frame in keep_apart(by_match, min_distance)]


def _shrink(bgr: np.ndarray) -> np.ndarray:
    """Average a frame down to 320 px wide, and to a height of no more than the scan allows. A smaller one stays as it is."""
    height, width = bgr.shape[:2]
    scale = min(1.0, WIDTH / width)
    size = max(1, round(width * scale)), max(1, min(round(height * scale), int(MAX_HEIGHT / WIDTH * width * scale)))
    return bgr if size == (width, height) else cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)
