"""The suites general and control, tables and differences, generation and other benchmarks' layouts, from folder to folder."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from curation.cameras.camera import Camera, from_npz, to_npz  # noqa: E402
from curation.errors import InputError, Unavailable  # noqa: E402
from model.control.spec import ControlSpec  # noqa: E402
from model.control.trajectory import integrate  # noqa: E402
from model.evaluation import layouts, tables  # noqa: E402
from model.evaluation.cases import Case, read_cases, write_cases  # noqa: E402
from model.evaluation.control.run import ControlSettings  # noqa: E402
from model.evaluation.control.run import run as run_control  # noqa: E402
from model.evaluation.general.run import GeneralSettings  # noqa: E402
from model.evaluation.general.run import run as run_general  # noqa: E402
from model.evaluation.items import Items, compare, read_items, write_comparison, write_items  # noqa: E402
from model.evaluation.statistics import Interval, bradley_terry, krippendorff_alpha, paired_difference  # noqa: E402
from model.evaluation.tables import Column, Row, Table  # noqa: E402
from model.generation import baselines  # noqa: E402
from model.generation import run as generation  # noqa: E402
from model.play.engine import BlockFrames, EngineInfo  # noqa: E402
from model.play.keys import parse_keys  # noqa: E402
from pipelines.cli import app  # noqa: E402
from synth.media import to_mp4  # noqa: E402


@pytest.fixture(scope="module")
def wall():
    grain = np.random.default_rng(0).integers(0, 255, (80, 120, 3), np.uint8)
    return cv2.GaussianBlur(cv2.resize(grain, (960, 640), interpolation=cv2.INTER_CUBIC), (0, 0), 2)


def slide(wall, step=4, frames=12, noise=0.0):
    video = np.stack([wall[200:296, 100 + step * k : 260 + step * k] for k in range(frames)])
    return np.clip(video + np.random.default_rng(1).normal(0, noise, video.shape), 0, 255).astype(np.uint8) if noise else video


def store(folder, name, video, fps=8):
    path = folder / f"{name}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_mp4(video, fps))


def test_general_measures_and_their_ceilings(wall, tmp_path):
    for k, name in enumerate(("a", "b", "c")):
        store(tmp_path / "real", name, slide(wall, 3 + k))
        store(tmp_path / "made", name, slide(wall, 3 + k, noise=25))
    real = read_cases(str(tmp_path / "real"))
    cases = [Case(**{**vars(case), "seconds": 2.0}) for case in read_cases(str(tmp_path / "made"))]
    settings = GeneralSettings("ours", width_px=160)
    table = run_general(cases, real, str(tmp_path / "out"), settings, log=lambda _: None)
    rows = {row.label: dict(zip((c.name for c in table.columns), row.cells, strict=True)) for row in table.rows}
    assert set(rows) >= {"ours", "real", "real, coded again", "real, first frame repeated", "GameCraft, paper"}
    assert rows["ours"]["FPS"] == pytest.approx(36 / 6)
    assert rows["ours"]["FVD"] is None  # no weights were given
    assert rows["real"]["PSNR"] is None
    assert rows["ours"]["PSNR"] < rows["real, coded again"]["PSNR"]
    assert rows["real, first frame repeated"]["Dynamic average"] < 0.3 < rows["real"]["Dynamic average"]
    assert rows["real, first frame repeated"]["Flicker score"] == pytest.approx(1)
    assert rows["ours"]["Warp consistency"] < rows["real"]["Warp consistency"]
    assert rows["GameCraft, paper"]["FVD"] == 1554.2
    stored = sorted((tmp_path / "out" / "videos").iterdir())
    times = [path.stat().st_mtime_ns for path in stored]
    run_general(cases, real, str(tmp_path / "out"), settings, log=lambda _: None)
    assert [path.stat().st_mtime_ns for path in stored] == times
    assert read_items(str(tmp_path / "out")).values["a"]["PSNR"] == pytest.approx(rows["ours"]["PSNR"], abs=3)


def camera_file(path, script, fps=8.0, size=(160, 96)):
    pose = integrate(parse_keys(script), ControlSpec(fps=fps))
    count = len(pose)
    camera = Camera(
        pose=pose, intrinsics=np.tile([140.0, 140.0, size[0] / 2, size[1] / 2], (count, 1)), times_s=np.arange(count) / fps,
        size=size, viewport=(0, 0, *size), valid=np.ones(count, bool), residual_px=np.zeros(count, np.float32),
        keyframes=np.arange(0), scale_source="engine",
    )  # fmt: skip
    path.write_bytes(to_npz(camera.whole_span("rotation")))
    return pose


def turned(wall, pose):
    """Exact pictures of a camera that only turns."""
    matrix = np.array([[140.0, 0, 80], [0, 140.0, 48], [0, 0, 1]])
    start = np.array([[1, 0, -400.0], [0, 1, -272], [0, 0, 1]])
    return np.stack(
        [
            cv2.warpPerspective(wall, matrix @ p[:3, :3].T @ np.linalg.inv(matrix) @ start, (160, 96), flags=cv2.INTER_LINEAR)
            for p in pose
        ]
    )


def test_control_of_a_video_that_obeys_and_of_one_that_does_not(wall, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    pose = camera_file(folder / "a.npz", "RIGHT*8 LEFT*8", fps=32.0)
    right = turned(wall, pose)
    store(folder, "real", right, 32)
    store(folder, "a", right, 32)
    store(folder, "b", np.repeat(right[:1], len(right), 0), 32)
    cases = [Case(n, str(folder / f"{n}.mp4"), camera=str(folder / "a.npz"), real=str(folder / "real.mp4")) for n in ("a", "b")]
    write_cases(str(folder), cases)
    settings = ControlSettings("ours", window_s=0.25)
    control, obeyed = run_control(read_cases(str(folder)), str(tmp_path / "out"), settings, log=lambda _: None)
    values = read_items(str(tmp_path / "out")).values
    assert values["a"]["Rotation gain"] == pytest.approx(1, abs=0.1)
    assert values["b"]["Rotation gain"] == pytest.approx(0, abs=0.02)
    assert values["a"]["Obedience"] == 1
    assert values["a"]["Mirror test"] > 35
    assert "Mirror test" in values["b"]
    labels = ["ours", "real, same controls", "real, coded again", "real, first frame repeated"]
    assert [row.label for row in obeyed.rows] == labels
    assert [row.kind for row in obeyed.rows] == ["result", *["ceiling"] * 3]
    gain = [column.name for column in control.columns].index("Rotation gain")
    assert control.rows[2].cells[gain] == pytest.approx(1, abs=0.1)
    assert control.rows[3].cells[gain] == pytest.approx(0, abs=0.02)
    columns = [column.name for column in obeyed.columns]
    assert obeyed.rows[1].cells[columns.index("right")] == 1
    assert control.rows[1].cells[-1] == 2
    with pytest.raises(InputError, match="no case has a camera"):
        run_control([Case("a", "a.mp4")], str(tmp_path / "out"), settings)


LIMIT = Row("limit", [9.0, 0.0], kind="ceiling")
TABLE = Table(
    "A_b", [Column("X", "up", 2), Column("Y", "down", 1)],
    [Row("ours & co", [1.0, 2.0], [Interval(0.5, 1.5), None]), Row("theirs", [0.5, None]), LIMIT],
    "50 % of all",
)  # fmt: skip


def test_tables_in_three_forms():
    assert tables.to_csv(TABLE).splitlines() == [
        "row,kind,X,X low,X high,Y",
        "ours & co,result,1,0.5,1.5,2",
        "theirs,result,0.5,,,",
        "limit,ceiling,9,,,0",
    ]
    markdown = tables.to_markdown(TABLE)
    assert "| ours & co | 1.00 [0.50, 1.50] | 2.0 |" in markdown
    assert "| *limit* (ceiling) | 9.00 | 0.0 |" in markdown
    latex = tables.to_latex(TABLE)
    assert r"ours \& co & \textbf{1.00 [0.50, 1.50]} & 2.0 \\" in latex
    assert r"\textbf{9.00}" not in latex  # a ceiling is not the best result
    assert r"50 \% of all" in latex
    odd = tables.to_latex(TABLE._replace(note="C:\\a{b}~^<"))
    assert r"C:\textbackslash{}a\{b\}\textasciitilde{}\textasciicircum{}$<$" in odd
    assert r"Y $\downarrow$" in latex


def test_two_runs_are_compared_item_by_item(tmp_path):
    rng = np.random.default_rng(0)
    base = {f"v{k}": {"good": float(rng.normal()), "bad": 1.0} for k in range(30)}
    better = {name: {"good": row["good"] + 0.5, "bad": 1.0} for name, row in base.items()} | {"extra": {"good": 9.0}}
    ways = {"good": "up", "bad": "down"}
    write_items(str(tmp_path / "a"), Items("new", "general", ways, better))
    old = Items("old", "general", ways, base)
    write_items(str(tmp_path / "b"), old)
    table = write_comparison(str(tmp_path / "a"), str(tmp_path / "b"))
    assert table.rows[0].cells == [pytest.approx(0.5), 1.0, 30, "better"]
    assert table.rows[1].cells[-1] == "unclear"
    few = {name: better[name] for name in list(base)[:9]}
    assert {row.cells[-1] for row in compare(Items("new", "general", ways, few), old)[0].rows} == {"too few items"}
    aimless = compare(Items("new", "general", {"good": ""}, better), old)[0]
    assert aimless.rows[0].cells[-1] == "differs"
    assert len((tmp_path / "a" / "diff-items.csv").read_text().splitlines()) == 31
    with pytest.raises(InputError, match="share no item"):
        compare(Items("a", "general", ways, {"x": {}}), Items("b", "general", ways, {"y": {}}))
    with pytest.raises(InputError, match="different suites"):
        compare(Items("a", "general", ways, base), Items("b", "control", ways, base))
    with pytest.raises(InputError, match=r"no items\.json"):
        read_items(str(tmp_path / "c"))


def test_paired_differences_need_fewer_items_than_unpaired_ones():
    rng = np.random.default_rng(1)
    item = rng.normal(0, 10, 40)
    found = paired_difference((item + 0.5 + rng.normal(0, 0.3, 40)).tolist(), item.tolist())
    assert found.interval.low > 0
    assert found.wins > 0.8
    assert paired_difference([1.0, float("nan")], [1.0, 2.0]).items == 1


def test_krippendorffs_alpha():
    """Ordinal alpha of the four-observer example of Krippendorff (2011), computed there as 0.815."""
    rows = [[1, 1, None, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4], [4, 4, 4, 4], [1, 1, 2, 1],
            [2, 2, 2, 2], [None, 5, 5, 5], [None, None, 1, 1], [None, None, 3, None]]  # fmt: skip
    items = [[v for v in row if v is not None] for row in rows]
    assert krippendorff_alpha(items, (1, 2, 3, 4, 5)) == pytest.approx(0.815, abs=0.001)


def test_bradley_terry_of_two_is_the_logit_of_the_share():
    rows = [("a", "b", 1.0)] * 30 + [("b", "a", 1.0)] * 10
    a, b = bradley_terry(rows)
    assert (a.name, b.name) == ("a", "b")
    assert a.strength - b.strength == pytest.approx(np.log(30.25 / 10.25), abs=1e-6)  # half a tie is the prior
    assert a.interval.low < a.strength < a.interval.high
    ordered = bradley_terry([("a", "b", 1.0)] * 5 + [("b", "c", 1.0)] * 5)
    assert [row.name for row in ordered] == ["a", "b", "c"]


class SmallEngine:
    """An engine that slides: frames of 48 x 32 px, three a block."""

    def __init__(self):
        self.info = EngineInfo("small", (48, 32), 8.0, 3, ControlSpec(fps=8.0), (), (), {})
        self.started = []

    def start(self, start):
        self.started.append(start)
        picture = cv2.resize(start.picture, (48, 32))
        at = SimpleNamespace(n=0)

        def generate(controls):
            rows = [np.roll(picture, -(at.n + k + 1), 1) for k in range(len(controls))]
            at.n += len(controls)
            return BlockFrames(1, np.stack(rows), {})

        return SimpleNamespace(generate=generate, commit=lambda: 0.0), BlockFrames(0, picture[None], {})


@pytest.fixture
def images(wall, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(2):
        cv2.imwrite(str(folder / f"i{k}.png"), wall[k * 50 : k * 50 + 96, :160])
        (folder / f"i{k}.txt").write_text(f"Scene {k}.")
    return str(folder)


def test_a_world_makes_the_test_set_and_resumes(images, tmp_path):
    engine = SmallEngine()
    maker = generation.WorldMaker(engine, frames=8)
    wanted = list(generation.wanted_of_suite(images, ["snow", "cat", "dog"]))
    assert [one.name for one in wanted] == ["snow/i0", "snow/i1", "cat/i0", "dog/i1"]
    out = str(tmp_path / "out")
    assert generation.generate(maker, wanted[:3], out, log=lambda _: None) == 3
    assert generation.generate(maker, wanted, out, log=lambda _: None) == 1
    assert engine.started[0].prompt == "Scene 0. It starts to snow."
    assert engine.started[0].seed == generation.seed_of("snow/i0", 0)
    cases = read_cases(out)
    assert [case.subset for case in cases] == ["cat", "dog", "snow", "snow"]
    assert all(case.seconds > 0 for case in cases)
    from model.evaluation.videos import frame_times

    assert len(frame_times(cases[0].video)) == 8


def test_scripts_of_keys_come_with_their_camera(images, tmp_path):
    maker = generation.WorldMaker(SmallEngine())
    wanted = list(generation.wanted_of_keys(images, ["RIGHT*4", "W*5"]))
    camera = generation.CameraOf((40.0, 40.0, 24.0, 16.0), (48, 32))
    generation.generate(maker, wanted, str(tmp_path / "out"), camera, log=lambda _: None)
    (first, *_), cases = read_cases(str(tmp_path / "out")), read_cases(str(tmp_path / "out"))
    assert len(cases) == 4
    asked = from_npz((tmp_path / "out" / "keys0" / "i0.npz").read_bytes())
    assert np.allclose(asked.pose, integrate(parse_keys("RIGHT*4"), ControlSpec(fps=8.0)), atol=1e-6)
    assert first.keys == "RIGHT*4"
    assert first.camera.endswith("keys0/i0.npz")


def test_a_baseline_without_a_pipeline_says_what_to_do():
    with pytest.raises(Unavailable, match="its own code"):
        baselines.BaselineModel("longcat")
    with pytest.raises(InputError, match="unknown model"):
        baselines.BaselineModel("sora")


def test_the_papers_settings():
    wan = baselines.BASELINES["wan2.2"]
    assert wan.call == {"num_inference_steps": 40, "guidance_scale": 3.5, "guidance_scale_2": 3.5}
    assert (wan.scheduler[1]["flow_shift"], wan.config["boundary_ratio"]) == (5.0, 0.9)
    hunyuan = baselines.BASELINES["hunyuanvideo"]
    assert hunyuan.call == {"num_inference_steps": 50, "guidance_scale": 6.0}
    assert hunyuan.scheduler == ("FlowMatchEulerDiscreteScheduler", {"shift": 7.0})
    assert (baselines.SIZE, baselines.FRAMES) == ((832, 448), 93)


@pytest.mark.filterwarnings("ignore")  # diffusers' own
def test_wan_runs_with_them_on_tiny_weights(pipelines, wall):
    model = baselines.BaselineModel("wan2.2", pipelines.animator, dtype="float32", device="cpu")
    assert model.pipe.scheduler.config.flow_shift == 5.0
    assert model.pipe.config.boundary_ratio == 0.9
    # The tiny pipeline has one expert, which serves both ranges of noise.
    model.pipe.transformer_2 = model.pipe.transformer
    video = model(wall[:96, :160], "snow falls", 3, (32, 16), 5, num_inference_steps=2)
    assert video.shape == (5, 16, 32, 3)
    assert video.dtype == np.uint8
    assert (model(wall[:96, :160], "snow falls", 3, (32, 16), 5, num_inference_steps=2) == video).all()
    with pytest.raises(InputError, match="not a HunyuanVideoImageToVideoPipeline"):
        baselines.BaselineModel("hunyuanvideo", pipelines.animator, dtype="float32", device="cpu")


@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize(("name", "shift"), [("hunyuanvideo", 7.0), ("helios", 1.0)])
def test_other_models_run_on_tiny_weights(pipelines, wall, name, shift):
    model = baselines.BaselineModel(name, pipelines.others[name](), dtype="float32", device="cpu")
    assert model.pipe.scheduler.config.shift == shift
    video = model(wall[:96, :160], "snow falls", 3, (32, 16), 5, num_inference_steps=2)
    assert video.shape == (5, 16, 32, 3)
    assert (model(wall[:96, :160], "snow falls", 3, (32, 16), 5, num_inference_steps=2) == video).all()
    assert (model(wall[:96, :160], "snow falls", 4, (32, 16), 5, num_inference_steps=2) != video).any()


def test_a_picture_fills_the_size_without_being_stretched(wall):
    assert baselines.fit(wall, (832, 448)).shape == (448, 832, 3)
    square = np.zeros((100, 100, 3), np.uint8)
    square[:, 50:] = 255
    fitted = baselines.fit(square, (200, 100))
    assert fitted[:, :95].max() == 0
    assert fitted[:, 105:].min() == 255


@pytest.fixture
def two_videos(wall, tmp_path):
    folder = tmp_path / "videos"
    store(folder, "snow/a", slide(wall, frames=3))
    store(folder, "rain/a", slide(wall, frames=3))
    cases = [Case(**{**vars(c), "base_prompt": "A street / at night.", "keys": "W+RIGHT*8"}) for c in read_cases(str(folder))]
    write_cases(str(folder), cases)
    return read_cases(str(folder))


def test_vbench_there_and_back(two_videos, tmp_path):
    out = str(tmp_path / "out")
    layouts.export_vbench(two_videos, out)
    prompts = json.loads((tmp_path / "out" / "prompts.json").read_text())
    assert prompts["A street   at night. It starts to snow.-0.mp4"] == "A street / at night. It starts to snow."
    cases = layouts.import_vbench(out)
    assert {case.base_prompt for case in cases} == set(prompts.values())
    (tmp_path / "r.json").write_text(json.dumps({"motion": [0.9, [{"video_path": "x/a-0.mp4", "video_results": 0.8}]]}))
    assert layouts.read_vbench_results(str(tmp_path / "r.json")) == {"motion": {"a-0.mp4": 0.8, "all": 0.9}}


def test_gameworld_there_and_back(two_videos, tmp_path):
    layouts.export_gameworld(two_videos, str(tmp_path / "out"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0000_forward_camera_r.mp4", "0001_forward_camera_r.mp4"]
    cases = layouts.import_gameworld(str(tmp_path / "out"))
    assert {case.keys for case in cases} == {"RIGHT+W"}
    assert layouts._gameworld_keys("attack_camera_dl") == ""
    assert layouts._gameworld_keys("right_jump") == "D+SPACE"
    assert layouts._gameworld_keys("camera_dl") == "DOWN+LEFT"
    with pytest.raises(InputError, match=r"one action held.*'W\*3 S\*2'"):
        layouts.export_gameworld([Case("a", "a.mp4", keys="W*3 S*2")], str(tmp_path / "out"))
    with pytest.raises(InputError, match="no keys: give the field"):
        layouts.export_gameworld([Case("a", "a.mp4")], str(tmp_path / "out"))


def test_worldmodelbench_there_and_back(two_videos, tmp_path):
    layouts.export_worldmodelbench(two_videos, str(tmp_path / "out"))
    rows = json.loads((tmp_path / "out" / "worldmodelbench.json").read_text())
    assert rows[0]["text_instruction"] == "It starts to rain."
    assert (tmp_path / "out" / "videos" / "rain-a.mp4").exists()
    (first, second) = layouts.import_worldmodelbench(str(tmp_path / "out"))
    assert (first.base_prompt, first.interaction_prompt) == ("A street / at night.", "It starts to rain.")
    assert second.name == "snow-a"


def test_mind_there_and_back(two_videos, tmp_path):
    truth = tmp_path / "MIND-Data" / "1st_data" / "test" / "mem_test" / "data-26"
    store(truth, "video", np.zeros((3, 32, 48, 3), np.uint8))
    frames = [{"time": 0, "ws": 0, "lr": 1}, {"time": 1, "ws": 0, "lr": 1}, {"time": 2, "ws": 2, "ad": None}]
    (truth / "action.json").write_text(json.dumps({"mark_time": 1, "caption": "A hall.", "data": frames}))
    case = Case("x", two_videos[0].video, image="data-26")
    layouts.export_mind([case], str(tmp_path / "out"))
    (found,) = layouts.import_mind(str(tmp_path / "MIND-Data"), str(tmp_path / "out"))
    assert found.video.endswith("out/1st_data/mem_test/data-26/video.mp4")
    assert found.real.endswith("data-26/video.mp4")
    assert (found.keys, found.base_prompt) == ("W+RIGHT*2 .*1", "A hall.")
    with pytest.raises(InputError, match="no data of MIND"):
        layouts.import_mind(str(tmp_path / "out"))
    words = ["layout", "mind", "--videos", str(tmp_path / "out"), "--truth", str(tmp_path / "MIND-Data"), "--read"]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "list")], catch_exceptions=False)
    assert result.output.startswith("1 videos listed")
    assert read_cases(str(tmp_path / "list"))[0].keys == "W+RIGHT*2 .*1"
    with pytest.raises(InputError, match="one video for each name"):
        layouts.export_mind(two_videos, str(tmp_path / "twice"))
    assert not (tmp_path / "twice").exists()
