"""Write prompts for an instruction (paper section 3.3): a VLM looks at the initial frame and writes for it.

Without a VLM the prompts are plain: they name the instruction and the end state. An instruction that the VLM finds impossible
in the frame, such as "open the door" where there is no door, raises `Refused` with the reason.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np

from curation import vlm
from curation.errors import AttemptFailed
from curation.media.jpeg import encode_jpeg
from curation.vlm import Prompt, VlmSettings, question_files
from synth.requests import Request
from synth.taxonomy import Interaction

_QUESTIONS = "synth:questions"
_WIDTH_PX, _JPEG_QUALITY = 1024, 90


class Refused(AttemptFailed):
    """The request is impossible from this frame, with any seed. The message says why."""


class Plan(NamedTuple):
    """The prompts for the models, and the strategy."""

    prompt: str
    edit_prompt: str
    negative_prompt: str
    strategy: str
    reason: str  # why this strategy
    source: str  # who wrote the prompts: `plain`, or the name of the VLM


def make_plan(initial: np.ndarray, request: Request, model: VlmSettings) -> Plan:
    """Return prompts and strategy for a request and its initial frame uint8 [H, W, 3].

    Raises Refused if the VLM says that the request is impossible.
    """
    if not model.enabled:
        return plain_plan(request)
    answer = vlm.ask(vlm.load(model), [analysis_prompt(request, initial)])[0]
    if answer.value is None:
        if model.on_error == "reject":
            raise Refused(f"no analysis of the frame: {answer.error}")
        return plain_plan(request)._replace(reason=f"no analysis of the frame: {answer.error}")
    return plan_from_answer(answer.value, model.model)


def analysis_prompt(request: Request, initial: np.ndarray) -> Prompt:
    """Return the question about the initial frame."""
    interaction, questions = request.interaction, question_files.load(_QUESTIONS)
    needs = questions["needs"].format(needs=interaction.needs) if interaction.needs else ""
    fields = {
        "instruction": request.instruction,
        "end_state": interaction.end_sentence,
        "needs": needs,
        "strategy": interaction.strategy,
    }
    text = question_files.render(_QUESTIONS, "analysis", **fields)
    return Prompt("analysis", text, questions["analysis_schema"], (_jpeg(initial),))


def plan_from_answer(answer: dict[str, Any], model: str) -> Plan:
    """Turn the VLM's valid answer into a plan. Raises Refused if it says that the instruction is impossible here."""
    if not answer["possible"]:
        raise Refused(answer["reason"] or "the model says that it cannot be done in this picture, and not why")
    prompts = (answer["prompt"], answer["edit_prompt"], answer["negative_prompt"])
    return Plan(*prompts, answer["strategy"], answer["strategy_reason"], model)


def plain_plan(request: Request) -> Plan:
    """Return prompts that name the instruction and the end state, without knowledge of the scene."""
    interaction, texts = request.interaction, question_files.load(_QUESTIONS)["plain"]
    instruction = request.instruction[:1].upper() + request.instruction[1:]
    fields = {"instruction": instruction, "end_state": interaction.end_sentence, "camera": texts[interaction.camera]}
    return Plan(
        prompt=texts["prompt"].format(**fields),
        edit_prompt=texts["edit_prompt"].format(**fields),
        negative_prompt=texts["negative_prompt"],
        strategy=interaction.strategy,
        reason=f"the usual one for {interaction.name}",
        source="plain",
    )


def paint_prompt(interaction: Interaction) -> str:
    """Return the prompt for painting an initial frame that suits the interaction."""
    text: str = question_files.load(_QUESTIONS)["paint"]
    return text.format(scene=interaction.scene)


def _jpeg(rgb: np.ndarray) -> bytes:
    scale = min(1.0, _WIDTH_PX / rgb.shape[1])
    size = (max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale)))
    resized = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    return encode_jpeg(resized, _JPEG_QUALITY)
