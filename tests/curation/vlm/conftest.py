"""A cache of answers, pictures and the usage counts of the process."""

from collections import Counter

import cv2
import numpy as np
import pytest

from curation.vlm import answers
from curation.worker_state import worker


@pytest.fixture
def cache(tmp_path):
    answers.use_folder(str(tmp_path / "answers"))
    return tmp_path / "answers"


@pytest.fixture
def jpeg():
    def picture(level=90):
        return bytes(cv2.imencode(".jpg", np.full((90, 120, 3), level, np.uint8))[1])

    return picture


@pytest.fixture
def usage() -> Counter:
    return worker.vlm_usage
