"""What a sample is called: long or short caption at random, with what happens in it; nothing, now and then, for guidance."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class CaptionMix:
    """Shares of samples: that have the long caption (else the short one), and that have none (classifier-free guidance).

    with_interaction: whether the interaction caption follows the standard one (paper section 4.1).
    """

    long_share: float = 0.5
    none_share: float = 0.1
    with_interaction: bool = True

    def __post_init__(self) -> None:
        for name in ("long_share", "none_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share, 0 to 1, not {getattr(self, name):g}")


def caption(meta: Mapping[str, Any], mix: CaptionMix, rng: np.random.Generator) -> str:
    """A clip's text; empty where it is dropped or the clip has none. The same draws are made whatever the clip has."""
    long, none = rng.random(2)
    if none < mix.none_share:
        return ""
    names = ("caption_long", "caption_short") if long < mix.long_share else ("caption_short", "caption_long")
    standard = next((meta[name] for name in names if meta.get(name)), "")
    interaction = meta.get("interaction_caption") if mix.with_interaction else None
    return " ".join(filter(None, (standard, interaction)))
