"""What another project's scores alone cost: its own calls, in one process, without its start.

`bench.peers` runs this file by that project's Python. It prints a line of JSON: CPU-seconds for each quantity, of all videos of
a folder (cuts) or of all clips that it computes motion of.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from io import BytesIO
from pathlib import Path

# Pixels of the shorter side for Data-Juicer's optical flow: 320x180 for wide footage, near the size of ours. Its default is the
# full size.
FLOW_LINES = 180


def main() -> None:
    """Run as `peer_scores.py NAME FOOTAGE OUT`, with the name and the output folder of a chain of `bench.peers`."""
    name, footage, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    costs = {quantity: _cpu_s(calls) for quantity, calls in _SCORES[name](sorted(footage.glob("*.mp4")), out)}
    sys.stdout.write(json.dumps(costs) + "\n")


_Scores = Iterable[tuple[str, Iterable[Callable[[], object]]]]


def _cpu_s(calls: Iterable[Callable[[], object]]) -> float:
    began = time.process_time()
    for call in calls:
        call()
    return time.process_time() - began


def _scenedetect(videos: list[Path], _: Path) -> _Scores:
    import scenedetect

    def find_scenes(video: Path) -> None:
        scenedetect.detect(str(video), scenedetect.AdaptiveDetector())

    yield "cuts", [partial(find_scenes, video) for video in videos]


def _video2dataset(videos: list[Path], out: Path) -> _Scores:
    import numpy as np
    from video2dataset.dataloader import get_video_dataset
    from video2dataset.subsamplers import CutDetectionSubsampler, OpticalFlowSubsampler

    cuts, flow = CutDetectionSubsampler(), OpticalFlowSubsampler(detector="cv2", dtype="fp16")
    decoding = {"n_frames": None, "fps": 2, "num_threads": 8, "return_bytes": True}

    def cuts_of(video: Path) -> None:
        cuts({"video": [video.read_bytes()]})

    def flow_of(shard: Path) -> None:
        clips = get_video_dataset(
            str(shard), 1, decoder_kwargs=decoding, resize_size=16, enforce_additional_keys=[], return_always=True
        )
        for sample in clips:
            flow(np.array(sample["mp4"][0]).astype(np.float32))

    yield "cuts", [partial(cuts_of, video) for video in videos]
    yield "motion", [partial(flow_of, shard) for shard in sorted(out.glob("clips/*.tar"))]


def _juicer(videos: list[Path], out: Path) -> _Scores:
    import scenedetect
    from data_juicer.ops.filter.video_motion_score_filter import VideoMotionScoreFilter
    from data_juicer.utils.constant import Fields

    def find_scenes(video: Path) -> None:
        scenedetect.detect(str(video), scenedetect.ContentDetector(27.0, 15), start_in_scene=True)

    motion = VideoMotionScoreFilter(sampling_fps=2, size=FLOW_LINES)
    rows = [json.loads(line) for line in (out / "kept.jsonl").read_text().splitlines()]
    clips = [{"videos": row["videos"], Fields.stats: {}} for row in rows]
    yield "cuts", [partial(find_scenes, video) for video in videos]
    yield "motion", [partial(motion.compute_stats_single, clip) for clip in clips]


def _nemo(_: list[Path], out: Path) -> _Scores:
    from nemo_curator.stages.video.filtering import motion_vector_backend as backend

    def motion(clip: Path) -> None:
        decoded = backend.decode_for_motion(
            BytesIO(clip.read_bytes()), thread_count=1, target_fps=2.0, target_duration_ratio=0.5
        )
        if decoded.frames:
            backend.check_if_small_motion(decoded.frames, decoded.frame_size)

    yield "motion", [partial(motion, clip) for clip in sorted(out.glob("*clips/*.mp4"))]


_SCORES: dict[str, Callable[[list[Path], Path], _Scores]] = {
    "scenedetect": _scenedetect,
    "video2dataset": _video2dataset,
    "juicer": _juicer,
    "nemo": _nemo,
}

if __name__ == "__main__":
    main()
