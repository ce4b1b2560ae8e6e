"""Text to the hidden states that the cross-attention reads, by Wan's own encoder (transformers' UMT5).

B batch, S tokens, E width. Padding is zero and is attended to, without a mask, since Wan2.2 was trained so.
"""

import hashlib
import re
from typing import Any

import torch
from torch import Tensor, nn

LENGTH = 512


class TextEncoder(nn.Module):
    """Tokenizer and encoder, frozen."""

    def __init__(self, tokenizer: Any, encoder: Any, length: int = LENGTH) -> None:
        super().__init__()
        self.tokenizer, self.length = tokenizer, length
        self.encoder = encoder.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, texts: list[str]) -> Tensor:
        """Return float32 [B, S, E]. Longer texts are truncated; runs of white space count as one space."""
        clean = [re.sub(r"\s+", " ", text).strip() for text in texts]
        tokens = self.tokenizer(clean, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt")
        ids, mask = (tokens[name].to(self.encoder.device) for name in ("input_ids", "attention_mask"))
        states: Tensor = self.encoder(ids, mask).last_hidden_state
        return (states * mask[..., None]).float()


class ZeroTextEncoder(nn.Module):
    """The text encoder of worlds without text: one token of zeros for every text."""

    zero: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(1, 1, width), persistent=False)

    def forward(self, texts: list[str]) -> Tensor:
        return self.zero.expand(len(texts), -1, -1)


class WordTextEncoder(nn.Module):
    """The text encoder of small worlds that follow a few prompts: one token for each word, padded with zeros.

    The vector of a word follows from its letters, so it has no weights and reads any text. A world only knows the words that it
    was trained on.
    """

    def __init__(self, width: int, words: int = 8) -> None:
        super().__init__()
        self._width, self._words = width, words
        self.register_buffer("device_of", torch.zeros(()), persistent=False)

    def forward(self, texts: list[str]) -> Tensor:
        """Return float32 [B, S, E]. Longer texts are truncated; case and punctuation do not count."""
        states = torch.zeros(len(texts), self._words, self._width)
        for row, text in zip(states, texts, strict=True):
            for place, word in zip(row, re.findall(r"\w+", text.lower()), strict=False):
                seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:7], "big")
                place.copy_(torch.randn(self._width, generator=torch.Generator().manual_seed(seed)))
        return states.to(self.device_of.device)


def load(folder: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.bfloat16) -> TextEncoder:
    """Load the encoder of a diffusers folder: `text_encoder/` and `tokenizer/` of Wan2.2-I2V-A14B."""
    from transformers import AutoTokenizer, UMT5EncoderModel

    encoder = UMT5EncoderModel.from_pretrained(f"{folder}/text_encoder", torch_dtype=dtype)
    return TextEncoder(AutoTokenizer.from_pretrained(f"{folder}/tokenizer"), encoder).to(device)
