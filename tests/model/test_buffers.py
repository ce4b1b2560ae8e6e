import gc

import numpy as np
import pytest
import torch

from model.data import buffers
from model.data.buffers import borrow_array

SHAPE = (3, 4, 5)


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    buffers._free.clear()


def test_memory_is_used_again_when_the_last_tensor_on_a_part_of_it_is_gone() -> None:
    first = borrow_array(SHAPE)
    where = first.ctypes.data
    part = torch.from_numpy(first).permute(2, 0, 1)[1:]
    part.fill_(1)
    del first
    gc.collect()
    other = borrow_array(SHAPE)
    other[:] = 2
    assert other.ctypes.data != where
    assert bool((part == 1).all())
    del part
    gc.collect()
    assert borrow_array(SHAPE).ctypes.data == where


def test_memory_of_another_size_is_not_given_and_little_of_it_is_kept() -> None:
    held = [borrow_array(SHAPE) for _ in range(5)]
    held.clear()
    gc.collect()
    assert len(buffers._free) == 2
    assert borrow_array((2, 2)).shape == (2, 2)
    assert len(buffers._free) == 2


def test_content_can_be_written_and_has_the_asked_shape() -> None:
    array = borrow_array(SHAPE)
    array[:] = np.arange(60).reshape(SHAPE)
    assert array.dtype == np.uint8
    assert array.sum() == sum(range(60))
