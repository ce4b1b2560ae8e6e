"""Angles in degrees."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Angle = TypeVar("Angle", float, NDArray[np.float64])


def wrapped_deg(angle_deg: Angle) -> Angle:
    """Return the same direction, or directions, in (-180, 180]."""
    return 180.0 - (180.0 - angle_deg) % 360.0
