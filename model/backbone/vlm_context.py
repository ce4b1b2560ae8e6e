"""A second source of cross-attention: what a vision-language model thinks of a frame and an instruction (paper section 4.1).

Each block gets keys and values of its own for it, under the names that diffusers has for Wan2.1's image tokens (`add_k_proj`,
`add_v_proj`, `norm_added_k`). Values begin at zero: a widened expert is its base bit for bit until it is trained.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from curation import model_files
from model.backbone.attention import Attend, attend
from model.backbone.dit import Expert

# What `widened` adds to an expert, as parts of parameter names.
PARTS = ("attn2.add_k_proj", "attn2.add_v_proj", "attn2.norm_added_k")


def widened(base: Expert, width: int, attention: Attend = attend) -> Expert:
    """The same expert with a second source of so many numbers a token; it takes over the base's weights, without a copy. A base
    without memory (`checkpoint.blank`) stays so; what is added to it is there.
    """
    if base.config.added_kv_proj_dim is not None:
        raise ValueError(f"the expert has a second source already, {base.config.added_kv_proj_dim} wide")
    with torch.device("meta"):
        expert = Expert(replace(base.config, added_kv_proj_dim=width), attention)
    expert.load_state_dict(base.state_dict(), strict=False, assign=True)
    device = next(base.parameters()).device
    for block in expert.blocks:
        for part in (block.attn2.add_k_proj, block.attn2.add_v_proj, block.attn2.norm_added_k):
            part.to_empty(device="cpu" if device.type == "meta" else device)
            part.reset_parameters()
        nn.init.zeros_(block.attn2.add_v_proj.weight)
        nn.init.zeros_(block.attn2.add_v_proj.bias)
    return expert


class Thoughts(nn.Module):
    """The last hidden states of a vision-language model (transformers: Qwen2.5-VL and others) for a frame and an instruction.
    Never trained.
    """

    def __init__(self, processor: Any, model: Any) -> None:
        super().__init__()
        self.processor, self.model = processor, model.eval().requires_grad_(False)

    @property
    def width(self) -> int:
        """Numbers a token: what an expert is to be `widened` by."""
        return int(self.model.config.get_text_config().hidden_size)

    @torch.no_grad()
    def forward(self, frames_BCHW: Tensor, instructions: list[str]) -> Tensor:
        """frames: uint8 [B, 3, H, W]. Float32 [B, U, V], U the longest of the batch; a shorter one is padded with zeros, which
        experts do not read.
        """
        pictures = [frame.permute(1, 2, 0).cpu().numpy() for frame in frames_BCHW]
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": words}]}]
            for picture, words in zip(pictures, instructions, strict=True)
        ]
        asked = self.processor.apply_chat_template(
            chats,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "right"},
        ).to(self.model.device, self.model.dtype)
        found: Tensor = self.model.model(**asked).last_hidden_state
        return (found * asked["attention_mask"][..., None]).float()


def load_thoughts(model: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.bfloat16) -> Thoughts:
    """A model of the hub, or its folder, found as curation's own are (`model_files.resolve_model`)."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    place = model_files.resolve_model(model)
    with model_files.explain_if_missing(model):
        loaded = AutoModelForImageTextToText.from_pretrained(place, dtype=dtype)
        return Thoughts(AutoProcessor.from_pretrained(place), loaded).to(device)
