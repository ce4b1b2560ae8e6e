"""Camera trajectories compared with a game engine's true poses: errors, focal length, status, scale, cost.

It records its own footage, on maps that nothing was tuned on: `mix`, `forward`, `strafe`, `rotation` and `static` takes on four
maps, with and without HUD and weapon, at 35 and 16 frames a second, stored as shards store clips. Two more kinds are `play` (a
player who runs, bumps into walls and spins) and `keys` (every key held in turn). The takes of a map are one source, over which
the focal length is pooled. Then each take that does not turn is annotated alone. The controls that a trajectory shows are
compared with the keys that were pressed.
"""

import argparse
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench import camera_controls, camera_takes
from bench.camera_takes import KINDS, Take
from bench.machine import describe
from bench.trajectory import Errors, errors
from curation.cameras.annotate import annotate
from curation.cameras.camera import PART, Camera, CameraFacts, CameraSpan
from curation.cameras.clip import ClipView
from curation.cameras.klt.clip_tracks import ClipTracks, track_clip
from curation.cameras.scale import scales
from curation.cameras.settings import CameraSettings
from curation.media import decode
from curation.media.decode import Span
from curation.media.source import probe
from curation.media.viewport import ViewportAccumulator, find_viewport
from operators.op import limit_threads

SEED = 9900
RATES = (35.0, 16.0)
_VIEWPORT_EVERY_S = 0.1  # between the frames from which the viewport is detected
# Errors above which a row that calls itself ok is a silent failure.
_MAX_ATE, _MAX_RPE_ROT_DEG, _MAX_FOCAL_ERROR = 0.01, 0.3, 0.1
_STATUSES = ("ok", "ok_rotation", "ok_static", "ok_part", "suspect", "low_texture", "failed")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the environment, one line per take, and the tables."""
    parser = argparse.ArgumentParser(prog="gamecraft bench camera", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=SEED, help=f"selects maps, places and paths; default {SEED}")
    parser.add_argument("--quick", action="store_true", help="one map, 35 frames a second")
    parser.add_argument("--tuning", action="store_true", help="use the maps that limits were set on, not the held-out ones")
    parser.add_argument("--keep", type=Path, help="a folder for the takes; takes that are in it are not recorded again")
    parser.add_argument("--colmap", action="store_true", help="also run COLMAP's global mapper on the tracks of the mix takes")
    options = parser.parse_args(arguments)
    print(describe())
    limit_threads(1)  # as for a step of the pipeline
    with tempfile.TemporaryDirectory() as folder:
        rows = list(_rows(options.keep or Path(folder), options))
        colmap = list(_colmap_lines(rows)) if options.colmap else []
    posed = [(row.take, row.camera.pose) for row in rows if row.is_whole and row.camera and not row.alone]
    tables = _error_lines(rows), _status_lines(rows), camera_controls.lines(posed), _scale_lines(rows, options.seed)
    print("\n".join([*(line for table in tables for line in table), *_cost_lines(rows), *colmap]))


@dataclass(frozen=True)
class Row:
    """The result of one take, and its errors: those of its worst span, where it is right in part.

    cpu_s: per frame, of the call that annotated its whole source.
    """

    take: Take
    alone: bool
    facts: CameraFacts
    camera: Camera | None
    errors: Errors | None
    cpu_s: float

    @property
    def is_whole(self) -> bool:
        """Whether the whole take is ok."""
        return self.facts.ok and self.facts.status != PART

    @property
    def focal_error(self) -> float:
        return abs((self.facts.focal_px or np.nan) / self.take.focal_px - 1)

    @property
    def silent(self) -> bool:
        """Whether it calls itself ok and is not."""
        if not self.facts.ok or self.errors is None:
            return False
        poses_wrong = self.errors.ate > _MAX_ATE or self.errors.rpe_rot_deg > _MAX_RPE_ROT_DEG
        return bool(poses_wrong or not self.focal_error <= _MAX_FOCAL_ERROR)

    def __str__(self) -> str:
        name = f"{self.take.name}{' alone' if self.alone else ''}"
        if self.errors is None:
            return f"{name:44} {self.facts.status}"
        ate, rpe_trans, rpe_rot_deg, absolute_deg, _ = self.errors
        shown = f"ATE {ate:7.3%} RPE {rpe_trans:6.1%} {rpe_rot_deg:6.3f} deg  abs {absolute_deg:5.2f} deg"
        why = f"  {self.facts.why}" if self.facts.why else ""
        focal = f"f {self.facts.focal_px:6.1f} {self.facts.focal_source:6}"
        return f"{name:44} {self.facts.status:11} {shown}  {focal}{'  SILENT' if self.silent else ''}{why}"


def _rows(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    folder.mkdir(parents=True, exist_ok=True)
    rates = RATES[:1] if options.quick else RATES
    for place in camera_takes.places(options.seed, 1 if options.quick else 4, options.tuning):
        recorded = _record_takes(folder, place, options.seed)
        for rate in rates:
            takes = [take for take in recorded if take.fps == rate]
            yield from _annotate(takes, source_views(takes), alone=False)
            straight = [take for take in takes if take.kind in ("forward", "strafe", "static")]
            for take, view in zip(straight, source_views(takes, straight), strict=True):
                yield from _annotate([take], [view], alone=True)


def _record_takes(folder: Path, place: camera_takes.Place, seed: int) -> list[Take]:
    """Return the takes of a place, of every kind that it has room for. Kinds without room are printed."""
    takes = []
    for kind in KINDS:
        try:
            takes += camera_takes.record(folder, place, kind, seed)
        except camera_takes.NoTake as error:
            print(f"left out: {error}", flush=True)
    return takes


def source_views(takes: Sequence[Take], selected: Sequence[Take] | None = None) -> list[ClipView]:
    """Return takes as clips of one source. Static pixels are detected over all takes, as partition does.

    selected: the takes to return, all by default.
    """
    watch = ViewportAccumulator()
    for take in takes:
        painter, due_s = decode.FrameConverter(probe(str(take.file)), (320, 240), "gray"), 0.0
        for time_s, frame in decode.decode(str(take.file), purpose="bench"):
            if time_s >= due_s:
                watch.add(painter(frame), counts=time_s > 0)
                due_s += _VIEWPORT_EVERY_S
    detected, scale = find_viewport(watch.sums), camera_takes.WIDTH / 320
    view, picture = (rect.scaled(scale, scale) for rect in (detected.view, detected.picture))
    return [
        ClipView(str(take.file), Span(0, camera_takes.SECONDS + 1), view, picture, detected.static, scene)
        for scene, take in enumerate(takes if selected is None else selected)
    ]


def _annotate(takes: Sequence[Take], views: Sequence[ClipView], alone: bool) -> Iterator[Row]:
    before = time.process_time()
    results = annotate(views, CameraSettings(backend="klt"))
    cpu_s = (time.process_time() - before) / sum(len(take.pose) for take in takes)
    for take, (facts, camera) in zip(takes, results, strict=True):
        row = Row(take, alone, facts, camera, None if camera is None else _worst_errors(camera, take, facts.status), cpu_s)
        print(row, flush=True)
        yield row


def _worst_errors(camera: Camera, take: Take, status: str) -> Errors:
    """Return the errors of a take; of one that is right in part, those of the span that is worst, measured by the limits."""
    whole = [CameraSpan(0, len(camera.pose), "general")]
    spans = [slice(span.start, span.end) for span in (camera.spans if status == PART else whole)]
    return max(
        (errors(camera.pose[span], take.pose[span]) for span in spans),
        key=lambda each: max(np.nan_to_num(each.ate) / _MAX_ATE, each.rpe_rot_deg / _MAX_RPE_ROT_DEG),
    )


def _error_lines(rows: Sequence[Row]) -> Iterator[str]:
    yield f"\n{'with the focal length of the source':38} n   ok  ATE %       RPE %  RPE deg       absolute deg  focal %"
    yield f"{'(of rows that are ok: median, worst)':38}"
    groups = defaultdict(list)
    for row in rows:
        if not row.alone:
            groups[row.take.kind, row.take.place.hud, row.take.fps].append(row)
    for (kind, hud, fps), group in sorted(groups.items(), key=lambda item: (KINDS.index(item[0][0]), *item[0][1:])):
        ok = [row for row in group if row.is_whole and row.errors]
        name = f"{kind}, {'HUD and weapon' if hud else 'bare'}, {fps:g} fps"
        yield f"{name:38} {len(group)}  {len(ok):2}  {_figures(ok)}"


def _figures(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    columns = (
        ("{:.3f} {:.3f}", [100 * row.errors.ate for row in rows if row.errors]),
        ("{:5.1f}", [100 * row.errors.rpe_trans for row in rows if row.errors]),
        ("{:.3f} {:.3f}", [row.errors.rpe_rot_deg for row in rows if row.errors]),
        ("{:.2f} {:.2f}", [row.errors.absolute_deg for row in rows if row.errors]),
        ("{:.2f} {:.2f}", [100 * row.focal_error for row in rows]),
    )
    return "  ".join(
        shape.format(np.median(values), max(values)) if np.isfinite(values).all() else "-".center(11)
        for shape, values in columns
    )


def _status_lines(rows: Sequence[Row]) -> Iterator[str]:
    for alone, title in ((False, "status, focal length pooled"), (True, "status, each take alone")):
        yield f"\n{title:28} " + " ".join(f"{status:>11}" for status in _STATUSES)
        for kind in KINDS:
            counts = Counter(row.facts.status.split(":")[0] for row in rows if row.take.kind == kind and row.alone == alone)
            if counts:
                yield f"{kind:28} " + " ".join(f"{counts[status]:11}" for status in _STATUSES)
    mix = [row.facts.status == "ok" for row in rows if row.take.kind == "mix"]
    yield f"\nmix takes that are ok: {np.mean(mix):.0%} of {len(mix)}"
    silent = [row for row in rows if row.silent]
    yield f"silent failures: {len(silent)} of {sum(row.facts.ok for row in rows)} ok rows " + ", ".join(
        row.take.name for row in silent
    )


def _scale_lines(rows: Sequence[Row], seed: int) -> Iterator[str]:
    """Show how close clips of random scale come to one unit.

    Each take is compared with its own true top speed, and its two halves, as adjacent clips, with each other.
    """
    rng = random.Random(seed)
    whole, halves = [], []
    for row in rows:
        if row.facts.status != "ok" or row.alone or row.camera is None:
            continue
        one = _rescale(row.camera, np.exp(rng.uniform(-3, 3)))
        whole.append(_unit(one, row.take.pose, scales([[one]], [])[0][0]) / _top_speed(row.take))
        cut = len(one.times_s) // 2
        parts = [slice(0, cut + 1), slice(cut, None)]
        cameras = [_rescale(_part(one, part), np.exp(rng.uniform(-3, 3))) for part in parts]
        scaled = scales([[one] for one in cameras], [True])
        units = [_unit(c, row.take.pose[part], s[0]) for c, part, s in zip(cameras, parts, scaled, strict=True)]
        halves.append(units[0] / units[1])
    if not whole:
        return
    yield f"\nscale after a random rescale, {len(whole)} clips: unit / true top speed, 5th to 95th percentile"
    low, high = np.percentile(whole, [5, 95])
    yield f"  {low:.3f} to {high:.3f} (x{high / low:.2f}), worst x{max(whole) / min(whole):.2f}"
    known = [each for each in halves if np.isfinite(each)]  # a half that stands still has no true scale to compare with
    if not known:
        return
    ratios = np.exp(np.abs(np.log(known)))
    median, high = np.quantile(ratios, [0.5, 0.95])
    yield f"  two halves that touch, one unit to the other, {len(known)} clips: median x{median:.2f}, 95 % within x{high:.2f}"


def _rescale(camera: Camera, factor: float) -> Camera:
    pose = camera.pose.copy()
    pose[:, :3, 3] *= factor
    return replace(camera, pose=pose)


def _part(camera: Camera, part: slice) -> Camera:
    times = camera.times_s[part]
    return replace(camera.at_times(times), times_s=times - times[0])


def _unit(camera: Camera, truth: np.ndarray, scale_to_unit: float) -> float:
    """Return the map units per unit of the scaled trajectory."""
    return errors(camera.pose, truth).scale / scale_to_unit


def _top_speed(take: Take) -> float:
    """Return the true top speed in map units a second, by the rule that scales estimates."""
    count = len(take.pose)
    zeros = np.zeros(count)
    true = Camera(take.pose, np.zeros((count, 4)), take.time_s, (1, 1), (0, 0, 1, 1), zeros > 0, zeros, zeros[:0].astype(int))
    return 1 / scales([[true]], [])[0][0]


def _colmap_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Run the global mapper on the tracks of the mix takes, without overlays, as our own mapping gets them."""
    from bench import glomap

    yield "\nCOLMAP's global mapper on the same tracks, focal length unknown (ours)"
    for row in rows:
        if row.take.kind != "mix" or row.alone or row.errors is None:
            continue
        clip = track_clip(source_views([row.take])[0], CameraSettings(backend="klt"))
        before = time.process_time()
        poses = glomap.poses(clip.points(), (clip.view.rect.w, clip.view.rect.h)) if isinstance(clip, ClipTracks) else None
        cpu_s = (time.process_time() - before) / len(row.take.pose)
        colmap_errors = None if poses is None else errors(poses, row.take.pose)
        theirs, ours = (
            "no model" if e is None else f"ATE {e.ate:7.3%} RPE-rot {e.rpe_rot_deg:.3f} deg"
            for e in (colmap_errors, row.errors)
        )
        yield f"{row.take.name:40} {theirs}, {cpu_s:.3f} CPU-s a frame ({ours})"


def _cost_lines(rows: Sequence[Row]) -> Iterator[str]:
    calls = {(row.take.place, row.take.fps): row.cpu_s for row in rows if not row.alone}
    for fps in sorted({fps for _, fps in calls}):
        cost = [cpu_s for (_, rate), cpu_s in calls.items() if rate == fps]
        yield f"CPU-seconds a frame of 640x480 at {fps:g} fps: {np.mean(cost):.4f} (worst source {max(cost):.4f})"


if __name__ == "__main__":
    main()
