"""What is kept of a clip after its one decode: its tracks, those of the world told from the rest, and the kind of motion."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from curation.cameras import rotation
from curation.cameras.camera import CameraFacts
from curation.cameras.checks import apply_checks
from curation.cameras.klt import backdrop, epipolar, focal, motion_model, tracks
from curation.cameras.klt.tracks import Tracks, Watched
from curation.cameras.settings import CameraSettings
from curation.errors import UnreadableVideo
from curation.media import decode

if TYPE_CHECKING:
    from curation.cameras.clip import ClipView

GUESS = 0.5  # of the width (90 degrees), where nothing says better
TURN_S = 0.3  # turning is summed over steps so long: a frame's jitter is no turn
_NAME = "klt"
_UNIT_WIDTH = 640  # px of facts and limits are of a picture so wide
_LEAST_FRAMES, _LEAST_S, _LEAST_PX = 8, 0.25, 64
_VOTE_S = 0.15  # between frames whose epipolar geometry tracks are held against
_AGREES = 0.6  # share of them that a track of the world goes along with
_STAYED = 0.5  # share of the steps that tell in which a painted sky's track keeps its row


@dataclass(frozen=True)
class Look:
    """What is kept of a clip: its tracks, those of the world alone, and what they say. scale: px of the source a px watched.

    below_sky: the tracks of the world and of what else moves before it, all but a painted sky's.
    """

    clip: "ClipView"
    watched: Watched
    scale: tuple[float, float]
    tracks: Tracks
    below_sky: Tracks
    motion: motion_model.Motion
    turned_deg: float
    facts: CameraFacts

    def points(self) -> np.ndarray:
        """f4 [N, M, 2], px from the principal point, which is the middle of the view."""
        return self.centred(self.tracks)

    def centred(self, tracks: Tracks) -> np.ndarray:
        """The same of any tracks."""
        view = self.watched.view
        return tracks.dense() - np.array([view.w / 2, view.h / 2], np.float32)

    @property
    def unit(self) -> float:
        """Px watched a px of a picture 640 wide."""
        return self.watched.size[0] / _UNIT_WIDTH

    @property
    def model(self) -> str | None:
        return self.facts.model


def looked_at(clip: "ClipView", how: CameraSettings) -> Look | CameraFacts:
    """One decode: the tracks and which model they ask for; the facts alone where there is nothing to go on."""
    try:
        source = decode.probe(clip.uri)
        watched = tracks.watched(clip.uri, clip.viewport, clip.static, how.max_width)
        if min(watched.view.w, watched.view.h) < _LEAST_PX:
            return CameraFacts(f"failed:a view of {clip.viewport.w}x{clip.viewport.h} px is too small", backend=_NAME)
        found = tracks.follow(clip.uri, clip.span, watched)
    except UnreadableVideo as error:
        return CameraFacts(f"failed:{error}", backend=_NAME)
    scale = source.width / watched.size[0], source.height / watched.size[1]
    return looked(clip, watched, scale, found, how)


def looked(
    clip: "ClipView", watched: Watched, scale: tuple[float, float], found: Tracks, how: CameraSettings
) -> Look | CameraFacts:
    """What its tracks say of a clip; the facts alone where they say that nothing can be had."""
    facts = _counted(CameraFacts("", backend=_NAME, static_share=watched.static_share), found)
    count, lasts = len(found.times_s), float(np.ptp(found.times_s)) if len(found.times_s) else 0.0
    if count < _LEAST_FRAMES or lasts < _LEAST_S:
        return facts._replace(status=f"failed:{count} frames in {lasts:.2f} s are too few")
    if (facts.tracks or 0) < how.checks.min_tracks:
        return apply_checks(facts, how.checks)
    cut = _cut(found, how.checks.min_track_survival)
    if cut is not None:
        return facts._replace(status=f"failed:nothing goes on {found.times_s[cut]:.2f} s in: a cut, or too fast")
    return _measured(Look(clip, watched, scale, found, found, motion_model.Motion(0, 0, 0), 0.0, facts), how)


def _counted(facts: CameraFacts, found: Tracks) -> CameraFacts:
    if not len(found.times_s):
        return facts
    a_frame = found.a_frame()
    length = float(found.length.mean()) if len(found.length) else 0.0
    return facts._replace(tracks=float(a_frame.mean()), tracks_min=int(a_frame.min()), track_length=length)


def _cut(found: Tracks, carried: float) -> int | None:
    """The frame at which next to no track goes on although there are some on both sides."""
    last = found.start + found.length - 1
    count = len(found.times_s)
    live = found.a_frame()
    ended = np.bincount(last, minlength=count)[:-1]
    gone = (live[:-1] - ended < carried * live[:-1]) & (live[:-1] > 20) & (live[1:] > 20)
    return int(np.flatnonzero(gone)[0]) + 1 if gone.any() else None


def _measured(look: Look, how: CameraSettings) -> Look:
    """The look with overlays voted out and its model chosen."""
    points, times_s, width = look.points(), look.tracks.times_s, look.watched.size[0]
    vote, gap = (motion_model.frame_gaps(times_s, [each])[0] for each in (_VOTE_S, TURN_S))
    below_sky = backdrop.kept_rows(points, gap, width) <= _STAYED
    world = (epipolar.agreement(points, vote) >= _AGREES) & below_sky
    points = points[:, world]
    seen = motion_model.motion(points, times_s, width, None)
    if seen.displaced_px / look.unit < how.checks.max_static_px:
        model = "static"
    else:
        model = "rotation" if seen.rotation_px / look.unit < how.checks.max_rotation_residual_px else "general"
    facts = look.facts._replace(model=model, rotation_residual_px=seen.rotation_px / look.unit)
    steps = rotation.pairs(points, [gap], gap)
    start = seen.focal_px if model == "rotation" else (focal.guess(points, times_s, width) or GUESS * width)
    turned = float(rotation.angle_deg(rotation.turns(steps, start)[0]).sum()) if len(steps.first) else 0.0
    return replace(
        look,
        tracks=look.tracks.keep(world),
        below_sky=look.tracks.keep(below_sky),
        motion=seen._replace(focal_px=start),
        turned_deg=turned,
        facts=facts,
    )
