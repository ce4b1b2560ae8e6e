"""The models that the paper compares itself with (section 5.1), as pipelines of diffusers with the paper's settings.

All make 832 x 448 px and 93 frames. A pipeline whose frames come in chunks makes more, and the rest is cut off.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from curation import model_files
from curation.errors import InputError, Unavailable

SIZE, FRAMES = (832, 448), 93


@dataclass(frozen=True)
class Baseline:
    """How a model is called.

    pipeline: class in diffusers; empty: diffusers has none. weights: its name on the hub. fps: of its videos. call: arguments
    of the pipeline. scheduler: class, and the settings that replace those of the weights. config: entries of the pipeline's own
    configuration. note: what the paper says and diffusers does by itself, or cannot do.
    """

    name: str
    pipeline: str
    weights: str
    fps: float
    call: Mapping[str, Any] = field(default_factory=dict)
    scheduler: tuple[str, Mapping[str, Any]] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


BASELINES: dict[str, Baseline] = {
    "hunyuanvideo": Baseline(
        "HunyuanVideo",
        "HunyuanVideoImageToVideoPipeline",
        "hunyuanvideo-community/HunyuanVideo-I2V",
        24.0,
        {"num_inference_steps": 50, "guidance_scale": 6.0},
        ("FlowMatchEulerDiscreteScheduler", {"shift": 7.0}),
        note="flow_reverse and i2v_stability are what this pipeline always does: sigmas from 1 to 0, and a start that holds a "
        "thousandth of the image's latent.",
    ),
    "wan2.2": Baseline(
        "Wan2.2 A14B",
        "WanImageToVideoPipeline",
        "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        16.0,
        {"num_inference_steps": 40, "guidance_scale": 3.5, "guidance_scale_2": 3.5},
        ("UniPCMultistepScheduler", {"flow_shift": 5.0, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
        {"boundary_ratio": 0.9},
    ),
    "longcat": Baseline(
        "LongCat-Video",
        "",
        "meituan-longcat/LongCat-Video",
        15.0,
        {"num_inference_steps": 50, "guidance_scale": 4.0},
        note="diffusers 0.42 has no pipeline of it: make its videos with its own code, at 832 x 448 px, 93 frames, guidance 4 "
        "and 50 steps, and evaluate the folder.",
    ),
    "helios": Baseline(
        "Helios",
        "HeliosPipeline",
        "BestWishYsh/Helios-Base",
        24.0,
        {"num_inference_steps": 50, "guidance_scale": 5.0},
        note="not in the paper; the pipeline's own defaults.",
    ),
}


class BaselineModel:
    """A baseline that is loaded. `weights`: its folder or another name on the hub; empty: the usual one.

    InputError for an unknown baseline, or weights of another pipeline; Unavailable where diffusers lacks the pipeline or the
    weights are missing.
    """

    def __init__(self, name: str, weights: str = "", dtype: str = "bfloat16", device: str = "", offload: bool = True) -> None:
        if name not in BASELINES:
            raise InputError(f"unknown model {name!r}; known: {', '.join(BASELINES)}")
        self.baseline = BASELINES[name]
        if not self.baseline.pipeline:
            raise Unavailable(f"{self.baseline.name}: {self.baseline.note}")
        import diffusers
        import torch

        kind = getattr(diffusers, self.baseline.pipeline, None)
        if kind is None:
            raise Unavailable(
                f"{self.baseline.name} needs {self.baseline.pipeline}, which diffusers {diffusers.__version__} lacks"
            )
        weights = weights or self.baseline.weights
        with model_files.explain_if_missing(weights):
            pipe = diffusers.DiffusionPipeline.from_pretrained(model_files.resolve_model(weights), dtype=getattr(torch, dtype))
        if not isinstance(pipe, kind):
            raise InputError(f"{weights} is a {type(pipe).__name__}, not a {self.baseline.pipeline}")
        if self.baseline.scheduler:
            scheduler, settings = self.baseline.scheduler
            pipe.scheduler = getattr(diffusers, scheduler).from_config({**pipe.scheduler.config, **settings})
        pipe.register_to_config(**self.baseline.config)
        pipe.set_progress_bar_config(disable=True)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if offload and device != "cpu":
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.to(device)
        self.pipe = pipe

    def __call__(
        self,
        picture_HW3: np.ndarray,
        prompt: str,
        seed: int,
        size: tuple[int, int] = SIZE,
        frames: int = FRAMES,
        **changed: Any,
    ) -> np.ndarray:
        """Return a video uint8 [F, H, W, 3] that begins with a picture. changed: arguments instead of the paper's."""
        import inspect

        import torch
        from PIL import Image

        known = inspect.signature(self.pipe.__call__).parameters
        arguments = {
            **self.baseline.call,
            "image": Image.fromarray(fit(picture_HW3, size)),
            "prompt": prompt,
            "width": size[0],
            "height": size[1],
            "num_frames": frames,
            "output_type": "np",
            "generator": torch.Generator("cpu").manual_seed(seed),
            **changed,
        }
        if "guidance_scale_2" in arguments and not getattr(self.pipe.config, "boundary_ratio", None):
            del arguments["guidance_scale_2"]
        with torch.inference_mode():
            video = self.pipe(**{name: value for name, value in arguments.items() if name in known}).frames[0]
        if len(video) < frames:
            raise InputError(f"{self.baseline.name} made {len(video)} frames instead of {frames}")
        return np.clip(np.asarray(video[:frames], np.float32) * 255 + 0.5, 0, 255).astype(np.uint8)


def fit(picture_HW3: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a picture scaled to fill a size (width, height), and cut to it around its middle."""
    import cv2

    height, width = picture_HW3.shape[:2]
    scale = max(size[0] / width, size[1] / height)
    scaled = cv2.resize(
        picture_HW3,
        (max(size[0], round(width * scale)), max(size[1], round(height * scale))),
        interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC,
    )
    top, left = (scaled.shape[0] - size[1]) // 2, (scaled.shape[1] - size[0]) // 2
    return np.ascontiguousarray(scaled[top : top + size[1], left : left + size[0]])
