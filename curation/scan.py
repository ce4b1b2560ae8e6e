"""The one pass over a source: every measurement that needs all of its pixels drinks from a single decode.

What is kept grows with the source by about 20 kB a second and never holds a picture: a content score and a luma histogram a
frame, flow in cells of 20 px ten times a second, one small JPEG a second, and running sums for the viewport.
"""

from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import cv2
import numpy as np

from curation import video
from curation.flow import WIDTH, CameraMotion, Flow, FlowSettings, camera_motion, cell_means, load_flow
from curation.iqa import Iqa, IqaLog, IqaSettings, load_iqa
from curation.quality import LumaLog, luma
from curation.scenes import EXPLAINED, ContentScore, Matcher, small
from curation.video import Painter, Source
from curation.viewport import Viewport, ViewportWatch

# Frames closer than this make one pair of flow skip to the next: 60 fps captures often show each game frame twice.
_MIN_PAIR_GAP_S = 1 / 37
_VIEWPORT_EVERY_S = 0.5
_THUMBNAIL_EVERY_S = 1.0
_JPEG_QUALITY = 70
_MAX_HEIGHT = 720
# Content score from which on a frame may be a cut and is matched with those before; in games one frame in three reaches it.
_MAYBE_CUT = 15.0
_FLASH_FRAMES = 3  # a picture that is back after so many frames was a flash, a blast or a hit, not a cut


@dataclass(frozen=True)
class ScanSettings:
    """What a pass does that costs: which flow, and which look at the picture's quality."""

    flow: FlowSettings = field(default_factory=FlowSettings)
    iqa: IqaSettings = field(default_factory=IqaSettings)


@dataclass(frozen=True)
class Thumbnail:
    """A small JPEG of the frame at `time_s`."""

    time_s: float
    jpeg: bytes


@dataclass(frozen=True)
class Signals:
    """What one pass measured. N frames, P pairs of flow, R x C cells of 20 px at 320 wide, B luma bins, S quality samples.

    times_s [N]; content [N]; explained [N] (by `scenes.Matcher`, 1 where it was not asked); luma_bins [N, B]; pair_frame [P],
    the later frame of a pair; cells [P, R, C, 2] px/frame at 320 wide; iqa_times_s [S] and iqa_rows [S, 1 + FAULTS] (by an
    `iqa.Iqa`); end_s, the end of the last frame; fps, the median rate; damage, as `video.damage` counts it.
    """

    source: Source
    times_s: np.ndarray
    content: np.ndarray
    explained: np.ndarray
    luma_bins: np.ndarray
    pair_frame: np.ndarray
    cells: np.ndarray
    viewport: Viewport
    iqa_times_s: np.ndarray
    iqa_rows: np.ndarray
    thumbnails: tuple[Thumbnail, ...]
    flow: str
    iqa: str
    fps: float
    end_s: float
    damage: dict[str, int]

    @property
    def pair_times_s(self) -> np.ndarray:
        return self.times_s[self.pair_frame]

    @cached_property
    def motion(self) -> CameraMotion:
        """The camera's motion in each pair, HUD and bars masked."""
        return camera_motion(self.cells, static_weight(self.viewport, *self.cells.shape[1:3]))


class _CutSignals:
    """Content score of every frame, and for frames that score high how far those before explain them.

    The best of three matches: with the frame before; with the one before a flash that may have ended here; and, once it is
    seen, of the frame after a flash that may have begun here with the one before it. A cut parts all three.
    """

    def __init__(self) -> None:
        self._score, self._match = ContentScore(), Matcher()
        self._last: deque[np.ndarray] = deque(maxlen=_FLASH_FRAMES + 2)
        self.content, self.explained = array("d"), array("d")

    def add(self, rgb: np.ndarray) -> None:
        self.content.append(self._score(rgb))
        self.explained.append(0.0 if self._asked(-1) else 1.0)
        self._last.append(small(rgb))
        if self._asked(-1):
            self._try(-1, before=-2, after=-1)
            self._try(-1, before=0, after=-1)
        if self._asked(-1 - _FLASH_FRAMES):
            self._try(-1 - _FLASH_FRAMES, before=0, after=-1)

    def _asked(self, frame: int) -> bool:
        return len(self.content) > -frame and self.content[frame] >= _MAYBE_CUT

    def _try(self, frame: int, before: int, after: int) -> None:
        """Match two of the frames at hand on behalf of a third, unless that one is explained well enough."""
        if self.explained[frame] < EXPLAINED:
            self.explained[frame] = max(self.explained[frame], self._match(self._last[before], self._last[after]))


class _PairedFlow:
    """Takes flow between a frame and the next one that is not too close to it, `pairs_per_s` times a second."""

    def __init__(self, flow: Flow, pairs_per_s: float) -> None:
        self._flow, self._every_s = flow, 1 / pairs_per_s
        self._first: tuple[int, float, np.ndarray] | None = None
        self._due_s = 0.0
        self._shape = (1, 1, 2)
        self._cells = bytearray()
        self.frames = array("l")

    def add(self, index: int, time_s: float, rgb: np.ndarray) -> None:
        if self._first is not None and time_s - self._first[1] >= _MIN_PAIR_GAP_S:
            before, _, picture = self._first
            field = self._flow(picture, rgb) * (WIDTH / rgb.shape[1] / (index - before))
            cells = cell_means(field).astype(np.float16)
            self._shape = cells.shape
            self._cells += cells.tobytes()
            self.frames.append(index)
            self._first = None
        if self._first is None and time_s >= self._due_s:
            self._first = (index, time_s, rgb)
            self._due_s = max(self._due_s + self._every_s, time_s)

    def cells(self) -> np.ndarray:
        """All pairs: float16 [P, R, C, 2]."""
        return np.frombuffer(self._cells, np.float16).reshape(-1, *self._shape)


@lru_cache(maxsize=1)
def scan(uri: str, how: ScanSettings) -> Signals:
    """Decode a source once and measure it. The last result is kept, so that operators in a row share one pass.

    Raises `video.UnreadableVideo` where no frame can be had.
    """
    source = video.probe(uri)
    size = analysis_size(source)
    painter, cuts, lumas = Painter(source, size), _CutSignals(), LumaLog()
    paired, watch = _PairedFlow(_flow(how.flow), how.flow.pairs_per_s), ViewportWatch()
    looks = IqaLog(_iqa(how.iqa))
    times = array("d")
    thumbnails = []
    damage = video.damage.copy()
    for index, (time_s, frame) in enumerate(video.decode(uri, purpose="scan")):
        rgb = painter(frame)
        gray = luma(rgb)
        times.append(time_s)
        cuts.add(rgb)
        lumas.add(gray)
        paired.add(index, time_s, rgb)
        if _due(times, _VIEWPORT_EVERY_S):
            watch.add(gray)
        if _due(times, how.iqa.every_s):
            looks.add(time_s, frame)
        if _due(times, _THUMBNAIL_EVERY_S):
            thumbnails.append(Thumbnail(time_s, _jpeg(rgb)))
    if not times:
        raise video.UnreadableVideo("no frame could be decoded")
    step_s = float(np.median(np.diff(times))) if len(times) > 1 else 1 / (source.fps or 30)
    return Signals(
        source=source,
        times_s=np.asarray(times),
        content=np.asarray(cuts.content),
        explained=np.asarray(cuts.explained),
        luma_bins=lumas.result(),
        pair_frame=np.asarray(paired.frames, np.int64),
        cells=paired.cells(),
        viewport=watch.result(),
        iqa_times_s=looks.times_s(),
        iqa_rows=looks.rows(),
        thumbnails=tuple(thumbnails),
        flow=_flow(how.flow).name,
        iqa=_iqa(how.iqa).name,
        fps=1 / step_s,
        end_s=times[-1] + step_s,
        damage=dict(video.damage - damage),
    )


def prepare(how: ScanSettings) -> None:
    """Load what a pass needs, before any source is opened: weights that are missing are nobody's footage's fault."""
    _flow(how.flow)
    _iqa(how.iqa)


@lru_cache(maxsize=1)
def _flow(settings: FlowSettings) -> Flow:
    return load_flow(settings)


@lru_cache(maxsize=1)
def _iqa(settings: IqaSettings) -> Iqa:
    return load_iqa(settings)


def analysis_size(source: Source) -> tuple[int, int]:
    """320 wide, as high as the aspect asks, within reason: a strip of 1 x 5000 must not become a wall."""
    return WIDTH, int(np.clip(round(source.height * WIDTH / source.width / 2) * 2, 16, _MAX_HEIGHT))


def _due(times_s: Sequence[float], every_s: float) -> bool:
    """Whether the newest frame is the first of its period."""
    return len(times_s) == 1 or int(times_s[-1] / every_s) > int(times_s[-2] / every_s)


def _jpeg(rgb: np.ndarray) -> bytes:
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert ok, rgb.shape
    return bytes(data)


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
    scan.cache_clear()
    video.forget()
