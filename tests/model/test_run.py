"""`gamecraft train`: a recipe and shards become a run that tells and goes on; what cannot be trained on is said."""

import json
from dataclasses import replace

import pytest

from curation import shards

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("tensorboard", reason="the extra `train` is not installed")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save  # noqa: E402

from model.recipes import BUILT_IN, ModelSpec, demo, tiny  # noqa: E402
from model.training import checkpoint, precision, run  # noqa: E402
from model.training.codec import CodecSettings  # noqa: E402
from model.training.settings import Phase  # noqa: E402
from pipelines import recipes  # noqa: E402

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


@pytest.fixture(scope="module")
def trained(out, tmp_path_factory):
    """A run of the tiny recipe that was stopped in its first phase: its folder, what it said."""
    folder, said = tmp_path_factory.mktemp("run") / "r", []
    short = replace(tiny().train.curriculum[0], steps=3)
    run.train(replace(tiny(), train=replace(tiny().train, curriculum=(short,))), [out], str(folder), say=said.append)
    run.train(tiny(), [out], str(folder), say=said.append)
    return folder, said


def test_a_run_goes_on_and_says_what_it_does(trained, out):
    _, said = trained
    assert said[0] == "float32 (named by the recipe)"
    assert said[1] == f"{out}: 4 clips, 0.1 min, 4 with cameras"
    starts = [words for words in said if words.endswith((" of 3", " of 12"))]
    assert [words.split("; ")[1] for words in starts] == ["step 0 of 3", "step 3 of 12"]
    steps = [words for words in said if ": loss " in words]
    assert len(steps) == 12
    assert all("samples/s, MFU" in words for words in steps)
    assert sum(words.startswith("codec: ") for words in said) == 2, "trained once, then read"


def test_the_log_and_tensorboard_hold_losses_by_expert_and_noise_pace_and_videos(trained):
    folder, _ = trained
    notes = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [note["step"] for note in notes if "loss" in note] == list(range(12))
    assert all(note["mfu"] > 0 and 0 <= note["waited"] <= 1 and note["tokens_s"] > 0 for note in notes if "loss" in note)
    assert [note["step"] for note in notes if "obedience" in note] == [6, 12]
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
    assert len(board.Scalars("run/mfu")) == 12
    assert [image.step for image in board.Images("samples")] == [6, 12]
    # nine frames of 32 px beside each other, two videos
    assert (board.Images("samples")[0].width, board.Images("samples")[0].height) == (9 * 32, 2 * 32)


def test_data_that_cannot_be_trained_on_is_said_before_anything_is_built(made, out, tmp_path):
    with pytest.raises(ValueError, match="no committed shard in"):
        run.train(tiny(), [str(tmp_path)], str(tmp_path / "r"))
    with pytest.raises(ValueError, match=r"stored at 64x48 px, too small for 832x480; set data.size"):
        run.check([out], BUILT_IN["gamecraft2"]())
    with pytest.raises(ValueError, match=r"stored at 30 fps, too slow for 60; set data.fps"):
        run.check([out], replace(tiny(), data=replace(tiny().data, fps=60.0)))
    blind = str(tmp_path / "blind")
    samples = [made.clip("a", 0, 0, 30, status="suspect")]
    shards.put_index(blind, "000000", shards.put_tar(blind, "000000", samples))
    with pytest.raises(ValueError, match=r"no clip of .* has a camera that is believed \({'suspect': 1}\)"):
        run.train(tiny(), [blind], str(tmp_path / "r"))
    assert not (tmp_path / "r").exists()


def test_stage_two_begins_with_the_averaged_weights_of_stage_one_and_leaves_its_cameras(trained, out, tmp_path):
    folder, _ = trained
    how = replace(tiny().train, curriculum=(Phase(5, 3),), freeze_camera=True, watch_every=0)
    stage2 = replace(tiny(), model=replace(tiny().model, start=str(folder)), train=how)
    run.train(stage2, [out], str(tmp_path / "r"), say=lambda words: None)
    first, second = (saved(path, "average") for path in (folder, tmp_path / "r"))
    assert first.keys() - second.keys() == {name for name in first if ".camera." in name}, "frozen: not averaged anew"
    weights = saved(tmp_path / "r", "model")
    assert all(torch.equal(weights[name], value) for name, value in first.items() if ".camera." in name)
    assert any(not torch.equal(weights[name], value) for name, value in first.items() if ".camera." not in name)
    with pytest.raises(ValueError, match=r"no such file; the run that model.start names needs its codec"):
        run.train(replace(tiny(), model=replace(tiny().model, start=str(tmp_path))), [out], str(tmp_path / "q"))
    with pytest.raises(ValueError, match=r"nowhere: no such folder; model.weights must be a diffusers folder"):
        run.train(replace(tiny(), model=replace(tiny().model, weights="nowhere")), [out], str(tmp_path / "q"))


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_recipe_survives_yaml(name, tmp_path):
    (tmp_path / f"{name}.yaml").write_text(recipes.to_yaml(BUILT_IN[name]()))
    assert recipes.load(str(tmp_path / f"{name}.yaml"), BUILT_IN, type(demo())) == BUILT_IN[name]()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: replace(r, codec=CodecSettings(channels=8)), "codec.channels must be out_channels of the backbone, 32"),
        (lambda r: ModelSpec(replace(r.model.backbone, in_channels=36)), "in_channels must be 68"),
        (lambda r: replace(r.model, noise=replace(r.model.noise, boundary=0.5)), "boundary must be 0, not 0.5"),
        (lambda r: replace(r.train, precision="float16"), "precision must be one of auto, bfloat16, float32"),
        (lambda r: replace(r.layout, context=0), "context must be at least 1"),
        (lambda r: replace(r.train, decay_share=2.0), "decay_share is a share"),
    ],
)
def test_what_cannot_be_is_said(change, words):
    with pytest.raises(ValueError, match=words):
        change(demo())


def test_precision_is_measured_once_and_kept_by_the_run(out, tmp_path, monkeypatch):
    """Where bfloat16 is slow float32 is chosen; another machine that goes on with the run does not choose anew."""
    paces = {torch.float32: 1.0, torch.bfloat16: 7.7}
    monkeypatch.setattr(precision, "measure", lambda dtype, device: paces[dtype])
    how = replace(tiny().train, curriculum=(Phase(5, 2),), precision="auto", watch_every=0)
    said = []
    run.train(replace(tiny(), train=how), [out], str(tmp_path / "r"), say=said.append)
    assert said[0] == "float32 (measured: bfloat16 takes 7.70 times as long on this device)"
    assert checkpoint.read_state(checkpoint.latest(str(tmp_path / "r")))["spec"]["precision"] == "float32"
    paces[torch.bfloat16] = 0.5
    cpu = torch.device("cpu")
    assert precision.settle("auto", str(tmp_path / "r"), cpu) == ("float32", "as the run began")
    assert precision.settle("auto", str(tmp_path / "new"), cpu).name == "bfloat16"
    with pytest.raises(ValueError, match=r'precision was "float32", now "bfloat16"; use another folder'):
        run.train(replace(tiny(), train=replace(how, precision="bfloat16")), [out], str(tmp_path / "r"), say=said.append)


def test_both_precisions_are_measured_on_the_device():
    assert all(0 < precision.measure(dtype, torch.device("cpu")) < 10 for dtype in (torch.float32, torch.bfloat16))


def test_the_rate_rises_stays_and_falls():
    how = replace(tiny().train, rate=1.0, warm_up=2, decay_share=0.5)
    assert [round(how.rate_at(step), 3) for step in range(12)] == [0.5, *[1.0] * 6, *(round(i / 6, 3) for i in range(5, 0, -1))]
