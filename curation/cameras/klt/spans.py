"""Camera spans: the runs of frames of a clip that pass every check on their own, with one scale each.

Where no rotation explains the motion of a clip's tracks, maps are built, and the runs of frames in which two of them agree and
pass all checks are kept. A few frames that miss only the checks of single frames do not end a run: they keep the poses that
both maps give them, and are not valid. Where the view only turns, a rotation is fitted instead: nothing can be mapped there. A
turn that overlaps a run belongs to it, since the camera does not move in it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np

from curation.cameras import rotation
from curation.cameras.camera import CameraFacts
from curation.cameras.checks import missed_checks
from curation.cameras.klt import mapping
from curation.cameras.klt.agreement import Candidate, grow_map
from curation.cameras.klt.clip_tracks import ClipTracks
from curation.cameras.klt.landmarks import Landmarks, Part, Similarity, align
from curation.cameras.klt.measures import measure_run, turn_facts, weakest_frames
from curation.cameras.klt.rotation_fit import fit_rotations, turning_frames
from curation.cameras.settings import CameraSettings, CheckSettings

_MARGIN_S = 0.7  # of turning frames on both sides of a move that its map may reach into
_MIN_MOVE_S = 0.2  # a shorter move is noise in the decision, or too short to map
_MIN_TURN_S = 0.5  # a shorter turn is not worth a fit
_MIN_OVERLAP_S = 0.1  # of a run and the turn that it is joined to
_MAX_STILL = (
    0.02  # how far a run may move while the view only turns, as a share of the distance to the nearer part of the world
)
# Checks that tell where in a run they are missed, the clearest first.
_LOCAL_CHECKS = (
    "max_turn_deg",
    "step_ratio",
    "velocity_spike",
    "vertical_run_s",
    "outlier_coverage",
    "scale_links",
    "map_disagreement_deg",
    "map_disagreement",
)
_MAX_TURN_DIFFERENCE_DEG = 0.3  # a frame, between a run's rotations and those of the turn that it is joined to
_MAX_MAPS, _ENOUGH_MAPS = 8, 3  # of a part, at most, and where no other span can be won; those that break off early cost little
_MAX_WORK = 3.5  # frames that all maps together reach, as a multiple of the part's, after which no other map is tried
# A frame of a dip: of the points and the residual that a frame of a span must have, and how far two maps' steps may be apart.
_DIP_SHARE, _DIP_INLIERS, _DIP_RESIDUAL, _DIP_DEG = 0.75, 0.5, 1.6, 0.15


class Piece(NamedTuple):
    """Frames [start, end) of a clip with poses that passed every check.

    pose f8 [end - start, 4, 4] camera-to-world; residual_px f8 [end - start]; keyframes int [K] of the clip. group: pieces with
    the same number share one world and scale. valid bool [end - start]: the frames that passed the checks of single frames.
    landmarks: the points that the frames of a mapped piece see.
    """

    start: int
    end: int
    model: str
    pose: np.ndarray
    residual_px: np.ndarray
    keyframes: np.ndarray
    facts: CameraFacts
    group: int
    valid: np.ndarray
    landmarks: Landmarks | None = None

    @property
    def frames(self) -> int:
        return self.end - self.start


@dataclass
class _Search:
    """What is known while a clip is taken apart: its focal length in px, and the checks that were missed."""

    clip: ClipTracks
    focal: float
    settings: CameraSettings
    missed: list[str]

    @property
    def limits(self) -> CheckSettings:
        return self.settings.checks

    def frames_in(self, seconds: float) -> int:
        """Convert a time to frames, at least one."""
        return max(1, round(seconds / float(np.median(np.diff(self.clip.tracks.times_s)))))

    @property
    def min_frames(self) -> int:
        return max(8, self.frames_in(self.limits.min_span_s))


def find_pieces(clip: ClipTracks, focal: float, settings: CameraSettings, missed: list[str]) -> list[Piece]:
    """Return the pieces of a clip, in order and without overlap. focal: px of the tracking view, taken as exact.

    Adds to `missed` the checks that longer pieces missed, each with its value.
    """
    missed += [f"tracks break off at {clip.tracks.times_s[frame]:.2f} s" for frame in clip.breaks]
    edges = [0, *clip.breaks, len(clip.tracks.times_s)]
    pieces: list[Piece] = []
    for first, end in pairwise(edges):
        search = _Search(clip.part(first, end), focal, settings, missed)
        if end - first < search.min_frames:
            continue
        group = 1 + max((piece.group for piece in pieces), default=-1)
        pieces += [_moved(piece, first, group) for piece in _pieces_between_breaks(search)]
    return share_scales(clip, focal, pieces)


def share_scales(clip: ClipTracks, focal: float, pieces: Sequence[Piece]) -> list[Piece]:
    """Return the pieces, those that see again what another one has mapped in its world and group."""
    groups: dict[int, list[Piece]] = {}
    for piece in pieces:
        if piece.landmarks is not None:
            groups.setdefault(piece.group, []).append(piece)
    if len(groups) < 2:
        return list(pieces)
    points, view = clip.points(), (float(clip.view.rect.w), clip.unit_px)
    worlds: dict[int, Part] = {}
    moves: dict[int, tuple[int, Similarity]] = {}
    for group, members in groups.items():
        part = _part(members)
        for world in reversed(worlds):
            to_world = align(worlds[world], part, clip.tracks, points, focal, view)
            if to_world is not None:
                worlds[world] = worlds[world].joined(part.moved(to_world))
                moves[group] = world, to_world
                break
        else:
            worlds[group] = part
    return [_in_world(piece, *moves[piece.group]) if piece.group in moves else piece for piece in pieces]


def _part(members: Sequence[Piece]) -> Part:
    """Return the valid frames of pieces of one world, and all that they see."""
    frames = np.concatenate([piece.start + np.flatnonzero(piece.valid) for piece in members])
    pose = np.concatenate([piece.pose[piece.valid] for piece in members])
    part = None
    for piece in members:
        assert piece.landmarks is not None, "only mapped pieces have a world"
        one = Part(frames[:0], pose[:0], piece.landmarks)
        part = one if part is None else part.joined(one)
    assert part is not None, "a group has members"
    return part._replace(frames=frames, pose=pose)


def _in_world(piece: Piece, group: int, to_world: Similarity) -> Piece:
    return piece._replace(pose=to_world.poses(piece.pose), group=group)


def _moved(piece: Piece, frames: int, groups: int) -> Piece:
    """Return a piece of a part in terms of the whole: its frames and groups begin later."""
    return piece._replace(
        start=piece.start + frames,
        end=piece.end + frames,
        keyframes=piece.keyframes + frames,
        group=piece.group + groups,
    )


def _pieces_between_breaks(search: _Search) -> list[Piece]:
    turning = turning_frames(search.clip, search.focal, search.limits)
    turns = [turn for a, b in runs_of(turning) for turn in _fit_turns(search, a, b)]
    runs: list[Piece] = []
    for first, end in _moves(search, turning):
        group = 1 + max((piece.group for piece in runs), default=-1)
        taken = max((piece.end for piece in runs), default=0)
        found = [_moved(piece, first, group) for piece in _runs_of_part(search, first, end)]
        runs += [piece for piece in found if piece.start >= taken]
    return _join(search, runs, turns)


def runs_of(flags: np.ndarray) -> list[tuple[int, int]]:
    """Return the runs [start, end) of frames that are flagged."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _moves(search: _Search, turning: np.ndarray) -> list[tuple[int, int]]:
    """Return the parts of a clip to map: where the camera moves, with a margin, joined where they meet."""
    margin, count = search.frames_in(_MARGIN_S), len(turning)
    moving = np.zeros(count, bool)
    for a, b in runs_of(~turning):
        if b - a >= search.frames_in(_MIN_MOVE_S):
            moving[max(0, a - margin) : min(count, b + margin)] = True
    return [(a, b) for a, b in runs_of(moving) if b - a >= search.min_frames]


def _runs_of_part(search: _Search, first: int, end: int) -> list[Piece]:
    """Return the runs of frames [first, end), counted from `first`.

    Maps are started one after the other, each where the ones before gave no run, until two agree in all frames, or three leave
    no room for another span, or three have reached what is left and one more gains nothing.
    """
    part = _Search(search.clip.part(first, end), search.focal, search.settings, [])
    points, times_s = part.clip.points(), part.clip.tracks.times_s
    starts, tried = mapping.StartPairs.of(points, part.focal), list[mapping.InitialPair]()
    candidates: list[Candidate] = []
    runs: list[Piece] = []
    wanted = None
    while len(tried) < _MAX_MAPS and (pair := starts.best(tried, wanted)):
        tried.append(pair)
        try:
            one = grow_map(points, times_s, pair, part.focal, True)
        except (np.linalg.LinAlgError, cv2.error):
            continue
        if one is None:
            continue
        candidates.append(one)
        if len(candidates) < 2:
            continue
        before = sum(piece.frames for piece in runs)
        part.missed.clear()
        runs = runs_of_maps(part, points, candidates)
        reached = np.sum([each.map.posed for each in candidates], 0)
        room = _frames_to_map(runs, len(points), part.min_frames)
        is_covered = sum(piece.frames for piece in runs) == len(points)
        gains = sum(piece.frames for piece in runs) >= before + part.min_frames
        done = not room.any() or (reached[room].min() >= _ENOUGH_MAPS and not gains)
        if is_covered or (len(candidates) >= _ENOUGH_MAPS and done) or reached.sum() > _MAX_WORK * len(points):
            break
        wanted = room & (reached < 2) if (room & (reached < 2)).sum() >= part.min_frames else room if room.any() else None
    search.missed += part.missed
    return runs


def _frames_to_map(runs: Sequence[Piece], count: int, min_frames: int) -> np.ndarray:
    """Return flags [count] of the frames outside runs where there is room for another span."""
    free, wanted = np.ones(count, bool), np.zeros(count, bool)
    for piece in runs:
        free[piece.start : piece.end] = False
    for a, b in runs_of(free):
        wanted[a:b] = b - a >= min_frames
    return wanted


def runs_of_maps(search: _Search, points: np.ndarray, candidates: Sequence[Candidate]) -> list[Piece]:
    """Return the runs in which two maps of a clip agree and pass all checks, in order; the longest ones are taken first."""
    clip, limits = search.clip, search.limits
    pieces: list[Piece] = []
    pairs = [_MapPair(search, a, b) for i, a in enumerate(candidates) for b in candidates[i + 1 :]]
    left = np.array([pair.passable for pair in pairs]).reshape(len(pairs), len(points))  # what was not looked at, or taken
    while True:
        runs = [(b - a, group, a, b) for group, frames in enumerate(left) for a, b in runs_of(frames)]
        length, group, first, end = max(runs, key=lambda run: (run[0], -run[1]), default=(0, 0, 0, 0))
        if length < search.min_frames:
            break
        left[group, first:end] = False
        pair = pairs[group]
        one = pair.one
        for a, b, facts in _passing(search, points, pair, first, end):
            residual = one.poses.residual_px[a:b] / clip.unit_px
            keyframes = one.map.frames[(one.map.frames >= a) & (one.map.frames < b)]
            landmarks = Landmarks.of(clip.tracks, one.map, a, b)
            pieces.append(
                Piece(a, b, "general", one.poses.pose[a:b], residual, keyframes, facts, group, pair.valid[a:b], landmarks)
            )
            left[:, a:b] = False
    return _split_groups(clip, points, pairs, sorted(pieces, key=lambda piece: piece.start), limits)


class _MapPair:
    """Two maps of a clip.

    valid bool [N]: the frames in which both pass the checks of single frames. passable: these, and the short dips between them.
    """

    def __init__(self, search: _Search, one: Candidate, witness: Candidate) -> None:
        self.one, self.witness = one, witness
        limits, unit_px = search.limits, search.clip.unit_px
        self.valid = _usable_frames(one, limits, unit_px) & _usable_frames(witness, limits, unit_px)
        loose = replace(
            limits,
            min_inlier_share=_DIP_SHARE * limits.min_inlier_share,
            min_inliers=round(_DIP_INLIERS * limits.min_inliers),
            max_frame_residual_px=_DIP_RESIDUAL * limits.max_frame_residual_px,
        )
        same = rotation.angle_deg(_steps(one.poses.pose).transpose(0, 2, 1) @ _steps(witness.poses.pose)) <= _DIP_DEG
        agree = np.append(same, True) & np.insert(same, 0, True)
        weak = _usable_frames(one, loose, unit_px) & _usable_frames(witness, loose, unit_px) & agree
        self.passable = bridge_dips(self.valid, weak, search.frames_in(limits.max_dip_s) if limits.max_dip_s else 0)


def bridge_dips(valid: np.ndarray, weak: np.ndarray, longest: int) -> np.ndarray:
    """Return the valid frames [N] and the dips between them: at most so many frames, all weak, between as many valid ones."""
    bridged = valid.copy()
    runs = runs_of(valid)
    for (a, b), (c, d) in pairwise(runs):
        if c - b <= min(longest, b - a, d - c) and weak[b:c].all():
            bridged[b:c] = True
    return bridged


def _usable_frames(candidate: Candidate, limits: CheckSettings, unit_px: float) -> np.ndarray:
    """Return flags [N] of the frames of a map that pass the checks of single frames."""
    poses = candidate.poses
    with np.errstate(invalid="ignore"):
        fits = poses.residual_px / unit_px <= limits.max_frame_residual_px
    return candidate.map.posed & fits & (poses.inliers >= limits.min_inliers) & (poses.share >= limits.min_inlier_share)


def _passing(
    search: _Search, points: np.ndarray, pair: _MapPair, first: int, end: int
) -> Iterator[tuple[int, int, CameraFacts]]:
    """Yield the runs inside [first, end) that pass all checks. One that misses a check is divided where it misses it most."""
    inside = np.flatnonzero(pair.valid[first:end])
    if not len(inside):
        return
    first, end = first + int(inside[0]), first + int(inside[-1]) + 1  # no run begins or ends in a dip
    if end - first < search.min_frames:
        return
    facts = measure_run(search.clip, points, pair.one, pair.witness, first, end, pair.valid)
    missed = missed_checks(facts, search.limits)
    if not missed:
        yield first, end, facts
        return
    search.missed += missed
    names = {check.partition(" ")[0] for check in missed}
    check = next((name for name in _LOCAL_CHECKS if name in names), None)
    weakest = weakest_frames(search.clip, points, pair.one, pair.witness, first, end, check) if check else None
    if weakest is None:
        return
    for a, b in ((first, weakest[0]), (weakest[1], end)):
        yield from _passing(search, points, pair, a, b)


def _split_groups(
    clip: ClipTracks, points: np.ndarray, pairs: Sequence[_MapPair], pieces: list[Piece], limits: CheckSettings
) -> list[Piece]:
    """Return the pieces with a group of their own, except where two neighbours of one map provably share its scale.

    They do where only the frames between them miss a check of single frames: both maps agree on all of it, enough points are
    seen with parallax on both sides, and nothing breaks the path.
    """
    grouped: list[Piece] = []
    for before, piece in zip([None, *pieces], pieces, strict=False):
        group = 1 + max((each.group for each in grouped), default=-1)
        if before and before.group == piece.group:
            pair = pairs[piece.group]
            facts = measure_run(clip, points, pair.one, pair.witness, before.start, piece.end, pair.valid)
            if not {check.partition(" ")[0] for check in missed_checks(facts, limits)} & set(_LOCAL_CHECKS):
                group = grouped[-1].group
        grouped.append(piece._replace(group=group))
    return grouped


def _fit_turns(search: _Search, first: int, end: int) -> Iterator[Piece]:
    """Yield the frames of [first, end), in which the view only turns, with their rotations, divided where none fits them."""
    if end - first < search.frames_in(_MIN_TURN_S):
        return
    part = search.clip.part(first, end)
    fit = fit_rotations(part, search.focal, True, search.limits.max_static_px)
    if fit is None:
        return
    facts = turn_facts(part, fit)
    if not (missed := missed_checks(facts, search.limits)):
        every = np.ones(end - first, bool)
        yield Piece(first, end, facts.model or "rotation", fit.pose, fit.residual_px, np.array([first]), facts, 0, every)
        return
    search.missed += missed
    quarter = (end - first) // 4
    worst = first + min(max(fit.worst_frame, quarter), end - first - quarter)
    for a, b in ((first, worst), (worst + 1, end)):
        yield from _fit_turns(search, a, b)


def _join(search: _Search, runs: list[Piece], turns: list[Piece]) -> list[Piece]:
    """Return runs and turns without overlap.

    A turn goes to the longest run that it overlaps, and is a piece of its own where it overlaps none.
    """
    pieces = sorted(runs, key=lambda piece: -piece.frames)
    for k, piece in enumerate(pieces):
        others = [other for other in pieces if other is not piece]
        for turn in turns:
            low = max((other.end for other in others if other.start < piece.start), default=0)
            high = min((other.start for other in others if other.start > piece.start), default=len(search.clip.tracks.times_s))
            piece = _extended(search, piece, turn, low, high)
        pieces[k] = piece
    taken = np.zeros(len(search.clip.tracks.times_s), bool)
    for piece in pieces:
        taken[piece.start : piece.end] = True
    group = 1 + max((piece.group for piece in pieces), default=-1)
    for turn in turns:
        for a, b in runs_of(~taken[turn.start : turn.end]):
            if b - a >= search.min_frames:
                pieces.append(_cut(turn, turn.start + a, turn.start + b)._replace(group=group))
                group += 1
    return sorted((piece for piece in pieces if piece.frames >= search.min_frames), key=lambda piece: piece.start)


def _cut(piece: Piece, start: int, end: int) -> Piece:
    part = slice(start - piece.start, end - piece.start)
    inside = piece.keyframes[(piece.keyframes >= start) & (piece.keyframes < end)]
    frames = {name: getattr(piece, name)[part] for name in ("pose", "residual_px", "valid")}
    return piece._replace(start=start, end=end, keyframes=inside, **frames)


def _extended(search: _Search, run: Piece, turn: Piece, low: int, high: int) -> Piece:
    """Return a run with the frames of a turn that begins or ends in it, inside [low, high): the camera stays where it is."""
    first, end = max(run.start, turn.start), min(run.end, turn.end)
    if end - first < search.frames_in(_MIN_OVERLAP_S) or (turn.start >= run.start and turn.end <= run.end):
        return run
    shared, seen = run.pose[first - run.start : end - run.start], turn.pose[first - turn.start : end - turn.start]
    nearest = _radius(run.pose) / run.facts.parallax if run.facts.parallax else 0.0
    apart = rotation.angle_deg(_steps(seen).transpose(0, 2, 1) @ _steps(shared))
    if _radius(shared) > _MAX_STILL * nearest or np.sqrt((apart**2).mean()) > _MAX_TURN_DIFFERENCE_DEG:
        return run
    start, stop = max(low, min(run.start, turn.start)), min(high, max(run.end, turn.end))
    before = _carried(run.pose[0], turn, run.start, start, run.start)
    after = _carried(run.pose[-1], turn, run.end - 1, run.end, stop)
    residual_before = turn.residual_px[start - turn.start : run.start - turn.start] if len(before) else np.empty(0)
    residual_after = turn.residual_px[run.end - turn.start : stop - turn.start] if len(after) else np.empty(0)
    return run._replace(
        start=run.start - len(before),
        end=run.end + len(after),
        pose=np.concatenate([before, run.pose, after]),
        residual_px=np.concatenate([residual_before, run.residual_px, residual_after]),
        valid=np.concatenate([np.ones(len(before), bool), run.valid, np.ones(len(after), bool)]),
    )


def _carried(pose_44: np.ndarray, turn: Piece, at: int, first: int, end: int) -> np.ndarray:
    """Return the poses of a turn's frames [first, end) from the pose of its frame `at`."""
    if end <= first:
        return np.empty((0, 4, 4))
    poses = np.tile(pose_44, (end - first, 1, 1))
    turned = turn.pose[at - turn.start, :3, :3].T @ turn.pose[first - turn.start : end - turn.start, :3, :3]
    poses[:, :3, :3] = pose_44[:3, :3] @ turned
    return poses


def _steps(pose_N44: np.ndarray) -> np.ndarray:
    return pose_N44[:-1, :3, :3].transpose(0, 2, 1) @ pose_N44[1:, :3, :3]


def _radius(pose_N44: np.ndarray) -> float:
    """Return how far a camera gets from its mean position."""
    centre = pose_N44[:, :3, 3]
    return float(np.linalg.norm(centre - centre.mean(0), axis=1).max())


def assemble(pieces: Sequence[Piece], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return poses [count, 4, 4] of all frames and the residuals [count]. Between pieces the camera stays where it was.

    A piece of another group begins where the one before ended.
    """
    pose, residual = np.tile(np.eye(4), (count, 1, 1)), np.full(count, np.nan)
    offsets: dict[int, np.ndarray] = {}
    last = np.eye(4)
    for piece in pieces:
        offset = offsets.setdefault(piece.group, last @ np.linalg.inv(piece.pose[0]))
        pose[piece.start : piece.end] = offset @ piece.pose
        residual[piece.start : piece.end] = piece.residual_px
        last = pose[piece.end - 1]
        pose[piece.end :] = last
    return pose, residual


def _share_map(one: Piece, other: Piece) -> bool:
    """Whether two pieces of one world are of one map. The poses of two maps do not meet to the hundredth of a step."""
    return one.landmarks is None or other.landmarks is None or one.landmarks.source == other.landmarks.source


def merge(pieces: Sequence[Piece]) -> list[Piece]:
    """Return the pieces with neighbours that touch and share a map joined."""
    merged: list[Piece] = []
    for piece in pieces:
        before = merged[-1] if merged else None
        if before and before.end == piece.start and before.group == piece.group and _share_map(before, piece):
            merged[-1] = before._replace(
                end=piece.end,
                pose=np.concatenate([before.pose, piece.pose]),
                residual_px=np.concatenate([before.residual_px, piece.residual_px]),
                valid=np.concatenate([before.valid, piece.valid]),
                keyframes=np.concatenate([before.keyframes, piece.keyframes]),
            )
        else:
            merged.append(piece)
    return merged
