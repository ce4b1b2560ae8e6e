"""What `recipe show` prints: each setting with its comment."""

from dataclasses import dataclass, field, fields, is_dataclass
from typing import get_type_hints

import pytest

from curation.cameras.settings import CheckSettings
from pipelines import recipes
from pipelines.setting_comments import comments, to_commented_yaml


@dataclass(frozen=True)
class Made:
    """Settings with comments in every place."""

    plain: int = 1
    behind: float = 2.0  # px: more is coarser
    # Above the field,
    # on two lines.
    above: str = "a # b"
    # Of no field: a blank line follows.

    size: tuple[int, int] = (
        3,  # width
        4,
    )
    inner: CheckSettings = field(default_factory=CheckSettings)  # its own comments follow

    def method(self) -> None:
        behind = 3  # no field's comment
        assert behind


def test_comments_stand_behind_or_above_their_field():
    assert comments(Made) == {
        "behind": "px: more is coarser",
        "above": "Above the field, on two lines.",
        "size": "width",
        "inner": "its own comments follow",
    }


def test_yaml_has_them_above_each_setting():
    text = to_commented_yaml(Made())
    assert text.startswith("plain: 1\n# px: more is coarser\nbehind: 2.0\n# Above the field, on two lines.\nabove: 'a # b'\n")
    assert "\n# its own comments follow\ninner:\n  # " in text


@pytest.mark.parametrize("name", sorted(recipes.BUILT_IN))
def test_a_shown_recipe_loads_as_itself(name, tmp_path):
    (tmp_path / "shown.yaml").write_text(to_commented_yaml(recipes.load(name)))
    assert recipes.load(str(tmp_path / "shown.yaml")) == recipes.load(name)


def settings_classes(kind):
    yield kind
    for hint in get_type_hints(kind).values():
        if is_dataclass(hint):
            yield from settings_classes(hint)


@pytest.mark.parametrize("side", ["curation", "training"])
def test_every_setting_has_a_comment(side):
    kind = recipes.Recipe
    if side == "training":
        kind = pytest.importorskip("model.recipes", reason="the extra `train` is not installed").TrainRecipe
    bare = {
        f"{one.__name__}.{field.name}"
        for one in settings_classes(kind)
        for field in fields(one)
        if not is_dataclass(get_type_hints(one)[field.name]) and field.name not in comments(one)
    }
    assert not bare
