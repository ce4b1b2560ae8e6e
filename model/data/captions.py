"""What a sample is called: long or short caption at random, with what happens in it; nothing, now and then, for guidance.

And what its words forbid: a picture in the mirror, or time run backwards, that would make them untrue.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Beginnings of words, and characters of Chinese captions. A word too many only costs a mirrored or reversed sample.
_SIDES = r"left|right(?!eous)|clockwise|anti-?clockwise|counter-?clockwise|east|west"
_WRITING = r"text|letter|writ|sign|logo|label|inscri|subtitle|number|digit|words?\b|reads?\b|says?\b"
_MOTION = (
    r"forward|back|ahead|toward|away|up|down|into|approach|retreat|advanc|enter|leav|exit|turn|walk|run|mov|look|strafe|step|"
    r"climb|descend|ascend|jump|fall|ris|fly|flies|open|clos|appear|vanish|disappear|emerg|explod|fir|shoot|draw|take|pull|"
    r"push|drop|pick|throw|reload|die|dies"
)
_TIME = r"begin|start|end|finish|then|after|before|first|final|last|until|next|later|follow|again|once|gradual|suddenly"
_CAPTIONS = ("caption_short", "caption_long", "interaction_caption")
_SIDED = re.compile(rf"\b(?:{_SIDES})|[左右]", re.IGNORECASE)
_WRITTEN = re.compile(rf"\b(?:{_WRITING})|文字|字幕|标志", re.IGNORECASE)
_REVERSED = re.compile(rf"\b(?:{_SIDES}|{_MOTION}|{_TIME})|[左右前后进退上下转走跑打开关先然]", re.IGNORECASE)


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


def instruction(meta: Mapping[str, Any], text: str) -> str:
    """What of a clip's text tells what happens: its interaction caption where the text has it, else nothing."""
    interaction = str(meta.get("interaction_caption") or "")
    return interaction if text.endswith(interaction) else ""


def may_mirror(text: str, metas: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a sample of these clips may be shown as in a mirror.

    Not where its text names a side, nor where any caption of the clips says that something is written in the picture.
    """
    captions = (str(meta.get(name) or "") for meta in metas for name in _CAPTIONS)
    return not _SIDED.search(text) and not any(map(_WRITTEN.search, captions))


def may_reverse(text: str, metas: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a sample of these clips may run backwards.

    Not where its text tells a motion or an order of time, nor where something happens in the clips, told or not: backwards it
    would be another thing, or none that can be.
    """
    happens = any(meta.get("interactive") or meta.get("interaction_caption") for meta in metas)
    return not happens and not _REVERSED.search(text)


def caption(meta: Mapping[str, Any], mix: CaptionMix, rng: np.random.Generator) -> str:
    """A clip's text; empty where it is dropped or the clip has none. The same draws are made whatever the clip has."""
    long, none = rng.random(2)
    if none < mix.none_share:
        return ""
    names = ("caption_long", "caption_short") if long < mix.long_share else ("caption_short", "caption_long")
    standard = next((meta[name] for name in names if meta.get(name)), "")
    interaction = meta.get("interaction_caption") if mix.with_interaction else None
    return " ".join(filter(None, (standard, interaction)))
