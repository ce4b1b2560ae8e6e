from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from curation.actions.detect import ActionSettings, detect_actions
from curation.errors import UnreadableVideo
from curation.partition import chunks
from curation.partition.chunks import ScanSettings, analysis_size, measure
from curation.partition.cuts import SceneSettings, cut_frames
from curation.partition.optical_flow import DisFlow, FlowSettings
from curation.partition.recorders import CutRecorder, ScanFrame
from curation.partition.scan import clear_caches, finished_scan, scan
from curation.worker_state import worker

DIS = ScanSettings(FlowSettings(backend="dis"))


def write(path, frames, fps=30):
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return str(path)


def texture(seed, height=240, width=320):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 5, width // 5, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(autouse=True)
def fresh():
    clear_caches()
    yield
    clear_caches()


def test_a_pan_is_measured_in_px_a_frame_at_320_wide(tmp_path):
    world = texture(1, width=1280)
    path = write(tmp_path / "pan.mp4", [np.roll(world, -4 * i, axis=1)[:, :640] for i in range(45)])
    signals = scan(path, DIS)
    assert signals.pair_times_s.tolist() == pytest.approx(np.arange(len(signals.pair_frame)) / 10 + 1 / 15, abs=0.07)
    # 4 px a frame at 640 wide is 2 px at 320; the camera turns right when the world moves left.
    assert np.median(signals.motion.rates()[:, 0]) == pytest.approx(2, abs=0.3)
    assert np.median(signals.motion.camera) == pytest.approx(2, abs=0.3)


def test_pairs_that_wait_for_a_batch_are_measured_as_pairs_alone(tmp_path, monkeypatch):
    """A GPU computes flow in batches; the last one of a source is not full."""
    world = texture(1, width=1280)
    path = write(tmp_path / "pan.mp4", [np.roll(world, -4 * i, axis=1)[:, :320] for i in range(45)])
    alone = measure(path, DIS)
    sizes = []

    class InBatches(DisFlow):
        batch = 4

        def __call__(self, pairs):
            sizes.append(len(pairs))
            return super().__call__(pairs)

    monkeypatch.setattr(chunks, "cached_flow", lambda settings: InBatches())
    together = measure(path, DIS)
    assert set(sizes[:-1]) == {4}
    assert sizes[-1] == len(alone.arrays["cells"]) % 4 != 0
    for name in ("pair_frame", "cells", "change_cells"):
        np.testing.assert_array_equal(alone.arrays[name], together.arrays[name])


def test_the_learned_detector_reads_dis_whatever_flow_a_recipe_names(tmp_path, monkeypatch):
    world = texture(1, width=1280)
    path = write(tmp_path / "pan.mp4", [np.roll(world, -4 * i, axis=1)[:, :320] for i in range(45)])
    by_dis = scan(path, DIS)
    clear_caches()

    class Other(DisFlow):
        name = "other"

        def __call__(self, pairs):
            return [2 * flow for flow in super().__call__(pairs)]

    monkeypatch.setattr(chunks, "cached_flow", lambda settings: Other())
    by_other = scan(path, DIS)
    assert (by_dis.flow, by_other.flow) == ("dis", "other")
    assert by_dis.dis_cells is None
    np.testing.assert_array_equal(by_other.dis_cells, by_dis.cells)
    np.testing.assert_array_equal(by_other.change_cells, by_dis.change_cells)
    np.testing.assert_allclose(by_other.cells, 2 * by_dis.cells, rtol=1e-2, atol=1e-5)
    one, other = (detect_actions(signals, ActionSettings(detector="learned")) for signals in (by_dis, by_other))
    np.testing.assert_array_equal(one.event_probability, other.event_probability)


def test_frames_shown_twice_do_not_halve_the_motion(tmp_path):
    world = texture(2, width=960)
    path = write(tmp_path / "doubled.mp4", [np.roll(world, -6 * (i // 2), axis=1)[:, :320] for i in range(60)], fps=60)
    assert np.median(scan(path, DIS).motion.camera) == pytest.approx(3, abs=0.4)


def cuts_in(frames):
    recorder = CutRecorder(SceneSettings.min_content)
    for number, frame in enumerate(frames):
        recorder.add(ScanFrame(number, number / 30, None, np.ascontiguousarray(frame), frame[..., 0], None, True))
    arrays = recorder.arrays()
    return cut_frames(arrays["content"], arrays["flow_match"], arrays["layout_similarity"], 30.0, SceneSettings())


def test_a_cut_is_seen_and_a_flash_is_not(tmp_path):
    frames = (
        [texture(3)] * 30 + [cv2.convertScaleAbs(texture(3), alpha=0.4, beta=150)] * 2 + [texture(3)] * 30 + [texture(4)] * 30
    )
    signals = scan(write(tmp_path / "cut.mp4", frames), DIS)
    assert cut_frames(signals.content, signals.flow_match, signals.layout_similarity, signals.fps, SceneSettings()) == [62]


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_picture_that_comes_back_after_a_few_frames_was_not_cut(frames):
    white = np.full_like(texture(3), 255)
    assert cuts_in([texture(3)] * 20 + [white] * frames + [texture(3)] * 20 + [texture(4)] * 20) == [40 + frames]


def pan(seed, count, step):
    world = texture(seed, width=320 + step * count)
    return [world[:, step * i : step * i + 320] for i in range(count)]


@pytest.mark.parametrize("step", [4, 30, 60])
def test_a_cut_is_seen_in_a_pan_and_the_pan_is_none(step):
    assert cuts_in([*pan(5, 30, step), *pan(6, 30, step)]) == [30]


def test_bars_and_a_hud_that_stay_hide_no_cut():
    frames = [frame.copy() for frame in [*pan(7, 25, 6), *pan(8, 25, 6)]]
    for frame in frames:
        frame[:30], frame[180:] = 0, texture(9)[180:]
    assert cuts_in(frames) == [25]


def test_one_pass_serves_all_who_ask(tmp_path):
    path = write(tmp_path / "a.mp4", [texture(5)] * 20)
    before = worker.decodes["scan"]
    assert scan(path, DIS) is scan(path, DIS)
    assert worker.decodes["scan"] == before + 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_very_short_sources(tmp_path, count):
    signals = scan(write(tmp_path / "short.mp4", [texture(6)] * count), DIS)
    assert len(signals.times_s) == count
    assert signals.end_s == pytest.approx(count / 30)
    assert len(signals.motion.camera) == len(signals.pair_frame)


def test_what_is_no_video_says_so(tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"")
    with pytest.raises(UnreadableVideo):
        scan(str(tmp_path / "x.mp4"), DIS)


@pytest.mark.parametrize(
    ("size", "analysed"), [((640, 480), (320, 240)), ((1, 1), (320, 320)), ((1, 900), (320, 720)), ((4000, 2), (320, 16))]
)
def test_the_analysis_size_keeps_the_aspect_within_reason(size, analysed):
    class Shape:
        width, height = size

    assert analysis_size(Shape) == analysed


def test_a_commit_whose_scan_is_gone_fails_instead_of_decoding_again(clip):
    signals = scan(clip, DIS)
    assert finished_scan(clip, DIS) is signals
    clear_caches()
    with pytest.raises(RuntimeError, match="is gone from this process"):
        finished_scan(clip, DIS)
