"""Camera trajectories against a game engine's truth: errors, focal length, status, scale, cost.

Records its own footage, on maps on which nothing was tuned: mix, forward, strafe, rotation and static on four maps, with
and without HUD and weapon, at 35 and 16 frames a second, stored as shards store it; `play`, a player who runs, bumps into
walls and spins; and `keys`, every key held in turn. The takes of a map are one source: its focal length is pooled over them.
Then each take that does not turn is asked alone. Controls that a trajectory shows are held against the keys that were pressed.
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
from curation.cameras.camera import Camera, Facts
from curation.cameras.clip import ClipView
from curation.cameras.klt.clip_tracks import Look, looked_at
from curation.cameras.scale import scales
from curation.cameras.settings import CameraSettings
from curation.media import decode
from curation.media.decode import Span
from curation.media.viewport import ViewportWatch, viewport
from operators.op import limit_threads

SEED = 9900
RATES = (35.0, 16.0)
_LOOK_EVERY_S = 0.1
# What makes a row that calls itself ok a silent failure.
_ATE, _RPE_ROT_DEG, _FOCAL = 0.01, 0.3, 0.1
_STATUSES = ("ok", "ok_rotation", "ok_static", "suspect", "low_texture", "failed")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the environment, a line a take, and the tables."""
    parser = argparse.ArgumentParser(prog="gamecraft bench camera", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=SEED, help=f"which maps, places and paths; default {SEED}")
    parser.add_argument("--quick", action="store_true", help="one map, 35 frames a second")
    parser.add_argument("--tuning", action="store_true", help="the maps that limits were set on, not those that are reported")
    parser.add_argument("--keep", type=Path, help="a folder for the takes; what lies there is not recorded again")
    parser.add_argument("--beside", action="store_true", help="also COLMAP's global mapper on the tracks of the mix takes")
    options = parser.parse_args(arguments)
    print(describe())
    limit_threads(1)  # as a step of the pipeline has it
    with tempfile.TemporaryDirectory() as folder:
        rows = list(_measured(options.keep or Path(folder), options))
        beside = list(_beside(rows)) if options.beside else []
    posed = [(row.take, row.camera.pose) for row in rows if row.facts.ok and row.camera and not row.alone]
    tables = _error_lines(rows), _status_lines(rows), camera_controls.lines(posed), _scale_lines(rows, options.seed)
    print("\n".join([*(line for table in tables for line in table), *_cost_lines(rows), *beside]))


@dataclass(frozen=True)
class Row:
    """One take: what was said of it and how far that is from the truth. cpu_s: of its source's whole call, a frame."""

    take: Take
    alone: bool
    facts: Facts
    camera: Camera | None
    errors: Errors | None
    cpu_s: float

    @property
    def focal_error(self) -> float:
        return abs((self.facts.focal_px or np.nan) / self.take.focal_px - 1)

    @property
    def silent(self) -> bool:
        """Whether it calls itself ok and is not."""
        if not self.facts.ok or self.errors is None:
            return False
        found = self.errors
        return bool(found.ate > _ATE or found.rpe_rot_deg > _RPE_ROT_DEG or not self.focal_error <= _FOCAL)

    def __str__(self) -> str:
        name = f"{self.take.name}{' alone' if self.alone else ''}"
        if self.errors is None:
            return f"{name:44} {self.facts.status}"
        found = self.errors
        shown = (
            f"ATE {found.ate:7.3%} RPE {found.rpe_trans:6.1%} {found.rpe_rot_deg:6.3f} deg  abs {found.absolute_deg:5.2f} deg"
        )
        why = f"  {self.facts.why}" if self.facts.why else ""
        focal = f"f {self.facts.focal_px:6.1f} {self.facts.focal_source:6}"
        return f"{name:44} {self.facts.status:11} {shown}  {focal}{'  SILENT' if self.silent else ''}{why}"


def _measured(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    folder.mkdir(parents=True, exist_ok=True)
    rates = RATES[:1] if options.quick else RATES
    for place in camera_takes.places(options.seed, 1 if options.quick else 4, options.tuning):
        found = _taken(folder, place, options.seed)
        for rate in rates:
            takes = [take for take in found if take.fps == rate]
            yield from _annotated(takes, source_views(takes), alone=False)
            still = [take for take in takes if take.kind in ("forward", "strafe", "static")]
            for take, view in zip(still, source_views(takes, still), strict=True):
                yield from _annotated([take], [view], alone=True)


def _taken(folder: Path, place: camera_takes.Place, seed: int) -> list[Take]:
    """The takes of a place, of every kind that it has room for; which it has none of is said."""
    found = []
    for kind in KINDS:
        try:
            found += camera_takes.take(folder, place, kind, seed)
        except camera_takes.NoTake as error:
            print(f"left out: {error}", flush=True)
    return found


def source_views(takes: Sequence[Take], asked: Sequence[Take] | None = None) -> list[ClipView]:
    """The takes as clips of one source: what never moves is found over all of them, as partition does."""
    watch = ViewportWatch()
    for take in takes:
        painter, due_s = decode.Painter(decode.probe(str(take.file)), (320, 240), "gray"), 0.0
        for time_s, frame in decode.decode(str(take.file), purpose="bench"):
            if time_s >= due_s:
                watch.add(painter(frame), counts=time_s > 0)
                due_s += _LOOK_EVERY_S
    seen, scale = viewport(watch.evidence), camera_takes.WIDTH / 320
    view, picture = (rect.scaled(scale, scale) for rect in (seen.view, seen.picture))
    return [
        ClipView(str(take.file), Span(0, camera_takes.SECONDS + 1), view, picture, seen.static, scene)
        for scene, take in enumerate(takes if asked is None else asked)
    ]


def _annotated(takes: Sequence[Take], views: Sequence[ClipView], alone: bool) -> Iterator[Row]:
    before = time.process_time()
    found = annotate(views, CameraSettings(backend="klt"))
    cpu_s = (time.process_time() - before) / sum(len(take.pose) for take in takes)
    for take, (facts, camera) in zip(takes, found, strict=True):
        off = None if camera is None else errors(camera.pose, take.pose)
        row = Row(take, alone, facts, camera, off, cpu_s)
        print(row, flush=True)
        yield row


def _error_lines(rows: Sequence[Row]) -> Iterator[str]:
    yield f"\n{'with the focal length of the source':38} n   ok  ATE %       RPE %  RPE deg       absolute deg  focal %"
    yield f"{'(of rows that are ok: median, worst)':38}"
    groups = defaultdict(list)
    for row in rows:
        if not row.alone:
            groups[row.take.kind, row.take.place.hud, row.take.fps].append(row)
    for (kind, hud, fps), group in sorted(groups.items(), key=lambda item: (KINDS.index(item[0][0]), *item[0][1:])):
        ok = [row for row in group if row.facts.ok and row.errors]
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
    """How far clips of random scale come from one unit: against each take's own true top speed, and as halves that touch."""
    rng = random.Random(seed)
    alone, halves = [], []
    for row in rows:
        if row.facts.status != "ok" or row.alone or row.camera is None:
            continue
        one = _rescaled(row.camera, np.exp(rng.uniform(-3, 3)))
        alone.append(_unit(one, row.take.pose, scales([one], [])[0][0]) / _top_speed(row.take))
        cut = len(one.times_s) // 2
        parts = [slice(0, cut + 1), slice(cut, None)]
        cameras = [_rescaled(_part(one, part), np.exp(rng.uniform(-3, 3))) for part in parts]
        found = scales(cameras, [True])
        units = [_unit(c, row.take.pose[part], s[0]) for c, part, s in zip(cameras, parts, found, strict=True)]
        halves.append(units[0] / units[1])
    if not alone:
        return
    yield f"\nscale after a random rescale, {len(alone)} clips: unit / true top speed, 5th to 95th percentile"
    low, high = np.percentile(alone, [5, 95])
    yield f"  {low:.3f} to {high:.3f} (x{high / low:.2f}), worst x{max(alone) / min(alone):.2f}"
    told = [each for each in halves if np.isfinite(each)]  # a half that stands has no truth to hold it to
    if not told:
        return
    apart = np.exp(np.abs(np.log(told)))
    middle, most = np.quantile(apart, [0.5, 0.95])
    yield f"  two halves that touch, one unit to the other, {len(told)} clips: median x{middle:.2f}, 95 % within x{most:.2f}"


def _rescaled(camera: Camera, by: float) -> Camera:
    pose = camera.pose.copy()
    pose[:, :3, 3] *= by
    return replace(camera, pose=pose)


def _part(camera: Camera, part: slice) -> Camera:
    times = camera.times_s[part]
    return replace(camera.at(times), times_s=times - times[0])


def _unit(camera: Camera, truth: np.ndarray, scale_to_unit: float) -> float:
    """Map units a unit of the scaled trajectory."""
    return errors(camera.pose, truth).scale / scale_to_unit


def _top_speed(take: Take) -> float:
    """By the rule that estimates are scaled by, of the truth: map units a second."""
    count = len(take.pose)
    nothing = np.zeros(count)
    true = Camera(
        take.pose, np.zeros((count, 4)), take.time_s, (1, 1), (0, 0, 1, 1), nothing > 0, nothing, nothing[:0].astype(int)
    )
    return 1 / scales([true], [])[0][0]


def _beside(rows: Sequence[Row]) -> Iterator[str]:
    """The global mapper on the tracks of the mix takes, overlays voted out as for ours."""
    from bench import glomap

    yield "\nCOLMAP's global mapper on the same tracks, focal length unknown (ours)"
    for row in rows:
        if row.take.kind != "mix" or row.alone or row.errors is None:
            continue
        look = looked_at(source_views([row.take])[0], CameraSettings(backend="klt"))
        before = time.process_time()
        found = glomap.poses(look.points(), (look.watched.view.w, look.watched.view.h)) if isinstance(look, Look) else None
        cpu_s = (time.process_time() - before) / len(row.take.pose)
        off = None if found is None else errors(found, row.take.pose)
        theirs, ours = (
            "no model" if e is None else f"ATE {e.ate:7.3%} RPE-rot {e.rpe_rot_deg:.3f} deg" for e in (off, row.errors)
        )
        yield f"{row.take.name:40} {theirs}, {cpu_s:.3f} CPU-s a frame ({ours})"


def _cost_lines(rows: Sequence[Row]) -> Iterator[str]:
    calls = {(row.take.place, row.take.fps): row.cpu_s for row in rows if not row.alone}
    for fps in sorted({fps for _, fps in calls}):
        cost = [cpu_s for (_, rate), cpu_s in calls.items() if rate == fps]
        yield f"CPU-seconds a frame of 640x480 at {fps:g} fps: {np.mean(cost):.4f} (worst source {max(cost):.4f})"


if __name__ == "__main__":
    main()
