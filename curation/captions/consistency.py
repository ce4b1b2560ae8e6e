"""The semantic check (paper section 3.4): does a clip show clean, continuous play? Its questions are written for games.

Usual filters ask whether a video is "synthetic" or "a screen recording", and reject games. These questions ask for what makes a
clip of a game useless for training: menus, cut-scenes, overlays, jumps. A model answers each with evidence. The recipe decides
whether the clip is then rejected.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from curation.vlm import Prompt, question_files

_EVIDENCE_CHARS = 120
RULES = ("reject", "flag", "ignore")


@dataclass(frozen=True)
class ConsistencySettings:
    """What happens to a clip that meets a criterion with evidence: reject it, flag it in the ledger, or ignore that."""

    menu: str = "reject"  # reject | flag | ignore: a menu, inventory, map or dialogue choice covers most of the view
    loading_screen: str = "reject"  # reject | flag | ignore: a loading, title or logo screen
    cut_scene: str = "reject"  # reject | flag | ignore: a scripted sequence that the player does not control
    death_or_spectator: str = "reject"  # reject | flag | ignore: a game-over or respawn screen, or the view of a spectator
    overlay: str = "reject"  # reject | flag | ignore: a window, browser, chat or alert that is not part of the game
    webcam: str = "reject"  # reject | flag | ignore: a real person's face or room in the picture
    watermark: str = "flag"  # reject | flag | ignore: a channel's logo, site address or watermark over the picture
    split_screen: str = "reject"  # reject | flag | ignore: two or more independent views at once
    broken_geometry: str = "reject"  # reject | flag | ignore: broken rendering, such as missing textures
    frozen: str = "reject"  # reject | flag | ignore: the picture does not change although the game should continue
    jump: str = "reject"  # reject | flag | ignore: the content jumps to another place or time, as at an edit
    motion_mismatch: str = "flag"  # reject | flag | ignore: the frames contradict the measured camera motion

    def __post_init__(self) -> None:
        for criterion in fields(self):
            if (rule := getattr(self, criterion.name)) not in RULES:
                raise ValueError(f"{criterion.name} must be one of {', '.join(RULES)}, not {rule!r}")


def criteria() -> dict[str, str]:
    """Return the name and the question of each criterion."""
    return dict(question_files.load("consistency")["criteria"])


def consistency_prompt(facts: str, frames: Sequence[bytes], labels: Sequence[str]) -> Prompt:
    """Return one question with all criteria. `facts` are the measurements of the clip, in words."""
    text = question_files.render("consistency", facts=facts, criteria=question_files.bullets(criteria()))
    return Prompt("consistency", text, _schema(len(frames)), tuple(frames), tuple(labels))


def _schema(frame_count: int) -> dict[str, Any]:
    frame = {"type": "integer", "minimum": 1, "maximum": frame_count}
    answer = {
        "type": "object",
        "properties": {
            "present": {"type": "boolean"},
            "frames": {"type": "array", "items": frame, "maxItems": frame_count},
            "evidence": {"type": "string", "maxLength": _EVIDENCE_CHARS},
        },
        "required": ["present", "frames", "evidence"],
        "additionalProperties": False,
    }
    names = list(criteria())
    return {
        "type": "object",
        "properties": dict.fromkeys(names, answer),
        "required": names,
        "additionalProperties": False,
    }


@dataclass(frozen=True)
class Verdict:
    """The criteria that are met and not ignored, and the reason if the clip is rejected."""

    flags: tuple[str, ...]
    reject: str | None


def judge(answers: Mapping[str, Mapping[str, Any]], rules: ConsistencySettings) -> Verdict:
    """Apply the rules to a model's answers.

    A criterion is met if it is present in at least one frame with evidence. A yes without evidence does not count.
    """
    met = [
        name
        for name, answer in answers.items()
        if answer["present"] and answer["frames"] and answer["evidence"].strip() and getattr(rules, name) != "ignore"
    ]
    cause = next((name for name in met if getattr(rules, name) == "reject"), None)
    return Verdict(tuple(met), cause and f"{cause.replace('_', ' ')}: {_evidence(answers[cause])}")


def _evidence(answer: Mapping[str, Any]) -> str:
    frames = ", ".join(map(str, sorted(set(answer["frames"]))))
    return f"{' '.join(answer['evidence'].split())} (frame {frames})"
