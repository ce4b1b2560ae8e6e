"""Prepare frames as Qwen's vision-language models were trained, by Qwen's own qwen-vl-utils.

It resizes images to multiples of the model's patches, and the frames of a video to what a pixel budget allows. The backend
transformers gets the tensors; servers and engines get the resized frames of a video as JPEGs.
"""

import io
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from curation.errors import Unavailable
from curation.media.jpeg import encode_jpeg
from curation.vlm.protocol import Prompt, VideoForm

PATCH_PX = 14  # of Qwen2-VL and Qwen2.5-VL; 16 for Qwen3-VL
_MIN_TOKENS = 4  # of a frame; qwen-vl-utils' own 128 would enlarge small frames
_JPEG_QUALITY = 90


def available() -> bool:
    """Whether qwen-vl-utils is installed, with the torch that it needs."""
    return find_spec("qwen_vl_utils") is not None and find_spec("torch") is not None


def video_entry(frames: Sequence[bytes], form: VideoForm, patch_px: int = PATCH_PX) -> dict[str, Any]:
    """Return the frames (JPEGs) as a video entry of qwen-vl-utils."""
    return {
        "type": "video",
        "video": [_picture(frame) for frame in frames],
        "sample_fps": form.fps,
        "min_pixels": _MIN_TOKENS * (2 * patch_px) ** 2,
        "total_pixels": form.total_pixels,
    }


def resized_frames(prompt: Prompt) -> tuple[bytes, ...]:
    """Return the frames of a prompt with a video, resized to its pixel budget, as JPEGs.

    Raise Unavailable if qwen-vl-utils is not installed.
    """
    assert prompt.video is not None, prompt.name
    if not available():
        raise Unavailable('caption.frames.form video needs qwen-vl-utils: pip install "gamecraft[vlm]", or set it to images')
    from qwen_vl_utils.vision_process import fetch_video

    video_TCHW = fetch_video(video_entry(prompt.frames, prompt.video), image_patch_size=PATCH_PX)
    pictures = video_TCHW.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return tuple(encode_jpeg(picture, _JPEG_QUALITY) for picture in pictures)


def model_inputs(processor: Any, chat: list[dict[str, Any]], patch_px: int) -> Any:
    """Return the inputs of a Qwen model for a chat with pictures and videos in it, as tensors."""
    from qwen_vl_utils import process_vision_info

    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    images, videos, options = process_vision_info(
        chat, return_video_kwargs=True, return_video_metadata=True, image_patch_size=patch_px
    )
    if videos:
        videos, metadata = zip(*videos, strict=True)
        options |= {"videos": list(videos), "video_metadata": list(metadata)}
    return processor(text=[text], images=images, do_resize=False, return_tensors="pt", **options)


def is_qwen(processor: Any) -> bool:
    """Whether a processor of transformers is that of a Qwen model."""
    return type(processor).__name__.startswith("Qwen")


def _picture(frame: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(frame)).convert("RGB")
