"""The interactions that can be synthesised (paper table 3 and appendix A.3): how each is requested, made and verified.

They are data, in `interactions.yaml`. A recipe adds its own under `synth.interactions`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from curation.errors import InputError
from curation.yaml_text import load_yaml

# The paper's headings, by the category names in the ledger.
CATEGORIES = {
    "environment": "Environmental Interactions",
    "actor": "Actor Actions",
    "entity": "Entity & Object Appearances",
}
STRATEGIES = ("start_end", "first_frame")
_CHOICES = {
    "category": tuple(CATEGORIES),
    "level": ("basic", "extended"),
    "strategy": STRATEGIES,
    "camera": ("still", "free"),
    "scope": ("global", "local", "either"),
    "where": ("scene", "hands"),
    "end": ("lasting", "passing", "either"),
    "light": ("", "brighter", "darker"),
    "motion": ("", "moves", "stands"),
}


@dataclass(frozen=True)
class Interaction:
    """One interaction. The defaults suit a thing that appears in the scene."""

    name: str  # letters, digits and _; used on the command line and in the ledger
    category: str  # environment, actor or entity
    templates: tuple[str, ...]  # instructions; each request draws one
    sub_category: str = ""  # of table 3
    level: str = "basic"  # of table 3: basic or extended
    paper_count: int = 0  # prompts in table 3; 0: not in the paper
    what: str = ""  # the thing that appears; replaces {what} in the texts below
    strategy: str = "start_end"  # start_end or first_frame; used unless a model or the settings choose otherwise
    camera: str = "still"  # still, or free to move
    scope: str = "local"  # how much of the picture changes: global, local or either
    where: str = "scene"  # where it changes: in the scene, or in the player's hands
    end: str = "lasting"  # lasting: the end state stays; passing: the scene ends as it began; or either
    light: str = ""  # brighter or darker, if every such change is; else empty
    motion: str = ""  # moves: what appears moves by itself; stands: at the end nothing does; else empty
    end_state: str = "{what} is in the scene."  # what is true at the end
    question: str = "Is {what} in the last frame that is not in the first?"  # how a model is asked whether it happened
    scene: str = "an open place with room for {what}"  # what a painted initial frame shows
    needs: str = ""  # what an initial frame must show

    def __post_init__(self) -> None:
        for key, choices in _CHOICES.items():
            if getattr(self, key) not in choices:
                raise ValueError(
                    f"{key} of interaction {self.name} must be one of {', '.join(choices)}, not {getattr(self, key)!r}"
                )
        if not self.name.replace("_", "").isalnum():
            raise ValueError(f"an interaction's name is letters, digits and _, not {self.name!r}")
        if not self.templates:
            raise ValueError(f"interaction {self.name} needs at least one template: an instruction such as 'make it snow'")
        for key in ("end_state", "question", "scene"):
            if "{what}" in getattr(self, key) and not self.what:
                raise ValueError(f"interaction {self.name} needs `what` (the thing that appears), or its own text for {key}")
            object.__setattr__(self, key, getattr(self, key).replace("{what}", self.what))

    @property
    def end_sentence(self) -> str:
        """The end state as a sentence."""
        return self.end_state[:1].upper() + self.end_state[1:]


@cache
def version() -> int:
    """Return the version of the built-in data."""
    number: int = _data()["version"]
    return number


@cache
def _data() -> dict[str, Any]:
    loaded: dict[str, Any] = load_yaml(files("synth").joinpath("interactions.yaml").read_text(encoding="utf-8"))
    return loaded


@cache
def built_in() -> Mapping[str, Interaction]:
    """Return the interactions of table 3, then ours, by name."""
    rows = ({**row, "templates": tuple(row["templates"])} for row in _data()["interactions"])
    return {row["name"]: Interaction(**row) for row in rows}


def paper_interactions() -> list[Interaction]:
    """Return the interactions of table 3, in its order."""
    return [one for one in built_in().values() if one.paper_count]


def select(names: Iterable[str], own: Iterable[Interaction] = ()) -> list[Interaction]:
    """Return the interactions with these names or categories, or `all` of them, each once.

    `own` are those of a recipe. Raises InputError for an unknown name; the message lists the known ones.
    """
    known = {**built_in(), **{one.name: one for one in own}}
    selected: dict[str, Interaction] = {}
    for name in names:
        matches = [one for one in known.values() if name in (one.name, one.category, "all")]
        if not matches:
            raise InputError(f"unknown interaction {name!r}; known: all, {', '.join((*CATEGORIES, *known))}")
        selected |= {one.name: one for one in matches}
    return list(selected.values())
