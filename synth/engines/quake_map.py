"""What a map of id Tech 3 (OpenArena) is made of: which walls hide a point, and how large its doors and lifts are."""

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from curation.errors import AttemptFailed

_TEXTURES, _PLANES, _MODELS, _BRUSHES, _SIDES = 1, 2, 7, 8, 9  # lumps of a .bsp file
_SOLID, _TRANSLUCENT = 1, 0x20000000  # contents of a brush
_NEAR = 1e-4  # of a line's length: what touches its end only hides nothing


@dataclass(frozen=True, eq=False)
class QuakeMap:
    """The walls of a map, as M convex brushes with S sides in all, and its moving models. Units are the game's."""

    normals: NDArray[np.float64]  # [S, 3], outwards
    offsets: NDArray[np.float64]  # [S], of each side along its normal
    first_sides: NDArray[np.int64]  # [M], of each brush; its sides are consecutive
    movers: list[tuple[NDArray[np.float64], float]]  # middle and radius of each model at its origin; 0 is the world

    def hides(self, eye: NDArray[np.float64], at: NDArray[np.float64]) -> bool:
        """Return whether a wall is between an eye and a point. Curved surfaces, doors and glass hide nothing."""
        if not len(self.first_sides):
            return False
        before, behind = self.normals @ eye - self.offsets, self.normals @ at - self.offsets
        crossing = np.divide(before, before - behind, out=np.zeros_like(before), where=before != behind)
        apart = (before > 0) & (behind > 0)
        enters = np.where(apart, np.inf, np.where(before > 0, crossing, 0.0))
        leaves = np.where(behind > 0, crossing, 1.0)
        entered = np.maximum.reduceat(enters, self.first_sides)
        left = np.minimum.reduceat(leaves, self.first_sides)
        return bool(((entered < left) & (entered < 1 - _NEAR)).any())


def read_map(name: str, folder: Path) -> QuakeMap:
    """Read a map from the game's archives. Raises AttemptFailed if none of them has it."""
    for archive in sorted(folder.glob("*.pk3")):
        with zipfile.ZipFile(archive) as packed:
            if f"maps/{name}.bsp" in packed.namelist():
                return parse_map(packed.read(f"maps/{name}.bsp"))
    raise AttemptFailed(f"no archive in {folder} has the map {name}")


def parse_map(data: bytes) -> QuakeMap:
    """Parse a .bsp file."""
    contents = np.frombuffer(_lump(data, _TEXTURES), np.dtype([("name", "S64"), ("flags", "<i4"), ("contents", "<i4")]))
    planes = np.frombuffer(_lump(data, _PLANES), "<f4").reshape(-1, 4).astype(np.float64)
    models = np.frombuffer(_lump(data, _MODELS), np.dtype([("box", "<f4", 6), ("faces", "<i4", 2), ("brushes", "<i4", 2)]))
    brushes = np.frombuffer(_lump(data, _BRUSHES), "<i4").reshape(-1, 3)
    sides = np.frombuffer(_lump(data, _SIDES), "<i4").reshape(-1, 2)[:, 0]
    first, count = models["brushes"][0] if len(models) else (0, 0)
    kinds = contents["contents"][brushes[first : first + count, 2]]
    walls = [
        (int(start), int(number))
        for (start, number, _), kind in zip(brushes[first : first + count], kinds, strict=True)
        if kind & _SOLID and not kind & _TRANSLUCENT and number
    ]
    used = [sides[start : start + number] for start, number in walls]
    of_walls = planes[np.concatenate(used)] if used else np.zeros((0, 4))
    lengths = np.array([len(one) for one in used], np.int64)
    boxes = models["box"].astype(np.float64)
    return QuakeMap(
        of_walls[:, :3],
        of_walls[:, 3],
        np.cumsum(lengths) - lengths,
        [((box[:3] + box[3:]) / 2, float(np.linalg.norm(box[3:] - box[:3]) / 2)) for box in boxes],
    )


def _lump(data: bytes, number: int) -> bytes:
    start, size = struct.unpack_from("<2i", data, 8 + 8 * number)
    return data[start : start + size]
