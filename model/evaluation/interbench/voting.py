"""A blind voting page for people: one HTML file with pairs of videos, answered by keys, exported as CSV.

The page has no model's name in it: only numbers of pairs, in random order with random sides. The key to them is another file.
"""

import base64
import csv
import io
import json
import os
from collections.abc import Sequence

import jinja2
import numpy as np

from curation import storage
from curation.errors import InputError
from model.evaluation.interbench import suite
from model.evaluation.interbench.pairwise import Pair

_FIELDS = ("pair", "vote", "seconds", "voter")
_SCORES = {"1": 1.0, "2": 0.0, "0": 0.5}


def write_page(pairs: Sequence[Pair], page: str, key: str, seed: int = 0) -> None:
    """Write the page and its key (JSON). The page holds the videos themselves and needs nothing else.

    seed: of the order of the pairs and of the sides.
    """
    rng = np.random.default_rng(seed)
    rows, keys = [], {}
    for number, index in enumerate(rng.permutation(len(pairs)).tolist()):
        pair, swapped = pairs[index], bool(rng.integers(2))
        sides = [pair.first, pair.second]
        models = [pair.first_model, pair.second_model]
        if swapped:
            sides, models = sides[::-1], models[::-1]
        subset = suite.find_subset(pair.first.subset)
        interaction = pair.first.interaction_prompt or subset.interaction
        prompt = suite.full_prompt(pair.first.base_prompt, interaction)
        rows.append({"id": number, "prompt": prompt, "interaction": interaction, "videos": [_data_uri(c.video) for c in sides]})
        keys[str(number)] = {"left": models[0], "right": models[1], "case": pair.first.name}
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(os.path.dirname(__file__)), autoescape=True)
    text = environment.get_template("voting.html.j2").render(rows=rows, digest=str(rng.integers(2**31)))
    storage.put(page, text.encode())
    storage.put(key, json.dumps(keys, indent=1).encode())


def _data_uri(video: str) -> str:
    kind = "webm" if video.lower().endswith(".webm") else "mp4"
    return f"data:video/{kind};base64,{base64.b64encode(storage.read(video)).decode()}"


def read_votes(votes: Sequence[str], key: str) -> list[tuple[str, str, float]]:
    """Return comparisons (left model, right model, score of the left) from exported CSV files and the key of their page.

    InputError where a file is no export of that page.
    """
    keys = json.loads(storage.read(key))
    comparisons = []
    for uri in votes:
        rows = list(csv.DictReader(io.StringIO(storage.read(uri).decode("utf-8-sig"))))
        for number, row in enumerate(rows, start=2):
            if set(row) != set(_FIELDS) or row["pair"] not in keys or row["vote"] not in _SCORES:
                raise InputError(f"{uri}: line {number} is no vote of this page: {dict(row)}")
            sides = keys[row["pair"]]
            comparisons.append((sides["left"], sides["right"], _SCORES[row["vote"]]))
    return comparisons
