import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from curation.schema import CLIP, VIDEO, clip_id, columns, conform, digest

ROW = {"clip_id": "a", "video_id": "v"}


def test_every_column_says_its_meaning_and_version():
    for field in [*CLIP, *VIDEO]:
        assert field.metadata[b"meaning"], field.name
        assert int(field.metadata[b"version"]) >= 1
    assert {f.name for f in CLIP if not f.nullable} == {"clip_id", "video_id"}


def test_blocks_of_all_null_values_have_the_declared_schema():
    table = conform([{**ROW, "action_spans": [], "reject": None}], CLIP)
    assert table.schema.equals(CLIP)


def test_numpy_values_are_taken():
    span = {"start_s": np.float64(0), "peak_s": 0.5, "end_s": np.float32(1), "energy": 1, "kind": "regime", "name": "x"}
    row = conform([{**ROW, "index": np.int64(3), "luma_mean": np.float32(2), "action_spans": [span]}], CLIP).to_pylist()[0]
    assert (row["index"], row["luma_mean"], row["action_spans"][0]["end_s"]) == (3, 2.0, 1.0)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"colour": "red"}, KeyError, r"columns not in the schema: \['colour'\]; declare them"),
        ({"clip_id": None}, ValueError, "clip_id must not be null"),
        ({"index": 3.5}, ValueError, "index is an integer column, not 3.5"),
        ({"index": True}, ValueError, "index is an integer column, not True"),
        ({"luma_mean": True}, ValueError, "luma_mean is a number column, not True"),
        ({"viewport": {"x": 0, "y": 0, "w": 1, "depth": 2}}, KeyError, r"viewport has no field \['depth'\]"),
        ({"viewport": {"x": 0.5, "y": 0, "w": 1, "h": 2}}, ValueError, "viewport.x is an integer column"),
        ({"luma_mean": "dark"}, ValueError, "does not fit the schema"),
    ],
)
def test_what_arrow_would_bend_in_silence_is_an_error(change, error, words):
    with pytest.raises(error, match=words):
        conform([{**ROW, **change}], CLIP)


def test_parts_of_the_schema_keep_its_order_and_refuse_unknown_names():
    assert columns(CLIP, ["reject", "clip_id"]).names == ["clip_id", "reject"]
    with pytest.raises(KeyError, match="colour"):
        columns(CLIP, ["colour"])


def test_ids_depend_on_content_and_hold_no_dot():
    ids = {clip_id("v", 0, 6, "s"), clip_id("w", 0, 6, "s"), clip_id("v", 0, 6.000001, "s"), clip_id("v", 0, 6, "t")}
    assert len(ids) == 4
    assert all(len(i) == 16 and "." not in i for i in ids)
    assert digest("a", "b") != digest("ab", "")


def test_schema_and_shards_load_no_torch_ray_or_decoder():
    code = "import sys, curation.schema, curation.shards; print({'torch', 'ray', 'cv2', 'av'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_metadata_survives_parquet(tmp_path):
    import pyarrow.parquet as pq

    pq.write_table(conform([ROW], CLIP), tmp_path / "x.parquet")
    assert pq.read_schema(tmp_path / "x.parquet").field("luma_mean").metadata[b"unit"] == b"0-255"
    assert pa.types.is_list(CLIP.field("action_spans").type)
