"""Fixtures for every test: where the shared footage lies."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def footage() -> Path:
    """The folder of shared footage; the test is skipped where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("GAMECRAFT_SHARED", beside)) / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared footage at {folder}; set GAMECRAFT_SHARED")
    return folder
