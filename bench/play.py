"""Measure a world that is played: pictures under true controls, obedience, memory and drift.

gamecraft bench play WORLD --data HELD_OUT [--teacher WORLD] [--other NAME=WORLD] [--lpips FILE.npz] [--out FOLDER]. WORLD is a
folder of `gamecraft export`, or demo. Truth is held-out footage with the cameras of its engine: a window of 18 frames is
generated from its first frame under the cameras of the rest. The baseline is the first frame turned as the camera turned, which
knows no more than the world does and adds no error. Long rollouts follow the cameras of whole recordings, and are compared with
them. A teacher, the causal world from which the other was distilled, and other worlds are measured in the same way, on the same
windows and seeds.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from bench.machine import describe
from model.backbone.vae import to_signed, to_uint8
from model.causal.rollout import Rollout, StreamStart
from model.causal.spec import CausalSpec
from model.config import FRAMES_PER_LATENT
from model.control.trajectory import integrate
from model.data.captions import CaptionMix
from model.data.loader import DataSettings, Windows, collate, read_sample
from model.data.windows import Window, stored_clips
from model.evaluation import control_accuracy
from model.evaluation.control import drift
from model.evaluation.control.mirror import mean_curve, mirror_curve
from model.evaluation.control_accuracy import DIRECTIONS, Direction, proportion
from model.evaluation.pictures import load_lpips, psnr, sharpness, to_luma
from model.play.keys import parse_keys
from model.warp import turn
from model.world_files import LoadedWorld, find_world, load_world

# A second at 17.5 frames a second; half a second is frame 9.
_FRAMES, _HALF = 18, 9
_BATCH = 24
_KEYS: dict[Direction, str] = {"right": "RIGHT", "left": "LEFT", "forward": "W", "back": "S"}
# A path and its reverse: a turn by 90 degrees and back, and a walk and back.
_MIRROR_FRAMES = 18

Distance = Callable[[Tensor, Tensor], Tensor]


class HeldOut(NamedTuple):
    """Windows of held-out footage: signed pictures [N, 3, F, H, W], cameras relative to the first frame, intrinsics [N, 4]."""

    video: Tensor
    pose: Tensor
    intrinsics: Tensor


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and write sheets and numbers into a folder."""
    parser = argparse.ArgumentParser(prog="gamecraft bench play", description=__doc__.splitlines()[0])
    parser.add_argument("world")
    parser.add_argument("--data", nargs="+", required=True, help="held-out outputs of gamecraft curate, with engine cameras")
    parser.add_argument("--teacher", default="", help="another world that gets the same controls")
    parser.add_argument("--other", action="append", default=[], metavar="NAME=WORLD", help="a further world; may be repeated")
    parser.add_argument("--lpips", default="", help="weights of LPIPS (AlexNet, .npz); without them LPIPS is left out")
    parser.add_argument("--out", type=Path, default=Path("play-bench"))
    parser.add_argument("--windows", type=int, default=24, help="held-out windows; default 24")
    parser.add_argument("--long-s", type=float, default=59.0, help="seconds of the long rollouts; 0: none")
    parser.add_argument("--takes", type=int, default=4, help="recordings that are rolled out at most; default 4")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    worlds = {"world": load_world(find_world(options.world))}
    if options.teacher:
        worlds["teacher"] = load_world(options.teacher)
    for other in options.other:
        name, separator, folder = other.partition("=")
        if not separator or name in ("real", *worlds):
            parser.error(f"--other must be NAME=WORLD with a name of its own, not {other!r}")
        worlds[name] = load_world(find_world(folder))
    loaded = worlds["world"]
    distance: Distance | None = load_lpips(options.lpips) if options.lpips else None
    held_out = read_windows(loaded, options.data, options.windows)
    print(describe())
    for name, each in worlds.items():
        spec = each.file.causal
        print(f"{name}: {each.file.name}, {each.digest}, {len(spec.steps)} {spec.sampler} steps, no guidance")
    print(f"{len(held_out.video)} held-out windows of {_FRAMES} frames")
    tables: dict[str, Any] = {}

    def show(name: str, table: dict[str, dict[str, Any]]) -> None:
        tables[name] = table
        print(f"\n{name}\n" + "\n".join(table_lines(table)), flush=True)
        (options.out / "play.json").write_text(json.dumps(tables, indent=1))

    contact_sheet(loaded, options.out / "play.jpg")
    show("pictures", pictures(worlds, held_out, distance, options.out))
    show("obedience", obedience(worlds, held_out, options.out))
    show("mirror", mirror(loaded, held_out, distance))
    if options.long_s:
        table, drifted = long_rollouts(
            {n: w for n, w in worlds.items() if n != "teacher"},
            read_takes(loaded, options.data, options.long_s, options.takes),
            options.out,
        )
        show("long", table)
        show("drift", drifted)


def table_lines(table: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a table in Markdown, given its cells by row and column."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in table.items():
        cells = (row.get(column, "") for column in columns)
        lines.append(f"| {name} | " + " | ".join(f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells) + " |")
    return lines


def play_data(loaded: LoadedWorld, frames: int) -> DataSettings:
    """Return how footage is read for a world: at its size and rate, with every camera and without text."""
    file, captions = loaded.file, CaptionMix(dropout=1.0)
    return DataSettings(frames=frames, fps=file.causal.fps, size=file.size, captions=captions, camera_dropout=0.0)


def read_windows(loaded: LoadedWorld, outputs: Sequence[str], count: int) -> HeldOut:
    """Return windows in which the camera moves, spread over the footage, none of which starts at a wall."""
    frames = 1 + FRAMES_PER_LATENT * -(-(_FRAMES - 1) // FRAMES_PER_LATENT)
    data = play_data(loaded, frames)
    kept: list[dict[str, Any]] = []
    clips = stored_clips(outputs)
    starts = [(clip, start) for clip in clips for start in np.arange(0, clip.seconds - frames / data.fps, 2.0)]
    for number in np.random.default_rng(5).permutation(len(starts)):
        clip, start = starts[number]
        sample = read_sample(Window((clip,), float(start), 0.0), data, epoch=0)
        motion = control_accuracy.camera_motion(sample["pose"][:_FRAMES].numpy())
        moves = abs(motion.yaw_deg) > 8 or float(sample["pose"][_FRAMES - 1, :3, 3].norm()) > 0.2
        if moves and not control_accuracy.is_blank(sample["video"][:, 0].permute(1, 2, 0).numpy(), 20.0):
            kept.append(sample | {"source": "", "replaced": []})
        if len(kept) == count:
            break
    batch = collate(kept)  # type: ignore[arg-type]
    video = to_signed(batch["video"][:, :, :_FRAMES])
    return HeldOut(video, batch["pose"][:, :_FRAMES], batch["intrinsics"][:, 0])


@torch.no_grad()
def roll(loaded: LoadedWorld, first: Tensor, intrinsics: Tensor, pose: Tensor, spec: CausalSpec | None = None) -> Tensor:
    """Return the video [N, 3, F, H, W] of rollouts from first frames under cameras [N, F, 4, 4]."""
    videos = []
    spec = spec or loaded.file.causal
    for part in range(0, len(first), _BATCH):
        rows = slice(part, part + _BATCH)
        text = loaded.encode_text([""] * len(first[rows]))
        stream = Rollout(loaded.world, loaded.codec, spec, StreamStart(first[rows], intrinsics[rows], text))
        padded = torch.cat([pose[rows, 1:], pose[rows, -1:].expand(-1, stream.block_frames - 1, -1, -1)], 1)
        video = torch.cat([first[rows][:, :, None], stream.extend(padded)], 2)
        videos.append(video[:, :, : pose.shape[1]])
    return torch.cat(videos)


def turned_first_frame(held_out: HeldOut) -> Tensor:
    """Return the first frame turned as the camera turned; what it does not show is its border."""
    frames = [held_out.video[:, :, 0]]
    for number in range(1, held_out.video.shape[2]):
        turned, _ = turn(held_out.video[:, :, 0], held_out.pose[:, 0], held_out.pose[:, number], held_out.intrinsics)
        frames.append(turned)
    return torch.stack(frames, 2)


def pictures(
    worlds: Mapping[str, LoadedWorld], held_out: HeldOut, distance: Distance | None, out: Path
) -> dict[str, dict[str, Any]]:
    """Return picture measures under true controls, half a second and a second on."""
    real = held_out.video
    first, intrinsics, pose = real[:, :, 0], held_out.intrinsics, held_out.pose
    codec = worlds["world"].codec
    codec_video = codec.decode(codec.encode(real))
    videos = {
        "real": real,
        "real through the codec": codec_video,
        "first frame repeated": first[:, :, None].expand_as(real),
        "first frame turned": turned_first_frame(held_out),
        **{name: roll(loaded, first, intrinsics, pose) for name, loaded in worlds.items()},
    }
    table = {}
    for name, video in videos.items():
        table[name] = measures(video, None if name == "real" else real, distance)
    chosen = np.linspace(0, len(real) - 1, 6).astype(int)
    rows = [strip(videos[name][i]) for i in chosen for name in ("real", "first frame turned", *worlds)]
    cv2.imwrite(str(out / "true-controls.png"), np.concatenate(rows)[..., ::-1])
    return table


def measures(video: Tensor, real: Tensor | None, distance: Distance | None) -> dict[str, Any]:
    """Return picture measures of videos [N, 3, F, H, W]; with real ones, also against these at three times."""
    row: dict[str, Any] = {}
    if real is not None:
        for label, frame in (("1 frame", 1), ("0.5 s", _HALF), ("1 s", _FRAMES - 1)):
            row[f"PSNR {label}"] = mean_psnr(video[:, :, frame], real[:, :, frame])
            if distance is not None:
                row[f"LPIPS {label}"] = round(float(distance(video[:, :, frame], real[:, :, frame]).mean()), 3)
    return row | {"sharpness 1 s": round(float(sharpness(video[:, :, _FRAMES - 1])), 1)}


def mean_psnr(a_N3HW: Tensor, b_N3HW: Tensor) -> float:
    """Return the mean over pairs of pictures of their PSNR, dB."""
    return round(float(np.mean([float(psnr(a, b)) for a, b in zip(a_N3HW, b_N3HW, strict=True)])), 2)


def strip(video_3FHW: Tensor, frames: Sequence[int] = (0, 2, 5, 9, 13, 17), scale: float = 1.5) -> np.ndarray:
    """Return some frames side by side, uint8."""
    pictures = (video_3FHW[:, min(f, video_3FHW.shape[1] - 1)].permute(1, 2, 0) for f in frames)
    return np.concatenate([_enlarged(picture, scale) for picture in pictures], 1)


def _enlarged(picture_HW3: Tensor, scale: float) -> np.ndarray:
    plain = to_uint8(picture_HW3).numpy()
    return np.asarray(cv2.resize(plain, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC))


def key_poses(loaded: LoadedWorld, script: str, count: int) -> Tensor:
    """Return the cameras [N, F, 4, 4] of a script of keys, as play integrates them."""
    pose = torch.from_numpy(integrate(parse_keys(script), loaded.file.control)).float()
    return pose[None].expand(count, -1, -1, -1)


def obedience(worlds: Mapping[str, LoadedWorld], held_out: HeldOut, out: Path) -> dict[str, dict[str, Any]]:
    """Return the share of videos that move as they were controlled: true controls, and keys held for a second."""
    first, intrinsics = held_out.video[:, :, 0], held_out.intrinsics
    table: dict[str, dict[str, Any]] = {}
    motions = [control_accuracy.camera_motion(pose.numpy()) for pose in held_out.pose]
    table["real frames, true controls"] = _shares(zip((m.direction for m in motions), held_out.video, strict=True))
    for name, loaded in worlds.items():
        made = roll(loaded, first, intrinsics, held_out.pose)
        table[f"{name}, true controls"] = _shares(zip((m.direction for m in motions), made, strict=True))
        keys: dict[Direction, Tensor] = {
            direction: roll(loaded, first, intrinsics, key_poses(loaded, f"{key}*{_FRAMES - 1}", len(first)))
            for direction, key in _KEYS.items()
        }
        table[f"{name}, a key held for a second"] = _shares((each, one) for each, video in keys.items() for one in video)
        rows = [strip(video[i]) for video in keys.values() for i in (0, len(video) // 2)]
        cv2.imwrite(str(out / f"keys-{name}.png"), np.concatenate(rows)[..., ::-1])
    return table


def _shares(videos: Iterable[tuple[Direction | None, Tensor]]) -> dict[str, str]:
    """Return the share of videos [3, F, H, W] that move in their direction, by direction and of all. None has no direction."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for direction, video in videos:
        if direction:
            hits[direction].append(_follows(direction, video))
    everything = [hit for each in hits.values() for hit in each]
    parts = {str(each): str(proportion(hits[each])) for each in DIRECTIONS if hits[each]}
    return parts | ({"all": str(proportion(everything))} if everything else {})


def _follows(direction: Direction, video_3FHW: Tensor) -> bool:
    return control_accuracy.follows(direction, control_accuracy.video_motion(_plain(video_3FHW)))


def _plain(video_3FHW: Tensor) -> np.ndarray:
    """Return a signed video as uint8 [F, H, W, 3]."""
    return np.asarray(to_uint8(video_3FHW.permute(1, 2, 3, 0)).numpy())


def mirror(loaded: LoadedWorld, held_out: HeldOut, distance: Distance | None) -> dict[str, dict[str, Any]]:
    """Return how like the way back of a path and its reverse is to the way there, with and without a memory.

    Whole: the mean over the frames of the way back. Last: the last frame against the first.
    """
    spec = loaded.file.causal
    first, intrinsics = held_out.video[:_BATCH, :, 0], held_out.intrinsics[:_BATCH]
    table: dict[str, dict[str, Any]] = {}
    for memory in dict.fromkeys(("none", spec.memory)):
        row: dict[str, Any] = {}
        for label, there, back in (("turn", "RIGHT", "LEFT"), ("walk", "W", "S")):
            pose = key_poses(loaded, f"{there}*{_MIRROR_FRAMES} {back}*{_MIRROR_FRAMES}", len(first))
            video = roll(loaded, first, intrinsics, pose, replace(spec, memory=memory))
            curve = mean_curve([mirror_curve(_plain(one)) for one in video])
            row[f"{label} PSNR, whole"] = round(float(curve.psnr.mean()), 2)
            row[f"{label} PSNR, last"] = mean_psnr(video[:, :, -1], first)
            if distance is not None:
                row[f"{label} LPIPS, last"] = round(float(distance(video[:, :, -1], first).mean()), 3)
        table[f"memory: {memory}"] = row
    return table


def long_rollouts(
    worlds: Mapping[str, LoadedWorld], takes: HeldOut, out: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Roll out whole recordings from their first frames under their cameras, and compare with the recordings.

    Return two tables. The first has measures by spans of ten seconds. The second has, for each world, how far it is from the
    recordings after the first ten seconds, and for all how often a named event of drift happens.
    """
    loaded = worlds["world"]
    made = {name: roll(each, takes.video[:, :, 0], takes.intrinsics, takes.pose) for name, each in worlds.items()}
    videos = {"real": takes.video, **made}
    fps, frames = loaded.file.causal.fps, takes.video.shape[2]
    table: dict[str, dict[str, Any]] = {}
    curves: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in videos}
    similar = {name: _similarity_to_first(video) for name, video in videos.items()}
    luma = {name: _mean_luma(video) for name, video in videos.items()}
    chroma = {name: _chroma(video) for name, video in videos.items()}
    for start in range(0, frames - 1, round(10 * fps)):
        span = range(start, min(frames - 1, start + round(10 * fps)))
        row: dict[str, Any] = {}
        for name, video in videos.items():
            measured = {
                "luminance": float(luma[name][:, span].mean()),
                "sharpness": float(np.mean([float(sharpness(video[:, :, f])) for f in span[::4]])),
                "obedience": _obedience_within(video, takes.pose, span),
                "similarity to the first frame": float(similar[name][:, span].mean()),
            }
            differences = {
                "luminance difference": _difference(luma[name], luma["real"], span),
                "similarity difference": _difference(similar[name], similar["real"], span),
                "colour difference": float((chroma[name] - chroma["real"])[:, span].norm(dim=-1).mean()),
            }
            for measure, value in (measured | differences).items():
                curves[name][measure].append(value)
                row[f"{measure} {name}"] = round(value, 2 if measure.startswith(("obedience", "similarity")) else 1)
            jumps = np.abs(np.diff(similar[name][:, span.start : span.stop + 1].mean(0)))
            row[f"largest jump of similarity {name}"] = round(float(jumps.max()), 3)
        table[f"{span.start / fps:.0f} s"] = row
    draw_curves(curves, out / "long-curves.png")
    wanted = np.linspace(0, frames - 1, 7).astype(int).tolist()
    sheet = [strip(video[i], wanted) for i in range(len(takes.video)) for video in videos.values()]
    cv2.imwrite(str(out / "long.png"), np.concatenate(sheet)[..., ::-1])
    named = {name: _named_events(video, takes.pose, fps) for name, video in videos.items()}
    return table, {
        **{name: _drift(curves[name], curves["real"]) | named[name] for name in worlds},
        "real": named["real"],
    }


def _named_events(video_N3FHW: Tensor, pose: Tensor, fps: float) -> dict[str, float]:
    """Return how often the pictures collapse to the first frame, or nothing new comes while the camera moves."""
    found = [
        event
        for one, cameras in zip(video_N3FHW, pose, strict=True)
        for event in drift.events(drift.drift_curve(_plain(one), fps), fps, cameras.double().numpy())
    ]
    return {kind.replace("_", "-"): float(drift.count(found, kind)) for kind in ("sink_collapse", "lock_in")}


def _drift(world: Mapping[str, Sequence[float]], real: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return how far the curves of a world are from real ones after their first span, on average over the spans.

    Differences are of each recording by itself: in a mean over several, a dark one hides behind a bright one.
    """
    ours, theirs = ({name: np.array(values[1:]) for name, values in each.items()} for each in (world, real))
    return {
        "luminance difference": round(float(ours["luminance difference"].mean()), 1),
        "luminance, world less real": round(float((ours["luminance"] - theirs["luminance"]).mean()), 1),
        "colour difference": round(float(ours["colour difference"].mean()), 1),
        "sharpness, share of real": round(float((ours["sharpness"] / theirs["sharpness"]).mean()), 3),
        "obedience": round(float(np.nanmean(ours["obedience"])), 3),
        "similarity difference": round(float(ours["similarity difference"].mean()), 3),
    }


def _chroma(video_N3FHW: Tensor) -> Tensor:
    """Return the mean colour of frames without their luma, [N, F, 2]: blue and red less luma, in 8-bit steps.

    Recordings are compared one by one: in a mean over several, a sky that turned pink hides behind the others.
    """
    mean_N3F1 = video_N3FHW.mean((3, 4))[..., None]
    red, _, blue = mean_N3F1.unbind(1)
    luma = to_luma(mean_N3F1)[:, 0]  # luma is linear: that of the mean is the mean of all
    return 127.5 * torch.cat([blue - luma, red - luma], -1)


def _similarity_to_first(video_N3FHW: Tensor) -> np.ndarray:
    """Return the similarity of each frame to the first, [N, F]."""
    first = _luma(video_N3FHW[:, :, 0])
    return torch.stack([_similarity(first, _luma(video_N3FHW[:, :, f])) for f in range(video_N3FHW.shape[2])], 1).numpy()


def _mean_luma(video_N3FHW: Tensor) -> np.ndarray:
    """Return the mean luma of each frame, [N, F], 0 to 255."""
    return torch.stack([_luma(video_N3FHW[:, :, f]).mean((1, 2)) for f in range(video_N3FHW.shape[2])], 1).numpy()


def _difference(world_NF: np.ndarray, real_NF: np.ndarray, span: range) -> float:
    """Return how far the mean over a span of frames is from that of the recording, on average over the recordings."""
    return float(np.abs(world_NF[:, span].mean(1) - real_NF[:, span].mean(1)).mean())


def read_takes(loaded: LoadedWorld, outputs: Sequence[str], seconds: float, most: int = 4) -> HeldOut:
    """Return whole recordings of some length, joined from their clips. InputError where none is long enough."""
    frames = 1 + FRAMES_PER_LATENT * int(seconds * loaded.file.causal.fps / FRAMES_PER_LATENT)
    windows = Windows(outputs, replace(play_data(loaded, frames), join_clips=True))
    samples = [windows[0, number] for number in range(min(most, len(windows)))]
    batch = collate(samples)
    return HeldOut(to_signed(batch["video"]), batch["pose"], batch["intrinsics"][:, 0])


def _obedience_within(video: Tensor, pose: Tensor, span: range) -> float:
    """Return the share of seconds within a span whose motion has the direction of their controls; NaN where none has one."""
    hits = []
    for start in range(span.start, span.stop - _FRAMES + 1, _FRAMES):
        part = slice(start, start + _FRAMES)
        for one, cameras in zip(video, pose, strict=True):
            direction = control_accuracy.camera_motion(cameras[part].double().numpy()).direction
            if direction:
                hits.append(_follows(direction, one[:, part]))
    return float(np.mean(hits)) if hits else float("nan")


def _luma(video_N3HW: Tensor) -> Tensor:
    """Return luma from 0 to 255, [N, H, W]."""
    return to_luma(video_N3HW)[:, 0] * 127.5 + 127.5


def draw_curves(curves: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Draw each measure over time, a line for each video."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    measures = list(next(iter(curves.values())))
    figure, axes = pyplot.subplots(1, len(measures), figsize=(2.4 * len(measures), 2.6), layout="constrained")
    for axis, measure in zip(axes, measures, strict=True):
        for name, of in curves.items():
            axis.plot([10 * (i + 0.5) for i in range(len(of[measure]))], of[measure], marker="o", label=name)
        axis.set_title(measure)
        axis.set_xlabel("seconds")
        axis.set_ylim(bottom=0)
    axes[0].legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def contact_sheet(loaded: LoadedWorld, path: Path) -> None:
    """Draw frames of play from the world's own start pictures: a row for each, with other keys held."""
    scripts = ("W*24", "RIGHT*24", "W+LEFT*24", "RIGHT*12 LEFT*12")
    rows = []
    for (_, picture), script in zip(loaded.starts, scripts, strict=False):
        first = to_signed(torch.from_numpy(picture).permute(2, 0, 1)[None])
        made = roll(loaded, first, torch.tensor([loaded.file.intrinsics]), key_poses(loaded, script, 1))
        rows.append(strip(made[0], (0, 4, 8, 12, 16, 20, 24)))
    cv2.imwrite(str(path), np.concatenate(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])


def _similarity(a_NHW: Tensor, b_NHW: Tensor) -> Tensor:
    """Return the correlation of pictures at an eighth of their size, [N]."""
    small = [torch.nn.functional.avg_pool2d(x[:, None], 8).flatten(1) for x in (a_NHW, b_NHW)]
    return torch.nn.functional.cosine_similarity(*(x - x.mean(1, keepdim=True) for x in small))


if __name__ == "__main__":
    main()
