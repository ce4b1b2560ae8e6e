"""Cross-attention to a vision-language model that reads a frame and an instruction (paper section 4.1).

Each block gets separate keys and values for it, with the names that diffusers has for Wan2.1's image tokens (`add_k_proj`,
`add_v_proj`, `norm_added_k`). Values are zero at first: an expert with new cross-attention equals its base bit for bit until it
is trained.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from curation import model_files
from model.backbone.attention import Attend, attend
from model.backbone.dit import Expert

# Parts of the names of parameters that `with_vlm_cross_attention` adds.
PARTS = ("attn2.add_k_proj", "attn2.add_v_proj", "attn2.norm_added_k")


def with_vlm_cross_attention(base: Expert, width: int, attention: Attend = attend) -> Expert:
    """Return the expert with cross-attention to tokens of a width. It uses the base's weights, without a copy.

    A base on the meta device (`load_weights.meta_expert`) stays there; the new parameters get memory.
    """
    if base.config.added_kv_proj_dim is not None:
        raise ValueError(f"the expert already has cross-attention to tokens of width {base.config.added_kv_proj_dim}")
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


class VlmEncoder(nn.Module):
    """The last hidden states of a vision-language model for a frame and an instruction (transformers: Qwen2.5-VL and others).

    The model is frozen.
    """

    def __init__(self, processor: Any, model: Any) -> None:
        super().__init__()
        self.processor, self.model = processor, model.eval().requires_grad_(False)

    @property
    def width(self) -> int:
        """Width of a token, which `with_vlm_cross_attention` needs."""
        return int(self.model.config.get_text_config().hidden_size)

    @torch.no_grad()
    def forward(self, frames_BCHW: Tensor, instructions: list[str]) -> Tensor:
        """Return float32 [B, U, V] for frames uint8 [B, 3, H, W].

        U is the longest of the batch. Shorter ones are padded with zeros, which experts mask.
        """
        pictures = [frame.permute(1, 2, 0).cpu().numpy() for frame in frames_BCHW]
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}]
            for picture, text in zip(pictures, instructions, strict=True)
        ]
        inputs = self.processor.apply_chat_template(
            chats,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "right"},
        ).to(self.model.device, self.model.dtype)
        states: Tensor = self.model.model(**inputs).last_hidden_state
        return (states * inputs["attention_mask"][..., None]).float()


def load_vlm_encoder(model: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.bfloat16) -> VlmEncoder:
    """Load a vision-language model by its hub name or folder, which `model_files.resolve_model` resolves as for curation."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = model_files.resolve_model(model)
    with model_files.explain_if_missing(model):
        loaded = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
        return VlmEncoder(AutoProcessor.from_pretrained(folder), loaded).to(device)
