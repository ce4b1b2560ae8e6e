"""The test set of InterBench: the paper's table 3 as data, and its cases for a user's own images."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from curation.errors import InputError
from curation.vlm import question_files

_PACKAGE = "model.evaluation.interbench"
_SCOPES, _ENDS = ("global", "local", "either"), ("lasting", "passing", "either")


@dataclass(frozen=True)
class Subset:
    """One row of table 3. The fields are those of suite.yaml."""

    name: str
    title: str
    category: str
    sub_category: str
    level: str
    count: int
    images: str
    interaction: str
    trigger: str
    scope: str
    end: str
    end_state: str
    share: str = ""

    def __post_init__(self) -> None:
        if self.scope not in _SCOPES or self.end not in _ENDS:
            raise ValueError(f"{self.name}: scope {self.scope!r} or end {self.end!r} is unknown")


class BenchImage(NamedTuple):
    """A first frame. id: its file name without extension. base_prompt: describes the scene, without any interaction."""

    id: str
    uri: str
    base_prompt: str


class BenchCase(NamedTuple):
    """A video that a model has to make: a first frame and a prompt."""

    subset: Subset
    image: BenchImage

    @property
    def prompt(self) -> str:
        """The prompt: base prompt, then interaction prompt, as the paper concatenates them."""
        return full_prompt(self.image.base_prompt, self.subset.interaction)

    @property
    def name(self) -> str:
        """The video's path in a folder of videos, without extension and seed."""
        return f"{self.subset.name}/{self.image.id}"


@cache
def data() -> dict[str, Any]:
    """Return suite.yaml."""
    return question_files.load(f"{_PACKAGE}:suite")


@cache
def subsets() -> Mapping[str, Subset]:
    """Return the 20 subsets by name, in the order of table 3."""
    rows = [Subset(**row) for row in data()["subsets"]]
    return {row.name: row for row in rows}


def categories() -> Mapping[str, str]:
    """Return the titles of the three categories by name."""
    titles: Mapping[str, str] = data()["categories"]
    return titles


def find_subset(name: str) -> Subset:
    """Return a subset by name. InputError names the known ones."""
    try:
        return subsets()[name]
    except KeyError:
        raise InputError(f"unknown subset {name!r}; known: {', '.join(subsets())}") from None


def full_prompt(base_prompt: str, interaction_prompt: str) -> str:
    """Join base prompt and interaction prompt to one conditioning text (paper section 5.2.2, prompt design)."""
    return " ".join(filter(None, (base_prompt.strip(), interaction_prompt.strip())))


def cases(scenes: Sequence[BenchImage], doors: Sequence[BenchImage], only: Sequence[str] = ()) -> Iterator[BenchCase]:
    """Yield the cases of all subsets (or only some) for these images, in the order of table 3.

    Every subset takes all images of its kind, except those with a `share`: they take them in turn. With the paper's 100 scenes
    and 20 doors this gives the counts of table 3.
    """
    sharing: dict[str, list[str]] = {}
    for subset in subsets().values():
        if subset.share:
            sharing.setdefault(subset.share, []).append(subset.name)
    for subset in [find_subset(name) for name in only] or subsets().values():
        images = doors if subset.images == "doors" else scenes
        group = sharing.get(subset.share, [subset.name])
        for number, image in enumerate(images):
            if number % len(group) == group.index(subset.name):
                yield BenchCase(subset, image)


def read_images(folder: str) -> tuple[list[BenchImage], list[BenchImage]]:
    """Read a user's images: pictures in a folder are scenes, those in its folder `doors` are doors.

    The base prompt of NAME.png is the text of NAME.txt; without it the base prompt is empty. InputError where there is none.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: is no folder of images")
    scenes, doors = _pictures(folder), _pictures(os.path.join(folder, "doors"))
    if not scenes and not doors:
        raise InputError(f"{folder}: no picture there (.png, .jpg, .jpeg or .webp)")
    return scenes, doors


def _pictures(folder: str) -> list[BenchImage]:
    if not os.path.isdir(folder):
        return []
    images = []
    for file in sorted(os.listdir(folder)):
        stem, extension = os.path.splitext(file)
        if extension.lower() in (".png", ".jpg", ".jpeg", ".webp"):
            images.append(BenchImage(stem, os.path.join(folder, file), _base_prompt(os.path.join(folder, f"{stem}.txt"))))
    return images


def _base_prompt(path: str) -> str:
    if not os.path.isfile(path):
        return ""
    with open(path, encoding="utf-8") as file:
        return " ".join(file.read().split())
