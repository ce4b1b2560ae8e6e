"""From an instruction to what models are told (paper section 3.3): a model looks at the initial frame and writes for it.

Without a model the prompts are plain ones that name the instruction and the end state. A pair that the model finds impossible,
such as "open the door" where there is none, is refused with its reason.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np

from curation import vlm
from curation.errors import AttemptFailed
from curation.vlm import Prompt, VlmSettings, question_files
from synth.requests import Request
from synth.taxonomy import Interaction

_QUESTIONS = "synth:questions"
_WIDTH_PX, _JPEG_QUALITY = 1024, 90


class Refused(AttemptFailed):
    """The request cannot be met from this frame, whatever the seed; the message says why."""


class Plan(NamedTuple):
    """What the models are told, and by whom that was written: `plain`, or the model's name."""

    prompt: str
    edit_prompt: str
    negative_prompt: str
    strategy: str
    reason: str
    source: str


def plan(initial: np.ndarray, request: Request, model: VlmSettings) -> Plan:
    """Prompts and strategy for a request and its initial frame uint8 [H, W, 3]. Refused where the model says it cannot be."""
    if not model.enabled:
        return plain(request)
    answer = vlm.ask(vlm.load(model), [analysis(request, initial)])[0]
    if answer.value is None:
        if model.on_error == "reject":
            raise Refused(f"no analysis of the frame: {answer.error}")
        return plain(request)._replace(reason=f"no analysis of the frame: {answer.error}")
    return written(answer.value, model.model)


def analysis(request: Request, initial: np.ndarray) -> Prompt:
    """The question about the initial frame."""
    wanted, asked = request.interaction, question_files.load(_QUESTIONS)
    needs = asked["needs"].format(needs=wanted.needs) if wanted.needs else ""
    told = {"instruction": request.instruction, "end_state": wanted.described, "needs": needs, "strategy": wanted.strategy}
    return Prompt(
        "analysis", question_files.render(_QUESTIONS, "analysis", **told), asked["analysis_schema"], (_jpeg(initial),)
    )


def written(answer: dict[str, Any], model: str) -> Plan:
    """A model's valid answer as a plan. Refused where it says that the instruction cannot be carried out here."""
    if not answer["possible"]:
        raise Refused(answer["reason"] or "the model says that it cannot be done in this picture, and not why")
    told = (answer["prompt"], answer["edit_prompt"], answer["negative_prompt"])
    return Plan(*told, answer["strategy"], answer["strategy_reason"], model)


def plain(request: Request) -> Plan:
    """Prompts that name the instruction and the end state, and know nothing of the scene."""
    wanted, words = request.interaction, question_files.load(_QUESTIONS)["plain"]
    instruction = request.instruction[:1].upper() + request.instruction[1:]
    told = {"instruction": instruction, "end_state": wanted.described, "camera": words[wanted.camera]}
    return Plan(
        prompt=words["prompt"].format(**told),
        edit_prompt=words["edit_prompt"].format(**told),
        negative_prompt=words["negative_prompt"],
        strategy=wanted.strategy,
        reason=f"the usual one for {wanted.name}",
        source="plain",
    )


def painted(wanted: Interaction) -> str:
    """The prompt for an initial frame that the interaction can begin from."""
    words: str = question_files.load(_QUESTIONS)["paint"]
    return words.format(scene=wanted.scene)


def _jpeg(rgb: np.ndarray) -> bytes:
    scale = min(1.0, _WIDTH_PX / rgb.shape[1])
    size = (max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale)))
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    ok, data = cv2.imencode(".jpg", np.ascontiguousarray(small[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert ok, rgb.shape
    return bytes(data)
