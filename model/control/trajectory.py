"""Integrate keys and mouse into a camera trajectory, frame by frame: shared by training, play and the replay of recordings.

OpenCV axes: x right, y down, z forward. A player walks on a plane: looking up or down does not change the height.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from model.control.spec import JUMP, LOOK_KEYS, MOVE_KEYS, ControlSpec, ControlState, checked_keys


@dataclass(frozen=True)
class PlayerState:
    """Position, orientation and velocity of the player."""

    x: float = 0.0  # to the right of the start
    y: float = 0.0  # below the start
    z: float = 0.0  # forward of the start
    yaw_deg: float = 0.0  # to the right
    pitch_deg: float = 0.0  # up
    ground_speed: tuple[float, float] = (0.0, 0.0)  # along x and z, units/s
    upward_speed: float = 0.0  # units/s

    @property
    def pose(self) -> np.ndarray:
        """Camera-to-world pose [4, 4]."""
        yaw, pitch = math.radians(self.yaw_deg), math.radians(self.pitch_deg)
        rotation = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
        tilt = np.array([[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]])
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation @ tilt, (self.x, self.y, self.z)
        return pose


def step(player: PlayerState, state: ControlState, spec: ControlSpec) -> PlayerState:
    """Return the player one frame later. Input i first shows in frame i + 1."""
    keys, frame_s = checked_keys(state.keys), 1 / spec.fps
    yaw, pitch = _look(player, state, spec, frame_s)
    speed = _speed(player, keys, math.radians(yaw), spec, frame_s)
    y, upward_speed = _jump(player, keys, spec, frame_s)
    return PlayerState(
        x=player.x + speed[0] * frame_s,
        y=y,
        z=player.z + speed[1] * frame_s,
        yaw_deg=yaw,
        pitch_deg=pitch,
        ground_speed=speed,
        upward_speed=upward_speed,
    )


def _look(player: PlayerState, state: ControlState, spec: ControlSpec, frame_s: float) -> tuple[float, float]:
    """Return yaw and pitch, degrees."""
    right, up = (sum(LOOK_KEYS[key][axis] for key in state.keys if key in LOOK_KEYS) for axis in (0, 1))
    yaw = player.yaw_deg + right * spec.turn_deg_s * frame_s + state.mouse_dx * spec.mouse_deg
    pitch = player.pitch_deg + up * spec.look_deg_s * frame_s - state.mouse_dy * spec.mouse_deg
    return yaw, min(max(pitch, -spec.max_pitch_deg), spec.max_pitch_deg)


def _speed(player: PlayerState, keys: frozenset[str], yaw: float, spec: ControlSpec, frame_s: float) -> tuple[float, float]:
    """Return the speed along x and z in this frame: what is left of the last frame's speed, plus what the keys add.

    Without keys a player glides and slows by exp(-frame / glide). With keys the speed approaches that of the keys.
    """
    right, forward = (sum(MOVE_KEYS[key][axis] for key in keys if key in MOVE_KEYS) for axis in (0, 1))
    length, right = math.hypot(right, forward), right * spec.sideways
    scale = spec.speed / length if spec.normalise_diagonals and length > 1 else spec.speed
    key_speed = (
        scale * (right * math.cos(yaw) + forward * math.sin(yaw)),
        scale * (forward * math.cos(yaw) - right * math.sin(yaw)),
    )
    kept = math.exp(-frame_s / spec.glide_s) if spec.glide_s else 0.0
    x, z = (kept * before + (1 - kept) * now for before, now in zip(player.ground_speed, key_speed, strict=True))
    return x, z


def _jump(player: PlayerState, keys: frozenset[str], spec: ControlSpec, frame_s: float) -> tuple[float, float]:
    """Return y (down is positive) and upward speed. The ground is at the height of the start.

    In the air y is the exact parabola at the frame's time, so that height and length of a jump do not depend on the fps.
    """
    on_ground = player.y >= 0 and player.upward_speed <= 0
    if on_ground and JUMP not in keys:
        return 0.0, 0.0
    before = spec.jump_speed if on_ground else player.upward_speed
    upward_speed = before - spec.gravity * frame_s
    y = player.y - (before + upward_speed) / 2 * frame_s
    return (0.0, 0.0) if y >= 0 and upward_speed <= 0 else (y, upward_speed)


def integrate(states: Iterable[ControlState], spec: ControlSpec, start: PlayerState | None = None) -> np.ndarray:
    """Return the camera-to-world poses [N + 1, 4, 4] of N inputs: that of the start, then one after each input."""
    players = [start or PlayerState()]
    for state in states:
        players.append(step(players[-1], state, spec))
    return np.stack([player.pose for player in players])
