"""The interactions that can be synthesised (paper table 3 and appendix A.3) as data: how each is asked for, made and verified.

The data is `interactions.yaml` beside this file; a recipe adds its own under `synth.interactions`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from curation.yaml_text import load_yaml

# The paper's headings, by the names that the ledger uses.
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
}


@dataclass(frozen=True)
class Interaction:
    """One interaction. The defaults are those of something that appears (`what`: its name).

    category, sub_category, level, paper_count: its place in table 3; 0 prompts: not the paper's. templates: instructions.
    strategy: the default. camera: still, or free to move. scope: how much of the picture changes. where: in the scene, or in
    the player's hands. end: lasting (the end state stays), passing (the scene is as before), or either. light: what the change
    does to brightness, if that is sure. end_state, question: what is true at the end, and how a model is asked whether it came
    about. scene: what an initial frame painted for it shows. needs: what an initial frame must show.
    """

    name: str
    category: str
    templates: tuple[str, ...]
    sub_category: str = ""
    level: str = "basic"
    paper_count: int = 0
    what: str = ""
    strategy: str = "start_end"
    camera: str = "still"
    scope: str = "local"
    where: str = "scene"
    end: str = "lasting"
    light: str = ""
    end_state: str = "{what} is in the scene."
    question: str = "Is {what} in the last frame that is not in the first?"
    scene: str = "an open place with room for {what}"
    needs: str = ""

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
                raise ValueError(f"interaction {self.name} needs `what` (what appears), or {key} in words of its own")
            object.__setattr__(self, key, getattr(self, key).replace("{what}", self.what))

    @property
    def described(self) -> str:
        """The end state as a sentence."""
        return self.end_state[:1].upper() + self.end_state[1:]


@cache
def version() -> int:
    """The version of the built-in data."""
    number: int = _data()["version"]
    return number


@cache
def _data() -> dict[str, Any]:
    loaded: dict[str, Any] = load_yaml(files("synth").joinpath("interactions.yaml").read_text(encoding="utf-8"))
    return loaded


@cache
def built_in() -> Mapping[str, Interaction]:
    """The interactions of table 3, then ours, by name."""
    rows = ({**row, "templates": tuple(row["templates"])} for row in _data()["interactions"])
    return {row["name"]: Interaction(**row) for row in rows}


def paper() -> list[Interaction]:
    """Those of table 3, in its order."""
    return [one for one in built_in().values() if one.paper_count]


def chosen(names: Iterable[str], own: Iterable[Interaction] = ()) -> list[Interaction]:
    """Interactions by name, of category, or `all`, each once; `own` are a recipe's. ValueError with what is known."""
    known = {**built_in(), **{one.name: one for one in own}}
    found: dict[str, Interaction] = {}
    for name in names:
        hits = [one for one in known.values() if name in (one.name, one.category, "all")]
        if not hits:
            raise ValueError(f"unknown interaction {name!r}; known: all, {', '.join((*CATEGORIES, *known))}")
        found |= {one.name: one for one in hits}
    return list(found.values())
