"""The taxonomy is the paper's table 3 plus the data that synthesis needs; a recipe adds its own interactions."""

from collections import Counter
from dataclasses import replace

import pytest

from pipelines import recipes
from pipelines.setting_comments import to_commented_yaml
from synth import taxonomy
from synth.taxonomy import Interaction

# Table 3 of the paper: sub-category, level, number of subsets, number of prompts.
TABLE_3 = {
    ("environment", "weather", "basic"): (3, 300),
    ("environment", "physical event", "extended"): (1, 100),
    ("actor", "primitive actions", "basic"): (3, 300),
    ("actor", "composite actions", "extended"): (3, 220),
    ("entity", "animals", "basic"): (4, 100),
    ("entity", "animals", "extended"): (1, 100),
    ("entity", "vehicles", "basic"): (4, 100),
    ("entity", "humans", "extended"): (1, 100),
}


def test_the_papers_interactions_and_counts():
    subsets, prompts = Counter(), Counter()
    for one in taxonomy.paper_interactions():
        place = (one.category, one.sub_category, one.level)
        subsets[place] += 1
        prompts[place] += one.paper_count
    assert {place: (subsets[place], prompts[place]) for place in subsets} == TABLE_3


def test_every_interaction_says_how_it_ends_and_how_that_is_asked():
    for one in taxonomy.built_in().values():
        assert one.templates
        assert one.question.endswith("?"), one.name
        assert one.end_sentence[0].isupper(), one.name
        assert one.end_sentence.endswith("."), one.name
        assert "{" not in one.question + one.end_state + one.scene, one.name


def test_choosing_by_name_category_and_all():
    assert [one.name for one in taxonomy.select(["open_door", "snow", "open_door"])] == ["open_door", "snow"]
    assert {one.category for one in taxonomy.select(["entity"])} == {"entity"}
    assert len(taxonomy.select(["all"])) == len(taxonomy.built_in())
    with pytest.raises(ValueError, match="unknown interaction 'sonw'; known: all, environment"):
        taxonomy.select(["sonw"])


def test_a_recipe_adds_its_own(tmp_path):
    own = {"name": "portal", "category": "environment", "templates": ["a portal opens"], "what": "a portal"}
    recipe = recipes.from_mapping(recipes.Recipe, {"synth": {"interactions": [own]}})
    (portal,) = taxonomy.select(["portal"], recipe.synth.interactions)
    assert portal.end_sentence == "A portal is in the scene."
    path = tmp_path / "own.yaml"
    path.write_text(to_commented_yaml(recipe))
    assert replace(recipes.load(str(path)), name=recipe.name) == recipe


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"scope": "wide"}, "scope of interaction x must be one of global, local, either, not 'wide'"),
        ({"templates": ()}, "needs at least one template"),
        ({"what": ""}, "needs `what`"),
        ({"name": "a b"}, "letters, digits and _"),
    ],
)
def test_a_wrong_interaction_is_refused(changed, said):
    right = {"name": "x", "category": "entity", "templates": ("an x appears",), "what": "an x"}
    Interaction(**right)
    with pytest.raises(ValueError, match=said):
        Interaction(**(right | changed))
