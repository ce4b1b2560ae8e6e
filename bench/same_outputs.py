"""Compare two outputs of the same input, made by two builds: clips, shards, cameras, ledger. Exit status 1 where they differ.

    python -m bench.same_outputs OLD NEW --renamed camera_apart=camera_map_disagreement --renamed hole_s=gap_s

For work that must change no result, such as renaming a column. Clip ids and unit names hash the recipe and the schema version,
so clips are matched by what they show: their video and position, or the request and attempt of a synthetic one. Videos and
cameras must be equal byte for byte, all other values exactly. Rows are read as they are, from files of units or segments, so
OLD may have an older schema.
"""

import argparse
import json
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.unit_files import UnitFiles

Row = dict[str, Any]

# Names of things that a recipe or a folder gives, and not the footage.
_IGNORED = frozenset({"clip_id", "unit_id", "shard", "source_token", "video_id", "uri", "token", "source_uri", "synth_frame"})
_MAX_SHOWN = 3


class OutputFiles:
    """One output, read from its files."""

    def __init__(self, folder: Path, renamed: Mapping[str, str]) -> None:
        self.folder, self._renamed = folder, renamed
        self._units = UnitFiles(str(folder.absolute()))
        rows = [row for row in self._rows("clips/partition") if row["clip_id"]]
        self.clips = {row["clip_id"]: _key(row) for row in rows}
        self.videos = {row["video_id"]: self.clips[row["clip_id"]][:-1] for row in rows}

    def tables(self) -> Iterator[tuple[str, dict[Any, Row]]]:
        """Yield every table as rows by what they are about, with columns by their new names."""
        packed = {name.removeprefix("clips/") for name in self._units.manifest.segments if name.startswith("clips/")}
        for phase in sorted(packed | {path.name for path in (self.folder / "clips").iterdir()}):
            yield f"clips/{phase}", self._by_clip(self._rows(f"clips/{phase}"))
        for kind in ("thumbs", "camera"):
            yield f"sidecar/{kind}", self._by_clip(self._rows(f"sidecar/{kind}"))
        signals = self._rows("sidecar/signals")
        yield "sidecar/signals", {self.videos.get(row["video_id"], row["video_id"]): self._row(row) for row in signals}
        yield "videos", {self._video_key(row): self._row(row) for row in self._rows("videos")}

    def members(self) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """Yield what the shards hold: (clip, extension) and the bytes, or the row of a json."""
        for tar in sorted((self.folder / "shards").glob("*.tar")):
            with tarfile.open(tar) as file:
                for member in file:
                    clip_id, _, extension = member.name.partition(".")
                    data = file.extractfile(member).read()  # type: ignore[union-attr]
                    yield (self.clips[clip_id], extension), self._row(json.loads(data)) if extension == "json" else data

    def _rows(self, folder: str) -> list[Row]:
        return [row for piece in self._units.scan(folder) for row in piece.table.to_pylist()]

    def _video_key(self, row: Row) -> tuple[Any, ...]:
        """Return the request of a synthetic video, or else its file name, with its status."""
        about = self.videos.get(row["video_id"], ())
        return (*about, row["status"]) if about[:1] == ("synthetic",) else (row["uri"].rpartition("/")[2], row["status"])

    def _by_clip(self, rows: Sequence[Row]) -> dict[Any, Row]:
        return {self.clips[row["clip_id"]]: self._row(row) for row in rows if row["clip_id"]}

    def _row(self, row: Row) -> Row:
        kept = {name: value for name, value in row.items() if name not in _IGNORED}
        return {self._renamed.get(name, name): self._value(value) for name, value in kept.items()}

    def _value(self, value: Any) -> Any:
        """Clip ids become the clip's key, lines of our code in error messages are left out, NaN equals NaN."""
        if isinstance(value, str):
            return self.clips.get(value) or re.sub(r"\([\w.]+:\d+\)", "", value)
        return "NaN" if isinstance(value, float) and value != value else value


def _key(row: Row) -> tuple[Any, ...]:
    if row.get("source") == "synthetic" or row.get("interaction"):
        return "synthetic", row["interaction"], row["instruction"], row["synth_seed"], row["synth_attempt"]
    return row["video_id"], row["index"]


def differences(old: OutputFiles, new: OutputFiles) -> Iterator[tuple[str, str]]:
    """Yield what differs: the table and column, and the clip with both values."""
    for (name, ours), (_, theirs) in zip(old.tables(), new.tables(), strict=True):
        for key in ours.keys() | theirs.keys():
            yield from _row_differences(name, key, ours.get(key), theirs.get(key))
    ours, theirs = dict(old.members()), dict(new.members())
    for key in ours.keys() | theirs.keys():
        if key[1] == "json":
            yield from _row_differences("json", key, ours.get(key), theirs.get(key))
        elif ours.get(key) != theirs.get(key):
            yield key[1], f"{key[0]}: other bytes" if key in ours and key in theirs else f"{key[0]}: in one output only"


def _row_differences(name: str, key: Any, ours: Row | None, theirs: Row | None) -> Iterator[tuple[str, str]]:
    if ours is None or theirs is None:
        yield name, f"{key}: in one output only"
        return
    for column in ours.keys() | theirs.keys():
        if column not in ours or column not in theirs:
            yield f"{name} {column}", f"{key}: a column of one output only"
        elif ours[column] != theirs[column]:
            yield f"{name} {column}", f"{key}: {ours[column]!r:.100} -> {theirs[column]!r:.100}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.same_outputs", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--renamed", metavar="OLD=NEW", action="append", default=[], help="a column that has another name now")
    options = parser.parse_args(arguments)
    renamed = dict(item.split("=", 1) for item in options.renamed)
    old, new = OutputFiles(options.old, renamed), OutputFiles(options.new, renamed)
    print(f"{len(old.clips)} and {len(new.clips)} clips; members of shards: {_count(old)} and {_count(new)}")
    groups: dict[str, list[str]] = {}
    for where, what in differences(old, new):
        groups.setdefault(where, []).append(what)
    for where, items in sorted(groups.items()):
        print(f"{where}: {len(items)} differ")
        print("".join(f"    {item}\n" for item in items[:_MAX_SHOWN]), end="")
    print("equal" if not groups else f"{len(groups)} columns or kinds of file differ")
    sys.exit(int(bool(groups)))


def _count(output: OutputFiles) -> str:
    kinds = Counter(key[1] for key, _ in output.members())
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"


if __name__ == "__main__":
    main()
