"""COLMAP's global mapper (GLOMAP, Pan et al. 2024) on the same tracks that our own mapping gets, to compare the two."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from curation.cameras.klt.frame_poses import register_frames
from curation.cameras.klt.mapping import Map

_EVERY = 5  # frames from keyframe to keyframe
_NEIGHBOURS = (1, 2, 3, 4, 6, 8, 12, 16, 24)  # distances in keyframes at which two are matched
_MIN_SHARED, _SEED = 25, 7


def poses(points_NM2: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """Return camera-to-world poses [N, 4, 4] of all frames, with an unknown focal length; None if the mapper has no result.

    Points are in px from the principal point, NaN where not visible. size: (W, H) px of the view. It uses one thread and a
    fixed seed.
    """
    frames = np.unique(np.append(np.arange(0, len(points_NM2), _EVERY), len(points_NM2) - 1))
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "matches.db"
        tracks = _write_matches(database, points_NM2, frames, size)
        pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)
        verifier = pycolmap.GeometricVerifierOptions()
        verifier.num_threads = 1
        pycolmap.geometric_verification(database, verifier)
        models = pycolmap.global_mapping(database, folder, folder, _options())
    best = max(models.values(), key=lambda model: model.num_reg_images(), default=None)
    return None if best is None else register_frames(points_NM2, _to_map(best, tracks)).pose


def _write_matches(database: Path, points: np.ndarray, frames: np.ndarray, size: tuple[int, int]) -> dict[int, np.ndarray]:
    """Fill the database with keypoints and matches. Returns the track numbers of each keyframe's points."""
    tracks = {int(frame): np.flatnonzero(np.isfinite(points[frame, :, 0])) for frame in frames}
    with pycolmap.Database.open(database) as store:
        camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_PINHOLE", 0.6 * size[0], *size)
        camera.camera_id = store.write_camera(camera)
        rig = pycolmap.Rig()
        rig.add_ref_sensor(camera.sensor_id)
        rig_id, images = store.write_rig(rig), []
        for frame, which in tracks.items():
            images.append(store.write_image(pycolmap.Image(name=str(frame), camera_id=camera.camera_id)))
            rig_frame = pycolmap.Frame()
            rig_frame.rig_id = rig_id
            rig_frame.add_data_id(pycolmap.data_t(camera.sensor_id, images[-1]))
            store.write_frame(rig_frame)
            store.write_keypoints(images[-1], (points[frame, which] + np.array(size) / 2).astype(np.float32))
        visible = list(tracks.values())
        for i in range(len(images)):
            for j in (i + distance for distance in _NEIGHBOURS if i + distance < len(images)):
                _, one, other = np.intersect1d(visible[i], visible[j], assume_unique=True, return_indices=True)
                if len(one) >= _MIN_SHARED:
                    store.write_matches(images[i], images[j], np.stack([one, other], 1).astype(np.uint32))
    return tracks


def _options() -> Any:
    options = pycolmap.GlobalPipelineOptions()
    options.num_threads = options.mapper.num_threads = 1
    mapper = options.mapper
    for part in (options, mapper, mapper.rotation_averaging, mapper.global_positioning, mapper.retriangulation):
        part.random_seed = _SEED
    mapper.global_positioning.use_gpu = mapper.bundle_adjustment.ceres.use_gpu = False
    mapper.bundle_adjustment.refine_extra_params = False
    return options


def _to_map(model: Any, tracks: dict[int, np.ndarray]) -> Map:
    posed = {number: image for number, image in model.images.items() if image.has_pose}
    order = sorted(posed, key=lambda number: int(posed[number].name))
    world_to_camera = [posed[number].cam_from_world().matrix() for number in order]
    xyz = {}
    for point in model.points3D.values():
        element = point.track.elements[0]
        xyz[int(tracks[int(model.images[element.image_id].name)][element.point2D_idx])] = point.xyz
    which = np.array(sorted(xyz), int)
    frames = np.array([int(posed[number].name) for number in order])
    rotation, translation = (np.array([matrix[:, part] for matrix in world_to_camera]) for part in (slice(0, 3), 3))
    focal, every = float(next(iter(model.cameras.values())).params[0]), np.ones(int(frames[-1]) + 1, bool)
    return Map(frames, rotation, translation, which, np.array([xyz[t] for t in which.tolist()]), focal, 0.0, every)
