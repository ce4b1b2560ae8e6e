"""PySceneDetect's detectors over stored measures, and our detector in PySceneDetect, each held against the other way."""

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np
import pytest
import scenedetect
from scenedetect import FrameTimecode, SceneManager, StatsManager, open_video
from scenedetect.detector import FlashFilter
from scenedetect.detectors import AdaptiveDetector, ContentDetector, HashDetector, ThresholdDetector
from scenedetect.detectors.transnet_v2 import TransnetV2Detector

from curation.errors import Unavailable
from curation.partition import detectors, scan
from curation.partition.chunks import ScanSettings, from_bytes, scan_chunk, to_bytes
from curation.partition.cuts import (
    DETECTORS,
    AdaptiveSettings,
    ContentSettings,
    CutMeasures,
    CutMeter,
    HashSettings,
    SceneSettings,
    ThresholdSettings,
    TransnetSettings,
    cut_frames,
)
from curation.partition.detectors import GameDetector, detect_cuts, frame_measure
from curation.partition.optical_flow import FlowSettings
from operators.partition import scene_bounds
from pipelines import recipes

FPS = 30.0
WITHOUT_FILES = tuple(detector for detector in DETECTORS if detector != "transnet")
ENDLESS = float("inf")


def texture(seed, shape=(180, 320)):
    noise = np.random.default_rng(seed).integers(0, 256, (max(2, shape[0] // 6), max(2, shape[1] // 6), 3), np.uint8)
    return cv2.resize(noise, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


@lru_cache
def video(seed, count=120, shape=(90, 160)):
    """Random scenes of random lengths, some of a single frame, some that fade to black or white, with noise."""
    rng = np.random.default_rng(seed)
    frames, scene = [], 0
    while len(frames) < count:
        world, length, fade = texture(seed * 100 + scene, shape), int(rng.choice([1, 2, 4, 9, 20, 40])), rng.integers(0, 4)
        for k in range(length):
            picture = np.roll(world, -3 * k, axis=1)
            if fade < 2 and length >= 9:
                share = abs(2 * k / (length - 1) - 1)
                picture = (picture * (1 - share) + (0, 255)[fade] * share).astype(np.uint8)
            frames.append(np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8))
        scene += 1
    return frames[:count]


def bgr(rgb):
    return np.ascontiguousarray(rgb[:, :, ::-1])


def push(detector, frames, first=0):
    """Return the cuts of a detector that is given pictures, as SceneManager gives them."""
    cuts = []
    for number, frame in enumerate(frames):
        cuts += detector.process_frame(FrameTimecode(first + number, FPS), bgr(frame))
    if frames:
        cuts += detector.post_process(FrameTimecode(first + len(frames) - 1, FPS))
    return sorted({cut.frame_num for cut in cuts} - {first})


def measures_of(frames):
    meter = CutMeter()
    for frame in frames:
        meter.add(frame)
    meter.finish()
    return meter.measures()


@lru_cache
def measures_of_video(seed):
    return measures_of(video(seed))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A network with the inputs and outputs of TransNetV2: its output is how much a picture differs from the one before."""
    onnx = pytest.importorskip("onnx", reason="the test writes its own network: extra `onnx`")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    ints = {"one": [1], "zero": [0], "end": [1000], "axis": [1], "pixels": [2, 3, 4], "last": [2], "pads": [0, 1, 0, 0]}
    constants = [helper.make_tensor(name, TensorProto.INT64, [len(values)], values) for name, values in ints.items()]
    constants += [
        helper.make_tensor("minus_one", TensorProto.INT64, [1], [-1]),
        helper.make_tensor("scale", TensorProto.FLOAT, [1], [40.0]),
    ]
    nodes = [
        helper.make_node("Cast", ["input"], ["pictures"], to=TensorProto.FLOAT),
        helper.make_node("Slice", ["pictures", "one", "end", "axis"], ["later"]),
        helper.make_node("Slice", ["pictures", "zero", "minus_one", "axis"], ["earlier"]),
        helper.make_node("Sub", ["later", "earlier"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["change"]),
        helper.make_node("ReduceMean", ["change", "pixels"], ["mean"], keepdims=0),
        helper.make_node("Pad", ["mean", "pads"], ["padded"]),
        helper.make_node("Div", ["padded", "scale"], ["share"]),
        helper.make_node("Unsqueeze", ["share", "last"], ["output"]),
    ]
    shapes = ([None, 100, 27, 48, 3], [None, 100, 1])
    given, wanted = (
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in zip(("input", "output"), (TensorProto.UINT8, TensorProto.FLOAT), shapes, strict=True)
    )
    graph = helper.make_graph(nodes, "change", [given], [wanted], constants)
    path = tmp_path_factory.mktemp("network") / "transnetv2.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return str(path)


def own_measure(frames, detector):
    measure = frame_measure(detector)
    return np.array([measure(frame) for frame in frames]) if measure else None


THEIRS = {
    "adaptive": (SceneSettings(detector="adaptive"), lambda: AdaptiveDetector(min_scene_len=0.3)),
    "adaptive_own": (
        SceneSettings(detector="adaptive", adaptive=AdaptiveSettings(1.5, 3, 5.0), min_scene_s=0.1),
        lambda: AdaptiveDetector(1.5, 0.1, 3, 5.0),
    ),
    "content": (SceneSettings(detector="content"), lambda: ContentDetector(min_scene_len=0.3)),
    "content_own": (
        SceneSettings(detector="content", content=ContentSettings(12.0, "suppress"), min_scene_s=0.0),
        lambda: ContentDetector(12.0, 0.0, filter_mode=FlashFilter.Mode.SUPPRESS),
    ),
    "hash": (SceneSettings(detector="hash"), lambda: HashDetector(min_scene_len=0.3)),
    "hash_own": (
        SceneSettings(detector="hash", hash=HashSettings(0.2), min_scene_s=1.0),
        lambda: HashDetector(0.2, min_scene_len=1.0),
    ),
    "threshold": (SceneSettings(detector="threshold"), lambda: ThresholdDetector(min_scene_len=0.3)),
    "threshold_own": (
        SceneSettings(detector="threshold", threshold=ThresholdSettings(200, -1.0, "ceiling")),
        lambda: ThresholdDetector(200, 0.3, -1.0, method=ThresholdDetector.Method.CEILING),
    ),
}


@pytest.mark.parametrize("name", THEIRS)
def test_their_detectors_decide_by_stored_measures_as_by_pictures(name):
    settings, theirs = THEIRS[name]
    seen = 0
    for seed in (0, 1, 3):
        cuts = detect_cuts(measures_of_video(seed), FPS, settings, own_measure(video(seed), settings.detector))
        assert cuts == push(theirs(), video(seed))
        seen += len(cuts)
    assert seen >= 2


@pytest.mark.parametrize("mode", ["merge", "suppress"])
def test_transnet_decides_by_stored_pictures_as_by_whole_ones(network, mode):
    settings = SceneSettings(detector="transnet", transnet=TransnetSettings(network, filter_mode=mode))
    found = []
    for seed, count in ((0, 120), (1, 333), (3, 90)):
        frames = video(seed, count)
        cuts = detect_cuts(measures_of(frames), FPS, settings, own_measure(frames, "transnet"))
        all_cuts = [cut for cut in push(TransnetV2Detector(network, None, 0.5, 0.0), frames) if cut < count - 1]
        assert set(cuts) <= set(all_cuts), "theirs, without those that are too near to each other"
        assert set(cuts) >= {cut for before, cut, after in zip([-99, *all_cuts], all_cuts, [*all_cuts[1:], 999], strict=False)
                             if min(cut - before, after - cut) > 9 and cut > 9}  # fmt: skip
        assert all(later - earlier >= 9 for earlier, later in pairwise(cuts))
        found += cuts
    assert len(found) >= 6


def test_a_scan_for_transnet_finds_cuts_in_one_pass_and_in_chunks(clip, network):
    scan_settings = ScanSettings(FlowSettings(backend="dis"), detector="transnet")
    scenes = SceneSettings(detector="transnet", transnet=TransnetSettings(network, 0.68, "suppress"))
    whole = scan.scan(clip, scan_settings)
    assert (whole.detector_measure.shape, whole.detector_measure.dtype) == ((120, 27, 48, 3), np.uint8)
    assert 60 in [round(start * 30) for start, _ in scene_bounds(whole, scenes)]
    parts = [from_bytes(to_bytes(scan_chunk(clip, scan_settings, *bounds))) for bounds in ((0.0, 3.31), (3.31, ENDLESS))]
    joined = scan.join_chunks(whole.source, parts)
    assert np.array_equal(joined.detector_measure, whole.detector_measure)
    assert scene_bounds(joined, scenes) == scene_bounds(whole, scenes)


def test_transnet_finds_the_only_cut(network):
    frames = [*[texture(1)] * 60, *[texture(2)] * 60]
    settings = SceneSettings(detector="transnet", transnet=TransnetSettings(network))
    assert detect_cuts(measures_of(frames), FPS, settings, own_measure(frames, "transnet")) == [60]


def test_what_transnet_lacks_is_the_machines_fault(tmp_path, monkeypatch):
    settings = SceneSettings(detector="transnet", transnet=TransnetSettings(str(tmp_path / "none.onnx")))
    pictures = own_measure([texture(1)] * 3, "transnet")
    with pytest.raises(Unavailable, match=r"transnet\.model_path: .*none\.onnx does not exist"):
        detect_cuts(measures_of([texture(1)] * 3), FPS, settings, pictures)
    monkeypatch.setattr(detectors, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"needs onnxruntime: pip install 'gamecraft\[onnx\]'"):
        detect_cuts(measures_of([texture(1)] * 3), FPS, settings, pictures)


@pytest.mark.parametrize("detector", WITHOUT_FILES)
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_hardly_any_frames_have_no_cut(detector, count):
    frames = [texture(1)] * count
    assert detect_cuts(measures_of(frames), FPS, SceneSettings(detector=detector), own_measure(frames, detector)) == []


@pytest.mark.parametrize("detector", WITHOUT_FILES)
@pytest.mark.parametrize("fps", [0.001, 7.3, 23.976, 29.97, 1 / 0.0333667, 1000.0])
def test_frames_keep_their_numbers_at_any_rate(detector, fps):
    small = (60, 80)
    frames = [*[texture(1, small)] * 20, *[np.zeros((*small, 3), np.uint8)] * 20, *[texture(3, small)] * 20]
    settings = SceneSettings(detector=detector, min_scene_s=0.0)
    cuts = detect_cuts(measures_of(frames), fps, settings, own_measure(frames, detector))
    assert cuts
    assert set(cuts) <= ({30} if detector == "threshold" else {20, 40})


@pytest.mark.parametrize(("seed", "min_scene_s", "first"), [(0, 0.0, 0), (1, 0.3, 1000), (0, 1.0, 7)])
def test_our_detector_in_their_interface_gives_our_cuts(seed, min_scene_s, first):
    settings = SceneSettings(min_scene_s=min_scene_s)
    ours = cut_frames(*measures_of_video(seed), FPS, settings)
    assert ours
    assert push(GameDetector(settings), video(seed), first) == [first + cut for cut in ours]


@pytest.mark.parametrize("count", range(14))
def test_our_detector_decides_the_last_frames_of_a_short_video(count):
    frames = [*[texture(1)] * 3, *[texture(2)] * 4, *[texture(3)] * 20][:count]
    settings = SceneSettings(min_scene_s=0.05)
    assert push(GameDetector(settings), frames) == cut_frames(*measures_of(frames), FPS, settings)


def random_measures(seed, count=400):
    """Measures with a candidate in three, so that chains of cuts too near to each other are long."""
    rng = np.random.default_rng(seed)
    cuts = rng.random(count) < 0.1
    return CutMeasures(
        np.where(cuts, 60.0, 2.0), np.where(cuts, rng.choice([0.1, 0.2, 0.3], count), 1.0), rng.uniform(-1, 1, count)
    )


@pytest.mark.parametrize("seed", range(20))
def test_chains_of_cuts_are_resolved_as_by_the_whole(seed, monkeypatch):
    measures, settings = random_measures(seed), SceneSettings(min_scene_s=(0.1, 0.3, 1.0)[seed % 3])
    detector = GameDetector(settings)
    meter = detector._meter
    meter.count = 0
    monkeypatch.setattr(CutMeter, "add", lambda self, rgb: setattr(self, "count", self.count + 1))
    monkeypatch.setattr(CutMeter, "finish", lambda self: None)
    monkeypatch.setattr(CutMeter, "__len__", lambda self: self.count)
    monkeypatch.setattr(CutMeter, "measures", lambda self, a=0, b=None: CutMeasures(*(m[: self.count][a:b] for m in measures)))
    assert push(detector, [np.zeros((8, 8, 3), np.uint8)] * 400) == cut_frames(*measures, FPS, settings)


@pytest.fixture(scope="module")
def clip(tmp_path_factory, write):
    """Two scenes of two seconds that move, with a flash in the second."""
    worlds = [texture(5, (360, 960)), texture(6, (360, 960))]
    frames = [np.roll(worlds[k // 60], -6 * k, axis=1)[:, :640] for k in range(120)]
    frames[90] = frames[91] = np.full_like(frames[90], 250)
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", frames, (k / 30 for k in range(120)))


@pytest.mark.parametrize("backend", ["opencv", "pyav"])
@pytest.mark.parametrize("whole", [False, True])
def test_our_detector_works_in_a_scene_manager(clip, backend, whole):
    if backend not in scenedetect.AVAILABLE_BACKENDS:
        pytest.skip(f"PySceneDetect has no {backend} here")
    manager, pictures = SceneManager(StatsManager()), []
    manager.auto_downscale = not whole
    manager.add_detector(GameDetector())
    manager.detect_scenes(
        open_video(clip, backend=backend), callback=lambda frame, timecode: pictures.append(timecode.frame_num)
    )
    scenes = manager.get_scene_list(start_in_scene=True)
    assert [(start.frame_num, end.frame_num) for start, end in scenes] == [(0, 60), (60, 120)]
    assert pictures == [60]
    content, match, _ = manager.stats_manager.get_metrics(scenes[1][0], ["game_content", "game_flow_match", "game_layout"])
    assert content > 21
    assert match < SceneSettings.max_flow_match


def test_our_detector_runs_beside_theirs(clip):
    manager = SceneManager()
    for detector in (GameDetector(), ContentDetector(), AdaptiveDetector(), HashDetector(), ThresholdDetector()):
        manager.add_detector(detector)
    manager.detect_scenes(open_video(clip))
    starts = {start.frame_num for start, _ in manager.get_scene_list()}
    assert starts >= {0, 60}


@pytest.mark.parametrize("shape", [(2, 2), (1, 400), (400, 1), (720, 1280), (1280, 720)])
def test_any_shape_of_frame_can_be_given(shape):
    assert push(GameDetector(), [*[texture(1, shape)] * 12, *[texture(2, shape)] * 12]) in ([12], [])


@pytest.mark.parametrize("detector", WITHOUT_FILES)
def test_the_setting_chooses_the_detector_of_a_scan(clip, detector):
    partition = recipes.Partition(SceneSettings(detector=detector), FlowSettings(backend="dis"))
    signals = scan.scan(clip, partition.scan)
    expected = {"hash": ((120, 8), np.uint8), "threshold": ((120, 1), np.float64)}.get(detector)
    measure = signals.detector_measure
    assert (None if measure is None else (measure.shape, measure.dtype)) == expected
    starts = [round(start * 30) for start, _ in scene_bounds(signals, partition.scenes)]
    # The fast pan scores 56 in every frame and hides the cut, which scores 59, from content scores. The hash mistakes the flash
    # for a cut. Nothing fades.
    assert starts == {"game": [0, 60], "hash": [0, 60, 90]}.get(detector, [0])


@pytest.mark.parametrize("detector", ["hash", "threshold"])
def test_chunks_join_to_one_pass(clip, detector):
    settings = ScanSettings(FlowSettings(backend="dis"), detector=detector)
    whole = scan.scan(clip, settings)
    parts = [from_bytes(to_bytes(scan_chunk(clip, settings, *bounds))) for bounds in ((0.0, 3.31), (3.31, ENDLESS))]
    joined = scan.join_chunks(whole.source, parts)
    assert np.array_equal(joined.detector_measure, whole.detector_measure)
    scenes = SceneSettings(detector=detector)
    assert scene_bounds(joined, scenes) == scene_bounds(whole, scenes)


def test_a_scan_for_another_detector_is_refused(clip):
    signals = scan.scan(clip, ScanSettings(FlowSettings(backend="dis")))
    with pytest.raises(ValueError, match="the scan was not made for the detector 'hash'"):
        scene_bounds(signals, SceneSettings(detector="hash"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("detector: cnn", r"detector must be one of game, adaptive, content, hash, threshold, transnet, not 'cnn'"),
        ("detector: transnet", "transnet.model_path is missing: the ONNX file"),
        ("transnet: {filter_mode: drop}", "filter_mode must be merge or suppress, not 'drop'"),
        ("adaptive: {window_width: 0}", "window_width must be at least 1, not 0"),
        ("content: {filter_mode: drop}", "filter_mode must be merge or suppress, not 'drop'"),
        ("threshold: {method: roof}", "method must be floor or ceiling, not 'roof'"),
        ("threshold: {fade_bias: 2}", "fade_bias must be from -1 to 1, not 2"),
        ("hash: {thresold: 1}", "did you mean threshold"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, text, words):
    (tmp_path / "mine.yaml").write_text(f"partition:\n  scenes:\n    {text}\n")
    with pytest.raises(ValueError, match=words):
        recipes.load(str(tmp_path / "mine.yaml"))


def test_what_the_detector_is_decides_results():
    laptop = recipes.laptop()
    for detector in WITHOUT_FILES[1:]:
        scenes = replace(laptop.partition.scenes, detector=detector)
        changed = replace(laptop, partition=replace(laptop.partition, scenes=scenes))
        assert changed.digest("partition") != laptop.digest("partition")
