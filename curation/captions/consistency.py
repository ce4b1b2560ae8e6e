"""The semantic check (paper section 3.4): does a clip show clean, continuous play? Questions that know games, as data.

Usual filters ask whether a video is "synthetic" or "a screen recording", and throw games away. These ask what makes a clip of a
game useless for training: menus, cut-scenes, overlays, jumps. Each is answered with evidence; the recipe says what follows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from curation.vlm import Prompt, question_files

_EVIDENCE_CHARS = 120
RULES = ("reject", "flag", "ignore")


@dataclass(frozen=True)
class Verdicts:
    """What becomes of a clip that meets a criterion, with evidence: "reject" it, "flag" it in the ledger, or "ignore" that."""

    menu: str = "reject"
    loading_screen: str = "reject"
    cut_scene: str = "reject"
    death_or_spectator: str = "reject"
    overlay: str = "reject"
    webcam: str = "reject"
    watermark: str = "flag"
    split_screen: str = "reject"
    broken_geometry: str = "reject"
    frozen: str = "reject"
    jump: str = "reject"
    motion_mismatch: str = "flag"

    def __post_init__(self) -> None:
        for rule in fields(self):
            if getattr(self, rule.name) not in RULES:
                raise ValueError(f"{rule.name} must be one of {', '.join(RULES)}, not {getattr(self, rule.name)!r}")


def criteria() -> dict[str, str]:
    """Name and question of each criterion."""
    return dict(question_files.load("consistency")["criteria"])


def prompt(facts: str, frames: Sequence[bytes], labels: Sequence[str]) -> Prompt:
    """All criteria as one question; `facts` is what was measured, in words."""
    words = question_files.render("consistency", facts=facts, criteria=question_files.bullets(criteria()))
    return Prompt("consistency", words, _schema(len(frames)), tuple(frames), tuple(labels))


def _schema(count: int) -> dict[str, Any]:
    frame = {"type": "integer", "minimum": 1, "maximum": count}
    answer = {
        "type": "object",
        "properties": {
            "present": {"type": "boolean"},
            "frames": {"type": "array", "items": frame, "maxItems": count},
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
    """The criteria that are met and not ignored, and why the clip is rejected, if it is."""

    flags: tuple[str, ...]
    reject: str | None


def verdict(answers: Mapping[str, Mapping[str, Any]], rules: Verdicts) -> Verdict:
    """A criterion is met if it is present in some frame with evidence; a bare yes counts for nothing."""
    met = [
        n
        for n, a in answers.items()
        if a["present"] and a["frames"] and a["evidence"].strip() and getattr(rules, n) != "ignore"
    ]
    why = next((name for name in met if getattr(rules, name) == "reject"), None)
    return Verdict(tuple(met), why and f"{why.replace('_', ' ')}: {_evidence(answers[why])}")


def _evidence(answer: Mapping[str, Any]) -> str:
    frames = ", ".join(map(str, sorted(set(answer["frames"]))))
    return f"{' '.join(answer['evidence'].split())} (frame {frames})"
