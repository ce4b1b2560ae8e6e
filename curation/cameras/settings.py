"""What may be set about cameras: which backend, what it is told, and every threshold of the checks with its reason."""

from dataclasses import dataclass, fields

BACKENDS = ("auto", "vipe", "klt", "none")


@dataclass(frozen=True)
class CheckSettings:
    """When a trajectory is believed. Lengths are px of a picture 640 wide; docs/cameras.md says what each was seen to part."""

    tracks: float = 40.0  # a frame, on average: fewer is a dark, empty or blank picture
    carried: float = 0.12  # share of a frame's tracks that the next one has: a cut has up to 0.11, what is right 0.3 and more
    static_px: float = 1.0  # what points of a static clip move at most: a codec alone moves them by 0.1
    rotation_px: float = 2.5  # what a pure rotation leaves: up to 1.9 when it is one, from 5 when it is not
    rotation_left_px: float = 1.5  # median over all pairs after all frames are turned together
    focal_error: float = 0.02  # standard error of a focal length found: 0.001 in a clip that turns, 0.1 in one that does not
    focal_turn_deg: float = 25.0  # a clip that turns less says nothing of the focal length
    focal_range: tuple[float, float] = (0.35, 2.0)  # of the width of the view: 110 to 28 degrees
    focal_apart: float = 0.05  # from the pool: if most clips are further apart, the source has no one focal length
    reached: float = 1.0  # share of frames with a pose of their own
    points: int = 100
    inliers: int = 40  # mapped points in every frame: a pose on fewer can be off by a degree
    inlier_share: float = 0.78  # of the mapped points in sight, in every frame: with fewer, a part of them slides along
    residual_px: float = 1.0  # median over frames; 0.3 to 0.6 in a trajectory that is right
    residual_p95_px: float = 1.5
    apart: float = 0.006  # of the path, between the poses of two maps that were begun in different parts of the clip
    apart_deg: float = 0.15  # a frame, RMS, the same: right ones are under 0.05, one frame off by three degrees makes it 0.25
    links: int = 8  # points that tie the scale before a moment to that behind it; with fewer it may have run off by a fifth
    contradicted: float = 0.36  # share of tracks that go against the camera, times the width they span: right ones 0.26
    rise_s: float = 0.35  # straight up or down: a door that fills the view and rises is a sinking camera, by every number
    step_ratio: float = 7.0  # the largest step to the tenth largest in a hundred; a jump in the map, where a stair is under 5
    spike: float = (
        1.1  # of the velocity, in one frame; players' are under 0.7, a frame shown twice is 1, a map that broke over 1.4
    )
    max_turn_deg: float = 25.0  # from frame to frame: more is no hand's turn
    static_share: float = 0.6  # of the view that never moves: with more, it is not the view

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not all(number >= 0 for number in (value if isinstance(value, tuple) else (value,))):
                raise ValueError(f"checks.{field.name} must not be negative, not {value}")


@dataclass(frozen=True)
class CameraSettings:
    """backend: auto | vipe | klt | none; auto takes ViPE where it is installed beside CUDA, else klt.

    max_width: the decode size; intrinsics are given back in px of the source. fov_deg: the horizontal field of view of the
    3-D view, if it is known; it is then taken as exact. vipe_command, vipe_preset: the program that is called where ViPE's
    package is not in this environment, and which of its pipelines (no_vda: without the depth that poses do not need).
    """

    backend: str = "auto"
    max_width: int = 640
    fov_deg: float | None = None
    vipe_command: str = "vipe"
    vipe_preset: str = "no_vda"
    checks: CheckSettings = CheckSettings()

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {self.backend!r}")
        if self.max_width < 160:
            raise ValueError(f"max_width must be at least 160 px, where corners can still be followed, not {self.max_width}")
        if self.fov_deg is not None and not 20 <= self.fov_deg <= 150:
            raise ValueError(f"fov_deg must be between 20 and 150 degrees, or null where it is not known, not {self.fov_deg}")
