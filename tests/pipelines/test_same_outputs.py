"""The comparison of two outputs, on outputs of the same video that differ in known places."""

import shutil

import pyarrow.parquet as pq
import pytest

from bench import same_outputs
from pipelines import recipes, run


@pytest.fixture(scope="module")
def output(raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("same") / "one"
    run.curate([str(raw / "b.mp4")], str(folder), recipes.smoke())
    return folder


@pytest.fixture
def outputs(output, tmp_path):
    """The output, and a copy of it for one test: tests change the copy, and workers run them in any order."""
    return output, shutil.copytree(output, tmp_path / "other")


def compared(capsys, one, other, *words):
    with pytest.raises(SystemExit) as stop:
        same_outputs.main([str(one), str(other), *words])
    return stop.value.code, capsys.readouterr().out


def test_equal_outputs_are_equal(outputs, capsys):
    status, said = compared(capsys, *outputs)
    assert (status, said.splitlines()[-1]) == (0, "equal")


def test_a_changed_value_a_renamed_column_and_other_bytes_are_found(outputs, capsys):
    one, other = outputs
    for file in (other / "clips" / "partition").glob("*.parquet"):
        table = pq.read_table(file)
        metadata = table.schema.metadata
        table = table.rename_columns(["iqa_new" if name == "iqa" else name for name in table.column_names])
        pq.write_table(table.replace_schema_metadata(metadata), file)
    assert compared(capsys, one, other, "--renamed", "iqa=iqa_new")[0] == 0
    status, said = compared(capsys, one, other)
    assert status == 1
    assert "clips/partition iqa: 1 differ" in said
    tar = next((other / "shards").glob("*.tar"))
    data = bytearray(tar.read_bytes())
    at = data.index(b"ftyp")
    data[at + 4 : at + 8] = b"xxxx"
    tar.write_bytes(bytes(data))
    status, said = compared(capsys, one, other)
    assert "mp4: 1 differ" in said
