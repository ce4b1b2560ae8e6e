"""The backend that runs a model of transformers in this process: Qwen2.5-VL, Qwen3-VL, SmolVLM and other image-text models.

It answers one prompt at a time, which suits a video or two; a server batches. If `llguidance` is installed, the reply is
constrained to the schema while it is generated, as a server does it. Without it the reply is only checked afterwards.
"""

import io
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from curation import model_files
from curation.errors import Unavailable
from curation.vlm import qwen
from curation.vlm.protocol import Prompt, Reply, VlmSettings

# White space between two parts of a reply: enough for an indented object. Without a limit a weak model may write nothing else.
_WHITESPACE = r"[ \n\r\t]{0,16}"


class LocalVlm:
    """The model that `settings.model` names: a folder, a folder under $GAMECRAFT_WEIGHTS, or a name on the hub."""

    def __init__(self, settings: VlmSettings) -> None:
        try:
            import torch
            from transformers import AutoModelForImageTextToText, AutoProcessor
            from transformers.utils import logging
        except ImportError as error:
            raise Unavailable(f'vlm.backend transformers needs {error.name}; pip install "gamecraft[vlm]"') from error
        logging.disable_progress_bar()
        self.name, self._settings = settings.model, settings
        place = model_files.resolve_model(settings.model)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if self._device == "cuda" else torch.float32
        with model_files.explain_if_missing(settings.model):
            self._processor = AutoProcessor.from_pretrained(place)
            self._model = AutoModelForImageTextToText.from_pretrained(place, dtype=dtype).to(self._device).eval()

    def replies(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Reply]]:
        for number, prompt in enumerate(prompts):
            try:
                yield number, self._reply(prompt)
            except (RuntimeError, ValueError, IndexError) as error:  # too long for the model, out of GPU memory
                yield number, Reply(error=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")

    def _reply(self, prompt: Prompt) -> Reply:
        import torch

        inputs = self._inputs(prompt).to(self._device, self._model.dtype)
        prompt_tokens = inputs["input_ids"].shape[1]
        sampling = {"do_sample": True, "temperature": self._settings.temperature} if self._settings.temperature else {}
        with torch.inference_mode():
            output = self._model.generate(
                **inputs,
                max_new_tokens=self._settings.max_tokens,
                logits_processor=self._logits_processors(prompt, prompt_tokens),
                **(sampling or {"do_sample": False}),
            )[0, prompt_tokens:]
        text = self._processor.decode(output, skip_special_tokens=True)
        stop = "length" if len(output) >= self._settings.max_tokens else "stop"
        return Reply(text, prompt_tokens=prompt_tokens, completion_tokens=len(output), stop=stop)

    def _inputs(self, prompt: Prompt) -> Any:
        """Return the model's inputs as tensors. qwen-vl-utils prepares the frames for Qwen's models, where it is installed."""
        if qwen.is_qwen(self._processor) and qwen.available():
            patch_px = self._processor.image_processor.patch_size
            return qwen.model_inputs(self._processor, chat_messages(prompt, patch_px), patch_px)
        if prompt.video:
            raise Unavailable(
                'caption.frames.form video needs a model of Qwen and qwen-vl-utils: pip install "gamecraft[vlm]", or set it to '
                "images"
            )
        return self._processor.apply_chat_template(
            chat_messages(prompt), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )

    def _logits_processors(self, prompt: Prompt, prompt_tokens: int) -> list[Any]:
        return [_SchemaConstraint(self._vocabulary, prompt.schema, prompt_tokens)] if self._vocabulary is not None else []

    @cached_property
    def _vocabulary(self) -> Any:
        """The tokeniser in llguidance's form, or None if llguidance is not installed."""
        try:
            import llguidance.hf
        except ImportError:
            return None
        return llguidance.hf.from_tokenizer(self._processor.tokenizer, n_vocab=self._model.config.get_text_config().vocab_size)


def chat_messages(prompt: Prompt, patch_px: int = qwen.PATCH_PX) -> list[dict[str, Any]]:
    """Return the prompt as a chat in the form that chat templates of transformers take, with the pictures in place."""
    from PIL import Image

    content: list[dict[str, Any]] = []
    if prompt.video:
        content += [{"type": "text", "text": label} for label in prompt.labels]
        content.append(qwen.video_entry(prompt.frames, prompt.video, patch_px))
    for number, frame in enumerate(() if prompt.video else prompt.frames):
        if number < len(prompt.labels):
            content.append({"type": "text", "text": prompt.labels[number]})
        content.append({"type": "image", "image": Image.open(io.BytesIO(frame))})
    chat: list[dict[str, Any]] = [{"role": "user", "content": [*content, {"type": "text", "text": prompt.text}]}]
    for role, text in zip(("assistant", "user"), prompt.earlier or (), strict=False):
        chat.append({"role": role, "content": [{"type": "text", "text": text}]})
    return chat


class _SchemaConstraint:
    """A logits processor of transformers that allows only tokens with which the reply can still become JSON of the schema."""

    def __init__(self, vocabulary: Any, schema: Any, prompt_tokens: int) -> None:
        import llguidance

        grammar = llguidance.LLMatcher.grammar_from_json_schema(dict(schema), overrides={"whitespace_pattern": _WHITESPACE})
        self._matcher, self._read = llguidance.LLMatcher(vocabulary, grammar), prompt_tokens
        if self._matcher.is_error():
            raise ValueError(f"the schema cannot be turned into a grammar: {self._matcher.get_error()}")

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        for token in input_ids[0, self._read :].tolist():
            self._matcher.consume_token(token)
        self._read = input_ids.shape[1]
        # The mask is applied by hand, because llguidance.torch compiles its own with inductor, which takes 15 s.
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed = torch.from_numpy(bits[: scores.shape[1]].astype(bool)).to(scores.device)
        return scores.masked_fill(~allowed, float("-inf"))
