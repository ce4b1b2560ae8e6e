"""What is kept of a clip after it is decoded once: its tracks, the world's separated from overlays, and its motion model."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from curation.cameras import rotation
from curation.cameras.camera import CameraFacts
from curation.cameras.checks import apply_checks
from curation.cameras.klt import backdrop, epipolar, focal, motion_model, tracks
from curation.cameras.klt.motion_model import TrackMotion
from curation.cameras.klt.tracks import TrackingView, Tracks
from curation.cameras.settings import CameraSettings
from curation.errors import UnreadableVideo
from curation.media.source import probe

if TYPE_CHECKING:
    from curation.cameras.clip import ClipView

DEFAULT_FOCAL = 0.5  # of the width (90 degrees), where nothing gives a better value
TURN_S = 0.3  # rotation is summed over steps of this length, so that a frame's jitter does not count
_NAME = "klt"
_UNIT_WIDTH = 640  # facts and limits are in px of a picture this wide
_MIN_FRAMES, _MIN_S, _MIN_VIEW_PX = 8, 0.25, 64
_CUT_TRACKS = 20  # a cut is only reported between frames that both have more tracks
_VOTE_S = 0.15  # between frames whose epipolar geometry tracks are compared with
_MIN_AGREEMENT = 0.6  # share of these comparisons in which a track of the world agrees
_MAX_FIXED_ROW_SHARE = 0.5  # a track whose row stays in more of the steps that can tell belongs to a painted sky


@dataclass(frozen=True)
class ClipTracks:
    """The tracks of a clip and what they say about its motion.

    scale: px of the source per px of the tracking view. tracks: those of the world. non_sky_tracks: all but those of a painted
    sky, so also those of objects that move in front of the world. rotation_deg: rotation over the clip, summed.
    """

    clip: "ClipView"
    view: TrackingView
    scale: tuple[float, float]
    tracks: Tracks
    non_sky_tracks: Tracks
    motion: TrackMotion
    rotation_deg: float
    facts: CameraFacts
    breaks: tuple[int, ...] = ()

    def points(self) -> np.ndarray:
        """Return the world's tracks as f4 [N, M, 2], px from the principal point, which is the middle of the 3-D view."""
        return self.centred(self.tracks)

    def centred(self, tracks: Tracks) -> np.ndarray:
        """Return any tracks in px from the principal point."""
        rect = self.view.rect
        return tracks.dense() - np.array([rect.w / 2, rect.h / 2], np.float32)

    def part(self, first: int, end: int) -> "ClipTracks":
        """Return what the frames [first, end) show, with the motion model of the whole clip and no breaks."""
        tracks, non_sky = (each.part(first, end) for each in (self.tracks, self.non_sky_tracks))
        return replace(self, tracks=tracks, non_sky_tracks=non_sky, breaks=())

    @property
    def unit_px(self) -> float:
        """Px of the tracking view per px of a picture 640 wide."""
        return self.view.size[0] / _UNIT_WIDTH

    @property
    def model(self) -> str | None:
        return self.facts.model


def track_clip(clip: "ClipView", settings: CameraSettings) -> ClipTracks | CameraFacts:
    """Decode a clip once and return its tracks. If they do not allow an estimate, return only facts that say why."""
    try:
        source = probe(clip.uri)
        view = tracks.tracking_view(clip.uri, clip.viewport, clip.static, settings.max_width)
        if min(view.rect.w, view.rect.h) < _MIN_VIEW_PX:
            return CameraFacts(f"failed:a view of {clip.viewport.w}x{clip.viewport.h} px is too small", backend=_NAME)
        corners = tracks.track_corners(clip.uri, clip.span, view)
    except UnreadableVideo as error:
        return CameraFacts(f"failed:{error}", backend=_NAME)
    scale = source.width / view.size[0], source.height / view.size[1]
    return classify_tracks(clip, view, scale, corners, settings)


def classify_tracks(
    clip: "ClipView", view: TrackingView, scale: tuple[float, float], corners: Tracks, settings: CameraSettings
) -> ClipTracks | CameraFacts:
    """Separate a clip's tracks and choose its motion model. If that is impossible, return only facts that say why."""
    facts = _with_track_counts(CameraFacts("", backend=_NAME, static_share=view.static_share), corners)
    count, length_s = len(corners.times_s), float(np.ptp(corners.times_s)) if len(corners.times_s) else 0.0
    if count < _MIN_FRAMES or length_s < _MIN_S:
        return facts._replace(status=f"failed:{count} frames in {length_s:.2f} s are too few")
    if (facts.tracks or 0) < settings.checks.min_tracks:
        return apply_checks(facts, settings.checks)
    breaks = _find_breaks(corners, settings.checks.min_track_survival)
    if breaks:
        first_s = corners.times_s[breaks[0]]
        facts = facts._replace(status=f"failed:tracks break off at {first_s:.2f} s: a cut, or too fast a turn")
    whole = ClipTracks(clip, view, scale, corners, corners, TrackMotion(0, 0, 0), 0.0, facts, tuple(breaks))
    return choose_model(_without_overlays(whole), settings)


def _with_track_counts(facts: CameraFacts, corners: Tracks) -> CameraFacts:
    if not len(corners.times_s):
        return facts
    per_frame = corners.per_frame()
    length = float(corners.length.mean()) if len(corners.length) else 0.0
    return facts._replace(tracks=float(per_frame.mean()), tracks_min=int(per_frame.min()), track_length=length)


def _find_breaks(corners: Tracks, min_survival: float) -> list[int]:
    """Return the frames that too few tracks survive into, although there are tracks on both sides."""
    last = corners.start + corners.length - 1
    count = len(corners.times_s)
    live = corners.per_frame()
    ended = np.bincount(last, minlength=count)[:-1]
    cut = (live[:-1] - ended < min_survival * live[:-1]) & (live[:-1] > _CUT_TRACKS) & (live[1:] > _CUT_TRACKS)
    return [int(frame) + 1 for frame in np.flatnonzero(cut)]


def _without_overlays(clip: ClipTracks) -> ClipTracks:
    """Return the clip with the tracks of the world only, by votes over all of its frames."""
    points, times_s, width = clip.points(), clip.tracks.times_s, clip.view.size[0]
    vote, gap = (motion_model.frame_gaps(times_s, [each])[0] for each in (_VOTE_S, TURN_S))
    non_sky = backdrop.fixed_row_share(points, gap, width) <= _MAX_FIXED_ROW_SHARE
    world = (epipolar.agreement_share(points, vote) >= _MIN_AGREEMENT) & non_sky
    return replace(clip, tracks=clip.tracks.select(world), non_sky_tracks=clip.tracks.select(non_sky))


def choose_model(clip: ClipTracks, settings: CameraSettings) -> ClipTracks:
    """Return the clip with its motion model, from the tracks of the world."""
    points, times_s, width = clip.points(), clip.tracks.times_s, clip.view.size[0]
    gap = motion_model.frame_gaps(times_s, [TURN_S])[0]
    motion = motion_model.measure_motion(points, times_s, width, None)
    if motion.displaced_px / clip.unit_px < settings.checks.max_static_px:
        model = "static"
    else:
        is_rotation = motion.rotation_px / clip.unit_px < settings.checks.max_rotation_residual_px
        model = "rotation" if is_rotation else "general"
    facts = clip.facts._replace(model=model, rotation_residual_px=motion.rotation_px / clip.unit_px)
    pairs = rotation.frame_pairs(points, [gap], gap)
    start = motion.focal_px
    if model != "rotation":
        start = focal.estimate_focal(points, times_s, width) or DEFAULT_FOCAL * width
    rotation_deg = float(rotation.angle_deg(rotation.pair_rotations(pairs, start)[0]).sum()) if len(pairs.first) else 0.0
    return replace(clip, motion=motion._replace(focal_px=start), rotation_deg=rotation_deg, facts=facts)
