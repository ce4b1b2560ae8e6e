"""`gamecraft train`: a recipe and shards become a run that logs and resumes; data that cannot be used is refused."""

import json
from dataclasses import asdict, replace

import pytest

from curation import shards
from curation.errors import InputError

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("tensorboard", reason="the extra `train` is not installed")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save  # noqa: E402

from model import train  # noqa: E402
from model.recipes import BUILT_IN, ModelSpec, TrainRecipe, demo, tiny  # noqa: E402
from model.training import checkpoint, precision  # noqa: E402
from model.training.frame_codec import CodecSettings  # noqa: E402
from model.training.settings import TrainPhase  # noqa: E402
from pipelines import recipes  # noqa: E402
from pipelines.setting_comments import to_commented_yaml  # noqa: E402
from synth.strategies import SynthSettings  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:torch")  # FSDP's advice to writers of models


@pytest.fixture(scope="module")
def out(made, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("data"))
    shards.put_index(folder, "000000", shards.put_tar(folder, "000000", [made.clip("a", i, 30 * i, 30) for i in range(4)]))
    return folder


def saved(folder, part):
    """The tensors of a part of a run's newest checkpoint, by name."""
    dcp_to_torch_save(checkpoint.latest(str(folder)), f"{folder}-whole.pt")
    return torch.load(f"{folder}-whole.pt")[part]


class Stopped(Exception):
    """In the middle of a run."""


@pytest.fixture(scope="module")
def trained(out, tmp_path_factory):
    """A run of the tiny recipe that was stopped in its first phase and started again: its folder and its log messages."""
    folder, messages = tmp_path_factory.mktemp("run") / "r", []
    recipe = replace(tiny(), train=replace(tiny().train, save_every=3))

    def stop(message):
        messages.append(message)
        if message.startswith("step 4: loss"):
            raise Stopped

    with pytest.raises(Stopped):
        train.train(recipe, [out], str(folder), log=stop)
    assert checkpoint.latest(str(folder)).endswith("step-00000003"), "what was being written is not lost"
    train.train(recipe, [out], str(folder), log=messages.append)
    return folder, messages


def test_a_run_resumes_and_logs_what_it_does(trained, out):
    _, messages = trained
    assert messages[:4] == [
        "float32 (set by the recipe)",
        f"{out}: 4 clips, 0.1 min, 4 with cameras",
        f"5 frames: {out}: 8 windows, 0.00 h",
        f"9 frames: {out}: 4 windows, 0.00 h",
    ]
    starts = [message for message in messages if message.endswith(" of 12")]
    assert [message.split("; ")[1] for message in starts] == ["step 0 of 12", "step 3 of 12"]
    steps = [message for message in messages if ": loss " in message]
    assert [int(message.split(":")[0].split()[1]) for message in steps] == [0, 1, 2, 3, 4, *range(3, 12)]
    assert all("samples/s, MFU" in message for message in steps)
    assert sum(message.startswith("codec: ") for message in messages) == 2, "trained once, then read"


def test_the_log_and_tensorboard_hold_losses_by_expert_and_noise_pace_sources_and_videos(trained, out):
    folder, _ = trained
    lines = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    losses = {line["step"]: line for line in lines if "loss" in line}
    assert sorted(losses) == list(range(12))
    assert all(line["mfu"] > 0 and 0 <= line["waited"] <= 1 and line["tokens_s"] > 0 for line in losses.values())
    assert all(line["sources"] == {out: 2} for line in losses.values())
    phases = [(line["step"], line["frames"], line["windows"]) for line in lines if "windows" in line]
    assert phases == [(0, 5, {out: 8}), (3, 5, {out: 8}), (7, 9, {out: 4})]
    assert [line["step"] for line in lines if "control_accuracy" in line] == [6, 12]
    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()
    tags = set(board.Tags()["scalars"])
    assert {
        "loss by expert/high",
        "loss by expert/low",
        "run/mfu",
        "run/samples_s",
        "run/gradient",
        "loss by noise/0.8-1.0",
    } <= tags
    assert {event.step for event in board.Scalars("run/mfu")} == set(range(12))
    assert [image.step for image in board.Images("samples")] == [6, 12]
    # two videos of the length that is trained on: five frames of 32 px in a row, then nine
    sizes = [(image.width, image.height) for image in board.Images("samples")]
    assert sizes == [(5 * 32, 2 * 32), (9 * 32, 2 * 32)]


def test_data_that_cannot_be_trained_on_is_refused_before_anything_is_built(made, out, tmp_path):
    with pytest.raises(ValueError, match="no committed shard in"):
        train.train(tiny(), [str(tmp_path)], str(tmp_path / "r"))
    with pytest.raises(ValueError, match=r"stored at 64x48 px, too small for 832x480; set data.size"):
        train.check_data([out], BUILT_IN["gamecraft2"]())
    with pytest.raises(ValueError, match=r"stored at 30 fps, too slow for 60; set data.fps"):
        train.check_data([out], replace(tiny(), data=replace(tiny().data, fps=60.0)))
    blind = str(tmp_path / "blind")
    samples = [made.clip("a", 0, 0, 30, status="suspect")]
    shards.put_index(blind, "000000", shards.put_tar(blind, "000000", samples))
    with pytest.raises(ValueError, match=r"no clip has a camera with a status in data.cameras \({'suspect': 1}\)"):
        train.train(tiny(), [blind], str(tmp_path / "r"))
    assert not (tmp_path / "r").exists()


def test_a_phase_that_no_clip_can_fill_is_refused_before_the_first_step(made, out, tmp_path):
    """For each source, and for outputs from which only sample videos are made."""
    long = replace(tiny(), train=replace(tiny().train, curriculum=(TrainPhase(5, 2), TrainPhase(45, 2))))
    with pytest.raises(ValueError, match=rf"^{out}: no run of touching clips is 4.5 s long; use fewer frames"):
        train.train(long, [out], str(tmp_path / "r"))
    short = str(tmp_path / "short")
    shards.put_index(short, "000000", shards.put_tar(short, "000000", [made.clip("b", 0, 0, 20)]))
    mixed = train.with_shares(tiny(), [out, short], [0.75, 0.25])
    with pytest.raises(ValueError, match=rf"^{short}: no run of touching clips is 0.9 s long"):
        train.train(mixed, [], str(tmp_path / "r"))
    with pytest.raises(ValueError, match=rf"^{short}: no run of touching clips is 0.9 s long"):
        train.train(tiny(), [out], str(tmp_path / "r"), sample_from=[short])
    assert not (tmp_path / "r").exists()
    brief = replace(mixed, train=replace(mixed.train, curriculum=(TrainPhase(5, 2),)))
    assert train.check_data([], brief) == [
        f"{out}, {short}: 5 clips, 0.1 min, 5 with cameras",
        f"5 frames: {out}: 8 windows, 0.00 h (75% of samples); {short}: 1 windows, 0.00 h (25% of samples)",
    ]
    with pytest.raises(ValueError, match="--share must be given once for each --data: 1 for 2"):
        train.with_shares(tiny(), [out, short], [0.75])


def test_data_without_a_known_scale_is_refused_before_training(made, tmp_path):
    blind = str(tmp_path / "blind")
    samples = [made.clip(name, 0, 0, 30, camera_scale_source="none") for name in "ab"]
    shards.put_index(blind, "000000", shards.put_tar(blind, "000000", samples))
    with pytest.raises(ValueError, match=r"none of the 2 cameras checked has a known scale, so that no walk can be learned"):
        train.check_data([blind], tiny())
    shards.put_index(blind, "000001", shards.put_tar(blind, "000001", [made.clip("c", 0, 0, 30, camera_scale_source="speed")]))
    assert train.check_data([blind], tiny())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"size": (48, 32)}}, r"data.size was \[32, 32\], now \[48, 32\]"),
        ({"data": {"fps": 8.0}}, r"control.fps was 10.0, now 8.0; data.fps was 10.0, now 8.0"),
        ({"data": {"mirror_share": 0.0}}, r"data.mirror_share was 0.5, now 0.0"),
        ({"train": {"curriculum": (TrainPhase(5, 9),)}}, r"curriculum was \[{.*now \[{"),
        ({"train": {"seed": 4}}, r"seed was 0, now 4"),
        ({"control": {"turn_deg_s": 30.0}}, r"control.turn_deg_s was 60.0, now 30.0"),
        ({"model": {"noise": replace(tiny().model.noise, shift=3.0)}}, r"noise.shift was 5.0, now 3.0"),
    ],
)
def test_what_a_run_was_begun_with_cannot_change_and_is_named_with_both_values(trained, out, change, message):
    folder, _ = trained
    recipe = replace(tiny(), **{part: replace(getattr(tiny(), part), **values) for part, values in change.items()})
    with pytest.raises(ValueError, match=rf"step-00000012: {message}.*; use another folder, or those settings"):
        train.train(recipe, [out], str(folder), log=lambda message: None)


def test_what_decides_no_result_may_change(trained, out):
    """A finished run that is started again with them has nothing to do, and leaves its checkpoint alone."""
    folder, _ = trained
    before = {path: path.stat().st_mtime_ns for path in folder.glob("step-*/*")}
    settings = replace(tiny().train, save_every=50, keep_checkpoints=5, sample_every=0, log_every=7, workers=1)
    assert train.train(replace(tiny(), train=settings), [out], str(folder), log=lambda message: None) == []
    assert {path: path.stat().st_mtime_ns for path in folder.glob("step-*/*")} == before


def test_a_start_with_other_controls_is_refused(trained, out, tmp_path):
    folder, _ = trained
    other = replace(tiny(), model=replace(tiny().model, init_from=str(folder)), control=replace(tiny().control, speed=2.0))
    with pytest.raises(
        ValueError, match=r"control.speed was 0.5, now 2.0; use the settings of the run that model.init_from names"
    ):
        train.train(other, [out], str(tmp_path / "r"), log=lambda message: None)


def test_a_world_is_played_at_the_rate_of_its_data():
    assert replace(tiny(), data=replace(tiny().data, fps=8.0)).control == replace(demo().control, fps=8.0)


def test_the_papers_recipes_have_its_numbers():
    """Table 2, of the stages that there are."""
    first, second = BUILT_IN["gamecraft2"](), BUILT_IN["gamecraft2-instruct"]()
    assert (first.train.steps, first.layout.context) == (100_000, 1)
    assert [phase.frames for phase in first.train.curriculum] == [45, 81, 149]
    assert (second.train.steps, second.layout.context, second.train.freeze_camera) == (20_000, 1, True)
    made_frames = SynthSettings().models.frames / SynthSettings().models.fps, SynthSettings().procedural.seconds
    longest_s = max(phase.frames for phase in second.train.curriculum) / second.data.fps
    assert min(made_frames) >= longest_s, "synthetic clips fill every phase"


def test_stage_two_begins_with_the_averaged_weights_of_stage_one_and_leaves_its_cameras(trained, out, tmp_path):
    folder, _ = trained
    settings = replace(tiny().train, curriculum=(TrainPhase(5, 3),), freeze_camera=True, sample_every=0)
    stage2 = replace(tiny(), model=replace(tiny().model, init_from=str(folder)), train=settings)
    train.train(stage2, [out], str(tmp_path / "r"), log=lambda message: None)
    first, second = (saved(path, "average") for path in (folder, tmp_path / "r"))
    assert first.keys() - second.keys() == {name for name in first if ".camera." in name}, "frozen: not averaged anew"
    weights = saved(tmp_path / "r", "model")
    assert all(torch.equal(weights[name], value) for name, value in first.items() if ".camera." in name)
    assert any(not torch.equal(weights[name], value) for name, value in first.items() if ".camera." not in name)
    with pytest.raises(ValueError, match=r"no such file; the run that model.init_from names needs its codec"):
        train.train(replace(tiny(), model=replace(tiny().model, init_from=str(tmp_path))), [out], str(tmp_path / "q"))
    with pytest.raises(ValueError, match=r"nowhere: no such folder; model.weights must be a diffusers folder"):
        train.train(replace(tiny(), model=replace(tiny().model, weights="nowhere")), [out], str(tmp_path / "q"))


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_recipe_survives_yaml(name, tmp_path):
    (tmp_path / f"{name}.yaml").write_text(to_commented_yaml(BUILT_IN[name]()))
    assert recipes.load(str(tmp_path / f"{name}.yaml"), BUILT_IN, type(demo())) == BUILT_IN[name]()


def test_sources_are_named_in_yaml(tmp_path):
    sources = "data: {sources: [{uri: 's3://real', share: 0.8}, {uri: 's3://made', share: 0.2}]}\n"
    (tmp_path / "mix.yaml").write_text("model: {weights: w}\n" + sources)
    found = recipes.load(str(tmp_path / "mix.yaml"), BUILT_IN, type(demo()))
    plain = TrainRecipe(name="mix", model=ModelSpec(weights="w"))
    assert found == train.with_shares(plain, ["s3://real", "s3://made"], [0.8, 0.2])
    (tmp_path / "mix.yaml").write_text(to_commented_yaml(found))
    assert recipes.load(str(tmp_path / "mix.yaml"), BUILT_IN, type(demo())) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: replace(r, model=replace(r.model, tiny_decoder="taew2_1.pth")), "it needs model.weights"),
        (lambda r: replace(r, codec=CodecSettings(channels=8)), "codec.channels must equal out_channels of the backbone, 32"),
        (
            lambda r: replace(r, model=ModelSpec(replace(r.model.backbone, in_channels=36), two_experts=True)),
            "in_channels must be 68",
        ),
        (lambda r: replace(r.model, noise=replace(r.model.noise, boundary=0.5)), "boundary must be 0, not 0.5"),
        (lambda r: replace(r.train, precision="float16"), "precision must be one of auto, bfloat16, float32"),
        (lambda r: replace(r.layout, context=0), "context must be at least 1"),
        (lambda r: replace(r.train, lr_decay_share=2.0), "lr_decay_share is a share"),
        (lambda r: replace(r.train, keep_checkpoints=0), "keep_checkpoints must be at least 1, not 0"),
        (lambda r: replace(r, train=replace(r.train, freeze_camera=True)), "train.freeze_camera needs model.init_from"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        change(demo())


def test_precision_is_measured_once_and_kept_by_the_run(out, tmp_path, monkeypatch):
    """Where bfloat16 is slow float32 is chosen; another machine that resumes the run does not choose again."""
    paces = {torch.float32: 1.0, torch.bfloat16: 7.7}
    monkeypatch.setattr(precision, "measure", lambda dtype, device: paces[dtype])
    settings = replace(tiny().train, curriculum=(TrainPhase(5, 2),), precision="auto", sample_every=0)
    messages = []
    train.train(replace(tiny(), train=settings), [out], str(tmp_path / "r"), log=messages.append)
    assert messages[0] == "float32 (measured: bfloat16 takes 7.70 times as long on this device)"
    assert checkpoint.read_state(checkpoint.latest(str(tmp_path / "r")))["spec"]["precision"] == "float32"
    paces[torch.bfloat16] = 0.5
    cpu = torch.device("cpu")
    assert precision.choose("auto", str(tmp_path / "r"), cpu) == ("float32", "as when the run began")
    assert precision.choose("auto", str(tmp_path / "new"), cpu).name == "bfloat16"
    with pytest.raises(ValueError, match=r'precision was "float32", now "bfloat16"; use another folder'):
        train.train(
            replace(tiny(), train=replace(settings, precision="bfloat16")), [out], str(tmp_path / "r"), log=messages.append
        )


def test_both_precisions_are_measured_on_the_device():
    assert all(0 < precision.measure(dtype, torch.device("cpu")) < 10 for dtype in (torch.float32, torch.bfloat16))


def test_the_learning_rate_rises_stays_and_falls():
    settings = replace(tiny().train, lr=1.0, warmup_steps=2, lr_decay_share=0.5)
    rates = [round(settings.lr_at(step), 3) for step in range(12)]
    assert rates == [0.5, *[1.0] * 6, *(round(i / 6, 3) for i in range(5, 0, -1))]


@pytest.mark.parametrize(
    ("old", "new"),
    [(old, new) for old, new in recipes.RENAMED.items() if old.startswith(("model.", "codec.", "data.", "train."))],
)
def test_a_key_of_a_recipe_that_was_renamed_is_refused_with_its_new_name(tmp_path, old, new):
    def nested(path):
        *groups, key = path.split(".")
        return "".join(f"{'  ' * depth}{group}:\n" for depth, group in enumerate(groups)) + f"{'  ' * len(groups)}{key}: 1\n"

    file = tmp_path / "mine.yaml"
    file.write_text(nested(old))
    with pytest.raises(InputError, match=rf"{old} is called {new} now; rename it in the recipe"):
        recipes.load(str(file), BUILT_IN, TrainRecipe)
    plain = json.loads(json.dumps(asdict(tiny())))
    for name in new.split("."):
        plain = plain[name]
