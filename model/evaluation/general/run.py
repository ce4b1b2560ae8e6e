"""The general measures over a folder of videos, next to their ceilings on real videos.

Ceilings are measured on the real videos themselves: as they are, coded once more, and as their first frame repeated. Two halves
of the real videos give the FVD that real videos have from each other.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, NamedTuple

import cv2
import numpy as np

from curation import storage
from curation.partition.optical_flow import Flow, FlowSettings, load_flow
from curation.quality.iqa import IqaSettings
from curation.schema import digest
from model.evaluation.cases import Case
from model.evaluation.ceilings import CEILINGS, variant
from model.evaluation.general import (
    aesthetic,
    dynamic_average,
    flicker,
    fvd,
    image_quality,
    paired,
    speed,
    temporal_consistency,
)
from model.evaluation.general.metric import Metric
from model.evaluation.items import Items, write_items
from model.evaluation.pictures import Lpips, load_lpips
from model.evaluation.statistics import Interval, mean_interval
from model.evaluation.tables import Column, Row, Table, write
from model.evaluation.videos import Video, read_video

METRICS: tuple[Metric, ...] = (
    image_quality.METRIC,
    dynamic_average.METRIC,
    aesthetic.METRIC,
    temporal_consistency.FEATURES,
    temporal_consistency.WARP,
    flicker.METRIC,
    paired.PSNR,
    paired.SSIM,
    paired.LPIPS,
)
# Table 4 of the paper: FVD, image quality, dynamic average, aesthetic, temporal consistency, FPS. RPE is in `control`.
_TABLE4 = {
    "GameCraft": (1554.2, 0.69, 67.2, 0.67, 0.95, 0.25),
    "GameCraft-PCM": (1883.3, 0.67, 43.8, 0.65, 0.93, 6.6),
    "Matrix-Game": (2260.7, 0.72, 31.7, 0.65, 0.94, 0.06),
    "Matrix-Game-2.0": (1920.6, 0.62, 20.5, 0.49, 0.84, 16.0),
}


@dataclass(frozen=True)
class GeneralSettings:
    """How the measures run. Those whose weights are not given are left out."""

    name: str = "model"
    iqa: IqaSettings = field(default_factory=IqaSettings)
    flow: FlowSettings = field(default_factory=lambda: FlowSettings(backend="dis"))
    width_px: int = 416  # width at which flow and paired distances are measured; larger videos are scaled down
    i3d: str = ""  # weights of I3D; empty: no FVD
    fvd_frames: int = 16  # frames of a clip for FVD
    fvd_clips: int = 1  # clips of each video for FVD, spread over it
    lpips: str = ""
    clip: str = ""  # CLIP and its aesthetic head
    aesthetic_head: str = ""
    encoder: str = ""  # image encoder of the temporal consistency by features


class Measured(NamedTuple):
    """The values of one video by measure, and its I3D features [clips, 400] (empty without weights)."""

    values: dict[str, float]
    features: list[list[float]]


def run(
    cases: Sequence[Case],
    real: Sequence[Case],
    out: str,
    settings: GeneralSettings,
    each: Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]] = map,
    log: Callable[[str], None] = print,
) -> Table:
    """Measure the cases, and where real videos are given the ceilings. Write tables, and return the main one.

    real: paired with the cases by name; a case's own field `real` comes first. Videos that are measured are not measured again.
    """
    out = storage.normal(out)
    by_name = {case.name: case.video for case in real}
    jobs = [(case.name, case.video, case.real or by_name.get(case.name, "")) for case in cases]
    unpaired = [(case.name, "", case.video) for case in real if case.name not in {job[0] for job in jobs}]
    results: dict[str, dict[str, Measured]] = {}
    for name, measured in each(_Job(out, settings), [*jobs, *unpaired]):
        results[name] = measured
        log(f"{len(results)} of {len(jobs) + len(unpaired)} videos")
    results = dict(sorted(results.items()))  # actors finish in any order, and halves and draws follow this one
    table = _table(results, cases, settings)
    write(table, out, "general")
    values = {name: one["model"].values for name, one in results.items() if "model" in one}
    write_items(out, Items(settings.name, "general", {metric.name: metric.better for metric in METRICS}, values))
    definitions = {metric.name: metric._asdict() for metric in (*METRICS, fvd.METRIC, speed.METRIC)}
    about = {"settings": asdict(settings), "environment": speed.environment(), "definitions": definitions}
    storage.put(storage.join(out, "general.json"), json.dumps(about, indent=1).encode())
    return table


@dataclass(frozen=True)
class _Job:
    """Measures a video and the variants of its real one, in the process that runs it."""

    out: str
    settings: GeneralSettings

    def __call__(self, job: tuple[str, str, str]) -> tuple[str, dict[str, Measured]]:
        name, video, real = job
        uri = self._uri(video, real)
        try:
            stored = json.loads(storage.read(uri))
            return name, {key: Measured(**value) for key, value in stored.items()}
        except FileNotFoundError:
            pass
        measured = dict(self._measure(video, real))
        storage.put(uri, json.dumps({key: value._asdict() for key, value in measured.items()}).encode())
        return name, measured

    def _measure(self, video: str, real: str) -> Iterator[tuple[str, Measured]]:
        true = read_video(real) if real else None
        if video:
            yield "model", measure(read_video(video), true, self.settings)
        if true:
            for kind in CEILINGS:
                yield kind, measure(variant(true, kind), true, self.settings)

    def _uri(self, video: str, real: str) -> str:
        versions = [storage.version(uri) if uri else "" for uri in (video, real)]
        settings = json.dumps(asdict(self.settings) | {"name": ""}, sort_keys=True)
        return storage.join(self.out, "videos", f"{digest(video, real, *versions, settings)}.json")


def measure(video: Video, real: Video | None, settings: GeneralSettings) -> Measured:
    """Measure a video by everything whose weights the settings have; with a real one, also its distances from that."""
    small, flow = _scaled(video, settings.width_px), _flow(settings.flow)
    eighth = _at_rate(small, dynamic_average.FPS)
    values = {
        image_quality.METRIC.name: image_quality.image_quality(_at_rate(video, 1 / settings.iqa.every_s), settings.iqa),
        dynamic_average.METRIC.name: dynamic_average.dynamic_average(eighth, flow),
        temporal_consistency.WARP.name: temporal_consistency.warp_consistency(small.rgb, flow),
        flicker.METRIC.name: flicker.flicker_score(video.rgb),
    }
    if settings.clip and settings.aesthetic_head:
        score = aesthetic.load_aesthetic(settings.clip, settings.aesthetic_head)
        values[aesthetic.METRIC.name] = aesthetic.aesthetic(_at_rate(video, 1.0), score)
    if settings.encoder:
        encode = temporal_consistency.load_encoder(settings.encoder)
        values[temporal_consistency.FEATURES.name] = temporal_consistency.feature_consistency(_at_rate(video, 8.0), encode)
    if real is not None:
        ours, theirs = paired.common_frames(small.rgb, _scaled(real, settings.width_px).rgb)
        values[paired.PSNR.name] = float(paired.psnr_per_frame(ours, theirs).mean())
        values[paired.SSIM.name] = float(paired.ssim_per_frame(ours, theirs).mean())
        if settings.lpips:
            values[paired.LPIPS.name] = float(paired.lpips_per_frame(ours, theirs, _lpips(settings.lpips)).mean())
    features: list[list[float]] = []
    if settings.i3d:
        starts = fvd.even_windows(len(video.rgb), settings.fvd_frames, settings.fvd_clips)
        clips = (video.rgb[start : start + settings.fvd_frames] for start in starts)
        features = fvd.video_features(clips, _i3d(settings.i3d)).tolist() if starts else []
    return Measured(values, features)


def _scaled(video: Video, width: int) -> Video:
    height, old = video.rgb.shape[1:3]
    if old <= width:
        return video
    size = width, max(2, round(height * width / old))
    return video._replace(rgb=np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in video.rgb]))


def _at_rate(video: Video, fps: float) -> np.ndarray:
    """Return the frames on screen at a rate, at least the first."""
    ticks = np.arange(0, video.times_s[-1] + 1e-6, 1 / fps)
    return video.rgb[np.clip(np.searchsorted(video.times_s, ticks + 1e-6, side="right") - 1, 0, None)]


@cache
def _flow(settings: FlowSettings) -> Flow:
    return load_flow(settings)


@cache
def _lpips(path: str) -> Lpips:
    return load_lpips(path)


@cache
def _i3d(path: str) -> fvd.Features:
    return fvd.load_features(path)


def _table(results: Mapping[str, Mapping[str, Measured]], cases: Sequence[Case], settings: GeneralSettings) -> Table:
    shown = [metric for metric in METRICS if any(metric.name in m.values for one in results.values() for m in one.values())]
    columns = [Column(m.name, m.better, 2 if m.unit in ("dB",) or "px" in m.unit else 3) for m in shown]
    columns = [Column(fvd.METRIC.name, "down", 1), *columns, Column(speed.METRIC.name, "up", 2), Column("Videos")]
    rows = [_row(settings.name, "model", results, shown, speed.frames_per_second(cases), settings.fvd_frames)]
    if any("real" in one for one in results.values()):
        rows += [
            _row(label, kind, results, shown, float("nan"), settings.fvd_frames, "ceiling") for kind, label in CEILINGS.items()
        ]
    order = (
        fvd.METRIC,
        image_quality.METRIC,
        dynamic_average.METRIC,
        aesthetic.METRIC,
        temporal_consistency.FEATURES,
        speed.METRIC,
    )
    for method, numbers in _TABLE4.items():
        known = dict(zip((metric.name for metric in order), numbers, strict=True))
        rows.append(Row(f"{method}, paper", [known.get(column.name) for column in columns], kind="reference"))
    note = (
        f"FVD: {_about_fvd(settings)}. "
        f"Flow ({settings.flow.backend}) and distances at most {settings.width_px} px wide. "
        f"Image quality: {settings.iqa.backend}. The paper's rows are of other videos; its units are not stated."
    )
    return Table("General measures", columns, rows, note)


def _about_fvd(settings: GeneralSettings) -> str:
    if not settings.i3d:
        return "not measured, since the setting `i3d` names no weights"
    clips = "1 clip" if settings.fvd_clips == 1 else f"{settings.fvd_clips} clips"
    return (
        f"{settings.fvd_frames} frames, resized to {fvd.SIZE} x {fvd.SIZE} px, {clips} a video, "
        f"features of {settings.i3d.rpartition('/')[2]}; real: one half of the real videos against the other"
    )


def _row(
    label: str,
    kind: str,
    results: Mapping[str, Mapping[str, Measured]],
    shown: Sequence[Metric],
    fps: float,
    frames: int,
    row: str = "result",
) -> Row:
    measured = [one[kind] for one in results.values() if kind in one]
    cells: list[Any] = []
    intervals: list[Interval | None] = []
    distance = _distance(kind, results, frames)
    cells.append(distance.distance if distance else None)
    intervals.append(distance.interval if distance else None)
    for metric in shown:
        values = [m.values[metric.name] for m in measured if np.isfinite(m.values.get(metric.name, np.nan))]
        same = kind == "real" and metric in (paired.PSNR, paired.SSIM, paired.LPIPS)
        cells.append(float(np.mean(values)) if values and not same else None)
        intervals.append(mean_interval(values) if values and not same else None)
    return Row(label, [*cells, fps, len(measured)], [*intervals, None, None], row)


def _distance(kind: str, results: Mapping[str, Mapping[str, Measured]], frames: int) -> fvd.Fvd | None:
    """Return the FVD of a kind of videos from the real ones; of real ones, of their two halves."""

    def features(which: str) -> list[np.ndarray]:
        return [np.array(one[which].features) for one in results.values() if which in one and one[which].features]

    real, ours = features("real"), features(kind)
    if kind == "real":
        real, ours = real[::2], real[1::2]
    if len(real) < 2 or len(ours) < 2:
        return None
    return fvd.fvd(np.concatenate(ours), np.concatenate(real), frames)
