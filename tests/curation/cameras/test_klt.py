from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bench.trajectory import errors
from curation.cameras.klt import agreement, estimate, mapping
from curation.cameras.klt.frame_poses import FramePoses, register_frames
from curation.cameras.klt.tracks import Tracks
from curation.cameras.settings import CameraSettings

SETTINGS = CameraSettings(backend="klt")
Make = Callable[..., Any]


def solve(*clips: Any, hint: float | None = None) -> list[Any]:
    return estimate.solve_clips(clips, [hint] * len(clips), SETTINGS)


def test_a_walk_that_turns_gives_path_rotation_and_focal_length(path: Make, tracked: Make, classified: Make) -> None:
    truth = path(turn_deg=120, forward=0.2, right=0.1)
    [(facts, camera)] = solve(classified(tracked(truth)))
    truth[:, :3, 3] *= 40  # a walk of metres in map units
    found = errors(camera.pose, truth)
    assert (facts.status, facts.model, facts.focal_source) == ("ok", "general", "clip")
    assert found.ate < 0.003
    assert found.rpe_rot_deg < 0.05
    assert facts.focal_px == pytest.approx(320, rel=0.01)
    assert np.allclose(camera.pose[0], np.eye(4))
    assert camera.intrinsics[0] == pytest.approx([facts.focal_px, facts.focal_px, 320, 240])


def test_a_turn_on_the_spot_has_no_translation(path: Make, tracked: Make, classified: Make) -> None:
    truth = path(turn_deg=100)
    [(facts, camera)] = solve(classified(tracked(truth)))
    assert (facts.status, facts.model) == ("ok_rotation", "rotation")
    assert not camera.pose[:, :3, 3].any()
    assert errors(camera.pose, truth).absolute_deg < 0.1
    assert facts.focal_px == pytest.approx(320, rel=0.01)


@pytest.mark.parametrize("way", [{"forward": 0.15}, {"right": 0.15}])
def test_a_focal_length_that_cannot_be_seen_is_never_ok(
    path: Make, tracked: Make, classified: Make, way: dict[str, float]
) -> None:
    [(facts, _)] = solve(classified(tracked(path(**way))))
    assert facts.status == "suspect"
    assert "focal length not observable" in facts.why


@pytest.mark.parametrize("way", [{"forward": 0.15}, {"right": 0.15}])
def test_clips_that_turn_lend_their_focal_length(path: Make, tracked: Make, classified: Make, way: dict[str, float]) -> None:
    truth = path(**way)
    turning, straight = solve(classified(tracked(path(turn_deg=120, forward=0.2))), classified(tracked(truth)))
    assert turning[0].focal_source == "clip"
    assert (straight[0].status, straight[0].focal_source) == ("ok", "pooled")
    truth[:, :3, 3] *= 40
    assert errors(straight[1].pose, truth).ate < 0.005


def test_a_given_focal_length_is_kept(path: Make, tracked: Make, classified: Make) -> None:
    [(facts, _)] = solve(classified(tracked(path(right=0.15))), hint=0.5)
    assert (facts.status, facts.focal_source, facts.focal_px) == ("ok", "hint", 320)


def test_nothing_moves(path: Make, tracked: Make, classified: Make) -> None:
    [(facts, camera)] = solve(classified(tracked(path(), noise=0.05)), hint=0.5)
    assert (facts.status, facts.model) == ("ok_static", "static")
    assert np.array_equal(camera.pose, np.tile(np.eye(4), (90, 1, 1)))


def test_what_stands_on_the_screen_does_not_hold_the_world(path: Make, tracked: Make, classified: Make) -> None:
    truth = path(turn_deg=120, forward=0.2, right=0.1)
    [(facts, camera)] = solve(classified(tracked(truth, overlay=60)))
    truth[:, :3, 3] *= 40
    assert facts.status == "ok"
    assert errors(camera.pose, truth).ate < 0.005


def test_the_same_tracks_give_the_same_poses(path: Make, tracked: Make, classified: Make) -> None:
    tracks = tracked(path(turn_deg=120, forward=0.2))
    one, other = (solve(classified(tracks))[0][1].pose for _ in range(2))
    assert np.abs(one - other).max() <= 1e-6


def test_a_suspect_clip_that_observed_its_focal_length_is_not_solved_again_with_the_pooled_one(
    path: Make, tracked: Make, classified: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracks, sources, solve_clip = tracked(path(turn_deg=120, forward=0.2)), [], estimate.solve_clip
    first, second = classified(tracks), classified(tracks)

    def counted(one: Any, share: float | None, source: str, settings: Any) -> Any:
        sources.append(source)
        solution = solve_clip(one, share, source, settings)
        return solution._replace(facts=solution.facts._replace(status="suspect")) if one is second else solution

    monkeypatch.setattr(estimate, "solve_clip", counted)
    (one, _), (other, _) = estimate.solve_clips([first, second], [None, None], SETTINGS)
    assert (one.status, other.status, other.focal_source) == ("ok", "suspect", "clip")
    assert sources == ["clip", "clip"]


def test_a_clip_in_which_half_the_frames_see_nothing_is_not_ok(path: Make, tracked: Make, classified: Make) -> None:
    tracks = tracked(path(turn_deg=120, forward=0.2))
    early = tracks.start + tracks.length < 45
    [(facts, _)] = solve(classified(tracks.select(early)), hint=0.5)
    assert not facts.ok


def test_a_clip_whose_two_maps_disagree_is_suspect(
    path: Make, tracked: Make, classified: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where one of them mistook a wall for another: from the middle on, its scale is different."""
    turn = [0]

    def bent(*known: Any) -> FramePoses:
        found = register_frames(*known)
        turn[0] += 1
        found.pose[45:, :3, 3] = found.pose[45, :3, 3] + (1 - 0.15 * turn[0]) * (found.pose[45:, :3, 3] - found.pose[45, :3, 3])
        return found

    monkeypatch.setattr(agreement, "register_frames", bent)
    [(facts, camera)] = solve(classified(tracked(path(turn_deg=120, forward=0.2, right=0.1))), hint=0.5)
    assert (turn[0], facts.status) == (5, "suspect")
    assert facts.why.startswith("map_disagreement 0.0")
    assert facts.map_disagreement > SETTINGS.checks.max_map_disagreement
    assert camera is not None


@pytest.mark.parametrize(("astray", "tried", "status"), [((0, 2), 4, "ok"), ((0, 1, 2), 3, "suspect")])
def test_maps_in_which_part_of_a_frame_is_astray_bear_nothing_out(
    path: Make,
    tracked: Make,
    classified: Make,
    monkeypatch: pytest.MonkeyPatch,
    astray: tuple[int, ...],
    tried: int,
    status: str,
) -> None:
    turn = [0]

    def partly(*known: Any) -> FramePoses:
        found = register_frames(*known)
        if turn[0] in astray:
            found.share[30] = 0.5
        turn[0] += 1
        return found

    monkeypatch.setattr(agreement, "register_frames", partly)
    [(facts, _)] = solve(classified(tracked(path(turn_deg=120, forward=0.2, right=0.1))), hint=0.5)
    assert (turn[0], facts.status) == (tried, status)


def test_a_clip_that_only_one_map_can_be_begun_in_is_suspect(
    path: Make, tracked: Make, classified: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = mapping.initial_pairs
    monkeypatch.setattr(mapping, "initial_pairs", lambda *known: pairs(*known)[:1])
    [(facts, _)] = solve(classified(tracked(path(turn_deg=120, forward=0.2, right=0.1))), hint=0.5)
    assert (facts.status, facts.why) == ("suspect", "map_disagreement 1, map_disagreement_deg 180")


def test_maps_begin_in_different_parts_of_a_clip(path: Make, tracked: Make, classified: Make) -> None:
    found = mapping.initial_pairs(classified(tracked(path(turn_deg=120, forward=0.2, right=0.1))).points(), 320.0)
    starts = [pair.first for pair in found]
    assert len(starts) == 5
    assert np.diff(sorted(starts[:3])).min() >= 15
    assert np.diff(sorted(starts)).min() >= 5
    assert found[0].score == max(pair.score for pair in found)


def test_a_cut_is_reported(path: Make, tracked: Make, classified: Make) -> None:
    before, after = tracked(path(count=40, turn_deg=60, forward=0.2)), tracked(path(count=50, turn_deg=60, forward=0.2))
    start, length = np.concatenate([before.start, after.start + 40]), np.concatenate([before.length, after.length])
    clip = classified(Tracks(np.arange(90) / 30, np.concatenate([before.xy, after.xy]), start, length))
    assert (clip.facts.status, clip.breaks) == ("failed:tracks break off at 1.33 s: a cut, or too fast a turn", (40,))
    [(facts, camera)] = solve(clip)
    assert (facts.status, camera) == (clip.facts.status, None)


@pytest.mark.parametrize("count", [1, 5])
def test_a_few_frames_are_too_few(path: Make, tracked: Make, classified: Make, count: int) -> None:
    assert classified(tracked(path(count=count))).status.startswith(f"failed:{count} frames")


def test_few_tracks_are_low_texture(path: Make, tracked: Make, classified: Make) -> None:
    assert classified(tracked(path(turn_deg=60), points=60)).status == "low_texture"
