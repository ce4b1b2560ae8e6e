"""Run other projects' chains and ours over the same engine footage: CPU-seconds, time, memory, clips, and what each computes.

    sh bench/peers.sh FOLDER [--only NAME,NAME] [--lines 480,720] [--again]

The shell script makes an environment for each project under FOLDER/env and then calls this module. Footage, outputs, logs and
results stay in FOLDER: what is there is not made again, except results with --again. Each chain is the nearest that a project
has to our recipe without cameras and VLM: find scenes, cut and encode clips, score them, drop some, write the rest.
"""

import argparse
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import av
import yaml

from bench.machine import describe
from bench.peer_scores import FLOW_LINES
from bench.process_tree import measure
from pipelines import ledger
from synth.doom.record import Recording, record

# Recordings of two maps each, so that each has a true cut.
_TAKES = (("explore", ("MAP07", "MAP09")), ("camera", ("MAP12", "MAP15")), ("fight", ("MAP18", "MAP03")))
_SEED = 9600
_SIZES = {480: (640, 480), 720: (1280, 720)}
_SECONDS = {480: 20.0, 720: 8.0}  # on each map: 120 s and 48 s in all
# Each chain also runs over a video this short, and what that costs counts as its start: imports, workers, models.
_START_S, _START_LINES = 3.0, 480
_LIMIT_S = 1800.0  # for one step
# As our recipe stores clips, wherever a project lets its users choose.
_PRESET, _CRF = "veryfast", 20
_MIN_CLIP_S, _CLIP_S = 2.0, 6.0

QUANTITIES = (
    "cuts",
    "black bars",
    "static frames, HUD",
    "motion",
    "camera motion apart from object motion",
    "picture quality",
    "interactions",
    "duplicates",
    "shards with an index",
    "resume",
)


class Job(NamedTuple):
    """The input of a chain: folders of footage, of what it writes, and of its environment's programs."""

    footage: Path
    out: Path
    programs: Path

    @property
    def videos(self) -> list[Path]:
        """Return the footage's videos, sorted."""
        return sorted(self.footage.glob("*.mp4"))


class Step(NamedTuple):
    """One command of a chain, or a function that only writes the next command's input."""

    name: str
    command: Sequence[str | Path] | Callable[[], None]


@dataclass(frozen=True)
class Chain:
    """How a project is run, and which of our quantities it then computes. What is not listed it does not compute."""

    title: str
    steps: Callable[[Job], Iterator[Step]]
    # CPU-seconds for each score alone, of a job whose chain has run: without starts, workers and encoding.
    scores: Callable[[Job], dict[str, float]]
    clips: Callable[[Path], Iterator[bytes]]  # the mp4 files that an output folder keeps
    computes: dict[str, str]
    scored: Callable[[Path], Iterator[bytes]] | None = None  # the clips that motion is computed on, where more than are kept
    leaves: str = ""  # what must not be empty at the end: not every program says by its status that it failed


@dataclass(frozen=True)
class Result:
    """What one chain used and left, at one size. `failure` is the line that failed, or empty."""

    name: str
    lines: int
    minutes: float  # of footage
    failure: str = ""
    cpu_s: float = 0.0
    wall_s: float = 0.0
    peak_mib: float = 0.0
    clips: int = 0
    kept_s: float = 0.0
    stored_mib: float = 0.0
    load: float = 0.0  # processes that waited for a core when it began
    scores_s: dict[str, float] = field(default_factory=dict)  # CPU-seconds for each score alone
    scored_s: float = 0.0  # seconds of the clips that motion is computed on; 0: those that are kept


def main(arguments: Sequence[str] | None = None) -> None:
    """Record footage, run every chain at every size, and print the environment and both tables."""
    parser = argparse.ArgumentParser(prog="bench/peers.sh", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="has the environments that bench/peers.sh makes; everything is written there")
    parser.add_argument("--only", default=",".join(CHAINS), help=f"which of {', '.join(CHAINS)}; default all")
    parser.add_argument("--lines", default="480,720", help="sizes of the footage; default 480,720")
    parser.add_argument("--again", action="store_true", help="measure again what has a result")
    options = parser.parse_args(arguments)
    folder, names = options.folder.resolve(), options.only.split(",")
    print(describe(), flush=True)
    start = _record_start(folder / "footage" / "start" / str(_START_LINES))
    starts = {name: _saved_result(folder, name, _START_LINES, start, options.again) for name in names}
    results = []
    for lines in map(int, options.lines.split(",")):
        footage = record_footage(folder / "footage", lines)
        results += [_saved_result(folder, name, lines, footage, options.again) for name in names]
    print("\n".join([*cost_table(results, starts), "", *quantity_table({name: CHAINS[name] for name in names})]))


def _saved_result(folder: Path, name: str, lines: int, footage: Path, again: bool) -> Result:
    """Return the result of an earlier call, or run the chain and save its result."""
    saved = folder / "results" / footage.relative_to(folder / "footage") / f"{name}.json"
    if again or not saved.exists():
        result = run_chain(folder, name, lines, footage)
        saved.parent.mkdir(parents=True, exist_ok=True)
        saved.write_text(json.dumps(asdict(result)))
    return Result(**json.loads(saved.read_text()))


def _record_start(folder: Path) -> Path:
    """Record a video in which no detector finds a cut, so that every chain has a clip to start its later steps for."""
    if not (folder / "start.mp4").exists():
        width, height = _SIZES[_START_LINES]
        take = Recording([("freedoom2", "MAP12", _START_S)], _SEED + 1, width, height, style="camera", crf=23)
        record(folder / "start.mp4", take)
    return folder


def record_footage(folder: Path, lines: int) -> Path:
    """Record the takes that are missing, and return their folder."""
    width, height = _SIZES[lines]
    for seed, (style, maps) in enumerate(_TAKES, start=_SEED):
        video = folder / str(lines) / f"{style}.mp4"
        if not video.exists():
            takes = [("freedoom2", name, _SECONDS[lines]) for name in maps]
            record(video, Recording(takes, seed=seed, style=style, width=width, height=height, crf=23))
    return folder / str(lines)


def run_chain(folder: Path, name: str, lines: int, footage: Path) -> Result:
    """Run one chain and then its scores alone. A step that fails ends it, with the last line of the step's log."""
    chain, programs = CHAINS[name], folder / "env" / name / "bin"
    minutes = sum(clip_seconds(video.read_bytes()) for video in footage.glob("*.mp4")) / 60
    not_installed = folder / "env" / name / "failed"
    if not_installed.exists():
        return Result(name, lines, minutes, f"not installed: {not_installed.read_text().strip()}")
    out = folder / "out" / footage.relative_to(folder / "footage") / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    job = Job(footage, out, programs if programs.exists() else Path(sys.executable).parent)
    load, used, log = os.getloadavg()[0], [], out / "log"
    for step in chain.steps(job):
        if callable(step.command):
            step.command()
            continue
        print(f"{name}, {lines} lines: {step.name}", flush=True)
        log = out / f"{step.name}.log"
        command = list(map(str, step.command))
        used.append(measure(command, env=_environment(job), cwd=str(out), log=str(log), limit_s=_LIMIT_S))
        if used[-1].status:
            failure = f"{step.name} ended with status {used[-1].status}: {_last_line(log)}"
            return Result(name, lines, minutes, failure, load=load)
    if chain.leaves and not any(path.stat().st_size for path in out.glob(chain.leaves)):
        return Result(name, lines, minutes, f"{chain.leaves} is empty: {_last_line(log)}", load=load)
    clips = list(chain.clips(out))
    return Result(
        name,
        lines,
        minutes,
        cpu_s=sum(each.cpu_s for each in used),
        wall_s=sum(each.wall_s for each in used),
        peak_mib=max(each.peak_mib for each in used),
        clips=len(clips),
        kept_s=sum(map(clip_seconds, clips)),
        stored_mib=sum(map(len, clips)) / 2**20,
        load=load,
        scores_s=chain.scores(job),
        scored_s=sum(map(clip_seconds, chain.scored(out))) if chain.scored else 0.0,
    )


def _environment(job: Job) -> dict[str, str]:
    """Return the variables of a step: its own programs first, one thread for each library, no hub, no report to anyone."""
    programs = [job.programs, *([_ffmpeg_of_nemo(job.programs.parent)] if job.programs.parent.name == "nemo" else [])]
    ours = job.programs == Path(sys.executable).parent
    inherited = {name: value for name, value in os.environ.items() if ours or name != "PYTHONPATH"}
    return inherited | {
        "PATH": os.pathsep.join([*map(str, reversed(programs)), os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_worker_niceness": "0",  # or else every other process of a busy machine goes first
    }


def _ffmpeg_of_nemo(home: Path) -> Path:
    """Return a folder with an `ffmpeg` that encodes by x264 where NeMo Curator asks for OpenH264, which Debian's has not.

    Its other encoder of a processor, VP9, leaves no motion vectors, so that its own motion filter then drops every clip.
    """
    program = home / "ffmpeg" / "ffmpeg"
    program.parent.mkdir(exist_ok=True)
    program.write_text(_FFMPEG_OF_NEMO.format(ffmpeg=shutil.which("ffmpeg"), preset=_PRESET, crf=_CRF))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program.parent


_FFMPEG_OF_NEMO = """#!/bin/bash
arguments=()
for each in "$@"; do
    [ "$each" = -encoders ] && exec echo libopenh264
    if [ "$each" = libopenh264 ]; then arguments+=(libx264 -preset {preset} -crf {crf}); else arguments+=("$each"); fi
done
exec {ffmpeg} "${{arguments[@]}}"
"""


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"


# Ours.


def _our_recipe(job: Job) -> Path:
    """Write the recipe `laptop` with DIS flow, clips stored at the footage's size, and no camera, VLM or caption encoder."""
    width, height = _SIZES[int(job.footage.name)]
    settings = {
        "partition": {"flow": {"backend": "dis"}},
        "annotate": {"camera": {"backend": "none"}},
        "caption": {"vlm": {"backend": "none"}},
        "relate": {"encoder": {"backend": "none"}},
        "shard": {"encoding": {"max_width": width, "max_height": height}},
    }
    path = job.out / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def _our_steps(job: Job) -> Iterator[Step]:
    yield Step("curate", _curate(job, "dataset"))


def _our_scores(job: Job) -> dict[str, float]:
    """Return what our workers counted for all scores together, since one pass computes them."""
    stages = sum((Counter(unit.cpu_s) for unit in ledger.records(str(job.out / "dataset"))), Counter[str]())
    return {"all": sum(seconds for stage, seconds in stages.items() if stage != "encode_clip")}


def _curate(job: Job, out: str) -> list[str | Path]:
    return [sys.executable, "-m", "gamecraft", "curate", job.footage, "--out", job.out / out, "--recipe", _our_recipe(job)]


# PySceneDetect.


def _scenedetect_steps(job: Job) -> Iterator[Step]:
    for video in job.videos:
        output = ["split-video", "--preset", _PRESET, "--rate-factor", str(_CRF)]
        yield Step(f"split-{video.stem}", [*_detect_adaptive(job, video), *output])


def _detect_adaptive(job: Job, video: Path) -> list[str | Path]:
    scenes = ["--min-scene-len", f"{_MIN_CLIP_S}s", "--drop-short-scenes"]
    return [job.programs / "scenedetect", "-q", "-i", video, "-o", job.out / "clips", *scenes, "detect-adaptive"]


# video2dataset. Its encoder's settings, x264 medium with crf 23, cannot be chosen.


def _video2dataset_steps(job: Job) -> Iterator[Step]:
    """Yield its stage of download, with cuts and clips, and its stage of optical flow, at the defaults of its own configs."""
    yield Step("list", lambda: _list_for_video2dataset(job))
    clipping = {"args": {"min_length": _MIN_CLIP_S, "max_length": _CLIP_S, "max_length_strategy": "all", "precision": "exact"}}
    cutting = {
        "cuts_are_clips": True,
        "args": {"cut_detection_mode": "all", "framerates": None, "threshold": 27, "min_scene_len": 15},
    }
    yield _download(job, "clips", "webdataset", {"CutDetectionSubsampler": cutting, "ClippingSubsampler": clipping})
    yield _optical_flow(job, "flow")


def _list_for_video2dataset(job: Job) -> None:
    (job.out / "videos.csv").write_text("\n".join(["url", *map(str, job.videos)]) + "\n")


def _download(job: Job, name: str, output_format: str, subsampling: dict[str, Any]) -> Step:
    reading = {"yt_args": {"download_size": 360, "download_audio_rate": 44100, "yt_metadata_args": {}}}
    config = _config_of_video2dataset(job, name, subsampling, reading)
    return _video2dataset(job, name, job.out / "videos.csv", config, "--input_format=csv", f"--output_format={output_format}")


def _optical_flow(job: Job, name: str) -> Step:
    decoder = {"n_frames": None, "fps": 2, "num_threads": 8, "return_bytes": True}
    reading = {"dataloader_args": {"resize_size": 16, "decoder_kwargs": decoder}}
    subsampling = {"OpticalFlowSubsampler": {"args": {"detector": "cv2", "detector_args": None, "dtype": "fp16"}}}
    config = _config_of_video2dataset(job, name, subsampling, reading)
    formats = ["--input_format=webdataset", "--output_format=webdataset", '--encode_formats={"optical_flow":"npy"}']
    return _video2dataset(job, name, job.out / "clips", config, "--stage=optical_flow", *formats)


def _video2dataset(job: Job, name: str, source: Path, config: Path, *options: str) -> Step:
    files = [f"--url_list={source}", f"--output_folder={job.out / name}", f"--config={config}"]
    return Step(name, [job.programs / "video2dataset", *files, *options])


def _config_of_video2dataset(job: Job, name: str, subsampling: dict[str, Any], reading: dict[str, Any]) -> Path:
    config = {
        "subsampling": subsampling,
        "reading": reading | {"timeout": 60, "sampler": None},
        "storage": {"number_sample_per_shard": 1000, "oom_shard_count": 5, "captions_are_subtitles": False},
        "distribution": {"processes_count": 1, "thread_count": 2, "subjob_size": 1000, "distributor": "multiprocessing"},
    }
    path = job.out / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


# Data-Juicer.


def _juicer_steps(job: Job) -> Iterator[Step]:
    """Yield two recipes: one that cuts, and one that scores and drops. Between them each clip becomes a row of its own.

    Without that a filter would keep or drop all clips of a source together.
    """
    yield Step("list", lambda: write_rows(job.out / "videos.jsonl", [[video] for video in job.videos]))
    encoding = f"-map 0:v:0 -c:v libx264 -preset {_PRESET} -crf {_CRF}"
    split = {"detector": "ContentDetector", "save_dir": str(job.out / "clips"), "ffmpeg_extra_args": encoding}
    yield _juicer(job, "videos", "split", [{"video_split_by_scene_mapper": split}])
    yield Step("rows", lambda: write_rows(job.out / "clips.jsonl", [[clip] for clip in videos_of(job.out / "split.jsonl")]))
    yield _juicer(job, "clips", "kept", _juicer_filters())


def _juicer_filters() -> list[dict[str, Any]]:
    return [
        {"video_duration_filter": {"min_duration": _MIN_CLIP_S}},
        {"video_motion_score_filter": {"min_score": 0.25, "sampling_fps": 2, "size": FLOW_LINES}},
        {"video_deduplicator": {}},
    ]


def _juicer(job: Job, rows: str, export: str, process: list[dict[str, Any]]) -> Step:
    settings = {
        "project_name": export,
        "dataset_path": str(job.out / f"{rows}.jsonl"),
        "export_path": str(job.out / f"{export}.jsonl"),
        "work_dir": str(job.out / f"{export}-work"),
        "np": 2,
        "use_cache": False,
        "open_tracer": False,
        "process": process,
    }
    config = job.out / f"{export}.yaml"
    config.write_text(yaml.safe_dump(settings))
    return Step(export, [job.programs / "dj-process", "--config", config])


def write_rows(path: Path, rows: Sequence[Sequence[str | Path]]) -> None:
    """Write a Data-Juicer dataset: a row for each list of videos."""
    texts = [{"videos": list(map(str, videos)), "text": "<__dj__video> <|__dj__eoc|>"} for videos in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))


def videos_of(path: Path) -> list[str]:
    """Return the videos of all rows of a Data-Juicer dataset."""
    return [video for line in path.read_text().splitlines() for video in json.loads(line)["videos"]]


# NeMo Curator on Ray Data.


def _nemo_steps(job: Job) -> Iterator[Step]:
    yield Step("pipeline", [job.programs / "python", "-P", _NEMO_CHAIN, job.footage, job.out, "--clip-s", str(_CLIP_S)])


_NEMO_CHAIN = Path(__file__).with_name("nemo_chain.py")


# Scores alone.


def _peer_scores(name: str) -> Callable[[Job], dict[str, float]]:
    """Return the function that runs `bench/peer_scores.py` by a project's Python."""

    def scores(job: Job) -> dict[str, float]:
        command: list[str | Path] = [
            job.programs / "python",
            "-P",
            Path(__file__).with_name("peer_scores.py"),
            name,
            job.footage,
            job.out,
        ]
        ran = subprocess.run(command, env=_environment(job), capture_output=True, text=True)
        if ran.returncode:
            raise RuntimeError(f"the scores of {name} failed: {ran.stderr[-500:]}")
        costs: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
        return costs

    return scores


# What is kept.


def _files(*patterns: str) -> Callable[[Path], Iterator[bytes]]:
    return lambda out: (path.read_bytes() for pattern in patterns for path in sorted(out.glob(pattern)))


def _in_tars(pattern: str) -> Callable[[Path], Iterator[bytes]]:
    def clips(out: Path) -> Iterator[bytes]:
        for path in sorted(out.glob(pattern)):
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.name.endswith(".mp4") and (file := tar.extractfile(member)):
                        yield file.read()

    return clips


def _of_kept_rows(out: Path) -> Iterator[bytes]:
    return (Path(video).read_bytes() for video in videos_of(out / "kept.jsonl"))


def clip_seconds(mp4: bytes) -> float:
    """Return how long a clip is by the times of its packets, since not every mp4 declares its length."""
    with av.open(io.BytesIO(mp4), mode="r") as container:
        stream = container.streams.video[0]
        spans = [
            (packet.pts, packet.pts + (packet.duration or 0)) for packet in container.demux(stream) if packet.pts is not None
        ]
        if not spans or stream.time_base is None:
            return 0.0
        return float((max(end for _, end in spans) - min(start for start, _ in spans)) * stream.time_base)


CHAINS = {
    "ours": Chain("gamecraft", _our_steps, _our_scores, _in_tars("dataset/shards/*.tar"), dict.fromkeys(QUANTITIES, "yes")),
    "scenedetect": Chain(
        "PySceneDetect, ffmpeg", _scenedetect_steps, _peer_scores("scenedetect"), _files("clips/*.mp4"), {"cuts": "yes"}
    ),
    "video2dataset": Chain(
        "video2dataset",
        _video2dataset_steps,
        _peer_scores("video2dataset"),
        _in_tars("clips/*.tar"),
        {"cuts": "yes", "motion": "yes, 16 lines", "shards with an index": "tars, no index", "resume": "by shard"},
        leaves="flow/*.tar",
    ),
    "juicer": Chain(
        "Data-Juicer",
        _juicer_steps,
        _peer_scores("juicer"),
        _of_kept_rows,
        {"cuts": "yes", "motion": "yes", "picture quality": "no: weights from a hub", "duplicates": "equal files only"},
    ),
    "nemo": Chain(
        "NeMo Curator, Ray Data",
        _nemo_steps,
        _peer_scores("nemo"),
        _files("clips/*.mp4"),
        {
            "cuts": "no: weights and a GPU",
            "motion": "yes",
            "picture quality": "no: weights from a hub",
            "duplicates": "no: a GPU",
            "resume": "by source",
        },
        scored=_files("clips/*.mp4", "filtered_clips/*.mp4"),
    ),
}


_COSTS = ("lines", "project", "CPU-s a minute", "scores alone", "start", "wall s", "load", "peak MiB", "clips", "s kept", "MiB")


def cost_table(results: Sequence[Result], starts: Mapping[str, Result]) -> list[str]:
    """Return a Markdown table: CPU-seconds for a minute of footage beyond the start, for scores alone, and for the start.

    starts: each chain's result over a video of `_START_S`.
    """
    rows = [_row(_COSTS), "|---" * len(_COSTS) + "|"]
    for result in results:
        title, start = CHAINS[result.name].title, starts[result.name]
        if failure := result.failure or start.failure:
            rows.append(_row((result.lines, title, failure, *[""] * (len(_COSTS) - 3))))
            continue
        costs = [
            f"{(result.cpu_s - start.cpu_s) / (result.minutes - start.minutes):.1f}",
            _scores(result),
            f"{start.cpu_s:.0f}",
        ]
        machine = [f"{value:.0f}" for value in (result.wall_s, result.load, result.peak_mib)]
        rows.append(
            _row((result.lines, title, *costs, *machine, result.clips, f"{result.kept_s:.0f}", f"{result.stored_mib:.1f}"))
        )
    return rows


def _scores(result: Result) -> str:
    """Return each score's CPU-seconds a minute of what it is computed on: ours and cuts of the footage, motion of the clips."""
    minutes = {"motion": (result.scored_s or result.kept_s) / 60}
    return ", ".join(f"{what} {s / minutes.get(what, result.minutes):.1f}" for what, s in result.scores_s.items() if s)


def quantity_table(chains: dict[str, Chain]) -> list[str]:
    """Return a Markdown table: which of our quantities each chain computes, as it runs here."""
    rows = [_row(("", *(chain.title for chain in chains.values()))), "|---" * (len(chains) + 1) + "|"]
    return rows + [_row((name, *(chain.computes.get(name, "no") for chain in chains.values()))) for name in QUANTITIES]


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
