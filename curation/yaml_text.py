"""YAML as this project reads and writes it: PyYAML's safe part, with numbers as people and YAML 1.2 write them.

PyYAML follows YAML 1.1, for which `1e-5` is a text: it asks for `1.0e-5`.
"""

import re
from typing import Any

import yaml

_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    """Puts a text that looks like such a number in quotes, so that it comes back as a text."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def load_yaml(text: str) -> Any:
    """Read one YAML document; yaml.YAMLError where it is none."""
    return yaml.load(text, _Loader)  # noqa: S506  a SafeLoader


def dump_yaml(value: Any) -> str:
    """Write plain values as YAML, keys in their own order."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text
