"""Ids in arrays behave as a set and as a list of strings."""

import numpy as np
import pyarrow as pa
import pytest

from curation.schema import digest
from pipelines import ids
from pipelines.ids import IdList, Ids, column_to_array, to_array

SOME = [digest(str(number)) for number in range(50)]


def test_a_set_of_ids_holds_what_its_arrays_hold():
    known = Ids([to_array(SOME[:20]), to_array([]), to_array(SOME[10:30])])
    assert len(known) == 30
    assert known.mask(to_array(SOME)).tolist() == [True] * 30 + [False] * 20
    assert SOME[3] in known
    assert SOME[40] not in known
    assert "g" not in known, "greater than all"


def test_an_empty_set_holds_nothing():
    assert SOME[0] not in Ids()
    assert Ids().mask(to_array(SOME)).tolist() == [False] * 50
    assert Ids([to_array(SOME)]).mask(to_array([])).tolist() == []


@pytest.mark.parametrize("at_once", [7, 1000])
def test_columns_and_lists_keep_their_order(monkeypatch, at_once):
    monkeypatch.setattr(ids, "_AT_ONCE", at_once)
    column = pa.chunked_array([SOME[:20], SOME[20:]])
    assert np.char.decode(column_to_array(column)).tolist() == SOME
    assert len(column_to_array(pa.chunked_array([], pa.string()))) == 0
    held = IdList()
    for each in SOME:
        held.append(each)
    assert [held[number] for number in range(50)] == SOME
