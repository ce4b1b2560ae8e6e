"""Input that was not meant well, or not made for us: each ends as a row with a reason or as one clear error, and nothing is
written outside the output.
"""

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from curation import shards
from curation.output_folder import OutputFolder
from pipelines import cli, ledger
from pipelines.exports import export_shards

SPARSE_BYTES = 2 << 30
ODD_NAMES = (
    'it\'s "quoted" $(touch pwned) `x` %s {0}.mp4',
    "two\nlines.mp4",
    "a..mp4",
    "-rf.mp4",
    "a\u2028b.mp4",
    "<b>&amp;.mp4",
)


def gamecraft(monkeypatch, capsys, *words):
    """Run the command as a shell would. Return its exit status and its last line on stderr."""
    monkeypatch.setattr("sys.argv", ["gamecraft", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr().err.strip().rpartition("\n")[2]


def files_outside(folder, out):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and out not in path.parents}


@pytest.fixture(scope="module")
def film(make_video, tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("film") / "film.mp4", seconds=4, seed=5)


def test_hostile_files_end_as_rows_and_nothing_is_written_elsewhere(film, tmp_path, monkeypatch, capsys):
    folder, out = tmp_path / "raw", tmp_path / "raw" / "o"
    (folder / "deep").mkdir(parents=True)
    for name in ODD_NAMES:
        shutil.copy(film, folder / name)
    os.symlink(folder, folder / "deep" / "loop")
    os.symlink("itself.mp4", folder / "itself.mp4")
    os.symlink(folder / "gone", folder / "dead.mp4")
    with (folder / "sparse.mp4").open("wb") as file:
        file.truncate(SPARSE_BYTES)
    escape(folder / "tar.mp4")
    monkeypatch.chdir(tmp_path)
    before = files_outside(tmp_path, out)
    status, _ = gamecraft(monkeypatch, capsys, "curate", folder, "--out", out, "--recipe", "smoke")
    assert status == 3, "done, but sources were lost"
    assert files_outside(tmp_path, out) == before
    rows = {row["uri"].rpartition("/")[2]: (row["status"], row["reason"]) for row in ledger.videos(str(out)).to_pylist()}
    assert rows.keys() == {*ODD_NAMES, "sparse.mp4", "tar.mp4"}
    assert sorted(rows[name][0] for name in ODD_NAMES) == ["duplicate"] * (len(ODD_NAMES) - 1) + ["ok"]
    for name in ("sparse.mp4", "tar.mp4"):
        assert rows[name][0] == "unreadable"
        assert rows[name][1]
    assert "<b>&amp;.mp4" not in (out / "report.html").read_text(), "a name is text in the report, not markup"


def escape(path, kind=tarfile.REGTYPE):
    """Write a tar with members that leave the folder in which it is unpacked."""
    with tarfile.open(path, "w") as tar:
        for name in ("../../pwned.json", "/tmp/pwned.mp4", "a/../../pwned.mp4"):
            member = tarfile.TarInfo(name)
            member.size, member.type = 2 if kind == tarfile.REGTYPE else 0, kind
            member.linkname = "/etc/passwd"
            tar.addfile(member, io.BytesIO(b"{}"))


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE])
@pytest.mark.parametrize("layout", ["diffsynth", "lerobot", "parquet"])
def test_members_of_a_shard_that_escape_are_refused(kind, layout, tmp_path):
    out = tmp_path / "o"
    folder = OutputFolder(str(out))
    shards.write_dataset(str(out), {"shards": []})
    Path(folder.shards).mkdir()
    escape(folder.tar("000000"), kind)
    shards.put_index(str(out), "000000", shards.INDEX.empty_table())
    before = files_outside(tmp_path, out)
    with pytest.raises(ValueError, match="is no member that gamecraft writes"):
        export_shards(str(out), layout, str(tmp_path / "x"))
    assert files_outside(tmp_path, out) == before


def test_a_thousand_dead_links_are_one_error(film, tmp_path, monkeypatch, capsys):
    for number in range(1000):
        os.symlink(tmp_path / "gone", tmp_path / f"{number}.mp4")
    lines = [film, *(f"{number}.mp4" for number in range(1000))]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    status, words = gamecraft(monkeypatch, capsys, "curate", tmp_path / "list.txt", "--out", tmp_path / "o")
    assert status == 2
    assert words == (f"gamecraft: {tmp_path}/list.txt, line 2: {tmp_path}/0.mp4: no such file or folder (1000 lines like this)")
    assert not (tmp_path / "o").exists()


def test_a_list_may_name_what_lies_above_it_and_names_with_odd_line_breaks(film, tmp_path, monkeypatch, capsys):
    (tmp_path / "lists").mkdir()
    shutil.copy(film, tmp_path / "a\u2028b.mp4")
    (tmp_path / "lists" / "list.txt").write_text("../a\u2028b.mp4\r\n../lists/../gone.mp4\n", newline="")
    status, words = gamecraft(monkeypatch, capsys, "curate", tmp_path / "lists" / "list.txt", "--out", tmp_path / "o")
    assert status == 2
    assert words.endswith("line 2: " + str(tmp_path / "lists" / "../lists/../gone.mp4") + ": no such file or folder")
