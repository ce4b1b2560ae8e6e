"""Tracks of made scenes: random points, a known path, a known camera."""

from collections.abc import Callable

import numpy as np
import pytest

from curation.cameras.camera import CameraFacts
from curation.cameras.clip import ClipView
from curation.cameras.klt.clip_tracks import ClipTracks, classify_tracks
from curation.cameras.klt.tracks import TrackingView, Tracks
from curation.cameras.rotation import exponential
from curation.cameras.settings import CameraSettings
from curation.media.decode import Span
from curation.media.viewport import Rect

SIZE = (640, 480)
FOCAL = 320.0


@pytest.fixture
def path() -> Callable[..., np.ndarray]:
    """Camera-to-world poses [N, 4, 4]: yaw swings by `turn_deg`; each frame moves `forward` and `right` in its own axes."""

    def made(count: int = 90, turn_deg: float = 0.0, forward: float = 0.0, right: float = 0.0) -> np.ndarray:
        yaw = np.radians(turn_deg) / 2 * np.sin(np.arange(count) / count * 2 * np.pi)
        pose = np.tile(np.eye(4), (count, 1, 1))
        pose[:, :3, :3] = exponential(np.stack([0 * yaw, yaw, 0 * yaw], 1))
        step = pose[:, :3, :3] @ np.array([right, 0.0, forward])
        pose[1:, :3, 3] = np.cumsum(step[:-1], 0)
        return pose

    return made


@pytest.fixture
def tracked() -> Callable[..., Tracks]:
    """The tracks that a path gives in a box of points, with noise in px; `overlay` tracks are fixed to the screen."""

    def made(pose: np.ndarray, fps: float = 30.0, noise: float = 0.2, overlay: int = 0, points: int = 2500) -> Tracks:
        rng = np.random.default_rng(3)
        middle = pose[:, :3, 3].mean(0)
        world = middle + rng.uniform(-1, 1, (points, 3)) * [40, 12, 40]
        local = np.einsum("nji,npj->npi", pose[:, :3, :3], world[None] - pose[:, None, :3, 3])
        xy = FOCAL * local[..., :2] / np.maximum(local[..., 2:], 1e-3) + np.array(SIZE) / 2
        seen = (local[..., 2] > 2) & (xy > 4).all(-1) & (xy < np.array(SIZE) - 4).all(-1)
        still = rng.uniform([200, 300], [440, 460], (overlay, 2))
        xy = np.concatenate([xy, np.broadcast_to(still, (len(pose), overlay, 2))], 1)
        seen = np.concatenate([seen, np.ones((len(pose), overlay), bool)], 1)
        xy = xy + rng.normal(0, noise, xy.shape)
        parts = [_runs(column) for column in seen.T]
        spans = [(track, a, b) for track, found in enumerate(parts) for a, b in found if b - a >= 4]
        flat = np.concatenate([xy[a:b, track] for track, a, b in spans] or [np.empty((0, 2))]).astype(np.float32)
        start, length = (np.array(values, int) for values in ([a for _, a, _ in spans], [b - a for _, a, b in spans]))
        return Tracks(np.arange(len(pose)) / fps, flat, start, length)

    return made


def _runs(seen: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], seen.astype(int), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


@pytest.fixture
def classified() -> Callable[[Tracks], ClipTracks | CameraFacts]:
    """What the estimator keeps of such a clip."""

    def made(tracks: Tracks) -> ClipTracks | CameraFacts:
        whole = Rect(0, 0, *SIZE)
        view = TrackingView(SIZE, whole, np.full(SIZE[::-1], 255, np.uint8))
        return classify_tracks(ClipView("made", Span(0, 9), whole, whole), view, (1.0, 1.0), tracks, CameraSettings())

    return made
