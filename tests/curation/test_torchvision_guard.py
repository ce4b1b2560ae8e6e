import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="the raft extra is not installed")
pytest.importorskip("torchvision", reason="the raft extra is not installed")


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_importing_our_package_imports_neither_torch_nor_torchvision():
    assert python("import sys, curation; print({'torch', 'torchvision'} & set(sys.modules))").stdout.strip() == "set()"


def test_torchvision_imports_and_its_models_run():
    code = """
import curation, torch
from torchvision.models import resnet18
from torchvision.transforms import v2
print(resnet18(weights=None).eval()(torch.zeros(1, 3, 32, 32)).shape, v2.Resize(4)(torch.zeros(3, 8, 8)).shape)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([1, 1000]) torch.Size([3, 4, 4])" in done.stdout


def test_the_guard_is_put_in_once_and_leaves_after_use():
    code = """
import sys, importlib, curation
from curation import _torchvision as t
t.install(); t.install()
count = lambda: sum(isinstance(f, t._Guard) for f in sys.meta_path)
before = count()
import torchvision
t.install()
print(before, count())
"""
    assert python(code).stdout.strip() == "1 0"


def test_where_the_operators_load_nothing_is_defined():
    code = """
import sys, torch, curation
from curation import _torchvision as t
t._operators_load = lambda spec: True
defined = []
t._define_missing_schemas = lambda: defined.append(1)
try:
    import torchvision
except RuntimeError:
    pass
print(defined)
"""
    assert python(code).stdout.strip() == "[]"
