"""Optical flow, and the camera motion estimated from it (paper section 3.4: RAFT localises action boundaries).

Two backends share one interface: RAFT, as in the paper, by torchvision with its weights by name or others from a path; and
OpenCV's DIS, which needs no weights and no GPU. Flow is in px per frame at 320 wide, averaged in cells of 20 px, so that it can
be stored for a whole source and the HUD masked out once it is known.
"""

import logging
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import cv2
import numpy as np

from curation import model_files
from curation.errors import Unavailable

if TYPE_CHECKING:
    import torch

log = logging.getLogger("gamecraft")

WIDTH, MAX_HEIGHT = 320, 720  # px; pictures are analysed at this width, and squeezed to this height
CELL_PX = 20
_IRLS_STEPS = 5  # of iteratively reweighted least squares
_BATCH_ON_GPU = 16  # pairs that RAFT computes together
_RAFT_FILES = {"small": model_files.RAFT_SMALL, "large": model_files.RAFT_LARGE}
_PAIRS_AT_ONCE = 512  # the fit's floats are twenty times what is stored of a pair: all at once would be the memory peak


@dataclass(frozen=True)
class FlowSettings:
    """Which optical flow is computed, and how often."""

    backend: str = "auto"  # auto | raft | dis; auto uses RAFT on a GPU, if its weights are here or can be downloaded, else DIS
    raft: str = "small"  # small | large: RAFT's size; large is more exact and takes three times as long
    # Where RAFT's weights are: a path, or torchvision's name for them (C_T_V2, C_T_SKHT_V2, ...); null searches
    # $GAMECRAFT_WEIGHTS, then takes torchvision's default
    weights: str | None = None
    pairs_per_s: float = 10.0  # pairs of frames a second of video; a larger rate locates actions better and costs more time
    raft_updates: int = 8  # RAFT's iterations; more are slower and more exact

    def __post_init__(self) -> None:
        if self.backend not in ("auto", "raft", "dis"):
            raise ValueError(f"backend must be auto, raft or dis, not {self.backend!r}")
        if self.raft not in _RAFT_FILES:
            raise ValueError(f"raft must be small or large, not {self.raft!r}")
        if not 0 < self.pairs_per_s <= 240 or self.raft_updates < 1:
            raise ValueError(
                f"pairs_per_s must be in (0, 240] and raft_updates at least 1, not {self.pairs_per_s}, {self.raft_updates}"
            )


class FramePair(NamedTuple):
    """Two frames of a source, uint8 [H, W, 3]."""

    before: np.ndarray
    after: np.ndarray


class Flow(Protocol):
    """Optical flow from one frame to another. `batch`: how many pairs it computes together at best."""

    @property
    def name(self) -> str: ...

    @property
    def batch(self) -> int: ...

    def __call__(self, pairs: Sequence[FramePair]) -> list[np.ndarray]:
        """Return the flow of N pairs of frames of one size, float32 [H, W, 2] each, px to the right and down."""
        ...


class DisFlow:
    """OpenCV's Dense Inverse Search (Kroeger et al. 2016); about 2 ms a pair at 320 wide on one core."""

    name, batch = "dis", 1

    def __init__(self) -> None:
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)

    def __call__(self, pairs: Sequence[FramePair]) -> list[np.ndarray]:
        return [self._dis.calc(gray(pair.before), gray(pair.after), None) for pair in pairs]


class RaftFlow:
    """RAFT (Teed and Deng 2020) by torchvision, `size` small or large.

    On a GPU it computes pairs in batches, and in half precision where autocast allows it. A batch is filled up to its size with
    its last pair, so that a pair gets the same kernels wherever it stands in a source.

    state: the checkpoint, torchvision's or (small only) the authors'. Raise Unavailable if torch is missing, ValueError if the
    checkpoint is of another network.
    """

    def __init__(self, state: "dict[str, torch.Tensor]", updates: int, size: str = "small", device: str | None = None) -> None:
        networks = _torchvision_flow()
        import torch

        self.name = "raft" if size == "small" else f"raft-{size}"
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.batch = _BATCH_ON_GPU if self._device.type == "cuda" else 1
        self._model = getattr(networks, f"raft_{size}")(weights=None, progress=False)
        try:
            self._model.load_state_dict(torchvision_keys(state))
        except RuntimeError as error:
            raise ValueError(f"partition.flow.weights: is no checkpoint of RAFT-{size} ({str(error)[:160]} ...)") from error
        self._model.eval().to(self._device)
        self._updates = updates

    def __call__(self, pairs: Sequence[FramePair]) -> list[np.ndarray]:
        flows: list[np.ndarray] = []
        for first in range(0, len(pairs), self.batch):
            flows += self._batch_flows(pairs[first : first + self.batch])
        return flows

    def _batch_flows(self, pairs: Sequence[FramePair]) -> list[np.ndarray]:
        import torch

        height, width = pairs[0].before.shape[:2]
        full = [*pairs, *[pairs[-1]] * (self.batch - len(pairs))]
        with torch.inference_mode(), self._precision():
            before, after = (self._input(np.stack([pair[side] for pair in full])) for side in (0, 1))
            padded = self._model(before, after, num_flow_updates=self._updates)[-1]
        flows: np.ndarray = padded[: len(pairs), :, :height, :width].permute(0, 2, 3, 1).float().cpu().numpy()
        return list(flows)

    def _precision(self) -> Any:
        """Return the context of the forward pass: float16 on a GPU, as the authors train and test with, else float32."""
        import torch

        return torch.autocast("cuda", torch.float16) if self._device.type == "cuda" else nullcontext()

    def _input(self, frames: np.ndarray) -> "torch.Tensor":
        """Convert uint8 [N, H, W, 3] to float [N, 3, H', W'] in [-1, 1], padded to multiples of 8 and to RAFT's 128 px."""
        import torch

        height, width = frames.shape[1:3]
        down, right = (max(128, -(-side // 8) * 8) - side for side in (height, width))
        padded = np.pad(frames, ((0, 0), (0, down), (0, right), (0, 0)), mode="edge")
        return torch.from_numpy(padded).to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1


def _torchvision_flow() -> Any:
    try:
        from torchvision.models import optical_flow
    except ImportError as error:
        raise Unavailable('RAFT flow needs torch: pip install torch==2.13.0, then "gamecraft[raft]"') from error
    return optical_flow


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
    """Load the backend that the settings name.

    auto is RAFT where CUDA is. If its weights are neither here nor on a hub that can be reached, it is DIS, with a warning;
    weights that the recipe names must be there. Unavailable says where to put RAFT's weights, if they are missing.
    """
    if settings.backend == "dis" or (settings.backend == "auto" and not _has_cuda()):
        return DisFlow()
    try:
        return RaftFlow(raft_checkpoint(settings), settings.raft_updates, settings.raft)
    except Unavailable as error:
        if settings.backend == "raft" or settings.weights:
            raise
        log.warning("optical flow is DIS on this machine, though it has a GPU: %s", error)
        return DisFlow()


def raft_checkpoint(settings: FlowSettings) -> "dict[str, torch.Tensor]":
    """Return RAFT's weights: those at the recipe's path, under $GAMECRAFT_WEIGHTS, or torchvision's by name.

    torchvision downloads its weights into torch's hub cache, once. Raise Unavailable with the ways to provide the weights.
    """
    networks = _torchvision_flow()
    import torch

    names = getattr(networks, f"Raft_{settings.raft.title()}_Weights")
    name = settings.weights if settings.weights in names.__members__ else None
    files = _RAFT_FILES[settings.raft]
    if name is None and (file := model_files.local_weights(files, settings.weights)):
        state: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        return state
    weights = names[name] if name else names.DEFAULT
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise Unavailable(model_files.how_to_provide(files, weights.url, error)) from error
    return state


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
