"""Other tools read what we write: their readers, or the format by its own words."""

from dataclasses import replace

import numpy as np
import pytest

from curation.cameras.camera import Camera, CameraSpan, from_npz
from curation.cameras.export import of_one_scale, save, to_tum

Rotation = pytest.importorskip("scipy.spatial.transform", reason="the extra `camera` is not installed").Rotation


@pytest.fixture
def camera():
    pose = np.tile(np.eye(4), (9, 1, 1))
    for i in range(9):
        pose[i, :3, :3] = Rotation.from_rotvec(np.radians(25 * i) * np.array([0.2, 1, 0.1])).as_matrix()
        pose[i, :3, 3] = [0.1 * i, -0.02 * i**2, 0.5 * i]
    inner = np.tile([320.0, 330.0, 320.0, 200.0], (9, 1))
    known = np.ones(9, bool), np.zeros(9, np.float32), np.array([0])
    return Camera(pose, inner, np.arange(9) / 16, (640, 400), (0, 0, 640, 400), *known, 0.5, "speed")


def test_evo_reads_our_tum_trajectory(camera, tmp_path):
    files = pytest.importorskip("evo.tools.file_interface", reason="evo is not installed")
    save(camera, str(tmp_path / "c.tum"), "clip")
    read = files.read_tum_trajectory_file(str(tmp_path / "c.tum"))
    np.testing.assert_allclose(np.array(read.poses_se3), camera.pose, atol=1e-7)
    np.testing.assert_allclose(read.timestamps, camera.times_s, atol=1e-8)


def test_realestate10k_text_is_world_to_camera_with_shares_of_the_size(camera, tmp_path):
    save(camera, str(tmp_path / "c.txt"), "clip7")
    name, *lines = (tmp_path / "c.txt").read_text().splitlines()
    rows = np.array([[float(word) for word in line.split()] for line in lines])
    assert (name, rows.shape) == ("clip7", (9, 19))
    np.testing.assert_allclose(rows[:, 0], camera.times_s * 1e6, atol=0.5)
    np.testing.assert_allclose(rows[0, 1:7], [0.5, 330 / 400, 0.5, 0.5, 0, 0])
    outer = np.concatenate([rows[:, 7:].reshape(-1, 3, 4), np.tile([[[0, 0, 0, 1.0]]], (9, 1, 1))], axis=1)
    expected = camera.pose.copy()
    expected[:, :3, 3] *= 0.5  # in the data set's unit
    np.testing.assert_allclose(np.linalg.inv(outer), expected, atol=1e-7)


def test_poses_outside_spans_are_not_exported(camera):
    spans = (CameraSpan(0, 2, "general", 0, 3.0), CameraSpan(3, 6, "general", 1, 2.0), CameraSpan(7, 9, "general", 1, 2.0))
    part = of_one_scale(replace(camera, spans=spans))
    which = [3, 4, 5, 7, 8]
    np.testing.assert_allclose(part.times_s, camera.times_s[which])
    np.testing.assert_allclose(part.pose, np.linalg.inv(camera.pose[3]) @ camera.pose[which])
    assert part.scale_to_unit == 2.0
    assert len(to_tum(replace(camera, spans=spans)).splitlines()) == len(which)


def test_npz_is_the_shards_own_format(camera, tmp_path):
    save(camera, str(tmp_path / "c.npz"), "clip")
    np.testing.assert_allclose(from_npz((tmp_path / "c.npz").read_bytes()).pose, camera.pose, atol=1e-6)


def test_rerun_writes_a_recording(camera, tmp_path):
    pytest.importorskip("rerun", reason="the extra `rerun` is not installed")
    save(camera, str(tmp_path / "c.rrd"), "clip")
    assert (tmp_path / "c.rrd").read_bytes()[:4] == b"RRF2"


def test_another_ending_is_refused_with_those_that_are_known(camera, tmp_path):
    with pytest.raises(ValueError, match=r"c\.csv: a camera is written as one of \.npz, \.tum, \.txt, \.rrd"):
        save(camera, str(tmp_path / "c.csv"), "clip")
