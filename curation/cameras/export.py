"""A camera in the formats that other tools read.

These formats have one path in one scale. Of a camera with spans they hold the frames of those spans that share a scale, and of
these the ones with most frames: poses outside spans are not known. The `.npz` has all of it.
"""

from collections import Counter
from dataclasses import replace

import numpy as np

from curation.cameras.camera import Camera, to_npz
from curation.errors import InputError


def of_one_scale(camera: Camera) -> Camera:
    """Return the frames of the spans that share a scale, those with most frames; a camera without spans as it is."""
    if not camera.spans:
        return camera
    frames = Counter[int]()
    for span in camera.spans:
        frames[span.scale_group] += span.end - span.start
    group = frames.most_common(1)[0][0]
    spans = [span for span in camera.spans if span.scale_group == group]
    which = np.concatenate([np.arange(span.start, span.end) for span in spans])
    part = camera.at_frames(which)
    return replace(part, scale_to_unit=spans[0].scale_to_unit, scale_source=spans[0].scale_source, spans=())


def to_tum(camera: Camera) -> str:
    """Return a TUM trajectory, as evo reads it: lines `timestamp tx ty tz qx qy qz qw`, camera-to-world, clip seconds."""
    from scipy.spatial.transform import Rotation

    camera = of_one_scale(camera)
    quaternions = Rotation.from_matrix(camera.pose[:, :3, :3]).as_quat()
    rows = np.concatenate([camera.times_s[:, None], camera.pose[:, :3, 3], quaternions], axis=1)
    return "".join(" ".join(f"{value:.9g}" for value in row) + "\n" for row in rows)


def to_realestate10k(camera: Camera, name: str) -> str:
    """Return RealEstate10K text, which GameCraft-1 reads too: the clip's name, then one line per frame.

    A line holds the time in whole microseconds, fx fy cx cy as shares of width and height, two zeros (no distortion), and the
    3x4 world-to-camera matrix by rows. Translations are in the data set's unit.
    """
    camera = of_one_scale(camera)
    sizes = np.array([*camera.size, *camera.size], float)
    pose = camera.pose.copy()
    pose[:, :3, 3] *= camera.scale_to_unit
    world_to_camera = np.linalg.inv(pose)[:, :3].reshape(-1, 12)
    lines = [name]
    for time_s, intrinsics, extrinsics in zip(camera.times_s, camera.intrinsics / sizes, world_to_camera, strict=True):
        lines.append(" ".join([f"{time_s * 1e6:.0f}", *(f"{v:.9g}" for v in (*intrinsics, 0, 0, *extrinsics))]))
    return "\n".join(lines) + "\n"


def to_rerun(camera: Camera, path: str) -> None:
    """Write a recording for the rerun viewer: the camera's frustum moving along its path over time."""
    import rerun as rr

    camera = of_one_scale(camera)
    recording = rr.RecordingStream("gamecraft_camera")
    recording.save(path)
    recording.log("world", rr.ViewCoordinates.RDF, static=True)
    recording.log("world/path", rr.LineStrips3D([camera.pose[:, :3, 3]]), static=True)
    for time_s, pose, (fx, fy, cx, cy) in zip(camera.times_s, camera.pose, camera.intrinsics, strict=True):
        recording.set_time("clip", duration=float(time_s))
        recording.log("world/camera", rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
        pinhole = rr.Pinhole(image_from_camera=[[fx, 0, cx], [0, fy, cy], [0, 0, 1]], resolution=camera.size)
        recording.log("world/camera", pinhole)
    recording.flush()


FORMATS = (".npz", ".tum", ".txt", ".rrd")


def save(camera: Camera, path: str, name: str) -> None:
    """Write a camera to a local file in the format of its ending: camera.npz, TUM, RealEstate10K text or rerun.

    Raises InputError for another ending.
    """
    if path.endswith(".rrd"):
        to_rerun(camera, path)
    elif path.endswith(".npz"):
        _write(path, to_npz(camera))
    elif path.endswith(".tum"):
        _write(path, to_tum(camera).encode())
    elif path.endswith(".txt"):
        _write(path, to_realestate10k(camera, name).encode())
    else:
        raise InputError(f"{path}: a camera is written as one of {', '.join(FORMATS)} (TUM: .tum, RealEstate10K: .txt)")


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
