"""Messages, the binary form of a block, and start images of strangers."""

import base64

import cv2
import numpy as np
import pytest

from model.play.images import decode_image
from model.play.limits import Limits, TokenBucket
from model.play.protocol import BlockHeader, Control, ProtocolError, StartWorld, encode_frames, pack, parse, unpack


def test_messages_are_read():
    assert parse('{"type":"ctl","seq":3,"t":1.5,"keys":["W"],"dx":2,"dy":-1}') == Control(
        type="ctl", seq=3, t=1.5, keys=("W",), dx=2, dy=-1
    )
    assert parse('{"type":"start","preset":"hall"}') == StartWorld(type="start", preset="hall")


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("{", "Invalid JSON"),
        ("[]", "should be an object"),
        ('{"type":"jump"}', "jump"),
        ('{"type":"pause","extra":1}', "Extra inputs are not permitted"),
        ('{"type":"ctl","seq":1,"keys":["X"]}', "unknown keys ['X']"),
        ('{"type":"ctl","seq":0}', "greater than or equal to 1"),
        ('{"type":"ctl","seq":1,"dx":1e300}', "less than or equal to"),
        ('{"type":"ctl","seq":1,"dx":NaN}', ""),
        ('{"type":"prompt","seq":1,"text":"%s"}' % ("x" * 401), "at most 400 characters"),
        ('{"type":"start","seed":-1}', "greater than or equal to 0"),
    ],
)
def test_what_is_no_message_is_refused_with_the_field(text, detail):
    with pytest.raises(ProtocolError) as caught:
        parse(text)
    assert caught.value.id == "message"
    assert detail in str(caught.value)


def header(pictures, **fields):
    values = {
        "gen": 2, "block": 3, "frame0": 9, "n": len(pictures), "engines": ("mock",),
        "bytes": [len(picture) for picture in pictures],
        "format": "png", "ctl_seq": (7,) * len(pictures), "prompt_seq": 1, "prompt_state": "active", "seed": 5,
        "poses": [(0, 0, 0)] * len(pictures), "sha": ("0" * 64,), "t_in": None, "t_sample": 1, "t_start": 1,
        "t_recache": 1, "t_denoise": 1,
        "t_decode": 1, "t_enc": 1, "t_commit": 1,
    }  # fmt: skip
    return BlockHeader(**values | fields)


def test_a_block_comes_out_as_it_went_in():
    pictures = [b"one", b"", b"three"]
    assert unpack(pack(header(pictures), pictures)) == (header(pictures), pictures)


def test_png_is_exact_and_jpeg_keeps_colour_at_full_resolution():
    frames = np.zeros((2, 32, 48, 3), np.uint8)
    frames[:, :, ::2] = (255, 0, 0)  # columns of one pixel: with half the colours they would run into each other
    frames[:, :, 1::2] = (0, 0, 255)
    for picture, frame in zip(encode_frames(frames, exact=True), frames, strict=True):
        assert np.array_equal(cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)[..., ::-1], frame)
    for picture, frame in zip(encode_frames(frames, exact=False), frames, strict=True):
        decoded = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert np.abs(decoded.astype(int) - frame).max() < 30


def as_text(picture, extension=".png"):
    return base64.b64encode(cv2.imencode(extension, picture)[1].tobytes()).decode()


@pytest.mark.parametrize("extension", [".png", ".jpg"])
def test_a_start_image_is_decoded_in_rgb(extension):
    picture = decode_image(as_text(np.full((20, 30, 3), (0, 0, 250), np.uint8), extension), Limits())
    assert picture.shape == (20, 30, 3)
    assert np.abs(picture[5, 5].astype(int) - (250, 0, 0)).max() < 6


def test_a_start_image_that_is_too_large_or_none_is_refused():
    picture = np.zeros((40, 300, 3), np.uint8)
    for extension in (".png", ".jpg"):
        with pytest.raises(ProtocolError, match="300 x 40 px; a side may have 256"):
            decode_image(as_text(picture, extension), Limits(image_side_px=256))
    with pytest.raises(ProtocolError, match="larger than 8 MB"):
        decode_image("A" * (12 * 2**20), Limits())
    with pytest.raises(ProtocolError, match="not base64"):
        decode_image("???", Limits())
    for data in (b"GIF89a", b"", b"\xff\xd8\xff\xe0\x00\x02", b"\xff\xd8" + b"\xff" * 50):
        with pytest.raises(ProtocolError, match="neither PNG nor JPEG"):
            decode_image(base64.b64encode(data).decode(), Limits())
    whole = base64.b64decode(as_text(picture))
    with pytest.raises(ProtocolError, match="cannot be decoded"):
        decode_image(base64.b64encode(whole[:24] + b"garbage").decode(), Limits())


def test_a_bucket_lets_a_burst_through_and_then_the_rate():
    bucket = TokenBucket(per_s=10, burst=3, now=0.0)
    assert [bucket.take(1, 0.0) for _ in range(5)] == pytest.approx([0, 0, 0, 0.1, 0.2])
    assert bucket.take(1, 0.3) == 0
    assert bucket.take(1, 100.0) == 0
    assert bucket.take(3, 100.0) == pytest.approx(0.1)
