"""The videos of a folder, and what each of them was to show.

A folder is any model's videos. `cases.jsonl` in it has one line for each video, an object with the fields of `Case` by name
(`video` relative to the folder). Without that file the names tell: `SUBSET/IMAGE.mp4`, or `SUBSET/IMAGE-SEED.mp4`.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from curation import storage
from curation.errors import InputError

CASES_FILE = "cases.jsonl"
EXTENSIONS = (".mp4", ".webm", ".mkv", ".mov", ".avi")
_SEED = re.compile(r"^(?P<image>.+)-(?P<seed>\d+)$")


@dataclass(frozen=True)
class Case:
    """A video to evaluate, and what it was to show. Empty fields are unknown.

    name: the video's path without extension; runs are paired by it. video: its uri. subset: of InterBench's test set. keys:
    the controls, as the command `rollout` takes them. camera: uri of a `camera.npz` with the poses that were asked for. real:
    uri of the real video of the same controls. seconds: wall-clock time of its generation.
    """

    name: str
    video: str
    subset: str = ""
    image: str = ""
    base_prompt: str = ""
    interaction_prompt: str = ""
    seed: int = 0
    keys: str = ""
    camera: str = ""
    real: str = ""
    seconds: float = 0.0


def read_cases(folder: str, only: Sequence[str] = ()) -> list[Case]:
    """Return the cases of a folder or s3:// prefix, sorted by name; with `only`, those of these subsets.

    InputError where there is no video, or a line of cases.jsonl is wrong.
    """
    folder = storage.normal(folder)
    listed = storage.join(folder, CASES_FILE)
    cases = _from_file(folder, listed) if storage.exists(listed) else _from_names(folder)
    cases = sorted((case for case in cases if not only or case.subset in only), key=lambda case: case.name)
    if not cases:
        raise InputError(f"{folder}: no video there{' of ' + ', '.join(only) if only else ''} ({', '.join(EXTENSIONS)})")
    return cases


def write_cases(folder: str, cases: Iterable[Case]) -> None:
    """Write cases.jsonl. Videos and cameras inside the folder are written relative to it, and empty fields are left out."""
    folder = storage.normal(folder)
    lines = [json.dumps({k: v for k, v in asdict(_relative(case, folder)).items() if v}, sort_keys=True) for case in cases]
    storage.put(storage.join(folder, CASES_FILE), "".join(f"{line}\n" for line in lines).encode())


def _relative(case: Case, folder: str) -> Case:
    start = folder.rstrip("/") + "/"
    return replace(case, **{name: getattr(case, name).removeprefix(start) for name in ("video", "camera", "real")})


def _from_file(folder: str, listed: str) -> list[Case]:
    known = {field.name for field in fields(Case)}
    cases = []
    for number, line in enumerate(storage.read(listed).decode().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row: dict[str, Any] = json.loads(line)
            unknown = set(row) - known
            if unknown or not isinstance(row.get("video"), str):
                raise ValueError(f"unknown fields {sorted(unknown)}" if unknown else "no field video")
            row.setdefault("name", row["video"].rpartition(".")[0])
            case = Case(**row | _uris(folder, row))
            if missing := [uri for uri in (case.video, case.camera, case.real) if uri and not storage.exists(uri)]:
                raise ValueError(f"{missing[0]}: no such file")
            cases.append(case)
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{listed}: line {number}: {error}") from error
    names = [case.name for case in cases]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{listed}: the name {repeated!r} is there twice")
    return cases


def _uris(folder: str, row: Mapping[str, Any]) -> dict[str, str]:
    """Return the uris of a line's files; those that are relative are in the folder."""
    values = {name: row[name] for name in ("video", "camera", "real") if row.get(name)}
    return {name: v if v.startswith(("/", "s3://", "file://")) else storage.join(folder, v) for name, v in values.items()}


def _from_names(folder: str) -> list[Case]:
    start = folder.rstrip("/") + "/"
    cases = []
    for entry in storage.list_files(start):
        stem, _, extension = entry.uri.removeprefix(start).rpartition(".")
        if f".{extension.lower()}" not in EXTENSIONS:
            continue
        subset, _, file = stem.rpartition("/")
        match = _SEED.match(file)
        image, seed = (match["image"], int(match["seed"])) if match else (file, 0)
        cases.append(Case(stem, entry.uri, subset=subset.rpartition("/")[2], image=image, seed=seed))
    return cases
