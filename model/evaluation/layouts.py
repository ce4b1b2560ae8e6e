"""Import and export of the layouts that other benchmarks read: VBench, GameWorld Score, WorldModelBench and MIND.

Only names of files and fields are theirs. Videos are copied, so that a layout can be moved to where its benchmark runs.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from curation import storage
from curation.errors import InputError
from model.evaluation.cases import EXTENSIONS, Case
from model.evaluation.interbench import suite

# GameWorld Score names a video's action; these are keys of ours. A video with several has their names joined.
_GAMEWORLD = {
    "forward": "W",
    "back": "S",
    "left": "A",
    "right": "D",
    "jump": "SPACE",
    "camera_l": "LEFT",
    "camera_r": "RIGHT",
    "camera_u": "UP",
    "camera_d": "DOWN",
}
_MAX_NAME = 180  # characters of a prompt in a file's name, as VBench cuts it


def export_vbench(cases: Sequence[Case], out: str) -> None:
    """Write `PROMPT-INDEX.mp4`, and prompts.json for VBench's mode `custom_input` (file name to prompt).

    What a file's name cannot hold (slashes, over 180 characters) is cut; prompts.json has it whole. INDEX counts equal names.
    """
    prompts: dict[str, str] = {}
    for case in cases:
        prompt = prompt_of(case)
        stem, index = (prompt.replace("/", " ").strip() or case.name.replace("/", "-"))[:_MAX_NAME], 0
        while f"{stem}-{index}.mp4" in prompts:
            index += 1
        _copy(case.video, storage.join(out, f"{stem}-{index}.mp4"))
        prompts[f"{stem}-{index}.mp4"] = prompt
    storage.put(storage.join(out, "prompts.json"), json.dumps(prompts, indent=1, ensure_ascii=False).encode())


def import_vbench(folder: str) -> list[Case]:
    """Read `PROMPT-INDEX.mp4`, with the whole prompts of prompts.json where there is one."""
    known: dict[str, str] = _read_json(storage.join(folder, "prompts.json")) or {}
    cases = []
    for uri, name in _videos(folder):
        stem, _, index = name.rpartition(".")[0].rpartition("-")
        if not index.isdigit():
            raise InputError(f"{uri}: VBench's names are PROMPT-INDEX.mp4")
        prompt = known.get(name, stem.rpartition("/")[2])
        cases.append(Case(name.rpartition(".")[0], uri, base_prompt=prompt, seed=int(index)))
    return cases


def read_vbench_results(uri: str) -> dict[str, dict[str, float]]:
    """Return the values of VBench's `*_eval_results.json` by dimension and video name, with the whole's under "all"."""
    table: dict[str, dict[str, float]] = {}
    for dimension, (score, rows) in (_read_json(uri) or {}).items():
        values = {str(row["video_path"]).rpartition("/")[2]: float(row["video_results"]) for row in rows}
        table[dimension] = values | {"all": float(score)}
    return table


def export_gameworld(cases: Sequence[Case], out: str) -> None:
    """Write `INDEX_ACTION.mp4`, grouped by action. InputError for a case whose keys are not one action held throughout."""
    named = sorted(((_gameworld_action(case), case) for case in cases), key=lambda pair: (pair[0], pair[1].name))
    for index, (action, case) in enumerate(named):
        _copy(case.video, storage.join(out, f"{index:04d}_{action}.mp4"))


def _gameworld_action(case: Case) -> str:
    words = case.keys.split()
    held = {word.partition("*")[0] for word in words}
    if len(held) != 1:
        given = f"the keys {case.keys!r}" if held else "no keys: give the field `keys` in cases.jsonl"
        raise InputError(f"{case.name}: GameWorld Score needs one action held throughout; this case has {given}")
    keys = held.pop().split("+")
    names = [name for name, key in _GAMEWORLD.items() if key in keys]
    if len(names) != len(keys):
        raise InputError(f"{case.name}: GameWorld Score has no action for the keys {'+'.join(keys)!r}")
    moves, camera = [n for n in names if not n.startswith("camera")], [n for n in names if n.startswith("camera")]
    joined = ["camera_" + "".join(sorted(n[-1] for n in camera))] if camera else []
    return "_".join([*moves, *joined])


def import_gameworld(folder: str) -> list[Case]:
    """Read `PREFIX_ACTION.mp4`. Actions that are no keys of ours, such as attack, leave the keys empty."""
    cases = []
    for uri, name in _videos(folder):
        match = re.fullmatch(r"(?P<prefix>[^_]+)_(?P<action>.+)\.\w+", name.rpartition("/")[2])
        if not match:
            raise InputError(f"{uri}: GameWorld Score's names are PREFIX_ACTION.mp4")
        cases.append(
            Case(name.rpartition(".")[0], uri, interaction_prompt=match["action"], keys=_gameworld_keys(match["action"]))
        )
    return cases


def _gameworld_keys(action: str) -> str:
    words, keys = action, []
    camera = re.search(r"camera_([lrud]+)$", words)
    if camera:
        keys = [_GAMEWORLD[f"camera_{side}"] for side in camera[1]]
        words = words[: camera.start()].strip("_")
    for word in filter(None, words.split("_")):
        if word not in _GAMEWORLD:
            return ""
        keys.append(_GAMEWORLD[word])
    return "+".join(keys)


def export_worldmodelbench(cases: Sequence[Case], out: str) -> None:
    """Write videos named like their first frame, and worldmodelbench.json with an instance each. InputError for equal names."""
    instances, seen = [], set[str]()
    for case in cases:
        stem = case.name.replace("/", "-")
        if stem in seen:
            raise InputError(f"{case.name}: another case has the file name {stem}.mp4")
        seen.add(stem)
        _copy(case.video, storage.join(out, "videos", f"{stem}.mp4"))
        instances.append(
            {
                "domain": "gaming",
                "subdomain": case.subset or "keys",
                "text_first_frame": case.base_prompt,
                "text_instruction": case.interaction_prompt or _interaction(case),
                "first_frame": f"images/{stem}.jpg",
            }
        )
    storage.put(storage.join(out, "worldmodelbench.json"), json.dumps(instances, indent=1, ensure_ascii=False).encode())


def import_worldmodelbench(folder: str) -> list[Case]:
    """Read worldmodelbench.json and the videos next to it or in its folder `videos`. Instances without a video are left out."""
    instances = _read_json(storage.join(folder, "worldmodelbench.json"))
    if not isinstance(instances, list):
        raise InputError(f"{folder}: no worldmodelbench.json there")
    by_stem = {name.rpartition("/")[2].rpartition(".")[0]: uri for uri, name in _videos(folder)}
    cases = []
    for row in instances:
        stem = str(row["first_frame"]).rpartition("/")[2].rpartition(".")[0]
        if stem in by_stem:
            texts = {"base_prompt": row["text_first_frame"], "interaction_prompt": row["text_instruction"]}
            cases.append(Case(stem, by_stem[stem], image=row["first_frame"], **texts))
    return cases


def export_mind(cases: Sequence[Case], out: str, test: str = "mem_test", perspective: str = "1st_data") -> None:
    """Write PERSPECTIVE/TEST/NAME/video.mp4. NAME is the case's image, which must be the name of MIND's data.

    InputError where two cases have the same name, before anything is written.
    """
    by_name: dict[str, Case] = {}
    for case in cases:
        name = case.image or case.name.rpartition("/")[2]
        if name in by_name:
            raise InputError(f"{by_name[name].name} and {case.name}: MIND has one video for each name, and both are {name!r}")
        by_name[name] = case
    for name, case in by_name.items():
        _copy(case.video, storage.join(out, perspective, test, name, "video.mp4"))


def import_mind(truth: str, folder: str = "") -> list[Case]:
    """Read MIND's data (TRUTH/PERSPECTIVE/test/TEST/NAME with action.json and video.mp4) as cases with their keys.

    folder: a model's videos in MIND's layout; then a case's video is the model's and `real` the true one. Else both are true.
    """
    cases = []
    for entry in storage.list_files(truth.rstrip("/") + "/"):
        match = re.search(r"/(1st_data|3rd_data)/test/(\w+)/([^/]+)/action\.json$", entry.uri)
        if not match:
            continue
        perspective, test, name = match.groups()
        action = _read_json(entry.uri) or {}
        real = entry.uri.rpartition("/")[0] + "/video.mp4"
        video = storage.join(folder, perspective, test, name, "video.mp4") if folder else real
        if storage.exists(video):
            keys = mind_keys(action.get("data", []))
            caption = str(action.get("caption", ""))
            cases.append(Case(f"{perspective}/{test}/{name}", video, image=name, base_prompt=caption, keys=keys, real=real))
    if not cases:
        raise InputError(f"{truth}: no data of MIND there (PERSPECTIVE/test/TEST/NAME/action.json) that has a video")
    return cases


def mind_keys(frames: Sequence[dict[str, Any]]) -> str:
    """Return the keys of MIND's action.json as a script. Fields are 0 or 1 for two directions, else nothing is pressed."""
    pressed = {"ws": ("W", "S"), "ad": ("A", "D"), "ud": ("UP", "DOWN"), "lr": ("LEFT", "RIGHT")}
    words: list[tuple[str, int]] = []
    for frame in frames:
        keys = [sides[frame[name]] for name, sides in pressed.items() if frame.get(name) in (0, 1)]
        word = "+".join(keys) or "."
        if words and words[-1][0] == word:
            words[-1] = word, words[-1][1] + 1
        else:
            words.append((word, 1))
    return " ".join(f"{word}*{count}" for word, count in words)


EXPORTS: dict[str, Callable[[Sequence[Case], str], None]] = {
    "vbench": export_vbench,
    "gameworld": export_gameworld,
    "worldmodelbench": export_worldmodelbench,
    "mind": export_mind,
}
IMPORTS: dict[str, Callable[[str], list[Case]]] = {
    "vbench": import_vbench,
    "gameworld": import_gameworld,
    "worldmodelbench": import_worldmodelbench,
    "mind": import_mind,
}


def prompt_of(case: Case) -> str:
    """Return the whole prompt of a case."""
    return suite.full_prompt(case.base_prompt, case.interaction_prompt or _interaction(case))


def _interaction(case: Case) -> str:
    return suite.subsets()[case.subset].interaction if case.subset in suite.subsets() else ""


def _videos(folder: str) -> list[tuple[str, str]]:
    """Return the uris of a folder's videos, and their paths in it."""
    start = folder.rstrip("/") + "/"
    uris = [entry.uri for entry in storage.list_files(start) if entry.uri.lower().endswith(EXTENSIONS)]
    if not uris:
        raise InputError(f"{folder}: no video there")
    return [(uri, uri.removeprefix(start)) for uri in uris]


def _copy(source: str, target: str) -> None:
    storage.put(target, storage.read(source))


def _read_json(uri: str) -> Any:
    try:
        return json.loads(storage.read(uri))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{uri}: not valid JSON: {error}") from error
