"""What may be set about cameras: which backend, what it is told, and every threshold of the checks with its reason."""

from dataclasses import dataclass

BACKENDS = ("auto", "vipe", "klt_glomap", "none")


@dataclass(frozen=True)
class CheckSettings:
    """When a trajectory is believed. Lengths are px of a picture 640 wide; docs/cameras.md says how each was chosen."""


@dataclass(frozen=True)
class CameraSettings:
    """backend: auto | vipe | klt_glomap | none; auto takes ViPE where it is installed beside CUDA, else klt_glomap.

    max_width: the decode size; intrinsics are given back in px of the source. fov_deg: the horizontal field of view of the
    3-D view, if it is known; it is then taken as exact.
    """

    backend: str = "auto"
    max_width: int = 640
    fov_deg: float | None = None
    checks: CheckSettings = CheckSettings()

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {self.backend!r}")
        if self.max_width < 160:
            raise ValueError(f"max_width must be at least 160 px, where corners can still be followed, not {self.max_width}")
        if self.fov_deg is not None and not 20 <= self.fov_deg <= 150:
            raise ValueError(f"fov_deg must be between 20 and 150 degrees, or null where it is not known, not {self.fov_deg}")
