from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bench.trajectory import errors
from curation.cameras.checks import missed_checks
from curation.cameras.klt import agreement, estimate, mapping, spans
from curation.cameras.klt.frame_poses import FramePoses, register_frames
from curation.cameras.klt.tracks import Tracks
from curation.cameras.settings import CameraSettings

SETTINGS = CameraSettings(backend="klt")
Make = Callable[..., Any]


def solve(*clips: Any, hint: float | None = None) -> list[Any]:
    return estimate.solve_clips(clips, [hint] * len(clips), SETTINGS)


def assert_spans_are_right(camera: Any, truth: np.ndarray) -> None:
    assert camera.spans
    world = truth.copy()
    world[:, :3, 3] *= 40  # a walk of metres in map units
    for span in camera.spans:
        found = errors(camera.pose[span.start : span.end], world[span.start : span.end])
        assert found.rpe_rot_deg < 0.1
        assert span.model != "general" or found.ate < 0.005


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


def test_a_clip_that_fails_as_a_whole_is_taken_apart_and_not_solved_again(
    path: Make, tracked: Make, classified: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracks, sources, solve_clip = tracked(path(turn_deg=120, forward=0.2)), [], estimate.solve_clip
    first, second = classified(tracks), classified(tracks)

    def counted(one: Any, share: float | None, source: str, settings: Any) -> Any:
        sources.append(source)
        solution = solve_clip(one, share, source, settings)
        return solution._replace(facts=solution.facts._replace(status="suspect")) if one is second else solution

    monkeypatch.setattr(estimate, "solve_clip", counted)
    (one, _), (other, camera) = estimate.solve_clips([first, second], [None, None], SETTINGS)
    assert (one.status, one.focal_source, other.status, other.focal_source) == ("ok", "clip", "ok", "pooled")
    assert [(span.start, span.end) for span in camera.spans] == [(0, 90)]
    assert sources == ["clip", "clip"]


def test_a_clip_in_which_half_the_frames_see_nothing_is_right_in_the_other_half(
    path: Make, tracked: Make, classified: Make
) -> None:
    truth = path(turn_deg=120, forward=0.2)
    tracks = tracked(truth)
    early = tracks.start + tracks.length < 45
    [(facts, camera)] = solve(classified(tracks.select(early)), hint=0.5)
    assert facts.status == "ok_part"
    assert all(span.end <= 45 for span in camera.spans)
    assert facts.valid_share == pytest.approx(camera.valid.mean())
    assert_spans_are_right(camera, truth)


def test_a_clip_whose_maps_disagree_from_a_place_on_is_divided_there(
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
    truth = path(turn_deg=120, forward=0.2, right=0.1)
    [(facts, camera)] = solve(classified(tracked(truth)), hint=0.5)
    assert facts.status == "ok_part"
    assert "map_disagreement 0." in facts.why
    assert [span.scale_group for span in camera.spans] == [0, 1]
    assert (camera.spans[0].end, camera.spans[1].start) == pytest.approx((45, 45), abs=5)
    assert_spans_are_right(camera, truth)


@pytest.mark.parametrize(("astray", "tried", "spans"), [((0,), 3, [(0, 90)]), ((0, 1, 2), 3, [(0, 30), (31, 90)])])
def test_maps_in_which_part_of_a_frame_is_astray_bear_nothing_out(
    path: Make,
    tracked: Make,
    classified: Make,
    monkeypatch: pytest.MonkeyPatch,
    astray: tuple[int, ...],
    tried: int,
    spans: list[tuple[int, int]],
) -> None:
    turn = [0]

    def partly(*known: Any) -> FramePoses:
        found = register_frames(*known)
        if turn[0] in astray:
            found.share[30] = 0.5
        turn[0] += 1
        return found

    monkeypatch.setattr(agreement, "register_frames", partly)
    [(facts, camera)] = solve(classified(tracked(path(turn_deg=120, forward=0.2, right=0.1))), hint=0.5)
    assert (turn[0], facts.status) == (tried, "ok" if len(spans) == 1 else "ok_part")
    assert [(span.start, span.end) for span in camera.spans] == spans
    assert {span.scale_group for span in camera.spans} == {0}  # one map, and only a frame between them is astray


def test_a_short_dip_does_not_end_a_span_and_its_frames_are_flagged(
    path: Make, tracked: Make, classified: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in grass: for some frames fewer points fit. Both maps still agree, and their poses are kept."""

    def weak(*known: Any) -> FramePoses:
        found = register_frames(*known)
        found.share[30:34] = 0.7
        return found

    monkeypatch.setattr(agreement, "register_frames", weak)
    truth = path(turn_deg=120, forward=0.2, right=0.1)
    [(facts, camera)] = solve(classified(tracked(truth)), hint=0.5)
    assert (facts.status, facts.why) == ("ok_part", "4 frames miss checks of single frames")
    assert [(span.start, span.end) for span in camera.spans] == [(0, 90)]
    assert np.flatnonzero(~camera.valid).tolist() == [30, 31, 32, 33]
    assert facts.valid_share == pytest.approx(86 / 90)
    assert_spans_are_right(camera, truth)


def test_dips_are_short_weak_and_between_as_many_valid_frames() -> None:
    valid = np.ones(40, bool)
    valid[[5, 6, 15, 16, 17, 18, 19, 20]] = False
    weak = np.ones(40, bool)
    assert np.flatnonzero(~spans.bridge_dips(valid, weak, 4)).tolist() == [15, 16, 17, 18, 19, 20]
    assert spans.bridge_dips(valid, weak, 6).all()
    assert (spans.bridge_dips(valid, ~weak, 6) == valid).all()
    valid[4:8], valid[1] = False, False  # two valid frames before four that are not
    assert not spans.bridge_dips(valid, weak, 6)[4:8].any()


def test_what_is_seen_again_has_the_scale_of_the_first_map(
    path: Make, tracked: Make, classified: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two maps that no frame ties together, as behind a door: points that both see give the second one's scale."""
    truth = path(turn_deg=60, forward=0.2, right=0.1)
    grow_map = spans.grow_map

    def cut(points: Any, times_s: Any, pair: Any, *known: Any) -> Any:
        one = grow_map(points, times_s, pair, *known)
        inside = slice(0, 45) if pair.first < 45 else slice(50, 90)
        posed = np.zeros(90, bool)
        posed[inside] = True
        return one._replace(map=one.map._replace(posed=posed & one.map.posed))

    monkeypatch.setattr(spans, "grow_map", cut)
    [(facts, camera)] = solve(classified(tracked(truth)), hint=0.5)
    assert facts.status == "ok_part"
    assert [span.scale_group for span in camera.spans] == [0, 0]
    assert (camera.spans[0].end, camera.spans[1].start) == (45, 50)
    which = np.concatenate([np.arange(span.start, span.end) for span in camera.spans])
    truth[:, :3, 3] *= 40
    assert errors(camera.pose[which], truth[which]).ate < 0.005


def test_a_clip_that_only_one_map_can_be_begun_in_is_suspect(
    path: Make, tracked: Make, classified: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = mapping.StartPairs.best
    monkeypatch.setattr(mapping.StartPairs, "best", lambda self, earlier, *known: None if earlier else best(self, [], *known))
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
    [(facts, camera)] = solve(clip, hint=0.5)
    assert (facts.status, facts.valid_share) == ("ok_part", 1.0)
    assert facts.why.startswith("tracks break off at 1.33 s")
    assert [(span.start, span.end, span.scale_group) for span in camera.spans] == [(0, 40, 0), (40, 90, 1)]


def test_a_turn_before_a_walk_is_part_of_its_path(path: Make, tracked: Make, classified: Make) -> None:
    """New walls come into view that nothing ties to the old ones but the turn."""
    turning, walking = path(count=60, turn_deg=80), path(count=60, turn_deg=50, forward=0.3, right=0.1)
    walking = turning[-1] @ walking
    truth = np.concatenate([turning, walking])
    [(facts, camera)] = solve(classified(tracked(truth)), hint=0.5)
    assert facts.status in ("ok", "ok_part")
    walk = max(camera.spans, key=lambda span: span.end)
    assert (walk.model, walk.end, walk.start <= 20) == ("general", 120, True)
    assert_spans_are_right(camera, truth)


def test_a_path_that_hardly_moves_is_not_believed(path: Make, tracked: Make, classified: Make) -> None:
    """A hundredth of the distance to the world: what a wrong focal length makes of a turn."""
    facts = classified(tracked(path(turn_deg=60))).facts
    limits = SETTINGS.checks
    good = facts._replace(model="general", parallax=limits.min_parallax, rotation_residual_px=None)
    assert not any(check.startswith("parallax") for check in missed_checks(good, limits))
    assert missed_checks(good._replace(parallax=0.01), limits)[0] == "parallax 0.01"


@pytest.mark.parametrize("count", [1, 5])
def test_a_few_frames_are_too_few(path: Make, tracked: Make, classified: Make, count: int) -> None:
    assert classified(tracked(path(count=count))).status.startswith(f"failed:{count} frames")


def test_few_tracks_are_low_texture(path: Make, tracked: Make, classified: Make) -> None:
    assert classified(tracked(path(turn_deg=60), points=60)).status == "low_texture"
