"""LeRobotDataset v3.0: each clip an episode, at one rate and one picture size, with the camera as action and state.

    meta/info.json                                        features, rate, counts; written last
    meta/stats.json                                       minimum, maximum, mean and standard deviation of each feature
    meta/tasks.parquet                                    the captions, by which episodes name their task
    meta/episodes/chunk-000/file-000.parquet              where each episode begins and ends
    data/chunk-000/file-000.parquet                       a row a frame
    videos/observation.images.view/chunk-000/file-000.mp4 an episode each

`action` is what would move the camera on to the next frame: forward and right in units a second, turn and look in degrees a
second (`curation.cameras.controls`). `observation.state` is the camera's pose since the clip's first frame, the 3x4 matrix
camera-to-world by rows, in the unit of dataset.json where its scale is known. `camera_valid` is 0 where neither is known: then
both are 0, since the layout has no missing values. Clips of another size than most are left out.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from curation.cameras.camera import Camera
from curation.errors import InputError
from curation.shard_reader import decode_video
from curation.shards import Sample, to_parquet
from pipelines.exports.clips import Exported, Target, Video, camera_of, caption_of, read_clips, video_at

VERSION = "v3.0"
VIEW = "observation.images.view"
_FILES_PER_CHUNK = 1000
_CONTROLS, _POSE = ("forward", "right", "turn", "look"), 12
_NO_TASK = "play"  # the task of a clip without a caption
# Pictures from which the statistics of pixels are computed: the first of each of so many episodes.
_MAX_PICTURES = 256
_DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_FRAME = pa.schema(
    [
        ("action", pa.list_(pa.float32(), len(_CONTROLS))),
        ("observation.state", pa.list_(pa.float32(), _POSE)),
        ("camera_valid", pa.int64()),
        ("timestamp", pa.float32()),
        ("frame_index", pa.int64()),
        ("episode_index", pa.int64()),
        ("index", pa.int64()),
        ("task_index", pa.int64()),
    ]
)


@dataclass
class _Moments:
    """Running sums of a feature, for its statistics."""

    count: int = 0
    total: Any = 0.0
    squares: Any = 0.0
    low: Any = np.inf
    high: Any = -np.inf

    def add(self, values: np.ndarray) -> None:
        """Add values float [N, K]."""
        values = values.astype(np.float64)
        self.count += len(values)
        self.total, self.squares = self.total + values.sum(0), self.squares + (values**2).sum(0)
        self.low, self.high = np.minimum(self.low, values.min(0)), np.maximum(self.high, values.max(0))

    def result(self, shape: tuple[int, ...]) -> dict[str, Any]:
        mean = self.total / max(1, self.count)
        std = np.sqrt(np.maximum(0, self.squares / max(1, self.count) - mean**2))
        stats = {"min": self.low, "max": self.high, "mean": mean, "std": std}
        return {name: np.reshape(value, shape).tolist() for name, value in stats.items()} | {"count": [self.count]}


@dataclass
class _Export:
    """What has been written so far."""

    target: Target
    fps: int
    size: tuple[int, int]
    frames: int = 0
    episodes: list[dict[str, Any]] = field(default_factory=list)
    tasks: dict[str, int] = field(default_factory=dict)
    moments: dict[str, _Moments] = field(default_factory=dict)

    def add(self, sample: Sample) -> None:
        """Write a clip as the next episode."""
        number = len(self.episodes)
        video = video_at(sample, self.fps)
        chunk, file = divmod(number, _FILES_PER_CHUNK)
        task = caption_of(sample.meta) or _NO_TASK
        table = self._frames(video, camera_of(sample), self.tasks.setdefault(task, len(self.tasks)))
        self.target.put(_VIDEO_PATH.format(video_key=VIEW, chunk_index=chunk, file_index=file), video.mp4)
        self.target.put(_DATA_PATH.format(chunk_index=chunk, file_index=file), to_parquet(table))
        if number < _MAX_PICTURES:
            picture = decode_video(video.mp4, fps=1e-3)[0][0]
            self._add_moments(VIEW, picture.reshape(-1, 3) / 255)
        first, self.frames = self.frames, self.frames + len(table)
        self.episodes.append(
            {
                "episode_index": number,
                "tasks": [task],
                "length": len(table),
                "data/chunk_index": chunk,
                "data/file_index": file,
                "dataset_from_index": first,
                "dataset_to_index": self.frames,
                f"videos/{VIEW}/chunk_index": chunk,
                f"videos/{VIEW}/file_index": file,
                f"videos/{VIEW}/from_timestamp": 0.0,
                f"videos/{VIEW}/to_timestamp": len(table) / self.fps,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
                "clip_id": sample.clip_id,
                "video_id": sample.meta["video_id"],
                "start_s": sample.meta["start_s"],
            }
        )

    def _frames(self, video: Video, camera: Camera | None, task: int) -> pa.Table:
        """Return the rows of an episode's frames."""
        count = len(video.times_s)
        controls, poses, valid = _camera_rows(camera, video.times_s)
        frame = np.arange(count)
        values = {
            "action": controls,
            "observation.state": poses,
            "camera_valid": valid,
            "timestamp": frame / self.fps,
            "frame_index": frame,
            "episode_index": np.full(count, len(self.episodes)),
            "index": frame + self.frames,
            "task_index": np.full(count, task),
        }
        for name, rows in values.items():
            self._add_moments(name, rows.reshape(count, -1))
        columns = [pa.array(list(rows) if rows.ndim > 1 else rows, _FRAME.field(name).type) for name, rows in values.items()]
        return pa.Table.from_arrays(columns, schema=_FRAME)

    def _add_moments(self, name: str, values: np.ndarray) -> None:
        self.moments.setdefault(name, _Moments()).add(values)

    def finish(self) -> None:
        """Write what the whole needs: tasks, episodes, statistics, and last info.json."""
        self.target.put("meta/tasks.parquet", to_parquet(_tasks(list(self.tasks))))
        self.target.put("meta/episodes/chunk-000/file-000.parquet", to_parquet(pa.Table.from_pylist(self.episodes)))
        stats = {name: moments.result((3, 1, 1) if name == VIEW else (-1,)) for name, moments in self.moments.items()}
        self.target.put("meta/stats.json", json.dumps(stats, indent=1).encode())
        self.target.put("meta/info.json", json.dumps(self._info(), indent=1).encode())

    def _info(self) -> dict[str, Any]:
        width, height = self.size
        about_video = {
            "video.height": height,
            "video.width": width,
            "video.codec": "h264",
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "video.fps": self.fps,
            "video.channels": 3,
            "has_audio": False,
        }
        picture = {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"], "info": about_video}
        features: dict[str, Any] = {VIEW: picture}
        names = {"action": list(_CONTROLS), "observation.state": [f"m{i // 4}{i % 4}" for i in range(_POSE)]}
        for column in _FRAME:
            is_list = pa.types.is_fixed_size_list(column.type)
            value = column.type.value_type if is_list else column.type
            dtype = {"float": "float32"}.get(str(value), str(value))
            shape = [column.type.list_size if is_list else 1]
            features[column.name] = {"dtype": dtype, "shape": shape, "names": names.get(column.name)}
        return {
            "codebase_version": VERSION,
            "robot_type": "camera",
            "fps": self.fps,
            "features": features,
            "total_episodes": len(self.episodes),
            "total_frames": self.frames,
            "total_tasks": len(self.tasks),
            "chunks_size": _FILES_PER_CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "splits": {"train": f"0:{len(self.episodes)}"},
            "data_path": _DATA_PATH,
            "video_path": _VIDEO_PATH,
        }


def export_lerobot(out: str, to: str, fps: float | None) -> Exported:
    """Write all clips of the most frequent size as episodes. fps: a whole number; None: the most frequent rate, rounded."""
    sizes, rates = Counter[tuple[int, int]](), Counter[int]()
    for sample in read_clips(out):
        sizes[sample.meta["stored_width"], sample.meta["stored_height"]] += 1
        rates[max(1, round(sample.meta["fps"]))] += 1
    if fps is not None and fps != round(fps):
        raise InputError(f"--fps must be a whole number for lerobot, not {fps:g}")
    size = max(sizes, key=lambda item: (sizes[item], item))
    export = _Export(Target(to, "meta/info.json"), round(fps or max(rates, key=lambda rate: (rates[rate], rate))), size)
    left_out = Counter[str]()
    for sample in read_clips(out):
        if (sample.meta["stored_width"], sample.meta["stored_height"]) == size:
            export.add(sample)
        else:
            left_out[f"not {size[0]}x{size[1]} px"] += 1
    export.finish()
    return Exported(len(export.episodes), dict(left_out))


def _camera_rows(camera: Camera | None, times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return controls [N, 4], poses [N, 12] and whether both are known [N], 0 where they are not."""
    count = len(times_s)
    controls, poses, valid = np.zeros((count, 4), np.float32), np.zeros((count, _POSE), np.float32), np.zeros(count, np.int64)
    if camera is None:
        return controls, poses, valid
    shown = np.clip(np.searchsorted(camera.times_s, times_s + 5e-4, side="right") - 1, 0, None)
    for span in camera.spans:
        part = camera.cut(span)
        inside = np.flatnonzero((shown >= span.start) & (shown < span.end))
        if not len(inside) or not span.has_scale:
            continue
        rows = shown[inside] - span.start
        pose = part.pose[rows, :3].copy()
        pose[:, :, 3] *= span.scale_to_unit
        controls[inside], poses[inside], valid[inside] = part.controls[rows], pose.reshape(-1, _POSE), 1
    return controls, poses, valid


def _tasks(tasks: list[str]) -> pa.Table:
    """Return the tasks as pandas reads them: with the text as the index, and the number as the only column."""
    index = "task"
    described = {"field_name": index, "name": index, "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    number = {"field_name": "task_index", "name": "task_index", "pandas_type": "int64", "numpy_type": "int64", "metadata": None}
    pandas = {"index_columns": [index], "column_indexes": [], "columns": [number, described], "pandas_version": "2.0.0"}
    schema = pa.schema([("task_index", pa.int64()), (index, pa.string())], metadata={"pandas": json.dumps(pandas)})
    return pa.Table.from_arrays([pa.array(range(len(tasks)), pa.int64()), pa.array(tasks, pa.string())], schema=schema)
