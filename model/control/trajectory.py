"""Keys and mouse integrated into a trajectory, a frame at a time: what training, play and a recording's replay share.

OpenCV axes: x right, y down, z forward. A player walks on a plane: looking up or down does not lift the walk.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from model.control.spec import JUMP, LOOKS, MOVES, ControlSpec, ControlState, known_keys


@dataclass(frozen=True)
class Player:
    """Where the player is: x right, y down, z forward of the start; yaw to the right, pitch up; speed on the ground, and up."""

    x: float = 0.0
    y: float = 0.0
    z: float = 0.0
    yaw_deg: float = 0.0
    pitch_deg: float = 0.0
    ground_speed: tuple[float, float] = (0.0, 0.0)
    rising: float = 0.0

    @property
    def pose(self) -> np.ndarray:
        """Camera-to-world [4, 4]."""
        yaw, pitch = math.radians(self.yaw_deg), math.radians(self.pitch_deg)
        turn = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
        tilt = np.array([[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]])
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = turn @ tilt, (self.x, self.y, self.z)
        return pose


def step(player: Player, state: ControlState, spec: ControlSpec) -> Player:
    """The player one frame later. What state i does shows from frame i + 1 on."""
    keys, frame_s = known_keys(state.keys), 1 / spec.fps
    yaw, pitch = _looked(player, state, spec, frame_s)
    speed = _speed(player, keys, math.radians(yaw), spec, frame_s)
    y, rising = _jumped(player, keys, spec, frame_s)
    return Player(
        x=player.x + speed[0] * frame_s,
        y=y,
        z=player.z + speed[1] * frame_s,
        yaw_deg=yaw,
        pitch_deg=pitch,
        ground_speed=speed,
        rising=rising,
    )


def _looked(player: Player, state: ControlState, spec: ControlSpec, frame_s: float) -> tuple[float, float]:
    right, up = (sum(LOOKS[key][axis] for key in state.keys if key in LOOKS) for axis in (0, 1))
    yaw = player.yaw_deg + right * spec.turn_deg_s * frame_s + state.mouse_dx * spec.mouse_deg
    pitch = player.pitch_deg + up * spec.look_deg_s * frame_s - state.mouse_dy * spec.mouse_deg
    return yaw, min(max(pitch, -spec.max_pitch_deg), spec.max_pitch_deg)


def _speed(player: Player, keys: frozenset[str], yaw: float, spec: ControlSpec, frame_s: float) -> tuple[float, float]:
    """Speed along x and z in this frame: what is left of the last one's, and what the keys add to it.

    Without keys a player glides on and slows by exp(-frame / glide); with keys the speed tends to theirs.
    """
    right, ahead = (sum(MOVES[key][axis] for key in keys if key in MOVES) for axis in (0, 1))
    length, right = math.hypot(right, ahead), right * spec.sideways
    scale = spec.speed / length if spec.normalise_diagonals and length > 1 else spec.speed
    wanted = (
        scale * (right * math.cos(yaw) + ahead * math.sin(yaw)),
        scale * (ahead * math.cos(yaw) - right * math.sin(yaw)),
    )
    kept = math.exp(-frame_s / spec.glide_s) if spec.glide_s else 0.0
    x, z = (kept * before + (1 - kept) * now for before, now in zip(player.ground_speed, wanted, strict=True))
    return x, z


def _jumped(player: Player, keys: frozenset[str], spec: ControlSpec, frame_s: float) -> tuple[float, float]:
    """Height (down is positive) and upward speed; the ground is at the start's height.

    In the air it is the parabola itself at the frame's time: how high and how far a jump goes does not depend on the fps.
    """
    on_ground = player.y >= 0 and player.rising <= 0
    if on_ground and JUMP not in keys:
        return 0.0, 0.0
    before = spec.jump_speed if on_ground else player.rising
    rising = before - spec.gravity * frame_s
    y = player.y - (before + rising) / 2 * frame_s
    return (0.0, 0.0) if y >= 0 and rising <= 0 else (y, rising)


def integrate(states: Iterable[ControlState], spec: ControlSpec, start: Player | None = None) -> np.ndarray:
    """Camera-to-world poses [N + 1, 4, 4] of N inputs, the start's among them."""
    players = [start or Player()]
    for state in states:
        players.append(step(players[-1], state, spec))
    return np.stack([player.pose for player in players])
