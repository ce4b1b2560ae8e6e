"""The entry point on files: footage recorded here with the engine's true poses, and files that are no footage."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from bench import camera_takes
from bench.camera import source_views
from bench.trajectory import errors
from curation.cameras.annotate import annotate
from curation.cameras.camera import Camera, CameraFacts, from_npz, to_npz
from curation.cameras.clip import ClipView
from curation.cameras.klt import estimate
from curation.cameras.settings import CameraSettings
from curation.media import decode
from curation.media.decode import Span
from curation.media.viewport import Rect

SETTINGS = CameraSettings(backend="klt")
Write = Callable[..., str]


@pytest.fixture(scope="session")
def take(tmp_path_factory: pytest.TempPathFactory) -> camera_takes.Take:
    """Six seconds of walking and turning, HUD and weapon drawn."""
    pytest.importorskip("vizdoom", reason="vizdoom is in the demo extra")
    place = camera_takes.Place("freedoom2", "MAP32", hud=True)
    return camera_takes.record(tmp_path_factory.mktemp("take"), place, "mix", 1, (35.0,))[0]


def view(uri: str, size: tuple[int, int], seconds: float = 9.0) -> ClipView:
    whole = Rect(0, 0, *size)
    return ClipView(uri, Span(0, seconds), whole, whole)


def pictures(take: camera_takes.Take, count: int) -> np.ndarray:
    return decode.read_frames(str(take.file), Span(0, (count - 0.5) / 35)).rgb


def test_a_walk_behind_hud_and_weapon_is_ok_and_right(take: camera_takes.Take) -> None:
    [(facts, camera)] = annotate(source_views([take]), SETTINGS)
    assert camera is not None
    found = errors(camera.pose, take.pose)
    assert (facts.status, facts.focal_source, camera.scale_source) == ("ok", "clip", "speed")
    assert (found.ate < 0.003, found.rpe_rot_deg < 0.05) == (True, True)
    assert facts.focal_px == pytest.approx(take.focal_px, rel=0.015)
    assert len(camera.times_s) == len(take.pose)
    assert camera.times_s == pytest.approx(take.time_s, abs=1e-3)
    # The status bar takes 77 rows off the view: its middle is the optical centre.
    assert camera.intrinsics[0, 2:] == pytest.approx((320, 201.5), abs=1.5)
    assert from_npz(to_npz(camera)).pose == pytest.approx(camera.pose, abs=1e-4)


def test_the_same_clip_gives_the_same_poses(take: camera_takes.Take) -> None:
    short = [clip._replace(span=Span(0, 2)) for clip in source_views([take])]
    (_, one), (_, other) = (annotate(short, SETTINGS)[0] for _ in range(2))
    assert one is not None
    assert other is not None
    assert np.abs(one.pose - other.pose).max() <= 1e-6


def test_a_smaller_decode_gives_intrinsics_of_the_source(take: camera_takes.Take) -> None:
    [(facts, camera)] = annotate(source_views([take]), CameraSettings(backend="klt", max_width=480, fov_deg=90))
    assert camera is not None
    assert (facts.focal_source, camera.size) == ("hint", (640, 480))
    assert camera.intrinsics[0] == pytest.approx([320, 320, 320, 201.5], abs=1.5)


def test_a_character_before_the_camera_is_not_the_world(take: camera_takes.Take, write: Write, tmp_path: Path) -> None:
    """A third-person game: someone textured walks in the middle of the picture and swings about."""
    shown = pictures(take, 105).copy()
    rng = np.random.default_rng(5)
    body = cv2.resize(rng.integers(0, 256, (20, 10, 3), np.uint8), (90, 180), interpolation=cv2.INTER_CUBIC)
    for k, picture in enumerate(shown):
        x, y = 275 + round(8 * np.sin(k / 5)), 190 + round(6 * abs(np.sin(k / 3)))
        picture[y : y + 180, x : x + 90] = body
    uri = write(tmp_path / "third.mp4", shown, np.arange(105) / 35)
    clip = source_views([take])[0]._replace(uri=uri, span=Span(0, 3))
    [(facts, camera)] = annotate([clip], SETTINGS)
    assert camera is not None
    assert facts.status in ("ok", "ok_part", "suspect")
    assert facts.ok == bool(camera.spans)
    for span in camera.spans:
        found = errors(camera.pose[span.start : span.end], take.pose[span.start : span.end])
        assert (found.ate < 0.01, found.rpe_rot_deg < 0.3) == (True, True)


def test_a_cut_inside_a_clip_is_reported(take: camera_takes.Take, write: Write, tmp_path: Path) -> None:
    shown = pictures(take, 70)
    turned = np.concatenate([shown[:35], shown[35:, ::-1, ::-1]])
    uri = write(tmp_path / "cut.mp4", turned, np.arange(70) / 35)
    [(facts, camera)] = annotate([view(uri, (640, 480))], SETTINGS)
    assert (facts.status, camera) == ("failed:tracks break off at 1.00 s: a cut, or too fast a turn", None)


def black(count: int) -> np.ndarray:
    return np.zeros((count, 96, 160, 3), np.uint8)


@pytest.mark.parametrize(("count", "status"), [(60, "low_texture"), (5, "failed:5 frames"), (1, "failed:1 frames")])
def test_a_black_and_a_short_clip(write: Write, tmp_path: Path, count: int, status: str) -> None:
    uri = write(tmp_path / "black.mp4", black(count), np.arange(count) / 30)
    [(facts, camera)] = annotate([view(uri, (160, 96))], SETTINGS)
    assert facts.status.startswith(status)
    assert camera is None


def test_a_menu_is_static_and_its_focal_length_unknown(write: Write, tmp_path: Path, moving: Any) -> None:
    picture = next(iter(moving(1, 320, 240)))
    uri = write(tmp_path / "menu.mp4", [picture] * 60, np.arange(60) / 30)
    [(facts, camera)] = annotate([view(uri, (320, 240))], SETTINGS)
    assert (facts.status, facts.model, facts.why) == ("suspect", "static", "focal length not observable")
    assert camera is not None
    assert not camera.pose[:, :3, 3].any()


def test_what_cannot_be_read_and_an_empty_span_are_reasons(write: Write, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    uri = write(tmp_path / "black.mp4", black(30), np.arange(30) / 30)
    found = annotate([view(str(tmp_path / "text.mp4"), (2, 2)), view(uri, (160, 96))._replace(span=Span(50, 60))], SETTINGS)
    assert found[0][0].status.startswith("failed:cannot be opened")
    assert found[1][0].status == "failed:0 frames in 0.00 s are too few"


@pytest.mark.parametrize(
    ("later_s", "scene", "source"),
    [(0.0, 0, "linked"), (4e-4, 0, "linked"), (0.1, 0, "speed"), (0.0, 1, "speed")],
    ids=["touching", "through a file", "a gap", "another scene"],
)
def test_only_clips_that_touch_share_a_scale(monkeypatch: pytest.MonkeyPatch, later_s: float, scene: int, source: str) -> None:
    """A fast walk, then one that slows down at once to a quarter of it."""
    whole, fps = Rect(0, 0, 640, 480), 30
    clips = [ClipView("a", Span(0, 6), whole, whole), ClipView("a", Span(6 + later_s, 12), whole, whole, None, scene)]
    speeds = np.full(180, 4.0), np.concatenate([np.linspace(4, 1, 14), np.full(166, 1.0)])
    monkeypatch.setattr(estimate, "annotate", lambda *_: [(CameraFacts("ok"), walked(speed, fps)) for speed in speeds])
    (_, fast), (_, slow) = annotate(clips, SETTINGS)
    assert fast is not None
    assert slow is not None
    assert (fast.scale_source, slow.scale_source) == ("speed", source)


def walked(speed: np.ndarray, fps: float) -> Camera:
    count = len(speed)
    pose = np.tile(np.eye(4), (count, 1, 1))
    pose[1:, 2, 3] = np.cumsum(speed[:-1]) / fps
    known = np.ones(count, bool), np.zeros(count, np.float32), np.array([0])
    return Camera(pose, np.ones((count, 4)), np.arange(count) / fps, (640, 480), (0, 0, 640, 480), *known)


def test_the_backend_none_is_a_status(tmp_path: Path) -> None:
    [(facts, camera)] = annotate([view(str(tmp_path / "x.mp4"), (2, 2))], CameraSettings(backend="none"))
    assert (facts.status, camera) == ("skipped:the backend is none", None)
