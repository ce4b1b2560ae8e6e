"""The input law: how the keys and mouse of a player become the controls of a block.

Controls are sampled once, right before a block is made. A key that is held acts in all its frames. A key that was pressed and
let go since the last sample acts as a pulse from the first frame on. Mouse counts since the last sample are spread over the
frames.
"""

import math
from collections.abc import Collection
from typing import NamedTuple

from model.control.spec import ControlState

PULSE_FRAMES = 4  # the frames of a latent: a shorter input would be averaged away with the frames next to it


class Sample(NamedTuple):
    """The controls of a block."""

    controls: tuple[ControlState, ...]
    seq: int  # the last control message that shaped them; 0: none yet
    received_s: float | None  # when that message came


class Inputs:
    """The keys and mouse of one player."""

    def __init__(self, fps: float, pulse_frames: int = PULSE_FRAMES) -> None:
        self._fps, self._pulse_frames = fps, pulse_frames
        self._seq, self._received_s = 0, None  # type: tuple[int, float | None]
        self.release()

    def release(self) -> None:
        """Let go of all keys and forget mouse counts: after a pause, a reset or a lost connection."""
        self._held: frozenset[str] = frozenset()
        self._pressed_s: dict[str, float] = {}  # keys pressed since the last sample
        self._taps_s: dict[str, float] = {}  # for how long those were held which are up again
        self._dx = self._dy = 0.0

    def restart_sequence(self) -> None:
        """Accept sequence numbers from 1 again: a new connection counts its own messages."""
        self._seq = 0

    def receive(self, seq: int, keys: Collection[str], dx: float, dy: float, now_s: float) -> bool:
        """Take a control message. An older one than the last is ignored. Return whether a person did something."""
        if seq <= self._seq:
            return False
        held = frozenset(keys)
        for key in held - self._held:
            self._pressed_s[key] = now_s
        for key in self._held - held:
            if key in self._pressed_s:
                self._taps_s[key] = max(self._taps_s.get(key, 0.0), now_s - self._pressed_s[key])
        active = bool(held or dx or dy or held != self._held)
        self._seq, self._received_s, self._held = seq, now_s, held
        self._dx, self._dy = self._dx + dx, self._dy + dy
        return active

    def sample(self, frames: int) -> Sample:
        """Return the controls of the next block."""
        pulses = {key: max(self._pulse_frames, math.ceil(held_s * self._fps)) for key, held_s in self._taps_s.items()}
        controls = tuple(
            ControlState(
                self._held | {key for key, length in pulses.items() if frame < length}, self._dx / frames, self._dy / frames
            )
            for frame in range(frames)
        )
        self._pressed_s, self._taps_s = {}, {}
        self._dx = self._dy = 0.0
        return Sample(controls, self._seq, self._received_s)
