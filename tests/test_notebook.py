"""The notebook docs/first-steps.ipynb: its cells run in order, and its stored outputs are whole and of no machine."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "first-steps.ipynb"


def cells(kind):
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def code():
    """Return the cells as one program. The last expression of a cell, which Jupyter shows, is printed."""
    return "\n".join(f"import ast; show({''.join(cell['source'])!r})" for cell in cells("code"))


SHOW = """
import ast
scope = {"__name__": "__main__"}
def show(source):
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), scope)
    if last is not None and (value := eval(compile(ast.Expression(last.value), "cell", "eval"), scope)) is not None:
        print("shown:", type(value).__name__, getattr(value, "size", value))
"""


@pytest.mark.exhaustive  # the commands in it have tests of their own
@pytest.mark.timeout(280)
def test_its_cells_run_in_order(tmp_path):
    for package in ("torch", "diffusers", "vizdoom", "PIL"):
        pytest.importorskip(package, reason="the notebook needs the extras `demo` and `train`")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SHOW + code()], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    printed = done.stdout.splitlines()
    assert printed[0] == "shown: int 490"
    assert "2 clips, 2 kept, 2 in 1 shard" in printed
    assert [line for line in printed if line.startswith("shown: Image")] == [
        "shown: Image (960, 180)",
        "shown: Image (240, 240)",
    ]
    losses = json.loads(printed[-1].removeprefix("loss "))
    assert len(losses) == 12
    assert all(0 < loss < 10 for loss in losses)


def test_its_outputs_are_stored_and_say_nothing_of_a_machine():
    for cell in cells("code"):
        assert cell["outputs"], cell["source"]
    assert all(output["output_type"] in ("stream", "execute_result") for cell in cells("code") for output in cell["outputs"])
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r"/(?:home|root|tmp|work|usr)/", text)
    assert len(text) < 100_000


def test_its_links_lead_somewhere():
    for cell in cells("markdown"):
        for target in re.findall(r"\]\(([^)\s]+)\)", "".join(cell["source"])):
            assert (NOTEBOOK.parent / target).exists(), target
