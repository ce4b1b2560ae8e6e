"""Words to what the cross-attention reads, by Wan's own encoder (transformers' UMT5).

B batch, S tokens, E width. The padding is zero and is attended to, without a mask: that is how Wan2.2 was trained.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

LENGTH = 512


class TextEncoder(nn.Module):
    """Tokenizer and encoder. Never trained."""

    def __init__(self, tokenizer: Any, encoder: Any, length: int = LENGTH) -> None:
        super().__init__()
        self.tokenizer, self.length = tokenizer, length
        self.encoder = encoder.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, texts: list[str]) -> Tensor:
        """Float32 [B, S, E]; longer texts are cut, runs of white space are one space."""
        clean = [re.sub(r"\s+", " ", text).strip() for text in texts]
        asked = self.tokenizer(clean, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt")
        ids, mask = (asked[name].to(self.encoder.device) for name in ("input_ids", "attention_mask"))
        found: Tensor = self.encoder(ids, mask).last_hidden_state
        return (found * mask[..., None]).float()


class NoWords(nn.Module):
    """For worlds that are told nothing: one zero token, whatever is said."""

    nothing: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("nothing", torch.zeros(1, 1, width), persistent=False)

    def forward(self, texts: list[str]) -> Tensor:
        return self.nothing.expand(len(texts), -1, -1)


def load(folder: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.bfloat16) -> TextEncoder:
    """The encoder in a diffusers folder: `text_encoder/` and `tokenizer/` of Wan2.2-I2V-A14B."""
    from transformers import AutoTokenizer, UMT5EncoderModel

    encoder = UMT5EncoderModel.from_pretrained(f"{folder}/text_encoder", torch_dtype=dtype)
    return TextEncoder(AutoTokenizer.from_pretrained(f"{folder}/tokenizer"), encoder).to(device)
