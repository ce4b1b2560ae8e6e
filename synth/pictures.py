"""Pictures uint8 [H, W, 3] RGB as the bytes of a file, and back."""

import cv2
import numpy as np


def to_png(rgb: np.ndarray) -> bytes:
    """A picture as PNG."""
    ok, data = cv2.imencode(".png", np.ascontiguousarray(rgb[:, :, ::-1]))
    assert ok, rgb.shape
    return bytes(data)


def from_bytes(data: bytes) -> np.ndarray | None:
    """The picture in a file of any common format; None where it holds none."""
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return None if found is None else np.ascontiguousarray(found[:, :, ::-1])
