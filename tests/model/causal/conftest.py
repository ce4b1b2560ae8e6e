"""Shards with a prompt."""

import pytest

from curation import shards


@pytest.fixture(scope="module")
def out(made, tmp_path_factory):
    """Shards of one source, whose second half has an interaction."""
    folder = str(tmp_path_factory.mktemp("data"))
    clips = [made.clip("a", i, 30 * i, 30, interaction_caption="It snows." if i > 1 else None) for i in range(4)]
    shards.put_index(folder, "000000", shards.put_tar(folder, "000000", clips))
    return folder
