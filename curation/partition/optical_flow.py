"""Optical flow, and the camera motion estimated from it (paper section 3.4: RAFT localises action boundaries).

Two backends share one interface: RAFT-small, as in the paper, by torchvision's architecture with weights from a path; and
OpenCV's DIS, which needs no weights and no GPU. Flow is in px per frame at 320 wide, averaged in cells of 20 px, so that it can
be stored for a whole source and the HUD masked out once it is known.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import cv2
import numpy as np

from curation import model_files
from curation.errors import Unavailable

if TYPE_CHECKING:
    import torch

WIDTH = 320  # px; pictures are analysed at this width
CELL_PX = 20
_IRLS_STEPS = 5  # of iteratively reweighted least squares
_PAIRS_AT_ONCE = 512  # the fit's floats are twenty times what is stored of a pair: all at once would be the memory peak


@dataclass(frozen=True)
class FlowSettings:
    """Which optical flow is computed, and how often."""

    backend: str = "auto"  # auto | raft | dis; auto uses RAFT where its weights and a GPU are present, else DIS
    weights: str | None = None  # path of RAFT's weights; null searches $GAMECRAFT_WEIGHTS and the hub's cache
    pairs_per_s: float = 10.0  # pairs of frames a second of video; a larger rate locates actions better and costs more time
    raft_updates: int = 8  # RAFT's iterations; more are slower and more exact

    def __post_init__(self) -> None:
        if self.backend not in ("auto", "raft", "dis"):
            raise ValueError(f"backend must be auto, raft or dis, not {self.backend!r}")
        if not 0 < self.pairs_per_s <= 240 or self.raft_updates < 1:
            raise ValueError(
                f"pairs_per_s must be in (0, 240] and raft_updates at least 1, not {self.pairs_per_s}, {self.raft_updates}"
            )


class Flow(Protocol):
    """Optical flow from one frame to another: uint8 [H, W, 3] twice -> float32 [H, W, 2], px to the right and down."""

    name: str

    def __call__(self, before: np.ndarray, after: np.ndarray) -> np.ndarray: ...


class DisFlow:
    """OpenCV's Dense Inverse Search (Kroeger et al. 2016); about 2 ms a pair at 320 wide on one core."""

    name = "dis"

    def __init__(self) -> None:
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)

    def __call__(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        return self._dis.calc(gray(before), gray(after), None)


class RaftFlow:
    """RAFT-small (Teed and Deng 2020) by torchvision. It loads official and torchvision checkpoints."""

    name = "raft"

    def __init__(self, checkpoint: Path, updates: int) -> None:
        try:
            import torch
            from torchvision.models.optical_flow import raft_small
        except ImportError as error:
            raise Unavailable('RAFT flow needs torch: pip install torch==2.13.0, then "gamecraft[raft]"') from error
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = raft_small(weights=None, progress=False)
        self._model.load_state_dict(torchvision_keys(torch.load(checkpoint, map_location="cpu", weights_only=True)))
        self._model.eval().to(self._device)
        self._updates = updates

    def __call__(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        import torch

        height, width = before.shape[:2]
        with torch.inference_mode():
            pair = [self._input(frame) for frame in (before, after)]
            padded = self._model(*pair, num_flow_updates=self._updates)[-1]
        flow: np.ndarray = padded[0, :, :height, :width].permute(1, 2, 0).cpu().numpy()
        return flow

    def _input(self, frame: np.ndarray) -> "torch.Tensor":
        """Convert a frame to float [1, 3, H', W'] in [-1, 1], padded to multiples of 8 and to the 128 px that RAFT needs."""
        import torch

        height, width = frame.shape[:2]
        down, right = (max(128, -(-side // 8) * 8) - side for side in (height, width))
        padded = np.pad(frame, ((0, down), (0, right), (0, 0)), mode="edge")
        return torch.from_numpy(padded).to(self._device).permute(2, 0, 1)[None].float() / 127.5 - 1


def torchvision_keys(state: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """Rename the keys of a RAFT-small state dict from the authors' to torchvision's. Torchvision's own keys do not change."""
    return {_torchvision_key(key): value for key, value in state.items()}


_BRANCH = {"c": "corr", "f": "flow"}
_RENAMES = (
    (r"^module\.", ""),
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"^(feature_encoder|context_encoder)\.conv1\.", r"\1.convnormrelu.0."),
    (r"^(feature_encoder|context_encoder)\.conv2\.", r"\1.conv."),
    (r"(layer\d\.\d)\.conv(\d)\.", r"\1.convnormrelu\2.0."),
    (r"^update_block\.encoder\.conv(c|f)(\d)\.", lambda m: f"update_block.motion_encoder.conv{_BRANCH[m[1]]}{m[2]}.0."),
    (r"^update_block\.encoder\.conv\.", "update_block.motion_encoder.conv.0."),
    (r"^update_block\.gru\.", "update_block.recurrent_block.convgru1."),
)


def _torchvision_key(key: str) -> str:
    for pattern, name in _RENAMES:
        key = re.sub(pattern, name, key)
    return key


def load_flow(settings: FlowSettings) -> Flow:
    """Load the backend that the settings name. Unavailable says where to put RAFT's weights, if they are missing."""
    if settings.backend == "dis":
        return DisFlow()
    if settings.backend == "raft":
        return RaftFlow(model_files.find_or_download(model_files.RAFT_SMALL, settings.weights), settings.raft_updates)
    weights = model_files.local_weights(model_files.RAFT_SMALL, settings.weights)
    return RaftFlow(weights, settings.raft_updates) if weights and _has_cuda() else DisFlow()


def _has_cuda() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def gray(rgb: np.ndarray) -> np.ndarray:
    """Convert a frame uint8 [H, W, 3] to gray uint8 [H, W]."""
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)


def cell_means(field: np.ndarray) -> np.ndarray:
    """Average a field [H, W, C] over cells of 20 px: float32 [H // 20, W // 20, C], at least one cell each way."""
    rows, columns = max(1, field.shape[0] // CELL_PX), max(1, field.shape[1] // CELL_PX)
    return cv2.resize(field, (columns, rows), interpolation=cv2.INTER_AREA).reshape(rows, columns, -1)


@lru_cache(maxsize=4)
def pixel_grid(height: int, width: int) -> np.ndarray:
    """Return the x and y of each pixel, float32 [H, W, 2]: the base to which a flow is added to warp a picture."""
    return np.stack(np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)), axis=-1)


@dataclass(frozen=True)
class FlowMotion:
    """The camera's motion in each of P pairs of frames, in px per frame at 320 wide."""

    # [P, 2, 3]: rows u and v; columns constant, per x and per y, with x and y from the middle of the picture in half-widths
    affine: np.ndarray
    pan: np.ndarray  # [P]: mean u of the middle third of the rows
    parallax: np.ndarray  # [P]: how much faster the median cell moves sideways than the slowest fifth of the cells
    camera: np.ndarray  # [P]: mean length of the flow that the affine map explains
    object: np.ndarray  # [P]: mean length of the residual flow

    def rates(self) -> np.ndarray:
        """Return [P, 4] px/frame: turn right, look up, walk forward, strafe right.

        A turn moves near and far things equally, and shows best in the middle third of the rows, where the horizon is. A
        strafe moves near things more than far ones. Walking spreads the picture from its middle.
        """
        spread = (self.affine[:, 0, 1] + self.affine[:, 1, 2]) / 2
        return np.stack([-self.pan, self.affine[:, 1, 0], spread, -self.parallax], 1)


def camera_motion(cells_PRC2: np.ndarray, weight_RC: np.ndarray) -> FlowMotion:
    """Fit an affine map to each pair's cells by reweighted least squares. Cells of weight 0 (HUD, bars) do not count."""
    starts = range(0, max(len(cells_PRC2), 1), _PAIRS_AT_ONCE)
    parts = [_camera_motion(cells_PRC2[i : i + _PAIRS_AT_ONCE].astype(np.float64), weight_RC) for i in starts]
    return FlowMotion(*(np.concatenate(of_all) for of_all in zip(*parts, strict=True)))


def _camera_motion(cells_PRC2: np.ndarray, weight_RC: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the fields of `FlowMotion` for few enough pairs to hold them as floats."""
    pairs, rows, columns = cells_PRC2.shape[:3]
    y, x = np.mgrid[0:rows, 0:columns] + 0.5
    design = np.stack([np.ones(rows * columns), x.ravel() / columns * 2 - 1, (y.ravel() - rows / 2) / columns * 2], 1)
    flow = cells_PRC2.reshape(pairs, rows * columns, 2)
    prior = np.broadcast_to(weight_RC.ravel() + 1e-6, flow.shape[:2])
    weight, affine = prior, np.zeros((pairs, 3, 2))
    for _ in range(_IRLS_STEPS):
        affine = _weighted_fit(design, flow, weight)
        residual = np.linalg.norm(flow - design @ affine, axis=2)
        weight = prior / (residual + 0.1 + np.median(residual, axis=1, keepdims=True))
    share = prior / prior.sum(1, keepdims=True)
    explained = np.linalg.norm(design @ affine, axis=2)
    residual = np.linalg.norm(flow - design @ affine, axis=2)
    pan, parallax = _pan_and_parallax(cells_PRC2[..., 0], weight_RC)
    return affine.transpose(0, 2, 1), pan, parallax, (explained * share).sum(1), (residual * share).sum(1)


def _pan_and_parallax(u_PRC: np.ndarray, weight_RC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the fields `pan` and `parallax` of `FlowMotion`, from the sideways flow of the cells that count."""
    if not weight_RC.any():
        weight_RC = np.ones_like(weight_RC)
    rows = np.flatnonzero(weight_RC.any(1))
    middle = np.array_split(rows, 3)[1] if len(rows) >= 3 else rows
    weight = weight_RC[middle] + 1e-6
    pan = (u_PRC[:, middle] * weight).sum((1, 2)) / weight.sum()
    cells = u_PRC[:, weight_RC > 0]
    median = np.median(cells, axis=1)
    slowest = np.quantile(cells * np.sign(median)[:, None], 0.2, axis=1)
    return pan, np.sign(median) * (np.abs(median) - np.maximum(slowest, 0))


def _weighted_fit(design: np.ndarray, flow: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Solve weighted least squares for all pairs at once: design [L, 3], flow [P, L, 2], weight [P, L] -> [P, 3, 2]."""
    weighted = weight[:, :, None] * design
    normal = np.einsum("pli,lj->pij", weighted, design) + 1e-9 * np.eye(3)
    affine: np.ndarray = np.linalg.solve(normal, np.einsum("pli,plc->pic", weighted, flow))
    return affine
