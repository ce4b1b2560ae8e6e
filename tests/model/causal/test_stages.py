"""From shards to play: teacher forcing, consistency distillation, export, sessions, records; each from the one before."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from curation import shards
from curation.errors import InputError

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("fastapi", reason="the extra `play` is not installed")
pytest.importorskip("tensorboard", reason="the extra `train` is not installed")

from tiny_ladder import tiny  # noqa: E402 (after the packages are known to be here)

from model.accelerate.backends import choose  # noqa: E402
from model.accelerate.spec import AccelerateSpec  # noqa: E402
from model.causal.rollout import EAGER  # noqa: E402
from model.control.spec import ControlState  # noqa: E402
from model.data.captions import CaptionMix  # noqa: E402
from model.noise import NoiseSpec  # noqa: E402
from model.play.engine import Start  # noqa: E402
from model.play.export import export, prompts_of  # noqa: E402
from model.play.record import read_record, replay, start_recorded  # noqa: E402
from model.play.world import WorldEngine, load_engine  # noqa: E402
from model.recipes import BUILT_IN, demo_causal, demo_consistency  # noqa: E402
from model.train import train  # noqa: E402
from model.training.objectives import level_pairs  # noqa: E402
from model.world_files import load_world  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:torch", "ignore:.*:DeprecationWarning:torch")


@pytest.fixture(scope="module")
def ladder(out, tmp_path_factory):
    """Both runs, and the exported world."""
    folder = tmp_path_factory.mktemp("ladder")
    causal, distilled, world = (str(folder / name) for name in ("causal", "distilled", "world"))
    history = train(tiny(demo_causal()), [out], causal, log=lambda _: None)
    recipe = tiny(demo_consistency())
    recipe = replace(recipe, model=replace(recipe.model, init_from=causal), objective=replace(recipe.objective, guidance=2.0))
    history += train(recipe, [out], distilled, log=lambda _: None)
    export(recipe, distilled, [out], world, starts=2, log=lambda _: None)
    return causal, distilled, world, recipe, history


def test_each_stage_trains_from_the_one_before(ladder):
    causal, distilled, _, _, history = ladder
    assert len(history) == 8
    assert all(np.isfinite(metrics["loss"]) and metrics["gradient"] > 0 for metrics in history)
    lines = [json.loads(line) for folder in (causal, distilled) for line in Path(folder, "log.jsonl").read_text().splitlines()]
    assert any("control_accuracy" in json.dumps(line) or "samples" in json.dumps(line) for line in lines)


def test_a_run_is_not_resumed_with_another_spec(ladder, out):
    _, distilled, _, recipe, _ = ladder
    other = replace(recipe, causal=replace(recipe.causal, window=6))
    with pytest.raises(InputError, match=r"causal.window"):
        train(other, [out], distilled, log=lambda _: None)


def test_a_bidirectional_run_is_not_exported(out, tmp_path):
    with pytest.raises(InputError, match="bidirectional and cannot be played"):
        export(BUILT_IN["tiny"](), str(tmp_path), [out], str(tmp_path / "world"))


def test_the_world_file_holds_what_play_needs(ladder):
    loaded = load_world(ladder[2])
    assert loaded.file.prompts == ("it snows.",)
    assert loaded.file.size == (32, 32)
    assert loaded.file.causal.sampler == "consistency"
    assert loaded.file.control.fps == loaded.file.causal.fps == 10
    assert [name for name, _ in loaded.starts] == ["place-1", "place-2"]
    assert loaded.starts[0][1].shape == (32, 32, 3)


def test_eight_bits_a_weight_make_almost_the_same_world(ladder, out, tmp_path):
    _, distilled, world, recipe, _ = ladder
    export(recipe, distilled, [out], str(tmp_path / "small"), int8=True, log=lambda _: None)
    whole, small = load_world(world).world.state_dict(), load_world(str(tmp_path / "small")).world.state_dict()
    name = "high.expert.blocks.0.ffn.net.2.weight"
    assert (whole[name] - small[name]).abs().max() < 0.01 * whole[name].abs().max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"format": 1', '"format": 9'), "has format 9"),
        (lambda text: text.replace('"block": 1', '"block": 0'), "no world of this release"),
        (lambda text: text.replace('"num_layers": 2', '"num_layers": 3'), "its files do not make the world"),
        (lambda text: text[:40], "no world of this release"),
    ],
)
def test_files_that_do_not_fit_are_refused(ladder, tmp_path, change, message):
    for name in ("weights.safetensors", "codec.safetensors"):
        (tmp_path / name).write_bytes(Path(ladder[2], name).read_bytes())
    (tmp_path / "world.json").write_text(change(Path(ladder[2], "world.json").read_text()))
    with pytest.raises(InputError, match=message):
        load_world(str(tmp_path))


def test_a_film_in_the_folder_is_shown_and_decides_no_frame(ladder, tmp_path):
    folder = shutil.copytree(ladder[2], tmp_path / "world")
    assert load_world(str(folder)).attract == b""
    (folder / "attract.mp4").write_bytes(b"a film")
    with_film = load_world(str(folder))
    assert (with_film.attract, with_film.digest) == (b"a film", load_world(ladder[2]).digest)


def test_a_run_may_start_from_an_exported_world(ladder, out, tmp_path):
    recipe = tiny(demo_causal())
    on = replace(recipe, model=replace(recipe.model, init_from=ladder[2]), train=replace(recipe.train, lr=1e-9, sample_every=0))
    train(on, [out], str(tmp_path / "on"), log=lambda _: None)
    export(on, str(tmp_path / "on"), [out], str(tmp_path / "world"), log=lambda _: None)
    theirs, ours = (load_world(folder).world.state_dict() for folder in (ladder[2], str(tmp_path / "world")))
    assert all(torch.allclose(ours[name], value, rtol=1e-2, atol=1e-6) for name, value in theirs.items())
    wider = replace(on.model.backbone, ffn_dim=64)
    with pytest.raises(InputError, match="weights differ, the first high"):
        train(replace(on, model=replace(on.model, backbone=wider)), [out], str(tmp_path / "wide"), log=lambda _: None)
    faster = replace(on, control=replace(on.control, speed=3.0))
    with pytest.raises(InputError, match=r"control.speed"):
        train(faster, [out], str(tmp_path / "fast"), log=lambda _: None)


def test_a_folder_without_a_world_is_refused(tmp_path):
    with pytest.raises(InputError, match="made by `gamecraft export`"):
        load_engine(str(tmp_path))


def play(engine, blocks=4, prompt="it snows.", seed=0):
    """A recorded session with a prompt after two blocks: the record's text and the frames."""
    session, first = start_recorded(engine, Start(engine.info.start_images[0].picture, seed=seed))
    frames = [first.frames]
    for number in range(blocks):
        if number == 2:
            session.set_prompt(prompt, blend_blocks=2)
        frames.append(session.generate([ControlState(frozenset({"W"}))]).frames)
        session.commit()
    return session.text(), np.concatenate(frames)


def test_a_session_replays_bit_equal_and_is_refused_elsewhere(ladder, tmp_path):
    engine = load_engine(ladder[2], lambda _: None, "eager")
    text, frames = play(engine)
    path = tmp_path / "a.gcplay"
    path.write_text(text)
    again = np.concatenate(
        [block.frames for block in replay(read_record(str(path)), load_engine(ladder[2], lambda _: None, "eager"))]
    )
    assert np.array_equal(frames, again)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        with pytest.raises(InputError, match=rf"threads.*{threads}.*{threads + 1}|threads.*{threads + 1}.*{threads}"):
            list(replay(read_record(str(path)), load_engine(ladder[2], lambda _: None, "eager")))
    finally:
        torch.set_num_threads(threads)


def test_prompts_and_pictures_that_cannot_be_used_are_named(ladder):
    engine = load_engine(ladder[2], lambda _: None, "eager")
    with pytest.raises(InputError, match=r"does not know the prompt 'dance'; it knows: it snows."):
        engine.start(Start(engine.info.start_images[0].picture, prompt="dance"))
    with pytest.raises(InputError, match="a start picture must be uint8"):
        engine.start(Start(np.zeros((4, 4, 3), np.uint8)))
    _, block = engine.start(Start(np.full((77, 200, 3), 90, np.uint8)))
    assert block.frames.shape == (1, 32, 32, 3)


def test_texts_that_end_say_after_how_long(made, tmp_path):
    texts = [None, "An explosion.", None, "It snows.", "It snows."]
    clips = [made.clip("a", i, 30 * i, 30, interaction_caption=text) for i, text in enumerate(texts)]
    shards.put_index(str(tmp_path), "000000", shards.put_tar(str(tmp_path), "000000", clips))
    prompts = prompts_of([str(tmp_path)], CaptionMix(with_standard=False))
    assert prompts == {"an explosion.": pytest.approx(clips[1].meta["end_s"] - clips[1].meta["start_s"]), "it snows.": None}


def test_a_prompt_whose_time_is_over_is_taken_back(ladder, tmp_path):
    shutil.copytree(ladder[2], tmp_path / "world")
    file = tmp_path / "world" / "world.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lasts_s": {"it snows.": 0.25}}))  # three frames at 10 a second

    def frames(folder, ends_at=None):
        engine = load_engine(str(folder), lambda _: None, "eager")
        torch.manual_seed(0)  # a few steps of training teach no text
        for layer in (
            engine.loaded.world.high.expert.condition_embedder.pooled_text.linear_2,
            engine.loaded.world.high.expert.proj_out,
        ):
            layer.weight.normal_(std=0.5)
        session, _ = engine.start(Start(np.full((32, 32, 3), 90, np.uint8)))
        made = []
        for number in range(8):
            if number in (2, ends_at):
                session.set_prompt("It snows." if number == 2 else "")
            made.append(session.generate([ControlState()]).frames)
            session.commit()
        return np.concatenate(made)

    ends, stays = frames(tmp_path / "world"), frames(ladder[2])
    assert np.array_equal(ends, frames(ladder[2], ends_at=5))
    assert np.array_equal(ends[:5], stays[:5])
    assert not np.array_equal(ends, stays)


def test_a_traced_world_is_the_plain_one(ladder):
    plain, traced = (load_engine(ladder[2], lambda _: None, backend) for backend in ("eager", "traced"))
    assert (plain.backend, traced.backend) == ("eager", "traced")
    difference = np.abs(play(plain)[1].astype(int) - play(traced)[1].astype(int))
    assert difference.max() <= 1
    assert load_engine(ladder[2], lambda _: None).backend in ("eager", "traced", "onnxruntime")
    assert traced.info.identity["backend"] == "traced"


def test_an_exported_world_is_the_plain_one_and_is_measured_from_then_on(ladder, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    engine = load_engine(ladder[2], lambda _: None, "onnxruntime")
    assert engine.backend == "onnxruntime"
    assert len(list(tmp_path.rglob("*.onnx"))) == 2
    (_, plain), (_, exported) = (play(each, 5) for each in (load_engine(ladder[2], lambda _: None, "eager"), engine))
    assert np.abs(plain.astype(int) - exported.astype(int)).max() <= 2


def test_a_world_in_bfloat16_plays_as_on_a_gpu(ladder):
    """The parts that stay in float32 in training stay so in play."""
    loaded = load_world(ladder[2], dtype=torch.bfloat16)
    assert loaded.world.high.expert.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert loaded.world.high.camera.frame.weight.dtype == torch.float32
    _, frames = play(WorldEngine(loaded, torch.device("cpu")))
    plain = play(load_engine(ladder[2], lambda _: None, "eager"))[1]
    assert np.abs(frames.astype(int) - plain.astype(int)).mean() < 3


def test_a_sample_without_a_camera_has_no_turned_frames(out, tmp_path):
    recipe = tiny(demo_causal())
    recipe = replace(recipe, data=replace(recipe.data, camera_dropout=1.0), train=replace(recipe.train, sample_every=0))
    history = train(recipe, [out], str(tmp_path / "run"), log=lambda _: None)
    assert all(np.isfinite(metrics["loss"]) for metrics in history)


def test_an_unknown_backend_is_refused(ladder):
    with pytest.raises(InputError, match="backend must be one of auto, eager, traced, onnxruntime, not 'warp'"):
        load_engine(ladder[2], lambda _: None, "warp")


def test_large_worlds_are_run_by_the_plain_code(ladder):
    loaded = load_world(ladder[2])
    loaded.world.low = load_world(ladder[2]).world.low  # two networks
    engine = WorldEngine(loaded, torch.device("cpu"), AccelerateSpec(backend="auto"))
    assert engine.backend == "eager"
    assert engine.accelerator.passes() is EAGER
    assert choose is not None


def test_a_pair_of_levels_across_the_boundary_belongs_to_the_expert_of_its_higher_level():
    noise = NoiseSpec(shift=5.0, boundary=0.9)
    pairs = level_pairs(noise, 48)
    assert all(sigma >= 0.9 for sigma, _ in pairs["high"])
    assert all(sigma < 0.9 for sigma, _ in pairs["low"])
    across = [pair for pair in pairs["high"] if pair[1] < 0.9]
    assert len(across) == 1
    assert pairs["low"][0][0] == across[0][1], "the low-noise expert starts where the high-noise one ends"
    assert pairs["low"][-1][1] == 0
    assert sum(map(len, pairs.values())) == 48
