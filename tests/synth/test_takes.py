"""Interactions acted out in the engine: equal takes are equal, and each kind of take succeeds or fails as intended."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("vizdoom", reason='the game engine is in the extra "demo"')

from synth import taxonomy
from synth.acted import ACT_S, KINDS, UNDO_S
from synth.doom.props import write_addon
from synth.doom.takes import SCRIPTS, InteractionTake, film_take

SMALL = InteractionTake("freedoom2", "MAP02", "fog", seed=5, seconds=4.0, width=160, height=120)


def change(pictures, at_s):
    """Mean difference of a moment from the first picture."""
    return float(np.abs(pictures[min(round(at_s * 35), len(pictures) - 1)].astype(float) - pictures[0]).mean())


def test_every_script_is_an_interaction_of_the_taxonomy():
    assert set(SCRIPTS) <= set(taxonomy.built_in())
    assert {taxonomy.built_in()[name].category for name in SCRIPTS} == set(taxonomy.CATEGORIES)


def test_equal_takes_give_equal_pictures_and_the_add_on_equal_bytes(tmp_path):
    first, again = film_take(replace(SMALL, interaction="snow")), film_take(replace(SMALL, interaction="snow"))
    assert np.array_equal(first.pictures, again.pictures)
    assert first.place == again.place
    assert first.place != film_take(replace(SMALL, interaction="snow", seed=6)).place
    write_addon(tmp_path / "a.pk3")
    write_addon(tmp_path / "b.pk3")
    assert (tmp_path / "a.pk3").read_bytes() == (tmp_path / "b.pk3").read_bytes()


@pytest.mark.parametrize("name", ["fog", "draw_gun", "human", "open_door"])
def test_it_happens_when_it_is_told_to_and_stays(name):
    filmed = film_take(replace(SMALL, interaction=name))
    assert filmed.happened == name
    assert filmed.pictures.shape == (140, 120, 160, 3)
    assert change(filmed.pictures, ACT_S - 0.1) < 1
    assert change(filmed.pictures, 3.9) > 1


def test_the_failing_kinds_fail_as_they_say():
    assert set(KINDS) == {"true", "noop", "wrong", "vanishing", "teleport", "turning"}
    noop = film_take(replace(SMALL, kind="noop"))
    assert noop.happened is None
    assert change(noop.pictures, 3.9) < 1
    vanishing = film_take(replace(SMALL, kind="vanishing", interaction="human"))
    assert change(vanishing.pictures, UNDO_S - 0.1) > 1
    assert change(vanishing.pictures, 3.9) < 1
    assert film_take(replace(SMALL, kind="wrong")).happened not in (None, "fog")
    assert change(film_take(replace(SMALL, kind="teleport")).pictures, 1.5) > 5
    assert film_take(replace(SMALL, kind="turning")).happened == "fog"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"interaction": "cat"}, "interaction 'cat' cannot be acted out; known: snow"),
        ({"level": "MAP99"}, "unknown map 'MAP99'"),
        ({"seconds": 1.0}, "lasts at least 4 s"),
        ({"interaction": "lightning", "kind": "vanishing"}, "cannot be undone"),
    ],
)
def test_what_cannot_be_filmed_is_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        replace(SMALL, **changed)
