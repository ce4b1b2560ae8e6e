"""Read and write YAML: PyYAML's safe loader and dumper, with numbers as people and YAML 1.2 write them.

PyYAML follows YAML 1.1, in which `1e-5` is a string and only `1.0e-5` is a number.
"""

import re
from typing import Any

import yaml

_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    """Quotes a string that looks like such a number, so that it is read as a string again."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def load_yaml(text: str) -> Any:
    """Read one YAML document. yaml.YAMLError for text that is not YAML."""
    return yaml.load(text, _Loader)  # noqa: S506  it is a SafeLoader


def dump_yaml(value: Any) -> str:
    """Write plain values as YAML. Keys keep their order."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text
