"""Controls as text: `W*16 D+W*8 LEFT*10 .*5`. A word is keys joined by +, or a dot for none, and the number of frames.

Mouse counts of each frame follow an @: `W@3,-1*8`, `@2.5,0*4`. A word without a number is one frame.
"""

import itertools
import re
from collections.abc import Iterable

from curation.errors import InputError
from model.control.spec import KEYS, ControlState

MAX_FRAMES = 100_000  # more than an hour and a half at 16 frames a second; a slip of the finger would run for days
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_WORD = re.compile(rf"(?P<keys>\.|[A-Za-z+]*)(?:@(?P<dx>{_NUMBER}),(?P<dy>{_NUMBER}))?(?:\*(?P<frames>\d+))?")


def parse_keys(script: str) -> list[ControlState]:
    """Return the controls of each frame. InputError names the word that is wrong."""
    controls: list[ControlState] = []
    for word in script.split():
        state, frames = _parse_word(word)
        if len(controls) + frames > MAX_FRAMES:
            raise InputError(f"--keys: {word!r} makes it longer than {MAX_FRAMES} frames")
        controls += [state] * frames
    if not controls:
        raise InputError("--keys is empty; an example is 'W*16 D+W*8 LEFT*10 .*5'")
    return controls


def _parse_word(word: str) -> tuple[ControlState, int]:
    match = _WORD.fullmatch(word)
    if match is None or not (match["keys"] or match["dx"]):
        raise InputError(f"--keys: cannot read {word!r}; write keys, joined by +, and a number of frames, as in D+W*8, or .*5")
    names = [] if match["keys"] in ("", ".") else match["keys"].upper().split("+")
    if unknown := [name for name in names if name not in KEYS]:
        raise InputError(
            f"--keys: {word!r} has the unknown key {unknown[0]!r}; known are {', '.join(sorted(KEYS))}, and . for none"
        )
    frames = int(match["frames"] or 1)
    if frames < 1:
        raise InputError(f"--keys: {word!r} lasts for 0 frames; write at least 1")
    return ControlState(frozenset(names), float(match["dx"] or 0), float(match["dy"] or 0)), frames


def format_keys(controls: Iterable[ControlState]) -> str:
    """Return the text that `parse_keys` reads as these controls."""
    return " ".join(_format_word(state, len(list(run))) for state, run in itertools.groupby(controls))


def _format_word(state: ControlState, frames: int) -> str:
    keys = "+".join(sorted(state.keys))
    mouse = f"@{state.mouse_dx!r},{state.mouse_dy!r}" if state.mouse_dx or state.mouse_dy else ""
    return f"{keys or ('' if mouse else '.')}{mouse}" + (f"*{frames}" if frames > 1 else "")
