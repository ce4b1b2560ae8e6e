"""A tiny real model, and a clean slate for what was asked."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from curation.vlm import answers, asking


@pytest.fixture(autouse=True)
def nothing_spent():
    asking.spent.clear()
    answers.use(None)
    yield
    answers.use(None)


@pytest.fixture
def cache(tmp_path):
    answers.use(str(tmp_path / "answers"))
    return tmp_path / "answers"


@pytest.fixture
def jpeg():
    def picture(level=90):
        return bytes(cv2.imencode(".jpg", np.full((90, 120, 3), level, np.uint8))[1])

    return picture


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory):
    """The folder of a tiny random Qwen2.5-VL; built in a process of its own, which keeps transformers' warnings there."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tiny-vlm")
    subprocess.run([sys.executable, str(Path(__file__).with_name("tiny_vlm.py")), str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture
def spent() -> Counter:
    return asking.spent
