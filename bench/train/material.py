"""Clean moving pictures to train on: pans over photographs and paintings, recordings of a game, rooms made of textures.

A snippet is the luma of eight frames, uint8 [8, H, W]. Everything follows from the generator it is given.
`docs/models/quality.md` says where the pictures come from and under which licences.
"""

from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np

FRAMES = 8
SIZES = ((320, 180), (426, 240), (640, 360), (640, 360), (640, 480), (854, 480), (1280, 720), (1280, 720), (1920, 1080))
_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".tga"}
_LEAST_PX = 600  # a picture smaller than this on its short side is a texture
_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_PLAIN, cv2.FONT_HERSHEY_COMPLEX)
Rng = np.random.Generator
Snippet = np.ndarray


class Material:
    """All pictures, textures and recordings under some folders, by kind; draws snippets of them."""

    def __init__(self, folders: list[Path]) -> None:
        files = sorted(file for folder in folders for file in folder.rglob("*") if file.is_file())
        shown = [file for file in files if file.suffix.lower() in _PICTURES]
        sides = {file: _short_side(file) for file in shown}
        self.pictures = [file for file in shown if sides[file] >= _LEAST_PX]
        self.textures = [file for file in shown if 16 <= sides[file] < _LEAST_PX]
        self.recordings = [file for file in files if file.suffix == ".mp4"]

    def draw(self, rng: Rng) -> Snippet:
        """A snippet at one of `SIZES`, half of them with a HUD on it."""
        width, height = SIZES[rng.integers(len(SIZES))]
        sources: tuple[Callable[[Rng, int, int], Snippet], ...] = (self._pan, self._play, self._room)
        snippet = _exposed(sources[rng.choice(3, p=[0.4, 0.3, 0.3])](rng, width, height), rng)
        return _with_hud(snippet, rng) if rng.random() < 0.5 else snippet

    def _pan(self, rng: Rng, width: int, height: int) -> Snippet:
        """A slow move over a picture that is made at least a quarter smaller, which leaves no trace of how it was stored."""
        picture = _gray(self.pictures[rng.integers(len(self.pictures))])
        most = 0.78 * min(1.0, 4 * max(width / picture.shape[1], height / picture.shape[0]))
        least = 1.1 * max(width / picture.shape[1], height / picture.shape[0])
        scale = rng.uniform(min(least, most), most)
        small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        room = [max(0, small.shape[0] - height), max(0, small.shape[1] - width)]
        start, speed = rng.uniform(0, 1, 2) * room, rng.uniform(-6, 6, 2)
        at = [np.clip(start + speed * k, 0, room).astype(int) for k in range(FRAMES)]
        return np.stack([_cut(small, y, x, height, width) for y, x in at])

    def _play(self, rng: Rng, width: int, height: int) -> Snippet:
        """A stretch of a recording, at its own size or smaller."""
        frames = _stretch(self.recordings[rng.integers(len(self.recordings))], rng)
        scale = min(1.0, max(width / frames.shape[2], height / frames.shape[1]))
        if scale < 0.9:
            return np.stack([cv2.resize(f, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for f in frames])
        return frames

    def _room(self, rng: Rng, width: int, height: int) -> Snippet:
        """A corridor of textures seen in perspective, under a sky, with fog: what a simple game engine draws."""
        sides = [_gray(self.textures[rng.integers(len(self.textures))]) for _ in range(4)]
        repeats, sharp = rng.integers(2, 9, 4), rng.random() < 0.5
        walls = [_tiled(side, int(n), sharp) for side, n in zip(sides, repeats, strict=True)]
        centre, speed = rng.uniform(0.35, 0.65, 2), rng.uniform(-0.01, 0.01, 2)
        slide, depth, big = rng.uniform(-0.03, 0.03), rng.uniform(0.05, 0.3), 2 if width <= 1280 else 1
        frames = [_corridor(walls, (width * big, height * big), centre + speed * k, depth, slide * k) for k in range(FRAMES)]
        return np.stack([cv2.resize(f, (width, height), interpolation=cv2.INTER_AREA) for f in frames])


def _short_side(file: Path) -> int:
    try:
        picture = cv2.imread(str(file), cv2.IMREAD_REDUCED_GRAYSCALE_8)
    except cv2.error:
        return 0
    return 0 if picture is None else min(picture.shape) * 8


def _gray(file: Path) -> np.ndarray:
    return cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)


def _cut(picture: np.ndarray, y: int, x: int, height: int, width: int) -> np.ndarray:
    piece = picture[y : y + height, x : x + width]
    missing = height - piece.shape[0], width - piece.shape[1]
    return cv2.copyMakeBorder(piece, 0, missing[0], 0, missing[1], cv2.BORDER_REFLECT_101) if max(missing) else piece


def _stretch(file: Path, rng: Rng) -> Snippet:
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        first = int(rng.integers(max(1, stream.frames - FRAMES)))
        container.seek(int(first / stream.average_rate / stream.time_base), stream=stream)
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


def _corridor(walls: list[np.ndarray], size: tuple[int, int], centre: np.ndarray, depth: float, slide: float) -> np.ndarray:
    """Floor, ceiling and two walls that meet in a far rectangle around `centre`, brighter towards the viewer."""
    width, height = size
    cx, cy = centre * size
    w, h = width * depth, height * depth
    near = [(0, 0), (width, 0), (width, height), (0, height)]
    far = [(cx - w, cy - h), (cx + w, cy - h), (cx + w, cy + h), (cx - w, cy + h)]
    frame = np.full((height, width), 90, np.uint8)
    for k, wall in enumerate(walls):
        quad = np.array([near[k], near[(k + 1) % 4], far[(k + 1) % 4], far[k]], np.float32)
        moved = np.roll(wall, int(slide * wall.shape[0]), 0)
        tall, wide = moved.shape
        corners = np.array([(0, 0), (wide, 0), (wide, tall), (0, tall)], np.float32)
        plane = cv2.warpPerspective(moved, cv2.getPerspectiveTransform(corners, quad), size, flags=cv2.INTER_LINEAR)
        mask = cv2.fillConvexPoly(np.zeros_like(frame), np.rint(quad).astype(np.int32), 1)
        frame = np.where(mask > 0, plane, frame)
    return frame


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
