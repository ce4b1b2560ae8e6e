"""A command ends with its own status: threads of libraries that are loaded together must not abort it as it ends."""

import subprocess
import sys

import pytest

from curation import shards

pytest.importorskip("torch", reason="the extra `train` is not installed")

PROGRAM = "import sys, torch; from model.data.windows import stored_clips; stored_clips([sys.argv[1]]); sys.exit(3)"


def test_reading_indexes_beside_torch_lets_the_process_end(made, tmp_path):
    shards.put_index(str(tmp_path), "000000", shards.put_tar(str(tmp_path), "000000", [made.clip("a", 0, 0, 30)]))
    ends = [subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True) for _ in range(3)]
    assert [end.returncode for end in ends] == [3, 3, 3], ends[0].stderr
