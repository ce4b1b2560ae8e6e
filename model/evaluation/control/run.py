"""Control and memory over a folder of videos whose cameras are known, next to real videos of the same controls.

A case needs `camera`: the poses that were asked for, as a `camera.npz`. `real` is the video of an engine under these poses.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from curation import storage
from curation.cameras.annotate import annotate
from curation.cameras.camera import Camera, from_npz
from curation.cameras.clip import ClipView
from curation.cameras.settings import CameraSettings
from curation.errors import InputError
from curation.media.decode import Span
from curation.media.source import probe
from curation.media.viewport import Rect
from curation.partition.optical_flow import DisFlow, FramePair
from curation.schema import digest
from model.evaluation.cases import Case
from model.evaluation.ceilings import CEILINGS, variant
from model.evaluation.control import drift, expected_flow, inverse_dynamics, mirror, obedience
from model.evaluation.control_accuracy import Proportion, proportion
from model.evaluation.general import pose_error
from model.evaluation.general.metric import Metric
from model.evaluation.items import Items, write_items
from model.evaluation.statistics import Interval, mean_interval
from model.evaluation.tables import Column, Row, Table, write
from model.evaluation.videos import Video, duration_s, fitted_size, read_video

MEASURES: tuple[Metric, ...] = (
    obedience.METRIC,
    expected_flow.GAIN,
    expected_flow.COSINE,
    expected_flow.PARALLAX,
    mirror.METRIC,
    drift.SINK_COLLAPSE,
    drift.LOCK_IN,
    pose_error.TRANSLATION,
    pose_error.ROTATION,
    inverse_dynamics.METRIC,
)


@dataclass(frozen=True)
class ControlSettings:
    """How the measures run.

    camera: the backend that estimates the poses of the videos for RPE (none, klt, vipe). inverse_dynamics: a model that
    `inverse_dynamics.save` wrote; without it controls are not read back.
    """

    name: str = "model"
    width_px: int = 256  # width at which flow is measured
    window_s: float = 1.0  # length of a window that has one action
    camera: str = "none"
    inverse_dynamics: str = ""


def run(
    cases: Sequence[Case],
    out: str,
    settings: ControlSettings,
    each: Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]] = map,
    log: Callable[[str], None] = print,
) -> list[Table]:
    """Measure the cases and their real videos, write tables, and return them. InputError where no case has a camera."""
    out = storage.normal(out)
    known = [case for case in cases if case.camera]
    if not known:
        raise InputError("no case has a camera: list the videos in cases.jsonl with the field `camera` (docs/evaluation.md)")
    jobs = [
        (case.name, kind, uri, case.camera)
        for case in known
        for kind, uri in (("model", case.video), *((kind, case.real) for kind in CEILINGS))
        if uri
    ]
    results: dict[str, dict[str, dict[str, Any]]] = {"model": {}, **{kind: {} for kind in CEILINGS}}
    for name, kind, measured in each(_Job(out, settings), jobs):
        results[kind][name] = measured
        log(f"{sum(map(len, results.values()))} of {len(jobs)} videos")
    results = {kind: dict(sorted(part.items())) for kind, part in results.items()}  # actors finish in any order
    made = {"control": _measure_table(results, settings), "obedience": _obedience_table(results, settings)}
    for name, table in made.items():
        write(table, out, name)
    storage.put(storage.join(out, "control.json"), json.dumps(results, indent=1).encode())
    values = {name: row["values"] for name, row in results["model"].items()}
    write_items(out, Items(settings.name, "control", {metric.name: metric.better for metric in MEASURES}, values))
    return list(made.values())


@dataclass(frozen=True)
class _Job:
    """Measures a video, in the process that runs it."""

    out: str
    settings: ControlSettings

    def __call__(self, job: tuple[str, str, str, str]) -> tuple[str, str, dict[str, Any]]:
        name, kind, video, camera = job
        settings = json.dumps(asdict(self.settings) | {"name": ""}, sort_keys=True)
        changed = "" if kind == "model" else kind
        key = digest(video, storage.version(video), camera, storage.version(camera), settings, changed)
        uri = storage.join(self.out, "videos", f"{key}.json")
        try:
            return name, kind, json.loads(storage.read(uri))
        except FileNotFoundError:
            measured = measure(video, from_npz(storage.read(camera)), self.settings, "real" if kind == "model" else kind)
            storage.put(uri, json.dumps(measured).encode())
            return name, kind, measured


def measure(uri: str, camera: Camera, settings: ControlSettings, kind: str = "real") -> dict[str, Any]:
    """Return what is measured of a video under a camera: values, windows (action, whether it obeys), curves and events.

    kind: of `CEILINGS`, what becomes of the pictures before. The pose error is of the video as it is.
    """
    video = variant(read_video(uri, None, fitted_size(uri, settings.width_px)), kind)
    asked = camera.at_times(np.minimum(video.times_s, camera.times_s[-1]))
    pose = asked.pose.copy()
    pose[:, :3, 3] *= camera.scale_to_unit
    height, width = video.rgb.shape[1:3]
    intrinsics = asked.intrinsics[0] * np.array([width / camera.size[0], height / camera.size[1]] * 2)
    flow = DisFlow()
    flows = flow([FramePair(a, b) for a, b in zip(video.rgb[:-1], video.rgb[1:], strict=True)])
    windows = obedience.windows(flows, pose, max(1, round(settings.window_s * video.fps)))
    agreement = expected_flow.flow_agreement(flows, pose, intrinsics) if flows else None
    curve = drift.drift_curve(video.rgb, video.fps)
    found = drift.events(curve, video.fps, pose)
    values = {
        drift.SINK_COLLAPSE.name: float(drift.count(found, "sink_collapse")),
        drift.LOCK_IN.name: float(drift.count(found, "lock_in")),
    }
    if windows:
        values[obedience.METRIC.name] = float(np.mean([window.obeys for window in windows]))
    if agreement:
        values |= _finite(
            {
                expected_flow.GAIN.name: agreement.gain,
                expected_flow.COSINE.name: agreement.cosine,
                expected_flow.PARALLAX.name: agreement.parallax,
            }
        )
    curves: dict[str, list[float]] = {name: values.tolist() for name, values in curve._asdict().items()}
    if mirror.is_mirrored(pose):
        back = mirror.mirror_curve(video.rgb)
        values[mirror.METRIC.name] = float(back.psnr.mean())
        curves |= {"mirror_age": back.age.tolist(), "mirror_psnr": back.psnr.tolist(), "mirror_ssim": back.ssim.tolist()}
    if settings.inverse_dynamics:
        table = inverse_dynamics.recovered(
            _inverse(settings.inverse_dynamics), inverse_dynamics.flow_features(flows), inverse_dynamics.step_rates(pose)
        )
        if table:
            shares, counts = np.array(list(table.values()), float).T
            values[inverse_dynamics.METRIC.name] = float(np.average(shares, weights=counts))
    result = {
        "values": values,
        "windows": [[window.action, window.obeys] for window in windows],
        "events": [event._asdict() for event in found],
        "curves": curves,
        "fps": video.fps,
    }
    as_it_is = kind == "real" and settings.camera != "none"
    return result | (_pose_error(uri, video, pose, settings.camera, values) if as_it_is else {})


def _pose_error(uri: str, video: Video, pose: np.ndarray, backend: str, values: dict[str, float]) -> dict[str, Any]:
    """Estimate the video's camera, add the errors to the values, and return the status of the estimate."""
    source = probe(uri)
    whole = Rect(0, 0, source.width, source.height)
    (facts, camera), *_ = annotate([ClipView(uri, Span(0.0, duration_s(uri)), whole, whole)], CameraSettings(backend=backend))
    if camera is None or not facts.ok:
        return {"camera_status": facts.status}
    error = pose_error.pose_error(camera.at_times(video.times_s).pose, pose)
    values |= _finite({pose_error.TRANSLATION.name: error.trans, pose_error.ROTATION.name: error.rot_deg})
    return {"camera_status": facts.status, "path_rank": error.rank}


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if np.isfinite(value)}


@cache
def _inverse(path: str) -> inverse_dynamics.InverseDynamics:
    return inverse_dynamics.load(path)


def _kinds(settings: ControlSettings) -> list[tuple[str, str, str]]:
    """Return the rows of a table: kind, label, kind of row."""
    ceilings = {**CEILINGS, "real": "real, same controls"}
    return [("model", settings.name, "result"), *((kind, label, "ceiling") for kind, label in ceilings.items())]


def _measure_table(results: Mapping[str, Mapping[str, Mapping[str, Any]]], settings: ControlSettings) -> Table:
    columns = [Column(metric.name, metric.better) for metric in MEASURES] + [Column("Videos")]
    rows = []
    for kind, label, row in _kinds(settings):
        measured = [one["values"] for one in results[kind].values()]
        if measured:
            per = [[one[metric.name] for one in measured if metric.name in one] for metric in MEASURES]
            cells: list[Any] = [float(np.mean(values)) if values else None for values in per]
            intervals = [mean_interval(values) if values else None for values in per]
            rows.append(Row(label, [*cells, len(measured)], [*intervals, None], row))
    note = f"Means over videos. Flow by DIS at most {settings.width_px} px wide; cameras for RPE by {settings.camera}."
    return Table("Control and memory", columns, rows, note)


def _obedience_table(results: Mapping[str, Mapping[str, Mapping[str, Any]]], settings: ControlSettings) -> Table:
    """Return the share of windows that obey, by action, with Wilson's intervals, next to the ceiling."""
    actions = [*obedience.ACTIONS, "all"]
    rows = []
    for kind, label, row in _kinds(settings):
        windows = [window for one in results[kind].values() for window in one["windows"]]
        parts = [[bool(obeys) for action, obeys in windows if name in ("all", action)] for name in actions]
        shares: list[Proportion | None] = [proportion(part) if part else None for part in parts]
        if windows:
            intervals = [Interval(share.low, share.high) if share else None for share in shares]
            rows.append(
                Row(label, [*(share.share if share else None for share in shares), len(windows)], [*intervals, None], row)
            )
    columns = [Column(name.replace("_", " "), "up", 2) for name in actions] + [Column("Windows")]
    return Table("Obedience by action", columns, rows, f"Windows of {settings.window_s:g} s with one action; chance is 0.5.")
