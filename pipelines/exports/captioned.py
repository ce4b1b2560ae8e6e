"""Folders of videos with captions, for DiffSynth-Studio and FastVideo. Both take a caption a clip, and no camera or action.

DiffSynth-Studio reads `metadata.csv` by pandas: `video` is a path below the folder (`--dataset_base_path`), `prompt` its
caption. FastVideo's preprocessing (`--preprocess.dataset_type merged`) reads `videos2caption.json` and `videos/`; its older
scripts read `merge.txt`, which names both. DiffSynth-Studio takes frames one after the other whatever their rate, and
FastVideo expects frames at an even rate: with another rate in the shards than the model is trained on, give `fps`.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator

from curation import storage
from curation.schema import Row
from pipelines.exports.clips import Exported, Target, Video, caption_of, read_clips, video_at

_FOLDER = "videos"


def export_diffsynth(out: str, to: str, fps: float | None) -> Exported:
    """Write metadata.csv and videos/<clip_id>.mp4. Clips without a caption are left out."""
    target, left_out = Target(to, "metadata.csv"), Counter[str]()
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["video", "prompt"])
    count = 0
    for name, _, caption, _ in _captioned(out, target, fps, left_out):
        rows.writerow([f"{_FOLDER}/{name}", caption])
        count += 1
    target.put("metadata.csv", text.getvalue().encode())
    return Exported(count, dict(left_out))


def export_fastvideo(out: str, to: str, fps: float | None) -> Exported:
    """Write videos2caption.json, videos/<clip_id>.mp4 and, in a folder, merge.txt. Clips without a caption are left out."""
    target, left_out = Target(to, "videos2caption.json"), Counter[str]()
    items = [
        {
            "path": name,
            "resolution": {"width": meta["stored_width"], "height": meta["stored_height"]},
            "size": len(video.mp4),
            "fps": fps or meta["fps"],
            "duration": _duration_s(meta, video, fps),
            "num_frames": len(video.times_s) or meta["stored_frames"],
            "cap": [caption],
        }
        for name, meta, caption, video in _captioned(out, target, fps, left_out)
    ]
    if not storage.is_s3(target.uri):
        listed = f"{storage.join(target.uri, _FOLDER)},{storage.join(target.uri, 'videos2caption.json')}\n"
        target.put("merge.txt", listed.encode())
    target.put("videos2caption.json", json.dumps(items, indent=1, ensure_ascii=False).encode())
    return Exported(len(items), dict(left_out))


def _duration_s(meta: Row, video: Video, fps: float | None) -> float:
    """Return a length for which FastVideo counts the frames that there are: it multiplies it by the rate."""
    frames = len(video.times_s) or meta["stored_frames"]
    return float(frames / (fps or meta["fps"]))


def _captioned(out: str, target: Target, fps: float | None, left_out: Counter[str]) -> Iterator[tuple[str, Row, str, Video]]:
    """Write the video of each clip that has a caption. Yield its name, the clip's columns, the caption and the video."""
    for sample in read_clips(out):
        caption = caption_of(sample.meta)
        if caption is None:
            left_out["no caption"] += 1
            continue
        video, name = video_at(sample, fps), f"{sample.clip_id}.mp4"
        target.put(f"{_FOLDER}/{name}", video.mp4)
        yield name, dict(sample.meta), caption, Video(video.mp4, video.times_s)
