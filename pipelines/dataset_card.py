"""The dataset card, OUT/README.md: what an output holds and how to read it, in the form that Hugging Face's hub shows.

Every run writes it anew, and keeps the licence that a user has set in its front matter.
"""

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jinja2
import pyarrow as pa
import yaml

from curation import shards, storage
from curation.output_folder import OutputFolder
from curation.schema import CLIP, SIDECAR_COLUMNS
from curation.yaml_text import dump_yaml
from pipelines.totals import StoredClips

_LICENCE = "unknown"
# The hub's words for how many samples there are.
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))
_MAX_FORMATS = 3


def write_card(out: str, dataset: Mapping[str, Any], stored: StoredClips, size: int) -> None:
    """Write the card of an output. dataset: as `dataset.json` has it. size: bytes in shards."""
    uri = OutputFolder(out).card
    licence = _licence_in(uri)
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(os.path.dirname(__file__)),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701  Markdown
    ).get_template("dataset_card.md.j2")
    name = storage.printable(out.rstrip("/").rpartition("/")[2])
    text = template.render(
        {
            **dataset,
            "title": f"Gameplay clips: {name}",
            "front_matter": dump_yaml(_front_matter(name, stored.clips, licence)),
            "licence": licence,
            "minutes": f"{stored.seconds / 60:.1f}",
            "size": _size(size),
            "video": _formats(stored.sizes),
            "columns": [_column(field) for field in CLIP if field.name not in shards.NOT_IN_SHARDS | SIDECAR_COLUMNS],
            "recipe": dump_yaml(dataset["recipe"]),
        }
    )
    storage.put(uri, text.encode())


def _front_matter(name: str, clips: int, licence: str) -> dict[str, Any]:
    size = next((words for limit, words in _SIZES if clips < limit), "n>10M")
    return {
        "pretty_name": name,
        "license": licence,
        "task_categories": ["image-to-video", "video-classification"],
        "tags": ["gameplay", "video", "webdataset", "world-model", "gamecraft"],
        "size_categories": [size],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "shards/*.tar"}]}],
    }


def _licence_in(uri: str) -> str:
    """Return the licence that the card there names; "unknown", as the hub calls it, where there is no card or none in it."""
    try:
        front = storage.read(uri).decode("utf-8", "replace").split("---\n")
        return str(yaml.safe_load(front[1])["license"] or _LICENCE)
    except (FileNotFoundError, IndexError, KeyError, TypeError, yaml.YAMLError):
        return _LICENCE


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _formats(sizes: Counter[tuple[int, int]]) -> str:
    """Return the commonest sizes of stored videos, in words."""
    named = [f"{width}x{height} ({count:,} clips)" for (width, height), count in sizes.most_common(_MAX_FORMATS)]
    rest = len(sizes) - len(named)
    return ", ".join(named) + (f", and {rest} other sizes" if rest else "") or "none"


def _column(field: pa.Field) -> dict[str, str]:
    about = {name: (field.metadata or {})[name.encode()].decode().replace("|", "\\|") for name in ("unit", "meaning")}
    return {"name": field.name, "type": _type(field.type), **about}


def _type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of {_type(kind.value_type)}"
    if pa.types.is_struct(kind):
        return "{" + ", ".join(kind.field(i).name for i in range(kind.num_fields)) + "}"
    return str(kind)
