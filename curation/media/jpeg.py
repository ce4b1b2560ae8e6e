"""Encode a picture as JPEG."""

import cv2
import numpy as np


def encode_jpeg(rgb: np.ndarray, quality: int) -> bytes:
    """Return uint8 [H, W, 3] as JPEG of quality 0 to 100."""
    encoded, data = cv2.imencode(".jpg", np.ascontiguousarray(rgb[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert encoded, rgb.shape
    return bytes(data)
