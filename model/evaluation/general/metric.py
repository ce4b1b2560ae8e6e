"""What is said about a measure wherever it is reported."""

from typing import NamedTuple


class Metric(NamedTuple):
    """A measure. better: up, down, or empty where neither is better. definition and source: a sentence each."""

    name: str
    unit: str
    better: str
    definition: str
    source: str
