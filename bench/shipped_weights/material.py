"""Clean moving pictures to train on: pans over photographs and paintings, recordings of a game, corridors made of textures.

A snippet is the luma of sixteen frames, uint8 [16, H, W]: a window of at most `MAX_WINDOW` in a picture of one of `SIZES`. All
random choices come from the caller's generator. `docs/models/quality.md` has the sources of the pictures and their licences.
"""

from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np

from bench.shipped_weights.boxes import FRAMES, PixelWindow, Rng, Snippet, boxes

SIZES = ((320, 180), (426, 240), (640, 360), (640, 360), (640, 480), (854, 480), (1280, 720), (1280, 720), (1920, 1080))
MAX_WINDOW = (512, 320)  # larger windows take longer and do not improve the sixteen patches of a frame
_PIXEL_ART_SHARE, _PIXEL_WIDTHS = 0.12, (2, 3, 4, 8)  # share of the snippets; width in px of one pixel of the art
_MIN_DETAIL, _MAX_TRIES = 1.2, 8  # mean step between neighbours: damage is hardly visible in flatter snippets
_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".tga"}
_MIN_PICTURE_PX = 600  # a picture smaller than this on its short side is a texture
_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_PLAIN, cv2.FONT_HERSHEY_COMPLEX)


class Material:
    """All pictures, textures and recordings under some folders. It draws random snippets of them."""

    def __init__(self, folders: list[Path]) -> None:
        files = sorted(file for folder in folders for file in folder.rglob("*") if file.is_file())
        images = [file for file in files if file.suffix.lower() in _PICTURES]
        sides = {file: _short_side(file) for file in images}
        self.pictures = [file for file in images if sides[file] >= _MIN_PICTURE_PX]
        self.textures = [file for file in images if 16 <= sides[file] < _MIN_PICTURE_PX]
        self.recordings = [file for file in files if file.suffix == ".mp4"]

    def draw(self, rng: Rng, times: int = 1, plain: bool = False) -> Snippet:
        """Draw a snippet with some detail, `times` as large as it will be used. An eighth is pixel art, half has a HUD.

        plain: draw a world of boxes in plain colours, without textures, in which damage has little to remove.
        """
        for _ in range(_MAX_TRIES):
            snippet = self._draw_once(rng, times, plain)
            if plain or np.abs(np.diff(snippet[0].astype(np.float32))).mean() > _MIN_DETAIL:
                break
        return _add_hud(snippet, rng) if rng.random() < 0.5 else snippet

    def _draw_once(self, rng: Rng, times: int, plain: bool) -> Snippet:
        pixel = int(rng.choice(_PIXEL_WIDTHS)) if rng.random() < _PIXEL_ART_SHARE else 1
        width, height = (side * times // pixel for side in SIZES[rng.integers(len(SIZES))])
        visible = [min(side, limit * times // pixel) for side, limit in zip((width, height), MAX_WINDOW, strict=True)]
        x, y = (int(rng.integers(side - part + 1)) for side, part in zip((width, height), visible, strict=True))
        sources: tuple[Callable[[Rng, PixelWindow], Snippet], ...] = (self._pan, self._play, self._corridor_scene)
        source = boxes if plain else sources[rng.choice(3, p=[0.4, 0.3, 0.3])]
        return _magnify(_vary_exposure(source(rng, PixelWindow(width, height, x, y, *visible)), rng), pixel, rng)

    def _pan(self, rng: Rng, window: PixelWindow) -> Snippet:
        """Move slowly over a picture and into it. It is shrunk by a quarter at least, which removes the traces of its codec."""
        picture = _gray(self.pictures[rng.integers(len(self.pictures))])
        size = np.array([window.visible_width, window.visible_height])
        min_scale = 1.1 * max(size / picture.shape[::-1])
        max_scale = max(min_scale, 0.78 * min(1.0, 4 * max(window.width / picture.shape[1], window.height / picture.shape[0])))
        scale, steps = rng.uniform(min_scale, max_scale), np.arange(FRAMES)[:, None]
        # Twice as large as it is used, so that places between pixels need no blur.
        large = cv2.resize(picture, None, fx=min(1.0, 2 * scale), fy=min(1.0, 2 * scale), interpolation=cv2.INTER_AREA)
        zoom = min(1.0, 2 * scale) / scale
        room = np.maximum(np.array(large.shape[::-1]) / zoom - size, 0)
        places = np.clip(rng.uniform(0, 1, 2) * room + rng.uniform(-6, 6, 2) * steps, 0, room)
        growth = 1 + rng.uniform(-0.004, 0.004) * steps[:, 0] * (rng.random() < 0.6)
        return np.stack([_crop_at(large, place, zoom * g, size) for place, g in zip(places, growth, strict=True)])

    def _play(self, rng: Rng, window: PixelWindow) -> Snippet:
        """Return successive frames of a recording, at their own size or smaller."""
        frames = _read_frames(self.recordings[rng.integers(len(self.recordings))], rng)
        scale = min(1.0, max(window.width / frames.shape[2], window.height / frames.shape[1]))
        if scale < 0.9:
            frames = np.stack([cv2.resize(f, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for f in frames])
        y, x = (
            max(0, min(at, side - part))
            for at, side, part in zip((window.y, window.x), frames.shape[1:], window[:3:-1], strict=True)
        )
        return frames[:, y : y + window.visible_height, x : x + window.visible_width]

    def _corridor_scene(self, rng: Rng, window: PixelWindow) -> Snippet:
        """Draw a corridor of textures in perspective with a picture at its end, like a simple game engine."""
        sides = [_gray(self.textures[rng.integers(len(self.textures))]) for _ in range(4)]
        repeats, sharp = rng.integers(2, 9, 4), rng.random() < 0.5
        walls = [_tile(side, int(n), sharp) for side, n in zip(sides, repeats, strict=True)]
        centre, speed = rng.uniform(0.35, 0.65, 2), rng.uniform(-0.01, 0.01, 2)
        slide, depth = rng.uniform(-0.03, 0.03), rng.uniform(0.05, 0.3)
        picture = _gray(self.pictures[rng.integers(len(self.pictures))])
        size = window.visible_width * 2, window.visible_height * 2
        end = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        return np.stack([_corridor(walls, window, centre + speed * k, depth, slide * k, end.copy()) for k in range(FRAMES)])


def _short_side(file: Path) -> int:
    try:
        picture = cv2.imread(str(file), cv2.IMREAD_REDUCED_GRAYSCALE_8)
    except cv2.error:
        return 0
    return 0 if picture is None else min(picture.shape) * 8


def _gray(file: Path) -> np.ndarray:
    return np.asarray(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE))


def _crop_at(picture: np.ndarray, place: np.ndarray, zoom: float, size: np.ndarray) -> np.ndarray:
    """Cut a part of `size` out of a picture that is `zoom` times as large. The place is in px of the result."""
    twice = np.array([[zoom / 2, 0, place[0] * zoom], [0, zoom / 2, place[1] * zoom]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    large = cv2.warpAffine(
        picture, twice, tuple(int(side) * 2 for side in size), flags=flags, borderMode=cv2.BORDER_REFLECT_101
    )
    return cv2.resize(large, tuple(int(side) for side in size), interpolation=cv2.INTER_AREA)


def _read_frames(file: Path, rng: Rng) -> Snippet:
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        # One thread: frame threads that write a log message wait for the interpreter, which waits for them.
        stream.codec_context.thread_count = 1
        first = int(rng.integers(max(1, stream.frames - FRAMES)))
        rate, tick = stream.average_rate, stream.time_base
        assert rate is not None, file
        assert tick is not None, file
        container.seek(int(first / rate / tick), stream=stream)
        frames = []
        for frame in container.decode(stream):
            frames.append(frame.to_ndarray(format="gray"))
            if len(frames) == FRAMES:
                break
    return np.stack(frames + frames[-1:] * (FRAMES - len(frames)))


def _tile(texture: np.ndarray, repeats: int, sharp: bool) -> np.ndarray:
    """Repeat a texture, and enlarge it to at least 1024 px: with hard edges like pixel art, or smoothly."""
    tiled = np.tile(texture[:512, :512], (repeats, repeats))
    scale = max(1.0, 1024 / min(tiled.shape))
    interpolation = cv2.INTER_NEAREST if sharp else cv2.INTER_LINEAR
    return cv2.resize(tiled, None, fx=scale, fy=scale, interpolation=interpolation)[:2048, :2048]


def _corridor(
    walls: list[np.ndarray], window: PixelWindow, centre: np.ndarray, depth: float, slide: float, frame: np.ndarray
) -> np.ndarray:
    """Draw floor, ceiling and two walls around a rectangle at `centre` over `frame`, which has twice the size of the result."""
    width, height, size = window.width * 2, window.height * 2, frame.shape[::-1]
    cx, cy = centre * (width, height)
    w, h = width * depth, height * depth
    near = [(0, 0), (width, 0), (width, height), (0, height)]
    far = [(cx - w, cy - h), (cx + w, cy - h), (cx + w, cy + h), (cx - w, cy + h)]
    for k, wall in enumerate(walls):
        quad = np.array([near[k], near[(k + 1) % 4], far[(k + 1) % 4], far[k]], np.float32) - (window.x * 2, window.y * 2)
        moved = np.roll(wall, int(slide * wall.shape[0]), 0)
        tall, wide = moved.shape
        corners = np.array([(0, 0), (wide, 0), (wide, tall), (0, tall)], np.float32)
        plane = cv2.getPerspectiveTransform(corners, quad.astype(np.float32))
        mask = cv2.fillConvexPoly(np.zeros_like(frame), np.rint(quad).astype(np.int32), 1)
        cv2.copyTo(cv2.warpPerspective(moved, plane, size, flags=cv2.INTER_LINEAR), mask, frame)
    return cv2.resize(frame, (window.visible_width, window.visible_height), interpolation=cv2.INTER_AREA)


def _magnify(snippet: Snippet, times: int, rng: Rng) -> Snippet:
    """Enlarge each pixel to a square with hard edges, like pixel art. Half of the snippets lie on the codec's grid."""
    if times == 1:
        return snippet
    y, x = rng.integers(times, size=2) * (rng.random() < 0.5)
    return snippet.repeat(times, 1).repeat(times, 2)[:, y:, x:]


def _vary_exposure(snippet: Snippet, rng: Rng) -> Snippet:
    """Change brightness and contrast, since games are lit in many ways."""
    gain, gamma = rng.uniform(0.6, 1.3), rng.uniform(0.5, 1.3)
    table = np.clip(255 * gain * (np.arange(256) / 255) ** gamma + rng.uniform(0, 30), 0, 255)
    # A table alone leaves gaps between levels, as banding does. Dither of half a level closes them.
    values = table.astype(np.float32)[snippet] + rng.uniform(-0.5, 0.5, snippet.shape[1:]).astype(np.float32)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _add_hud(snippet: Snippet, rng: Rng) -> Snippet:
    """Draw still text and bars over the picture."""
    out = snippet.copy()
    height, width = out.shape[1:]
    for _ in range(rng.integers(1, 6)):
        x, y = int(rng.integers(width)), int(rng.choice([0.05, 0.1, 0.9, 0.95, rng.random()]) * height)
        tone, size = int(rng.integers(256)), float(rng.uniform(0.4, 1.2) * height / 480)
        words = "".join(rng.choice(list("ABCDEFGHIK0123456789 :/%"), rng.integers(3, 14)))
        for frame in out:
            if size > 0.9 * height / 480:
                cv2.rectangle(frame, (x, y), (x + int(width * 0.15), y + int(height * 0.03)), tone, -1)
            else:
                cv2.putText(frame, words, (x, y), _FONTS[tone % 4], size, tone, 1 + tone % 2, cv2.LINE_AA)
    return out
