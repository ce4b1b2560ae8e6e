"""The chain of stages at tiny size: started, killed, resumed, started from, evaluated."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from curation import shards

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("tensorboard", reason="the extra `train` is not installed")
pytest.importorskip("diffusers", reason="the extra `train` is not installed")
pytest.importorskip("vizdoom", reason="the extra `demo` is not installed")

from torch.distributed.checkpoint.format_utils import dcp_to_torch_save  # noqa: E402

from bench import demo_world  # noqa: E402
from model.backbone import vlm_context  # noqa: E402
from model.data.captions import CaptionMix  # noqa: E402
from model.recipes import tiny  # noqa: E402
from model.train import train  # noqa: E402
from model.training import checkpoint  # noqa: E402
from model.training.frame_codec import fingerprint  # noqa: E402
from model.training.settings import TrainPhase  # noqa: E402
from pipelines.setting_comments import to_commented_yaml  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:torch")  # FSDP's advice to writers of models
ROOT = Path(__file__).resolve().parents[2]

# Train the recipe argv[1] on argv[2] in argv[3], and die without a message once it logs argv[4].
KILLED = """
import os, signal, sys
from model.recipes import BUILT_IN, TrainRecipe
from model.train import train
from pipelines import recipes

def log(message):
    if message.startswith(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

train(recipes.load(sys.argv[1], BUILT_IN, TrainRecipe), [sys.argv[2]], sys.argv[3], log=log)
"""


def quiet(message):
    pass


def saved(folder):
    """All tensors of a run's newest checkpoint by part and name, and its state."""
    path = checkpoint.latest(str(folder))
    dcp_to_torch_save(path, f"{folder}-whole.pt")
    return torch.load(f"{folder}-whole.pt"), checkpoint.read_state(path)


def codec_of(folder):
    return (folder / "codec.safetensors").read_bytes()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def out(made, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("data"))
    clips = [made.clip("a", i, 30 * i, 30, interaction_caption="The door opens.") for i in range(4)]
    shards.put_index(folder, "000000", shards.put_tar(folder, "000000", clips))
    return folder


@pytest.fixture(scope="module")
def stage1(out, tmp_path_factory):
    """A finished run of stage 1 without a vision-language model: its recipe and folder."""
    small = tiny()
    settings = replace(small.train, sample_every=0, lr=1e-2)
    recipe = replace(small, train=settings, data=replace(small.data, captions=CaptionMix(dropout=0.0)))
    folder = tmp_path_factory.mktemp("stage1") / "run"
    train(recipe, [out], str(folder), log=quiet)
    return recipe, folder


@pytest.fixture(scope="module")
def second(stage1, tiny_vlm):
    """The recipe of stage 2: from stage 1 with frozen cameras, and a vision-language model that stage 1 did not have."""
    recipe, folder = stage1
    model = replace(recipe.model, init_from=str(folder), vlm_encoder=str(tiny_vlm))
    settings = replace(
        recipe.train, curriculum=(TrainPhase(5, 5), TrainPhase(9, 3)), freeze_camera=True, save_every=2, sample_every=4
    )
    return replace(recipe, name="second", model=model, train=settings)


@pytest.fixture(scope="module")
def stage2(second, out, tmp_path_factory):
    """An undisturbed run of stage 2: its folder and its log messages."""
    folder, messages = tmp_path_factory.mktemp("stage2") / "run", []
    train(second, [out], str(folder), log=messages.append)
    return folder, messages


def test_stage_two_adds_the_cross_attention_that_stage_one_did_not_have(stage1, stage2, second):
    (first, _), (weights, state) = saved(stage1[1]), saved(stage2[0])
    new = {name for name in weights["model"] if any(part in name for part in vlm_context.PARTS)}
    assert weights["model"].keys() - first["model"].keys() == new
    assert f"start from {checkpoint.latest(str(stage1[1]))}; {len(new)} weights for model.vlm_encoder are new" in stage2[1]
    cameras = [name for name in first["average"] if ".camera." in name]
    assert cameras
    assert all(torch.equal(weights["model"][name], first["average"][name]) for name in cameras), "the averaged ones, frozen"
    assert not any(name in weights["average"] for name in cameras)
    assert any(weights["model"][name].any() for name in new if name.endswith("add_v_proj.weight")), "trained from zero"
    assert state["step"] == second.train.steps


@pytest.mark.exhaustive  # as stages 1, 3 and 4 do, in shorter tests
def test_a_killed_stage_two_resumes_to_the_result_of_an_undisturbed_one(second, stage2, stage1, out, tmp_path):
    folder = tmp_path / "run"
    (tmp_path / "second.yaml").write_text(to_commented_yaml(second))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "second.yaml"), out, str(folder), "step 5: loss"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    dead = subprocess.run(command, env=env, capture_output=True, text=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr[-1500:]
    assert 0 < checkpoint.read_state(checkpoint.latest(str(folder)))["step"] < second.train.steps
    moved = replace(second, model=replace(second.model, init_from=str(tmp_path / "stage 1 is not needed any more")))
    train(moved, [out], str(folder), log=quiet)
    (again, state), (whole, undisturbed) = saved(folder), saved(stage2[0])
    assert equal(again["model"], whole["model"])
    assert equal(again["average"], whole["average"])
    assert state == undisturbed


def test_a_further_stage_starts_from_stage_two_and_each_can_be_evaluated(second, stage2, out, tmp_path, monkeypatch):
    for name, few in (("_MAX_CLIPS", 4), ("_STARTS", 2), ("STEPS", 2)):
        monkeypatch.setattr(demo_world, name, few)
    third = replace(
        second,
        name="third",
        model=replace(second.model, init_from=str(stage2[0])),
        train=replace(second.train, curriculum=(TrainPhase(5, 2),), freeze_camera=False),
    )
    train(third, [out], str(tmp_path / "run"), log=quiet)
    before, after = saved(stage2[0])[0], saved(tmp_path / "run")[0]
    assert after["average"].keys() == before["average"].keys() | {n for n in before["model"] if ".camera." in n}
    for recipe, folder in ((second, stage2[0]), (third, tmp_path / "run")):
        table = demo_world.evaluate(recipe, [out], [out], folder)
        assert "own controls" in table
        found = json.loads((folder / "evaluation.json").read_text())
        assert found["control_accuracy"]["own controls"]["forward"][3] > 0, "clips were generated and measured"


def test_a_run_of_another_model_is_refused_with_the_name_of_what_differs(stage1, stage2, second, out, tmp_path):
    recipe, _ = stage1
    start = replace(recipe.model, init_from=str(stage2[0]))
    with pytest.raises(
        ValueError, match=r"holds \d+ weights that this model does not have, the first .*attn2\.add_k_proj.*; use the"
    ):
        train(replace(recipe, model=start), [out], str(tmp_path / "r"), log=quiet)
    deeper = replace(second, model=replace(second.model, backbone=replace(second.model.backbone, num_layers=3)))
    with pytest.raises(ValueError, match=r"lacks \d+ weights of this model, the first high\.expert\.blocks\.2"):
        train(deeper, [out], str(tmp_path / "r"), log=quiet)
    wider = replace(second, model=replace(second.model, backbone=replace(second.model.backbone, ffn_dim=64)))
    with pytest.raises(ValueError, match=r"ffn\.net\.0\.proj\.weight is \(48, 32\), this model's is \(64, 32\)"):
        train(wider, [out], str(tmp_path / "r"), log=quiet)


@pytest.mark.parametrize("damage", ["lost", "cut off"])
def test_a_damaged_checkpoint_is_an_error_with_a_remedy(second, stage2, stage1, out, tmp_path, damage):
    folder = tmp_path / "run"
    checkpoint_ = folder / "step-00000008"
    checkpoint_.mkdir(parents=True)
    for file in Path(checkpoint.latest(str(stage2[0]))).iterdir():
        (checkpoint_ / file.name).write_bytes(file.read_bytes())
    (folder / "codec.safetensors").write_bytes(codec_of(stage2[0]))
    tensors = next(checkpoint_.glob("*.distcp"))
    tensors.unlink() if damage == "lost" else tensors.write_bytes(tensors.read_bytes()[:1000])
    with pytest.raises(OSError, match=r"step-00000008: \w+: .*delete this checkpoint, and the run resumes from the one before"):
        train(second, [out], str(folder), log=quiet)
    (checkpoint_ / ".metadata").write_bytes(b"")
    on = replace(stage1[0], model=replace(second.model, init_from=str(folder)))
    with pytest.raises(OSError, match=r"step-00000008: EOFError: .*delete this checkpoint"):
        train(on, [out], str(tmp_path / "on"), log=quiet)


def test_stage_two_takes_over_the_codec_of_stage_one_and_pins_it(stage1, stage2, second, made, tmp_path):
    recipe, folder = stage1
    codec, state = codec_of(folder), saved(folder)[1]
    assert codec_of(stage2[0]) == codec
    other = str(tmp_path / "other")  # data on which another codec would be fitted
    shards.put_index(other, "000000", shards.put_tar(other, "000000", [made.clip("b", 0, 200, 40)]))
    on = replace(
        recipe, model=replace(recipe.model, init_from=str(folder)), train=replace(recipe.train, curriculum=(TrainPhase(5, 1),))
    )
    messages = []
    train(on, [other], str(tmp_path / "run"), log=messages.append)
    assert codec_of(tmp_path / "run") == codec
    assert not any(message.startswith("codec: ") for message in messages), "none was fitted"
    spec = saved(tmp_path / "run")[1]["spec"]
    assert spec["codec"] == state["spec"]["codec"] == fingerprint(str(folder / "codec.safetensors"))


def test_another_codec_than_the_one_trained_with_is_refused(stage1, out, made, tmp_path):
    recipe, folder = stage1
    short = replace(recipe.train, curriculum=(TrainPhase(5, 1),))
    alone = replace(recipe, train=short, data=replace(recipe.data, seed=3))
    train(alone, [out], str(tmp_path / "run"), log=quiet)
    ours = fingerprint(str(tmp_path / "run" / "codec.safetensors"))
    theirs = fingerprint(str(folder / "codec.safetensors"))
    on = replace(alone, model=replace(alone.model, init_from=str(folder)))
    with pytest.raises(ValueError, match=rf"codec.safetensors is codec {ours}, that of model.init_from is {theirs}; delete it"):
        train(on, [out], str(tmp_path / "run"), log=quiet)
    (tmp_path / "run" / "codec.safetensors").write_bytes(codec_of(folder))
    with pytest.raises(ValueError, match=rf'codec was "{ours}", now "{theirs}"; use another folder'):
        train(alone, [out], str(tmp_path / "run"), log=quiet)
    (tmp_path / "run" / "codec.safetensors").unlink()
    with pytest.raises(ValueError, match=r"codec.safetensors: no such file, but the checkpoints .* copy it back"):
        train(alone, [out], str(tmp_path / "run"), log=quiet)
    with pytest.raises(ValueError, match=r"no such file; the run that model.init_from names needs its codec"):
        train(
            replace(alone, model=replace(alone.model, init_from=str(tmp_path / "run"))), [out], str(tmp_path / "q"), log=quiet
        )
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "codec.safetensors").write_bytes(codec_of(folder)[:200])
    with pytest.raises(ValueError, match=r"codec.safetensors is no codec of codec.channels 32, codec.cell_px 8, codec.width 8"):
        train(alone, [out], str(cut), log=quiet)
    narrow = replace(recipe, codec=replace(recipe.codec, width=4))
    with pytest.raises(ValueError, match=r"is no codec of codec.channels 32, codec.cell_px 8, codec.width 4; set those"):
        train(narrow, [out], str(folder), log=quiet)
