"""Clean moving pictures to train on: pans over photographs and paintings, recordings of a game, rooms made of textures.

A snippet is the luma of sixteen frames, uint8 [16, H, W]: a window of at most `SEEN`, anywhere in a picture of one of `SIZES`.
Everything follows from the generator it is given. `docs/models/quality.md` says where the pictures come from and under which
licences.
"""

from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np

from bench.shipped_weights.boxes import FRAMES, Rng, Snippet, View, boxes

SIZES = ((320, 180), (426, 240), (640, 360), (640, 360), (640, 480), (854, 480), (1280, 720), (1280, 720), (1920, 1080))
SEEN = (512, 320)  # larger windows take longer and show the sixteen patches that are looked at no better
_PIXEL_ART, _PIXELS = 0.12, (2, 3, 4, 8)  # share of the snippets; px that one of its pixels is wide
_FLAT, _TRIES = 1.2, 8  # mean step between neighbours: on less there is no damage to be seen
_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".tga"}
_LEAST_PX = 600  # a picture smaller than this on its short side is a texture
_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_PLAIN, cv2.FONT_HERSHEY_COMPLEX)


class Material:
    """All pictures, textures and recordings under some folders, by kind; draws snippets of them."""

    def __init__(self, folders: list[Path]) -> None:
        files = sorted(file for folder in folders for file in folder.rglob("*") if file.is_file())
        shown = [file for file in files if file.suffix.lower() in _PICTURES]
        sides = {file: _short_side(file) for file in shown}
        self.pictures = [file for file in shown if sides[file] >= _LEAST_PX]
        self.textures = [file for file in shown if 16 <= sides[file] < _LEAST_PX]
        self.recordings = [file for file in files if file.suffix == ".mp4"]

    def draw(self, rng: Rng, times: int = 1, plain: bool = False) -> Snippet:
        """A snippet with some detail, so many times as large as it will be shown; an eighth pixel art, half with a HUD.

        `plain`: of a world of boxes in plain colours, without textures, where there is little to lose.
        """
        for _ in range(_TRIES):
            snippet = self._drawn(rng, times, plain)
            if plain or np.abs(np.diff(snippet[0].astype(np.float32))).mean() > _FLAT:
                break
        return _with_hud(snippet, rng) if rng.random() < 0.5 else snippet

    def _drawn(self, rng: Rng, times: int, plain: bool) -> Snippet:
        pixel = int(rng.choice(_PIXELS)) if rng.random() < _PIXEL_ART else 1
        width, height = (side * times // pixel for side in SIZES[rng.integers(len(SIZES))])
        seen = [min(side, most * times // pixel) for side, most in zip((width, height), SEEN, strict=True)]
        x, y = (int(rng.integers(side - part + 1)) for side, part in zip((width, height), seen, strict=True))
        sources: tuple[Callable[[Rng, View], Snippet], ...] = (self._pan, self._play, self._room)
        source = boxes if plain else sources[rng.choice(3, p=[0.4, 0.3, 0.3])]
        return _magnified(_exposed(source(rng, View(width, height, x, y, *seen)), rng), pixel, rng)

    def _pan(self, rng: Rng, view: View) -> Snippet:
        """A slow move over a picture, and into it, a quarter smaller at least, which leaves no trace of how it was stored."""
        picture = _gray(self.pictures[rng.integers(len(self.pictures))])
        size = np.array([view.seen_width, view.seen_height])
        least = 1.1 * max(size / picture.shape[::-1])
        most = max(least, 0.78 * min(1.0, 4 * max(view.width / picture.shape[1], view.height / picture.shape[0])))
        scale, steps = rng.uniform(least, most), np.arange(FRAMES)[:, None]
        # Twice as large as shown, so that places between pixels need no blur.
        large = cv2.resize(picture, None, fx=min(1.0, 2 * scale), fy=min(1.0, 2 * scale), interpolation=cv2.INTER_AREA)
        zoom = min(1.0, 2 * scale) / scale
        room = np.maximum(np.array(large.shape[::-1]) / zoom - size, 0)
        places = np.clip(rng.uniform(0, 1, 2) * room + rng.uniform(-6, 6, 2) * steps, 0, room)
        growth = 1 + rng.uniform(-0.004, 0.004) * steps[:, 0] * (rng.random() < 0.6)
        return np.stack([_at(large, place, zoom * g, size) for place, g in zip(places, growth, strict=True)])

    def _play(self, rng: Rng, view: View) -> Snippet:
        """A stretch of a recording, at its own size or smaller."""
        frames = _stretch(self.recordings[rng.integers(len(self.recordings))], rng)
        scale = min(1.0, max(view.width / frames.shape[2], view.height / frames.shape[1]))
        if scale < 0.9:
            frames = np.stack([cv2.resize(f, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for f in frames])
        y, x = (
            max(0, min(at, side - part)) for at, side, part in zip((view.y, view.x), frames.shape[1:], view[:3:-1], strict=True)
        )
        return frames[:, y : y + view.seen_height, x : x + view.seen_width]

    def _room(self, rng: Rng, view: View) -> Snippet:
        """A corridor of textures seen in perspective, a picture at its end: what a simple game engine draws."""
        sides = [_gray(self.textures[rng.integers(len(self.textures))]) for _ in range(4)]
        repeats, sharp = rng.integers(2, 9, 4), rng.random() < 0.5
        walls = [_tiled(side, int(n), sharp) for side, n in zip(sides, repeats, strict=True)]
        centre, speed = rng.uniform(0.35, 0.65, 2), rng.uniform(-0.01, 0.01, 2)
        slide, depth = rng.uniform(-0.03, 0.03), rng.uniform(0.05, 0.3)
        picture, size = _gray(self.pictures[rng.integers(len(self.pictures))]), (view.seen_width * 2, view.seen_height * 2)
        end = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        return np.stack([_corridor(walls, view, centre + speed * k, depth, slide * k, end.copy()) for k in range(FRAMES)])


def _short_side(file: Path) -> int:
    try:
        picture = cv2.imread(str(file), cv2.IMREAD_REDUCED_GRAYSCALE_8)
    except cv2.error:
        return 0
    return 0 if picture is None else min(picture.shape) * 8


def _gray(file: Path) -> np.ndarray:
    return np.asarray(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE))


def _at(picture: np.ndarray, place: np.ndarray, zoom: float, size: np.ndarray) -> np.ndarray:
    """The part of a picture at a place, in px as shown, where the picture is so many times as large as shown."""
    twice = np.array([[zoom / 2, 0, place[0] * zoom], [0, zoom / 2, place[1] * zoom]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    large = cv2.warpAffine(
        picture, twice, tuple(int(side) * 2 for side in size), flags=flags, borderMode=cv2.BORDER_REFLECT_101
    )
    return cv2.resize(large, tuple(int(side) for side in size), interpolation=cv2.INTER_AREA)


def _stretch(file: Path, rng: Rng) -> Snippet:
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # frame threads that log wait for the interpreter, which waits for them
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


def _tiled(texture: np.ndarray, repeats: int, sharp: bool) -> np.ndarray:
    """A texture side by side, at least 1024 px: magnified with hard edges, as pixel art is, or smoothly."""
    tiled = np.tile(texture[:512, :512], (repeats, repeats))
    scale = max(1.0, 1024 / min(tiled.shape))
    how = cv2.INTER_NEAREST if sharp else cv2.INTER_LINEAR
    return cv2.resize(tiled, None, fx=scale, fy=scale, interpolation=how)[:2048, :2048]


def _corridor(
    walls: list[np.ndarray], view: View, centre: np.ndarray, depth: float, slide: float, frame: np.ndarray
) -> np.ndarray:
    """Floor, ceiling and two walls around a rectangle at `centre`, drawn over `frame`, which is twice as large as shown."""
    width, height, size = view.width * 2, view.height * 2, frame.shape[::-1]
    cx, cy = centre * (width, height)
    w, h = width * depth, height * depth
    near = [(0, 0), (width, 0), (width, height), (0, height)]
    far = [(cx - w, cy - h), (cx + w, cy - h), (cx + w, cy + h), (cx - w, cy + h)]
    for k, wall in enumerate(walls):
        quad = np.array([near[k], near[(k + 1) % 4], far[(k + 1) % 4], far[k]], np.float32) - (view.x * 2, view.y * 2)
        moved = np.roll(wall, int(slide * wall.shape[0]), 0)
        tall, wide = moved.shape
        corners = np.array([(0, 0), (wide, 0), (wide, tall), (0, tall)], np.float32)
        plane = cv2.getPerspectiveTransform(corners, quad.astype(np.float32))
        mask = cv2.fillConvexPoly(np.zeros_like(frame), np.rint(quad).astype(np.int32), 1)
        cv2.copyTo(cv2.warpPerspective(moved, plane, size, flags=cv2.INTER_LINEAR), mask, frame)
    return cv2.resize(frame, (view.seen_width, view.seen_height), interpolation=cv2.INTER_AREA)


def _magnified(snippet: Snippet, times: int, rng: Rng) -> Snippet:
    """Each pixel a hard-edged square, as pixel art is shown; half of them on the codec's grid, the others anywhere."""
    if times == 1:
        return snippet
    y, x = rng.integers(times, size=2) * (rng.random() < 0.5)
    return snippet.repeat(times, 1).repeat(times, 2)[:, y:, x:]


def _exposed(snippet: Snippet, rng: Rng) -> Snippet:
    """Brighter, darker, harder or softer: games are lit in every way."""
    gain, gamma = rng.uniform(0.6, 1.3), rng.uniform(0.5, 1.3)
    table = np.clip(255 * gain * (np.arange(256) / 255) ** gamma + rng.uniform(0, 30), 0, 255)
    # A table alone would leave gaps between levels, as banding does: half a level of dither closes them.
    values = table.astype(np.float32)[snippet] + rng.uniform(-0.5, 0.5, snippet.shape[1:]).astype(np.float32)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _with_hud(snippet: Snippet, rng: Rng) -> Snippet:
    """Text, bars and a crosshair that stand still over the picture."""
    out = snippet.copy()
    height, width = out.shape[1:]
    for _ in range(rng.integers(1, 6)):
        x, y = int(rng.integers(width)), int(rng.choice([0.05, 0.1, 0.9, 0.95, rng.random()]) * height)
        tone, size = int(rng.integers(256)), float(rng.uniform(0.4, 1.2) * height / 480)
        words = "".join(rng.choice(list("ABCDEFGHIK0123456789 :/%"), rng.integers(3, 14)))
        for frame in out:
            if rng_bar := size > 0.9 * height / 480:
                cv2.rectangle(frame, (x, y), (x + int(width * 0.15), y + int(height * 0.03)), tone, -1)
            if not rng_bar:
                cv2.putText(frame, words, (x, y), _FONTS[tone % 4], size, tone, 1 + tone % 2, cv2.LINE_AA)
    return out
