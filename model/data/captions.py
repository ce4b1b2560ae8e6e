"""The text of a sample: a random choice of long or short caption, with the interaction caption, or no text for guidance.

Text also decides whether a sample may be mirrored or reversed: not where that would make the text untrue.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Beginnings of words, and characters of Chinese captions. A needless match only costs a mirrored or reversed sample.
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
    """Which captions samples have."""

    long_share: float = 0.5  # share of samples with the long caption; the others have the short one
    dropout: float = 0.1  # share of samples without text, for classifier-free guidance
    with_interaction: bool = True  # whether the interaction caption follows the standard one (paper section 4.1)

    def __post_init__(self) -> None:
        for name in ("long_share", "dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share, 0 to 1, not {getattr(self, name):g}")


def instruction(meta: Mapping[str, Any], text: str) -> str:
    """Return the part of a sample's text that says what happens: the clip's interaction caption if the text ends with it."""
    interaction = str(meta.get("interaction_caption") or "")
    return interaction if text.endswith(interaction) else ""


def may_mirror(text: str, metas: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a sample of these clips may be mirrored.

    It may not where its text names a side, or where any caption of the clips says that the picture contains writing.
    """
    captions = (str(meta.get(name) or "") for meta in metas for name in _CAPTIONS)
    return not _SIDED.search(text) and not any(map(_WRITTEN.search, captions))


def may_reverse(text: str, metas: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a sample of these clips may run backwards.

    It may not where its text names a motion or an order in time. Nor where an interaction happens in the clips, even if the
    text does not mention it: backwards it would be another interaction, or an impossible one.
    """
    interactive = any(meta.get("interactive") or meta.get("interaction_caption") for meta in metas)
    return not interactive and not _REVERSED.search(text)


def caption(meta: Mapping[str, Any], mix: CaptionMix, long: float, dropped: float) -> str:
    """Return a clip's text: empty where it is dropped or the clip has none. long, dropped: draws from 0 to 1."""
    if dropped < mix.dropout:
        return ""
    names = ("caption_long", "caption_short") if long < mix.long_share else ("caption_short", "caption_long")
    standard = next((meta[name] for name in names if meta.get(name)), "")
    interaction = meta.get("interaction_caption") if mix.with_interaction else None
    return " ".join(filter(None, (standard, interaction)))
