import io
from dataclasses import replace

import numpy as np
import pytest

from curation.cameras.camera import Camera, CameraSpan, from_npz, to_npz


def _camera(frames=7):
    rng = np.random.default_rng(3)
    pose = np.tile(np.eye(4), (frames, 1, 1))
    pose[:, :3, 3] = np.cumsum(rng.normal(size=(frames, 3)), axis=0)
    pose[:, :3, 3] -= pose[0, :3, 3]
    angle = np.linspace(0, 1, frames)
    pose[:, 0, 0] = pose[:, 2, 2] = np.cos(angle)
    pose[:, 0, 2], pose[:, 2, 0] = np.sin(angle), -np.sin(angle)
    return Camera(
        pose=pose,
        intrinsics=np.tile([320.0, 320.0, 320.0, 201.5], (frames, 1)),
        times_s=np.arange(frames) / 35,
        size=(640, 480),
        viewport=(0, 0, 640, 403),
        valid=np.arange(frames) != 2,
        residual_px=np.linspace(0, 1, frames).astype(np.float32),
        keyframes=np.array([0, 5]),
        scale_to_unit=0.25,
        scale_source="speed",
    )


def test_a_camera_survives_its_file():
    camera = _camera()
    back = from_npz(to_npz(camera))
    np.testing.assert_allclose(back.pose, camera.pose, atol=1e-6)
    np.testing.assert_allclose(back.intrinsics, camera.intrinsics)
    np.testing.assert_array_equal(back.times_s, camera.times_s)
    np.testing.assert_array_equal(back.valid, camera.valid)
    np.testing.assert_array_equal(back.residual_px, camera.residual_px)
    np.testing.assert_array_equal(back.keyframes, camera.keyframes)
    assert (back.size, back.viewport, back.scale_to_unit, back.scale_source) == ((640, 480), (0, 0, 640, 403), 0.25, "speed")


def test_the_file_holds_the_controls_of_its_own_frames_in_the_data_sets_unit():
    camera = _camera()
    with np.load(io.BytesIO(to_npz(camera))) as file:
        found = file["controls"]
    assert found.shape == (7, 4)
    np.testing.assert_allclose(found, camera.controls, rtol=1e-5)
    np.testing.assert_allclose(camera.controls[:, 2], np.degrees(1 / 6) * 35, rtol=1e-6)
    assert np.hypot(*found[3, :2]) == pytest.approx(
        0.25 * np.hypot(*replace(camera, scale_to_unit=1.0).controls[3, :2]), rel=1e-5
    )


def test_equal_cameras_are_equal_bytes():
    assert to_npz(_camera()) == to_npz(_camera())


SPANS = (CameraSpan(0, 3, "general", 0, 0.25, "speed"), CameraSpan(4, 7, "rotation", 1))


def test_spans_survive_the_file():
    camera = replace(_camera(), spans=SPANS)
    assert from_npz(to_npz(camera)).spans == SPANS
    with np.load(io.BytesIO(to_npz(camera))) as file:
        assert file["span_end"].tolist() == [3, 7]
        assert file["span_scale_source"].tolist() == ["speed", "none"]


def test_a_file_of_version_1_has_no_spans():
    with np.load(io.BytesIO(to_npz(replace(_camera(), spans=SPANS)))) as file:
        older = {name: file[name] for name in file.files if not name.startswith("span_")} | {"version": np.int32(1)}
    buffer = io.BytesIO()
    np.savez(buffer, **older)
    back = from_npz(buffer.getvalue())
    assert back.spans == ()
    np.testing.assert_allclose(back.pose, _camera().pose, atol=1e-6)


def test_spans_follow_the_frames_that_are_left():
    camera = replace(_camera(), spans=SPANS)
    left = camera.at_times(camera.times_s[[1, 2, 3, 5, 6]]).spans
    assert [(span.start, span.end) for span in left] == [(0, 2), (3, 5)]
    assert [(span.start, span.end) for span in camera.at_times(camera.times_s[3:4]).spans] == []
    assert [(s.start, s.end) for s in camera.at_times(camera.times_s[[0, 0, 1, 6, 6]]).spans] == [(0, 3), (3, 5)]


def test_a_span_cut_out_keeps_its_motion_and_has_its_own_scale():
    camera = replace(_camera(), spans=SPANS)
    part = camera.cut(SPANS[1])
    np.testing.assert_array_equal(part.pose, camera.pose[4:7])
    assert (part.scale_source, part.times_s[0], part.keyframes.tolist()) == ("none", camera.times_s[4], [1])
    assert [(span.start, span.end, span.has_scale) for span in part.spans] == [(0, 3, True)]


def test_another_version_is_refused_with_advice(monkeypatch):
    monkeypatch.setattr("curation.cameras.camera.VERSION", 3)
    newer = to_npz(_camera())
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"version 3; this release reads 2 and older"):
        from_npz(newer)


def test_what_is_no_camera_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", pose=np.eye(4))
    with pytest.raises(ValueError, match=r"lacks \['intrinsics'"):
        from_npz((tmp_path / "x.npz").read_bytes())


def test_a_point_projects_to_the_same_place_in_the_stored_picture():
    camera = _camera()
    stored = camera.crop_and_scale((0, 40, 640, 400), (320, 200))
    fx, fy, cx, cy = camera.intrinsics[0]
    gx, gy, dx, dy = stored.intrinsics[0]
    point = np.array([0.3, -0.2, 2.0])
    u, v = fx * point[0] / point[2] + cx, fy * point[1] / point[2] + cy
    assert gx * point[0] / point[2] + dx == pytest.approx(u / 2)
    assert gy * point[1] / point[2] + dy == pytest.approx((v - 40) / 2)
    assert stored.viewport == (0, 0, 320, 182)  # rows 40 to 403 of 480, halved


def test_frames_left_out_keep_their_poses_relative_to_the_first_that_is_left():
    camera = _camera()
    half = camera.at_times(camera.times_s[1::2])
    np.testing.assert_allclose(half.pose[0], np.eye(4), atol=1e-12)
    np.testing.assert_allclose(half.pose[2], np.linalg.inv(camera.pose[1]) @ camera.pose[5])
    np.testing.assert_array_equal(half.keyframes, [2])
    np.testing.assert_array_equal(half.valid, [True, True, True])


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 cut short", b"text", to_npz(_camera())[:-30]])
def test_damaged_bytes_are_a_value_error(data):
    with pytest.raises(ValueError, match=r"^not a camera\.npz|Cannot load|pickle"):
        from_npz(data)
