"""A world of textured walls, blocks and standing pictures, drawn by NumPy: what `synth.engines.painted` plays in.

Everything that a game could look like is drawn from a seed: textures, colours, light, fog, ceilings or skies. The view is a
level pinhole; looking up and down shifts the horizon, as old engines did it. Lengths are metres: x east, y north, z up.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
TEXTURES = 24
"""How many textures a world has."""
_TEXTURE_PX, _LEVELS = 128, 5  # of a texture; coarser copies of it, each half as large
_NEAR_M, _LAYERS = 0.08, 6  # walls behind the sixth are not drawn


@dataclass(eq=False)
class Wall:
    """An upright rectangle."""

    start: tuple[float, float]
    end: tuple[float, float]
    bottom_m: float
    top_m: float
    texture: int
    tile_m: float = 2.0  # how wide a copy of the texture is
    slide: float = 0.0  # of the texture, in copies of it
    shade: float = 1.0  # times its light


@dataclass(eq=False)
class Sprite:
    """A picture with transparency that stands in the world and faces the camera."""

    picture: NDArray[np.uint8]  # [H, W, 4], red, green, blue, opacity
    at: tuple[float, float, float]  # of the middle of its lower edge
    height_m: float
    glows: bool = False  # is not darkened
    opacity: float = 1.0


@dataclass
class Eye:
    """A camera."""

    x: float
    y: float
    z: float
    yaw_deg: float  # counter-clockwise from east
    pitch_deg: float  # upwards


@dataclass
class Light:
    """How a world is lit."""

    gain: NDArray[np.float32]  # [3]
    fog: NDArray[np.float32]  # [3], grey levels
    fog_m: float  # at which two thirds of the colour are the fog's
    gamma: float = 1.0


@dataclass(eq=False)
class World:
    """All that is drawn."""

    atlas: Floats  # [H, W, 3], see `make_atlas`
    floor: int
    ceiling: int | None  # None: a sky
    sky: int
    ceiling_m: float
    light: Light
    floor_tile_m: float = 2.0
    floor_slide: float = 0.0  # of its texture, in copies of it
    walls: list[Wall] = field(default_factory=list)
    sprites: list[Sprite] = field(default_factory=list)

    def draw(self, eye: Eye, size: tuple[int, int], focal_px: float) -> tuple[Floats, float]:
        """Draw a picture [H, W, 3] in grey levels. Returned with it is how far away the next wall ahead is."""
        view = _View(self, eye, size, focal_px)
        picture = view.surfaces()
        for sprite in sorted(self.sprites, key=lambda one: -view.depth_of(one)):
            view.draw_sprite(picture, sprite)
        return picture, view.depth_ahead()


def make_atlas(rng: np.random.Generator) -> Floats:
    """Paint textures and coarser copies of each: a column of them, and columns of half the size to the right."""
    painted = [paint_texture(rng) for _ in range(TEXTURES)]
    columns = []
    for level in range(_LEVELS):
        side = _TEXTURE_PX >> level
        smaller = [cv2.resize(one, (side, side), interpolation=cv2.INTER_AREA) for one in painted]
        # Each place is as high as the largest, so that rows are the same at all levels.
        column = np.zeros((TEXTURES * _TEXTURE_PX, side, 3), np.float32)
        for number, one in enumerate(smaller):
            column[number * _TEXTURE_PX : number * _TEXTURE_PX + side] = one
        columns.append(column)
    return np.concatenate(columns, axis=1)


def paint_texture(rng: np.random.Generator) -> Floats:
    """Paint a texture that repeats, [128, 128, 3] in grey levels: noise, bricks, planks, blobs, stripes or coarse pixels."""
    side = _TEXTURE_PX
    base, other = rng.uniform(20, 235, (2, 3))
    if rng.random() < 0.6:
        other = np.clip(base * rng.uniform(0.5, 1.5), 0, 255)
    y, x = np.mgrid[:side, :side] / side
    kind = rng.integers(6)
    if kind == 0:
        shape = noise(rng, side, int(rng.integers(4, 17)))
    elif kind == 1:
        rows, columns = rng.integers(3, 9), rng.integers(2, 5)
        row = np.floor(y * rows)
        shape = ((y * rows % 1 > 0.12) & ((x * columns + 0.5 * (row % 2)) % 1 > 0.06)).astype(np.float64)
        shape *= 0.7 + 0.3 * rng.random((int(rows), int(columns) * 2 + 2))[row.astype(int), (x * columns).astype(int)]
    elif kind == 2:
        shape = ((x if rng.random() < 0.5 else y) * rng.integers(2, 8) % 1 > 0.1) * (0.6 + 0.4 * noise(rng, side, 3))
    elif kind == 3:
        shape = (noise(rng, side, int(rng.integers(3, 7))) > 0.5).astype(np.float64)
    elif kind == 4:
        shape = 0.5 + 0.5 * np.sin(2 * math.pi * (x * rng.integers(0, 6) + y * rng.integers(1, 6)))
    else:
        cells = int(rng.choice([8, 16, 32]))
        shape = rng.random((cells, cells)).repeat(side // cells, 0).repeat(side // cells, 1)
    grain = noise(rng, side, 32) - 0.5
    painted = base + (other - base) * shape[..., None] * rng.uniform(0.5, 1.0) + rng.uniform(10, 90) * grain[..., None]
    return np.clip(painted, 0, 255).astype(np.float32)


def noise(rng: np.random.Generator, side: int, cells: int) -> NDArray[np.float64]:
    """Return smooth noise that repeats, [side, side] between 0 and 1, with octaves from `cells` a side upwards."""
    total, weight, strength = np.zeros((side, side)), 0.0, 1.0
    while cells <= side // 2:
        coarse = rng.random((cells, cells)).astype(np.float32)
        padded = np.pad(coarse, ((0, 2), (0, 2)), mode="wrap")
        at = (np.arange(side) / side * cells).astype(np.float32)
        total += strength * cv2.remap(padded, *np.meshgrid(at, at), cv2.INTER_LINEAR)
        weight, strength, cells = weight + strength, strength * 0.5, cells * 2
    return total / weight


class _View:
    """A world as an eye sees it: what each pixel shows, and how far away."""

    def __init__(self, world: World, eye: Eye, size: tuple[int, int], focal_px: float) -> None:
        self._world, self._eye, self._focal = world, eye, focal_px
        self._width, self._height = size
        yaw = math.radians(eye.yaw_deg)
        self._ahead = np.array([math.cos(yaw), math.sin(yaw)])
        self._right = np.array([math.sin(yaw), -math.cos(yaw)])
        self._horizon = self._height / 2 + math.tan(math.radians(eye.pitch_deg)) * focal_px
        self._tangent = ((np.arange(self._width) + 0.5 - self._width / 2) / focal_px).astype(np.float32)
        self._depth = np.zeros((self._height, self._width), np.float32)

    def surfaces(self) -> Floats:
        """Draw floor, ceiling or sky, and walls."""
        world, eye, focal = self._world, self._eye, self._focal
        shape = (self._height, self._width)
        below = (np.arange(self._height, dtype=np.float32) + 0.5 - self._horizon)[:, None]
        is_floor = below > 0
        rise = np.where(is_floor, eye.z, max(world.ceiling_m - eye.z, 0.1))
        depth = np.minimum(focal * rise / np.maximum(np.abs(below), 1e-3), 1e4).astype(np.float32)
        east = eye.x + depth * (self._ahead[0] + self._right[0] * self._tangent)
        north = eye.y + depth * (self._ahead[1] + self._right[1] * self._tangent)
        u = (east / world.floor_tile_m + np.where(is_floor, world.floor_slide, 0)).astype(np.float32)
        v = (north / world.floor_tile_m).astype(np.float32)
        texture = np.where(is_floor, world.floor, world.ceiling if world.ceiling is not None else world.sky)
        texture = np.broadcast_to(texture, shape).astype(np.int32)
        tile = np.full(shape, world.floor_tile_m, np.float32)
        if world.ceiling is None:
            turn = (math.radians(eye.yaw_deg) - np.arctan(self._tangent)) * (3 / math.pi)
            u, v = np.where(is_floor, u, turn).astype(np.float32), np.where(is_floor, v, below / focal).astype(np.float32)
            tile = np.where(is_floor, tile, np.float32(0.5))
        self._depth, shade = np.broadcast_to(depth, shape).copy(), np.ones(shape, np.float32)
        u, v, texture, tile = (np.array(np.broadcast_to(one, shape)) for one in (u, v, texture, tile))
        for inside, ahead, along, wall_texture, wall_tile, facing, top in self._wall_layers():
            np.copyto(u, along, where=inside)
            np.copyto(v, (top - eye.z) / wall_tile + below * (ahead / wall_tile / focal), where=inside)
            np.copyto(texture, wall_texture, where=inside)
            np.copyto(tile, wall_tile, where=inside)
            np.copyto(shade, facing, where=inside)
            np.copyto(self._depth, ahead, where=inside)
        picture = self._sample(u, v, texture, tile)
        if world.ceiling is None:
            is_sky = (texture == world.sky) & ~is_floor & (tile == 0.5)
            self._depth = np.where(is_sky, 1e4, self._depth)
            return self._lit(picture, shade, np.where(is_sky, 0.25 * world.light.fog_m, self._depth))
        return self._lit(picture, shade, self._depth)

    def _wall_layers(self) -> list[tuple[NDArray[Any], ...]]:
        """Return the walls behind each column, farthest first: the rows of each and what to draw there."""
        walls = self._world.walls
        if not walls:
            return []
        ends = np.array([[wall.start, wall.end] for wall in walls]) - (self._eye.x, self._eye.y)
        ahead, right = ends @ self._ahead, ends @ self._right
        step_ahead, step_right = ahead[:, 1] - ahead[:, 0], right[:, 1] - right[:, 0]
        across = step_right[:, None] - self._tangent * step_ahead[:, None]
        along = (self._tangent * ahead[:, :1] - right[:, :1]) / np.where(np.abs(across) < 1e-9, 1e-9, across)
        depth = ahead[:, :1] + along * step_ahead[:, None]
        depth = np.where((along >= 0) & (along < 1) & (depth > _NEAR_M), depth, np.inf)
        nearest = np.argsort(depth, axis=0)[:_LAYERS][::-1]
        bottom, top, tile, slide = np.array([[w.bottom_m, w.top_m, w.tile_m, w.slide] for w in walls], np.float32).T
        texture, length = np.array([wall.texture for wall in walls]), np.hypot(step_ahead, step_right)
        steps = ends[:, 1] - ends[:, 0]
        shades = np.array([wall.shade for wall in walls])
        facing = (shades * (0.75 + 0.25 * np.abs(steps[:, 1]) / np.maximum(length, 1e-9))).astype(np.float32)
        columns, rows = np.arange(self._width), np.arange(self._height, dtype=np.float32)[:, None] + 0.5
        layers: list[tuple[NDArray[Any], ...]] = []
        for which in nearest:
            near = depth[which, columns].astype(np.float32)
            if not np.isfinite(near).any():
                continue
            scale = self._focal / np.where(np.isfinite(near), near, 1.0)
            upper, lower = (self._horizon - (edge[which] - self._eye.z) * scale for edge in (top, bottom))
            inside = (rows >= upper) & (rows < lower) & np.isfinite(near)
            at = along[which, columns] * length[which] / tile[which] + slide[which]
            layers.append((inside, near, at, texture[which], tile[which], facing[which], top[which]))
        return layers

    def _sample(self, u: Floats, v: Floats, texture: NDArray[np.int32], tile: Floats) -> Floats:
        texels_a_px = _TEXTURE_PX / tile * np.minimum(self._depth, 1e3) / self._focal
        level = np.clip(np.rint(np.log2(np.maximum(texels_a_px, 1e-3))), 0, _LEVELS - 1).astype(np.int32)
        side = (_TEXTURE_PX >> level).astype(np.float32)
        left = (2 * _TEXTURE_PX - 2 * side).astype(np.float32)
        x = left + (u - np.floor(u)) * (side - 1)
        y = texture * _TEXTURE_PX + (v - np.floor(v)) * (side - 1)
        return cv2.remap(self._world.atlas, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR)

    def _lit(self, picture: Floats, shade: Floats, depth: Floats) -> Floats:
        light = self._world.light
        fog = (1 - np.exp(-depth / light.fog_m))[..., None]
        return picture * (shade[..., None] * light.gain) * (1 - fog) + light.fog * fog

    def depth_ahead(self) -> float:
        """Return how far away the nearest wall in the middle of the picture is."""
        row, middle = int(np.clip(self._horizon, 0, self._height - 1)), self._width // 2
        return float(self._depth[row, middle - self._width // 16 : middle + self._width // 16].min())

    def depth_of(self, sprite: Sprite) -> float:
        return float((np.array(sprite.at[:2]) - (self._eye.x, self._eye.y)) @ self._ahead)

    def draw_sprite(self, picture: Floats, sprite: Sprite) -> None:
        """Draw a standing picture over what is farther away."""
        depth = self.depth_of(sprite)
        if depth < 0.2:
            return
        scale = self._focal / depth
        tall, wide = sprite.picture.shape[:2]
        height = sprite.height_m * scale
        width = height * wide / tall
        middle = self._width / 2 + float((np.array(sprite.at[:2]) - (self._eye.x, self._eye.y)) @ self._right) * scale
        foot = self._horizon - (sprite.at[2] - self._eye.z) * scale
        x0, x1, y0, y1 = (round(edge) for edge in (middle - width / 2, middle + width / 2, foot - height, foot))
        left, right, upper, lower = max(x0, 0), min(x1, self._width), max(y0, 0), min(y1, self._height)
        if right - left < 1 or lower - upper < 1:
            return
        columns = np.clip(((np.arange(left, right) + 0.5 - x0) / (x1 - x0) * wide).astype(int), 0, wide - 1)
        rows = np.clip(((np.arange(upper, lower) + 0.5 - y0) / (y1 - y0) * tall).astype(int), 0, tall - 1)
        shown = sprite.picture[rows[:, None], columns].astype(np.float32)
        seen = self._depth[upper:lower, left:right] > depth
        opacity = shown[..., 3:] / 255 * sprite.opacity * seen[..., None]
        colour = shown[..., :3]
        if not sprite.glows:
            ones = np.ones(colour.shape[:2], np.float32)
            colour = self._lit(colour, ones, ones * np.float32(depth))
        part = picture[upper:lower, left:right]
        part += (colour - part) * opacity
