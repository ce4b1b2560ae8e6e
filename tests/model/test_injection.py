"""Interaction injection: cross-attention to hidden states of a vision-language model."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
diffusers = pytest.importorskip("diffusers", reason="the extra `train` is not installed")

from torch.distributed.checkpoint.format_utils import dcp_to_torch_save  # noqa: E402

from curation import shards  # noqa: E402
from model.backbone import load_weights, vlm_context  # noqa: E402
from model.backbone.attention import attend  # noqa: E402
from model.backbone.dit import Attention, Expert  # noqa: E402
from model.config import BackboneConfig, tiny  # noqa: E402
from model.data.captions import CaptionMix, caption  # noqa: E402
from model.data.captions import instruction as instruction_of  # noqa: E402
from model.parallel import dist  # noqa: E402
from model.parallel.layout import ParallelLayout, place_rank  # noqa: E402
from model.recipes import tiny as tiny_recipe  # noqa: E402
from model.train import train  # noqa: E402
from model.training.checkpoint import latest  # noqa: E402
from model.training.settings import TrainPhase  # noqa: E402
from model.world import ControlledExpert  # noqa: E402


def inputs(config):
    torch.manual_seed(3)
    return torch.randn(1, 36, 2, 4, 4), torch.full((1, 2), 500.0), torch.randn(1, 3, config.text_dim), torch.randn(1, 5, 12)


def test_an_expert_with_new_cross_attention_is_its_base_bit_for_bit_until_it_learns():
    torch.manual_seed(1)
    base = Expert(tiny())
    expert = vlm_context.with_vlm_cross_attention(base, 12)
    x, time, text, context = inputs(tiny())
    assert torch.equal(expert(x, time, text, vlm_context_BUV=context), base(x, time, text))
    expert(x, time, text, vlm_context_BUV=context).square().mean().backward()
    assert all(block.attn2.add_v_proj.weight.grad.abs().sum() > 0 for block in expert.blocks)
    with pytest.raises(ValueError, match="already has cross-attention to tokens of width 12"):
        vlm_context.with_vlm_cross_attention(expert, 12)


@pytest.fixture
def wide():
    """An expert whose cross-attention to VLM tokens has values that are no longer zero."""
    torch.manual_seed(1)
    expert = vlm_context.with_vlm_cross_attention(Expert(tiny()), 12)
    for block in expert.blocks:
        torch.nn.init.normal_(block.attn2.add_v_proj.weight)
        torch.nn.init.normal_(block.attn2.add_v_proj.bias)
    return expert


def test_a_sample_does_not_depend_on_how_long_its_neighbours_in_a_batch_are(wide):
    x, time, text, context = inputs(tiny())
    alone = wide(x, time, text, vlm_context_BUV=context)
    padded = torch.nn.functional.pad(context, (0, 0, 0, 7))
    longer = torch.randn(1, 12, 12)
    both = wide(*(t.expand(2, *t.shape[1:]) for t in (x, time, text)), vlm_context_BUV=torch.cat([padded, longer]))
    torch.testing.assert_close(both[:1], alone, rtol=1e-5, atol=1e-6)
    assert (both[1:] - alone).norm() > 0.05 * alone.norm(), "the tokens are read"


def test_a_sample_without_an_instruction_is_one_without_the_cross_attention(wide):
    x, time, text, context = inputs(tiny())
    batch = torch.cat([torch.zeros_like(context), context])
    both = wide(*(t.expand(2, *t.shape[1:]) for t in (x, time, text)), vlm_context_BUV=batch)
    torch.testing.assert_close(both[:1], wide(x, time, text), rtol=1e-5, atol=1e-6)
    both[0].square().mean().backward()
    gradients = [p.grad for p in wide.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not any(block.attn2.add_v_proj.weight.grad.any() for block in wide.blocks), (
        "nothing is learned without an instruction"
    )


def test_an_expert_with_new_cross_attention_is_saved_and_loaded(tmp_path):
    torch.manual_seed(1)
    expert = vlm_context.with_vlm_cross_attention(Expert(tiny()), 12)
    torch.nn.init.normal_(expert.blocks[0].attn2.add_v_proj.weight)
    load_weights.save(expert, str(tmp_path))
    again = load_weights.load(str(tmp_path))
    x, time, text, context = inputs(tiny())
    assert torch.equal(again(x, time, text, vlm_context_BUV=context), expert(x, time, text, vlm_context_BUV=context))
    with pytest.raises(ValueError, match="cannot store cross-attention"):
        load_weights.save(expert, str(tmp_path / "original"), original=True)


@pytest.fixture
def placement():
    dist.start()
    yield place_rank(ParallelLayout(), torch.device("cpu"))
    dist.stop()


def test_weights_are_read_into_an_expert_with_new_cross_attention_on_the_meta_device(tmp_path, placement):
    torch.manual_seed(1)
    base = Expert(tiny())
    load_weights.save(base, str(tmp_path))
    wide = vlm_context.with_vlm_cross_attention(load_weights.meta_expert(tiny()), 12)
    made = placement.parallelize(ControlledExpert(wide), torch.float32)
    load_weights.load_sharded(made, wide, str(tmp_path))
    x, time, text, context = inputs(tiny())
    assert torch.equal(made(x, time / 1000, text, vlm_context_BUV=context), base(x, time, text))


@pytest.mark.filterwarnings("ignore:.*:UserWarning:torch")  # FSDP's advice to writers of models
def test_a_recipe_trains_with_a_vision_language_model(made, tiny_vlm, tmp_path):
    clips = [made.clip("a", i, 30 * i, 30, interaction_caption="The door opens.") for i in range(4)]
    shards.put_index(str(tmp_path), "000000", shards.put_tar(str(tmp_path), "000000", clips))
    small = tiny_recipe()
    settings = replace(small.train, curriculum=(TrainPhase(5, 4),), sample_every=4, lr=1e-2)
    data = replace(small.data, captions=CaptionMix(dropout=0.0))
    recipe = replace(small, model=replace(small.model, vlm_encoder=str(tiny_vlm)), train=settings, data=data)
    history = train(recipe, [str(tmp_path)], str(tmp_path / "run"), log=lambda message: None)
    assert len(history) == 4
    dcp_to_torch_save(latest(str(tmp_path / "run")), str(tmp_path / "whole.pt"))
    weights = torch.load(tmp_path / "whole.pt")["model"]
    moved = {name.split(".")[0] for name, w in weights.items() if name.endswith("add_v_proj.weight") and w.abs().sum() > 0}
    assert moved == {step["expert"] for step in history}


def test_a_sample_has_an_instruction_only_where_its_text_has_it():
    meta = {"caption_long": "A hall.", "interaction_caption": "The door opens."}
    rng = np.random.default_rng(0)
    text = caption(meta, CaptionMix(dropout=0.0), *rng.random(2))
    assert (text, instruction_of(meta, text)) == ("A hall. The door opens.", "The door opens.")
    assert instruction_of(meta, caption(meta, CaptionMix(dropout=1.0), *rng.random(2))) == ""
    assert instruction_of(meta, caption(meta, CaptionMix(dropout=0.0, with_interaction=False), *rng.random(2))) == ""
    assert instruction_of({"caption_long": "A hall."}, "A hall.") == ""


def test_vlm_tokens_are_attended_to_as_diffusers_attends_to_image_tokens():
    """Its attention takes them before 512 text tokens of the same width."""
    from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor

    torch.manual_seed(4)
    theirs = WanAttention(
        32, heads=2, dim_head=16, eps=1e-6, added_kv_proj_dim=32, cross_attention_dim_head=16, processor=WanAttnProcessor()
    )
    ours = Attention(BackboneConfig(2, 16, 1, 48), attend, 32)
    ours.load_state_dict(theirs.state_dict())
    x, text, image = torch.randn(1, 7, 32), torch.randn(1, 512, 32), torch.randn(1, 5, 32)
    expected = theirs(x, torch.cat([image, text], 1))
    torch.testing.assert_close(ours(x, text, vlm_context_BUV=image), expected, rtol=1e-5, atol=1e-6)


def test_hidden_states_differ_by_instruction_and_frame(tiny_vlm):
    encoder = vlm_context.load_vlm_encoder(str(tiny_vlm), dtype=torch.float32)
    frames = torch.full((3, 3, 56, 56), 90, dtype=torch.uint8)
    frames[2] += 100
    found = encoder(frames, ["open the door", "draw the gun and fire at the wall", "open the door"])
    assert found.shape[::2] == (3, encoder.width)
    assert found.isfinite().all()
    assert not found.requires_grad
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    shorter = (found[0] != 0).any(-1).sum()
    assert shorter < (found[1] != 0).any(-1).sum()
    alone = encoder(frames[:1], ["open the door"])
    torch.testing.assert_close(found[0, :shorter], alone[0], rtol=1e-3, atol=1e-4)
    torch.manual_seed(1)
    expert = vlm_context.with_vlm_cross_attention(Expert(tiny()), encoder.width)
    for block in expert.blocks:
        torch.nn.init.normal_(block.attn2.add_v_proj.weight)
    x, time, text, _ = inputs(tiny())
    with torch.no_grad():
        single, batched = expert(x, time, text, vlm_context_BUV=alone), expert(x, time, text, vlm_context_BUV=found[:1])
    assert (batched - single).norm() < 1e-3 * single.norm(), "the same next to a longer instruction as alone"
