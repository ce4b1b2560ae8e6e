"""OUT/README.md, as the hub and people read it."""

import subprocess
import sys

import pytest
import yaml

from curation import shards
from curation.schema import CLIP
from pipelines import dataset_card, ledger, recipes, run
from pipelines.totals import StoredClips


@pytest.fixture(scope="module")
def out(raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("card") / "o"
    run.curate([str(raw)], str(folder), recipes.smoke())
    return folder


def front_matter(out):
    return yaml.safe_load((out / "README.md").read_text().split("---\n")[1])


def test_its_front_matter_is_what_the_hub_reads(out):
    assert front_matter(out) == {
        "pretty_name": "o",
        "license": "unknown",
        "task_categories": ["image-to-video", "video-classification"],
        "tags": ["gameplay", "video", "webdataset", "world-model", "gamecraft"],
        "size_categories": ["n<1K"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "shards/*.tar"}]}],
    }


def test_it_says_what_is_there(out):
    card = (out / "README.md").read_text()
    assert "| clips in shards | 3 of 3 kept, 4 seen (1 rejected, 0 failed) |" in card
    assert "| sources | 4 (1 unreadable, 1 duplicates) |" in card
    meta = next(shards.read_samples(str(out), "000000")).meta
    for name in set(meta) - {"encoding"}:
        about = CLIP.field(name).metadata
        assert f"| `{name}` |" in card
        assert about[b"meaning"].decode().replace("|", "\\|") in card


def test_its_code_runs(out):
    code = (out / "README.md").read_text().split("```python\n")[2].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=out, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_licence_that_a_user_set_stays(out):
    card = out / "README.md"
    card.write_text(card.read_text().replace("license: unknown", "license: cc-by-4.0"))
    dataset, stored = shards.read_dataset(str(out)), StoredClips()
    stored.add(ledger.clips(str(out)))
    dataset_card.write_card(str(out), dataset, stored, 5 << 20)
    assert front_matter(out)["license"] == "cc-by-4.0"
    card.write_bytes(b"\xff nothing of ours")
    dataset_card.write_card(str(out), dataset, stored, 5 << 20)
    assert front_matter(out)["license"] == "unknown"
