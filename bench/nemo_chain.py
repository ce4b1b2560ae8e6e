"""The video chain of NeMo Curator on Ray Data, as its tutorial builds it. `bench.peers` runs it by that project's Python.

It divides by a fixed stride, since its detector of cuts needs a GPU and weights from a hub, transcodes, scores motion by the
codec's motion vectors, drops what hardly moves, and writes clips and a JSON file for each.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

# The number of cores that Ray is given. Together the stages request more than two, and with two they would wait for ever.
_CPUS = 8


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the chain."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("footage", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--clip-s", type=float, default=6.0, help="length of a clip; default 6")
    parser.add_argument("--min-clip-s", type=float, default=2.0, help="shorter ends are left out; default 2")
    options = parser.parse_args(arguments)
    _curate(options.footage, options.out, options.clip_s, options.min_clip_s)


def _curate(footage: Path, out: Path, clip_s: float, min_clip_s: float) -> None:
    import ray
    from nemo_curator.backends.ray_data import RayDataExecutor
    from nemo_curator.pipeline import Pipeline
    from nemo_curator.stages.video.clipping.clip_extraction_stages import ClipTranscodingStage, FixedStrideExtractorStage
    from nemo_curator.stages.video.filtering.motion_filter import MotionFilterStage, MotionVectorDecodeStage
    from nemo_curator.stages.video.io.clip_writer import ClipWriterStage
    from nemo_curator.stages.video.io.video_reader import VideoReader

    ray.init(num_cpus=_CPUS, include_dashboard=False, configure_logging=False)
    pipeline = Pipeline("peers")
    pipeline.add_stage(VideoReader(input_video_path=str(footage)))
    stride = FixedStrideExtractorStage(clip_len_s=clip_s, clip_stride_s=clip_s, min_clip_length_s=min_clip_s, limit_clips=0)
    pipeline.add_stage(stride)
    pipeline.add_stage(ClipTranscodingStage(encoder="libopenh264", num_cpus_per_worker=1.0))
    pipeline.add_stage(MotionVectorDecodeStage(num_cpus_per_worker=1.0))
    pipeline.add_stage(MotionFilterStage())
    writer = ClipWriterStage(
        output_path=str(out),
        input_path=str(footage),
        upload_clips=True,
        dry_run=False,
        generate_embeddings=False,
        generate_previews=False,
        generate_captions=False,
        caption_models=[],
        enhanced_caption_models=[],
    )
    pipeline.add_stage(writer)
    pipeline.run(RayDataExecutor())


if __name__ == "__main__":
    main()
