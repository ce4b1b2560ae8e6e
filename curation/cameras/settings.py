"""Camera settings: which backend runs, with which options, and every threshold of the checks with its reason."""

from dataclasses import dataclass, fields

BACKENDS = ("auto", "vipe", "klt", "none")


@dataclass(frozen=True)
class CheckSettings:
    """Limits within which a trajectory is believed. Lengths are in px of a picture 640 wide.

    `docs/cameras.md` lists, for each limit, the values that right and wrong trajectories were measured to have.
    """

    # Mean number of tracks per frame. Fewer means a dark, empty or blank picture.
    min_tracks: float = 40.0
    # Share of a frame's tracks that survive into the next frame. Cuts have up to 0.11, right trajectories 0.3 and more.
    min_track_survival: float = 0.12
    # How far points of a static clip move at most. A codec alone moves them by 0.1.
    max_static_px: float = 1.0
    # What the best rotation of a frame pair leaves of the tracks' motion: up to 1.9 in a pure rotation, from 5 in other motion.
    max_rotation_residual_px: float = 2.5
    # What one fit of all frames' rotations leaves: the median over the frame pairs.
    max_joint_rotation_residual_px: float = 1.5
    # Standard error of an estimated focal length, as a share of it: 0.001 in a clip that turns, 0.1 in one that does not.
    max_focal_error: float = 0.02
    # Total rotation of a clip. A clip that turns less says nothing about the focal length.
    min_focal_turn_deg: float = 25.0
    # Focal length as a share of the view's width: 0.35 is a field of view of 110 degrees.
    min_focal_share: float = 0.35
    # Focal length as a share of the view's width: 2 is a field of view of 28 degrees.
    max_focal_share: float = 2.0
    # Distance of a clip's focal length from the source's median, as a share of the median. If most clips are further away,
    # the source has no single focal length.
    max_focal_disagreement: float = 0.05
    # Share of the frames whose pose was estimated, not filled in.
    min_registered: float = 1.0
    # How far the camera gets from its mean position, as a share of the distance to the nearer part of the world. A camera that
    # only turns seems to move by a few hundredths of it where hands and clouds are mistaken for the world.
    min_parallax: float = 0.05
    # The same, in a clip that finds the focal length of its source by its own motion.
    min_focal_parallax: float = 0.25
    # Reprojection error in every frame of a span: the median over its points. Where hands or bricks of another row pull at the
    # camera it is twice that of the frames around.
    max_frame_residual_px: float = 0.9
    # Longest run of frames inside a span that miss only the checks of single frames, and not by much. They are flagged as not
    # valid. 0: none.
    max_dip_s: float = 0.4
    # Shortest span of a clip that does not pass as a whole.
    min_span_s: float = 1.0
    # Points of the map.
    min_points: int = 100
    # Mapped points that agree with the pose, in every frame. A pose from fewer can be off by a degree.
    min_inliers: int = 40
    # Share of the visible mapped points that agree with the pose, in every frame. With fewer, part of them slides along.
    min_inlier_share: float = 0.78
    # Reprojection error: the median over the frames' medians. Right trajectories have 0.3 to 0.6.
    max_residual_px: float = 1.0
    # Reprojection error: the 95th percentile over the frames' medians.
    max_residual_p95_px: float = 1.5
    # Distance between the poses of two maps that were started in different parts of the clip, as a share of the path.
    max_map_disagreement: float = 0.006
    # RMS difference of the two maps' rotations from frame to frame. Right ones are under 0.05; one frame that is off by three
    # degrees makes it 0.25.
    max_map_disagreement_deg: float = 0.15
    # Points that tie the scale before a moment to the scale after it. With fewer, the scale may have drifted by a fifth; with
    # 13 one path was off by 1.9 %. A weak moment costs a clip no more than a division there.
    min_scale_links: int = 20
    # Share of tracks that contradict the camera, times the share of the width that they span. Right trajectories have at most
    # 0.26.
    max_outlier_coverage: float = 0.36
    # Seconds of the longest straight move up or down. A rising door looks like a sinking camera to every other check.
    max_vertical_run_s: float = 0.35
    # Largest step over the 90th percentile of steps. A jump in the map has more, a stair under 5.
    max_step_ratio: float = 7.0
    # Largest change of the velocity that lasts one frame, as a share of the 90th percentile of the speed. Players stay under
    # 0.7, a frame shown twice gives 1, a broken map over 1.4.
    max_velocity_spike: float = 1.1
    # Rotation from frame to frame. No hand turns faster.
    max_turn_deg: float = 25.0
    # Share of the view that never moves. With more, the detected viewport is not the 3-D view.
    max_static_share: float = 0.6

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value >= 0:
                raise ValueError(f"checks.{field.name} must not be negative, not {value}")


@dataclass(frozen=True)
class CameraSettings:
    """The camera backend and what it may assume."""

    # auto | vipe | klt | none. auto takes ViPE where its package and CUDA are installed, else klt.
    backend: str = "auto"
    # Width in px at which frames are decoded. Intrinsics are given in px of the source.
    max_width: int = 640
    # Horizontal field of view of the 3-D view in degrees, where it is known; then it is taken as exact. null: unknown.
    fov_deg: float | None = None
    # The program that is called where ViPE's package is not in this environment.
    vipe_command: str = "vipe"
    # Which of ViPE's pipelines runs. no_vda leaves out the depth model, which poses do not need.
    vipe_preset: str = "no_vda"
    checks: CheckSettings = CheckSettings()  # Limits within which a trajectory is believed.

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {self.backend!r}")
        if self.max_width < 160:
            raise ValueError(f"max_width must be at least 160 px, where corners can still be followed, not {self.max_width}")
        if self.fov_deg is not None and not 20 <= self.fov_deg <= 150:
            raise ValueError(f"fov_deg must be between 20 and 150 degrees, or null where it is not known, not {self.fov_deg}")
