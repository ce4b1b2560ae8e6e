"""Decode the start image that a stranger sends, without unpacking more than the limits allow."""

import base64
import binascii

import cv2
import numpy as np

from model.play.limits import Limits
from model.play.protocol import ProtocolError

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_NO_SIZE = {0xC4, 0xC8, 0xCC}  # JPEG markers between the start-of-frame ones that are something else


def decode_image(text: str, limits: Limits) -> np.ndarray:
    """Return the picture, uint8 [H, W, 3], of a PNG or JPEG file in base64. ProtocolError for what is none, or too large."""
    if len(text) > limits.image_bytes * 4 // 3 + 4:
        raise ProtocolError("image", f"the start image is larger than {limits.image_bytes // 2**20} MB")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ProtocolError("image", "the start image is not base64") from None
    size = _size_px(data)
    if size is None:
        raise ProtocolError("image", "the start image is neither PNG nor JPEG")
    if max(size) > limits.image_side_px:
        raise ProtocolError("image", f"the start image has {size[0]} x {size[1]} px; a side may have {limits.image_side_px}")
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        picture = None
    if picture is None:
        raise ProtocolError("image", "the start image cannot be decoded")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _size_px(data: bytes) -> tuple[int, int] | None:
    """Return width and height from the head of a PNG or JPEG file."""
    if data.startswith(_PNG) and len(data) >= 24:
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if not data.startswith(_JPEG):
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in _NO_SIZE:
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        at += 1 if marker == 0xFF else 2 + length
    return None
