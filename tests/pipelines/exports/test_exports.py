"""Shards in other trainers' layouts, read as their documented loaders read them."""

import io
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from curation import shards
from curation.cameras.camera import Camera, from_npz, to_npz
from curation.errors import InputError
from curation.shard_reader import decode_video
from curation.shards import Sample
from pipelines.cli import app
from pipelines.exports import export_shards
from pipelines.exports.lerobot import VIEW

FRAMES, FPS = 12, 10
CAPTION = 'A corridor, "red" doors,\nand a lift'


def mp4(number, size=(32, 16), times=None):
    """A clip whose frame k is of the grey 20 + 10 * k + number."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=FPS, options={"qp": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90000)
        for k in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((*size[::-1], 3), 20 + 10 * k + number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(90000 * (times[k] if times else k / FPS)), Fraction(1, 90000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


def camera():
    pose = np.tile(np.eye(4), (FRAMES, 1, 1))
    pose[:, 2, 3] = np.arange(FRAMES)
    whole = Camera(
        pose=pose,
        intrinsics=np.tile([20.0, 20.0, 16.0, 8.0], (FRAMES, 1)),
        times_s=np.arange(FRAMES) / FPS,
        size=(32, 16),
        viewport=(0, 0, 32, 16),
        valid=np.ones(FRAMES, bool),
        residual_px=np.zeros(FRAMES, np.float32),
        keyframes=np.arange(FRAMES),
        scale_to_unit=0.5,
        scale_source="speed",
    )
    return whole.whole_span("general")


def sample(number, caption=CAPTION, size=(32, 16), times=None):
    about = {"stored_width": size[0], "stored_height": size[1], "stored_frames": FRAMES, "fps": 10.0, "start_s": 0.0}
    meta = {"video_id": "v", "index": number, **about} | ({"caption_short": caption} if caption else {})
    members = {"mp4": mp4(number, size, times)} | ({"camera.npz": to_npz(camera())} if number == 0 else {})
    return Sample(f"clip{number}", meta, members)


@pytest.fixture(scope="module")
def samples():
    """A clip with a camera, one without, one at uneven times, one of another size, and one without a caption."""
    uneven = [k / 10 + (0.03 if k % 2 else 0) for k in range(FRAMES)]
    return [sample(0), sample(1), sample(2, times=uneven), sample(3, size=(48, 16)), sample(4, caption=None)]


def commit(out, samples):
    shards.write_dataset(out, {"shards": []})
    for name, group in (("000000", samples[:2]), ("000001", samples[2:])):
        shards.put_index(out, name, shards.put_tar(out, name, group))


@pytest.fixture(scope="module")
def out(samples, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("out") / "o")
    commit(folder, samples)
    return folder


def test_diffsynth_reads_a_table_of_paths_and_prompts(out, samples, tmp_path):
    done = export_shards(out, "diffsynth", str(tmp_path / "x"))
    assert (done.clips, done.left_out) == (4, {"no caption": 1})
    rows = pd.read_csv(tmp_path / "x" / "metadata.csv").to_dict("records")
    assert [row["prompt"] for row in rows] == ['A corridor, "red" doors, and a lift'] * 4
    assert [(tmp_path / "x" / row["video"]).read_bytes() for row in rows] == [each.members["mp4"] for each in samples[:4]]


def test_fastvideo_reads_a_list_and_counts_the_frames_that_there_are(out, tmp_path):
    export_shards(out, "fastvideo", str(tmp_path / "x"))
    folder, listed = (tmp_path / "x" / "merge.txt").read_text().strip().split(",")
    items = json.loads(Path(listed).read_text())
    assert [(item["path"], item["resolution"]) for item in items][3] == ("clip3.mp4", {"width": 48, "height": 16})
    for item in items:
        frames, _ = decode_video(Path(folder, item["path"]).read_bytes())
        assert len(frames) == item["num_frames"] == int(np.ceil(item["fps"] * item["duration"]))
        assert item["cap"] == ['A corridor, "red" doors, and a lift']


def test_videos_are_encoded_again_only_for_another_rate(out, samples, tmp_path):
    export_shards(out, "diffsynth", str(tmp_path / "x"), fps=5)
    times_s = decode_video((tmp_path / "x" / "videos" / "clip0.mp4").read_bytes())[1]
    np.testing.assert_allclose(times_s, np.arange(6) / 5, atol=1e-4)
    export_shards(out, "diffsynth", str(tmp_path / "y"), fps=10)
    stored = [(tmp_path / "y" / "videos" / f"clip{n}.mp4").read_bytes() == samples[n].members["mp4"] for n in range(4)]
    assert stored == [True, True, False, True], "the third has uneven times"


def test_lerobot_reads_episodes_with_the_camera_as_action(out, tmp_path):
    done = export_shards(out, "lerobot", str(tmp_path / "x"))
    assert (done.clips, done.left_out) == (4, {"not 32x16 px": 1})
    folder = tmp_path / "x"
    info = json.loads((folder / "meta" / "info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_episodes"], info["total_frames"]) == ("v3.0", 10, 4, 49), (
        "the clip at uneven times has one more"
    )
    episodes = pq.read_table(folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pylist()
    tasks = pd.read_parquet(folder / "meta" / "tasks.parquet")
    for number, episode in enumerate(episodes):
        place = {"chunk_index": episode["data/chunk_index"], "file_index": episode["data/file_index"]}
        frames = pq.read_table(folder / info["data_path"].format(**place))
        assert set(frames.column_names) == set(info["features"]) - {VIEW}
        assert frames["index"].to_pylist() == list(range(episode["dataset_from_index"], episode["dataset_to_index"]))
        video = (folder / info["video_path"].format(video_key=VIEW, **place)).read_bytes()
        np.testing.assert_allclose(decode_video(video)[1], frames["timestamp"].to_numpy(), atol=5e-4)
        assert tasks.iloc[frames["task_index"][0].as_py()].name == episode["tasks"][0]
        valid = frames["camera_valid"].to_numpy()
        assert valid.all() if number == 0 else not valid.any()
        action = np.array(frames["action"].to_pylist())
        np.testing.assert_allclose(action[:, 0], 5.0 if number == 0 else 0.0, atol=1e-4)  # half a unit a frame, ten a second
        state = np.array(frames["observation.state"].to_pylist()).reshape(-1, 3, 4)
        np.testing.assert_allclose(state[:, 2, 3], np.arange(FRAMES) / 2 if number == 0 else 0)
    stats = json.loads((folder / "meta" / "stats.json").read_text())
    assert stats["index"]["max"] == [48]
    assert np.shape(stats[VIEW]["mean"]) == (3, 1, 1)
    assert 0 <= stats[VIEW]["min"][0][0][0] < stats[VIEW]["max"][0][0][0] <= 1


def test_parquet_loses_nothing(out, samples, tmp_path):
    export_shards(out, "parquet", str(tmp_path / "x"))
    rows = [
        row for name in ("000000", "000001") for row in pq.read_table(tmp_path / "x" / "train" / f"{name}.parquet").to_pylist()
    ]
    assert [row["mp4"] for row in rows] == [each.members["mp4"] for each in samples]
    assert [row["caption_short"] for row in rows] == [CAPTION] * 4 + [None]
    assert from_npz(rows[0]["camera_npz"]).spans == camera().spans
    assert json.loads((tmp_path / "x" / "columns.json").read_text())["fps"]["unit"] == "1/s"


def test_it_works_from_and_to_s3(s3, samples):
    commit(f"{s3.uri}/o", samples)
    assert export_shards(f"{s3.uri}/o", "fastvideo", f"{s3.uri}/x").clips == 4
    names = {item["Key"] for item in s3.client.list_objects_v2(Bucket=s3.bucket, Prefix="x/")["Contents"]}
    assert names == {"x/videos2caption.json", *(f"x/videos/clip{n}.mp4" for n in range(4))}


def test_mistakes_are_named(out, tmp_path):
    export_shards(out, "parquet", str(tmp_path / "x"))
    with pytest.raises(InputError, match="holds an export already"):
        export_shards(out, "parquet", str(tmp_path / "x"))
    with pytest.raises(InputError, match="whole number"):
        export_shards(out, "lerobot", str(tmp_path / "y"), fps=17.5)
    with pytest.raises(InputError, match="leave --fps out"):
        export_shards(out, "parquet", str(tmp_path / "y"), fps=5)
    with pytest.raises(InputError, match="no committed shard"):
        export_shards(str(tmp_path / "none"), "lerobot", str(tmp_path / "y"))
    done = CliRunner().invoke(app, ["export", out, "--out", str(tmp_path / "w")])
    assert isinstance(done.exception, InputError)
    assert "needs --recipe" in str(done.exception)


def test_the_command_says_what_it_left_out(out, tmp_path):
    done = CliRunner().invoke(app, ["export", out, "--format", "diffsynth", "--out", str(tmp_path / "x")])
    assert (done.exit_code, done.output) == (0, f"4 clips in {tmp_path / 'x'}; 1 left out (no caption)\n")
    assert len(pd.read_csv(tmp_path / "x" / "metadata.csv")) == 4
