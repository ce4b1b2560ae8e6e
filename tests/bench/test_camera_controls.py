"""A player made of key presses, with the momentum of the game, against what its trajectory says."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vizdoom", reason="vizdoom is in the demo extra")

from bench.camera_controls import agreements, lines
from bench.camera_takes import Place, Take

FPS = 35.0


def made(pressed: np.ndarray, every: int = 1) -> Take:
    """What the engine would log: thrust onto a momentum that loses a tenth a tick, turns at once."""
    pose, speed, position, heading = [], np.zeros(2), np.zeros(2), 0.0
    for forward, right, turn in pressed:
        ahead, aside = np.array([np.sin(heading), np.cos(heading)]), np.array([np.cos(heading), -np.sin(heading)])
        matrix = np.eye(4)
        matrix[:3, 0], matrix[:3, 2] = [aside[0], 0, aside[1]], [ahead[0], 0, ahead[1]]
        matrix[:3, 3] = [position[0], 0, position[1]]
        pose.append(matrix)
        speed = 0.90625 * speed + forward * ahead + right * aside
        position, heading = position + speed, heading + np.radians(turn)
    ticks = np.arange(0, len(pressed), every)
    times_s = np.arange(len(ticks)) * every / FPS
    return Take("made", "keys", Place("w", "m", False), FPS, Path(), np.array(pose)[ticks], times_s, 320.0, pressed, ticks)


def presses(*stretches: tuple[int, float, float, float]) -> np.ndarray:
    return np.concatenate([np.tile(keys, (count, 1)) for count, *keys in stretches])


@pytest.mark.parametrize("every", [1, 2])
def test_what_is_held_for_long_agrees_on_every_axis(every: int) -> None:
    take = made(presses((70, 1, 0, 0), (70, 1, 1, 0), (70, 0, 0, 2)), every)
    found = agreements(take, take.pose)
    for side in ("forward", "right", "turn right"):
        for kind in found[side]:
            assert kind.frames > 20
            assert kind.recovered >= 0.97 * kind.frames
    assert found["back"] == ((0, 0, 0), (0, 0, 0))


def test_a_reversed_key_shows_late_as_pressed_and_at_once_with_momentum() -> None:
    take = made(presses((70, 1, 0, 0), (70, -1, 0, 0)))
    pressed, momentum = agreements(take, take.pose)["back"]
    assert pressed.frames - pressed.recovered >= 5  # it glides on for seven ticks, in the last of which it hardly moves
    assert momentum.frames - momentum.recovered <= 3


def test_the_wrong_way_round_agrees_nowhere() -> None:
    take = made(
        presses(
            (70, 1, 0, 1.5),
        )
    )
    mirrored = np.diag([1.0, 1, -1, 1]) @ take.pose @ np.diag([1.0, 1, -1, 1])
    found = agreements(take, mirrored)
    assert (found["forward"][0].recovered, found["turn right"][0].recovered) == (0, 0)
    assert found["forward"][0].true == found["forward"][0].frames


def test_the_table_names_every_direction_with_its_share() -> None:
    take = made(presses((70, 1, 0, 1.5), (70, 0, -1, 0)))
    table = list(lines([(take, take.pose)]))
    assert [line.split("  ")[0] for line in table[2:]] == [
        *("forward", "back", "right", "left", "turn right", "turn left"),
        *("forward/back", "left/right", "turns"),
    ]
    assert "100.0% (100.0%)" in table[6]
    assert "-" in table[3]
