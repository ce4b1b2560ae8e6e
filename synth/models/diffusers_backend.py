"""Run a diffusers pipeline in this process."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from curation import model_files
from curation.errors import InputError, Unavailable
from synth.models.base import ModelSettings, PromptPair


class DiffusersModel:
    """Any pipeline of diffusers, by the name or folder that `DiffusionPipeline.from_pretrained` takes.

    A pipeline gets only the arguments that its own `__call__` has. Random numbers come from a generator on the processor, so
    that a seed gives the same draws on every device.
    """

    def __init__(self, name: str, settings: ModelSettings) -> None:
        try:
            import torch
            from diffusers import DiffusionPipeline
            from diffusers.utils import logging
            from transformers.utils import logging as inner_logging
        except ImportError as error:
            raise Unavailable(f'synth.backend diffusers needs {error.name}; pip install "gamecraft[synth]"') from error
        self.name, self._settings = name, settings
        for bars in (logging, inner_logging):
            bars.disable_progress_bar()
        with model_files.explain_if_missing(name):
            self._pipe = DiffusionPipeline.from_pretrained(
                model_files.resolve_model(name), torch_dtype=getattr(torch, settings.dtype)
            )
        self._pipe.set_progress_bar_config(disable=True)
        self._move_to(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._parameters = frozenset(inspect.signature(self._pipe.__call__).parameters)

    def _move_to(self, device: str) -> None:
        if device == "cpu" or self._settings.offload == "none":
            self._pipe.to(device)
        elif self._settings.offload == "model":
            self._pipe.enable_model_cpu_offload(device=device)
        else:
            self._pipe.enable_sequential_cpu_offload(device=device)

    def paint(self, prompts: PromptPair, seed: int) -> np.ndarray:
        """Make a picture from a prompt."""
        return np.asarray(self._call(prompts, seed, self._settings.image_steps).images[0])

    def edit(self, picture: np.ndarray, prompts: PromptPair, seed: int) -> np.ndarray:
        """Change a picture as the prompt says."""
        self._require("image", "edits no picture: use an instruction editor, such as Qwen/Qwen-Image-Edit")
        return np.asarray(self._call(prompts, seed, self._settings.image_steps, image=_pil(picture)).images[0])

    def animate(self, first: np.ndarray, last: np.ndarray | None, prompts: PromptPair, seed: int) -> np.ndarray:
        """Make a video from its first frame and, if one is given, its last."""
        self._require("image", "takes no first frame: use an image-to-video model, such as Wan-AI/Wan2.2-I2V-A14B-Diffusers")
        frames = {"image": _pil(first)}
        if last is not None:
            self._require(
                "last_image", "takes no last frame: set synth.models.between, as to Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers"
            )
            frames["last_image"] = _pil(last)
        output = self._call(prompts, seed, self._settings.video_steps, num_frames=self._settings.frames, **frames)
        return np.asarray(output.frames[0])

    def _call(self, prompts: PromptPair, seed: int, steps: int, **inputs: Any) -> Any:
        import torch

        width, height = self._settings.width, self._settings.height
        size: dict[str, Any] = {"width": width, "height": height, "num_inference_steps": steps, "output_type": "np"}
        # Without these two Kontext chooses a size of about a megapixel by itself.
        size |= {"max_area": width * height, "_auto_resize": False}
        texts = {"prompt": prompts.prompt, "negative_prompt": prompts.negative or None, **self._guidance()}
        generator = torch.Generator("cpu").manual_seed(seed)
        arguments: Mapping[str, Any] = {**size, **texts, **inputs, "generator": generator}
        known = {name: value for name, value in arguments.items() if name in self._parameters and value is not None}
        with torch.inference_mode():
            return self._pipe(**known)

    def _guidance(self) -> dict[str, float | None]:
        """Return the guidance scale. Pipelines with distilled guidance (Qwen-Image, FLUX) call it `true_cfg_scale`."""
        return {"true_cfg_scale" if "true_cfg_scale" in self._parameters else "guidance_scale": self._settings.guidance}

    def _require(self, argument: str, problem: str) -> None:
        if argument not in self._parameters:
            raise InputError(f"{self.name} ({type(self._pipe).__name__}) {problem}")


def _pil(rgb: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(rgb)
