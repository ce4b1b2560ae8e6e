"""A player's words and the frame on screen -> what the text encoder reads: the text route of injection (section 4.1).

Interaction verbs mean little to a video model without the objects they are bound to, so a vision-language model says what is
meant in this picture, in a form held to a schema. The second route, its hidden states, is `backbone.added`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from curation import questions
from curation.vlm import Answer, ask
from curation.vlm.protocol import Prompt, Vlm

_TEXT = {"type": "string", "minLength": 1, "maxLength": 400}
_MAYBE = {"type": "string", "maxLength": 200}
_FIELDS = {
    "verb": _TEXT,
    "object": _MAYBE,
    "region": {"enum": ["whole", "left", "middle", "right", "top", "bottom", "hands"]},
    "end_state": _MAYBE,
    "possible": {"type": "boolean"},
    "reason": _MAYBE,
    "text": _TEXT,
}
SCHEMA = {"type": "object", "properties": _FIELDS, "required": list(_FIELDS), "additionalProperties": False}


@dataclass(frozen=True)
class Instruction:
    """What was asked for and what it means here. text: for the text encoder; the player's words where nothing better is known.

    possible: None where nobody was asked or no valid answer came; error then says why.
    """

    command: str
    text: str
    verb: str = ""
    object: str = ""
    region: str = "whole"
    end_state: str = ""
    possible: bool | None = None
    reason: str = ""
    error: str | None = None

    def after(self, caption: str) -> str:
        """The scene's caption with the instruction behind it, as captions are joined in training (`data.captions`)."""
        return f"{caption} {self.text}".strip()


def plain(command: str, error: str | None = None) -> Instruction:
    """The player's words as they are."""
    if not command.strip():
        raise ValueError("an instruction needs words")
    return Instruction(command, command.strip(), error=error)


def understood(vlm: Vlm, asked: Sequence[tuple[bytes, str]], caption: str = "") -> list[Instruction]:
    """Each (frame as JPEG, command) as a vision-language model understands it; its own words where no valid answer comes.

    caption: of the scene, where known. OSError where the model cannot be reached.
    """
    prompts = [prompt(frame, plain(command).text, caption) for frame, command in asked]
    answers = ask(vlm, prompts)
    return [_read(command, answer) for (_, command), answer in zip(asked, answers, strict=True)]


def prompt(frame: bytes, command: str, caption: str = "") -> Prompt:
    scene = f", described as: {caption}" if caption else ""
    return Prompt("instruction", questions.text("instruction", scene=scene, command=command), SCHEMA, (frame,))


def _read(command: str, answer: Answer) -> Instruction:
    if answer.value is None:
        return plain(command, answer.error)
    told: dict[str, Any] = answer.value
    return Instruction(command, **told)
