"""Pipelines of diffusers in this process."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from curation import model_files
from synth.models.base import ModelSettings, Words


class DiffusersModel:
    """Any pipeline of diffusers, by the name or folder that `DiffusionPipeline.from_pretrained` takes.

    It is given those of the arguments below that its own `__call__` knows. Draws come from a generator on the processor, so
    that a seed means the same on every device.
    """

    def __init__(self, name: str, how: ModelSettings) -> None:
        try:
            import torch
            from diffusers import DiffusionPipeline
            from diffusers.utils import logging
            from transformers.utils import logging as inner_logging
        except ImportError as error:
            # no attempt's fault, so an OSError: the unit is left for a run that has what it needs
            raise OSError(f'synth.backend diffusers needs {error.name}; pip install "gamecraft[synth]"') from error
        self.name, self._how = name, how
        for bars in (logging, inner_logging):
            bars.disable_progress_bar()
        with model_files.explain_if_missing(name):
            self._pipe = DiffusionPipeline.from_pretrained(
                model_files.resolve_model(name), torch_dtype=getattr(torch, how.dtype)
            )
        self._pipe.set_progress_bar_config(disable=True)
        self._place(how.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._takes = frozenset(inspect.signature(self._pipe.__call__).parameters)

    def _place(self, device: str) -> None:
        if device == "cpu" or self._how.offload == "none":
            self._pipe.to(device)
        elif self._how.offload == "model":
            self._pipe.enable_model_cpu_offload(device=device)
        else:
            self._pipe.enable_sequential_cpu_offload(device=device)

    def paint(self, words: Words, seed: int) -> np.ndarray:
        """A picture from words."""
        return np.asarray(self._called(words, seed, self._how.image_steps).images[0])

    def edit(self, picture: np.ndarray, words: Words, seed: int) -> np.ndarray:
        """A picture changed as the words say."""
        self._require("image", "edits no picture: use an instruction editor, such as Qwen/Qwen-Image-Edit")
        return np.asarray(self._called(words, seed, self._how.image_steps, image=_pil(picture)).images[0])

    def animate(self, first: np.ndarray, last: np.ndarray | None, words: Words, seed: int) -> np.ndarray:
        """A video from its first frame, and its last where one is given."""
        self._require("image", "takes no first frame: use an image-to-video model, such as Wan-AI/Wan2.2-I2V-A14B-Diffusers")
        given = {"image": _pil(first)}
        if last is not None:
            self._require(
                "last_image", "takes no last frame: set synth.models.between, as to Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers"
            )
            given["last_image"] = _pil(last)
        made = self._called(words, seed, self._how.video_steps, num_frames=self._how.frames, **given)
        return np.asarray(made.frames[0])

    def _called(self, words: Words, seed: int, steps: int, **given: Any) -> Any:
        import torch

        how = self._how
        size: dict[str, Any] = {"width": how.width, "height": how.height, "num_inference_steps": steps, "output_type": "np"}
        told = {"prompt": words.prompt, "negative_prompt": words.negative or None, **self._guidance()}
        # Kontext chooses a size of about a megapixel by itself unless it is told otherwise.
        size |= {"max_area": how.width * how.height, "_auto_resize": False}
        asked: Mapping[str, Any] = {**size, **told, **given, "generator": torch.Generator("cpu").manual_seed(seed)}
        with torch.inference_mode():
            return self._pipe(**{name: value for name, value in asked.items() if name in self._takes and value is not None})

    def _guidance(self) -> dict[str, float | None]:
        """Pipelines with distilled guidance (Qwen-Image, FLUX) call the classifier-free kind `true_cfg_scale`."""
        return {"true_cfg_scale" if "true_cfg_scale" in self._takes else "guidance_scale": self._how.guidance}

    def _require(self, argument: str, otherwise: str) -> None:
        if argument not in self._takes:
            raise ValueError(f"{self.name} ({type(self._pipe).__name__}) {otherwise}")


def _pil(rgb: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(rgb)
