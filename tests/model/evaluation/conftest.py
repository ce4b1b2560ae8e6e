"""Small videos with a known content, and judges that are programs."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from curation.vlm import Reply
from synth.media import to_mp4

DIMENSIONS = ("trigger", "align", "fluency", "scope", "end_state", "physics")


def scene(seed=0, size=(96, 160)):
    """A picture of smooth noise."""
    grain = np.random.default_rng(seed).integers(40, 200, (size[0] // 8, size[1] // 8, 3), np.uint8)
    return cv2.resize(grain, size[::-1], interpolation=cv2.INTER_CUBIC)


def pictures(kind, seed=0, frames=20):
    """A still camera: `still`, `lasting` (a disc appears and stays), `vanishing` (it goes), `jump` (the scene is replaced)."""
    rows = []
    for number in range(frames):
        picture = scene(seed).copy()
        shown = number > frames // 4 and (kind == "lasting" or (kind == "vanishing" and number < 3 * frames // 4))
        if shown:
            cv2.circle(picture, (80, 48), 18, (250, 30, 30), -1)
        if kind == "jump" and number > frames // 2:
            picture = scene(seed + 99)
        rows.append(picture)
    return np.stack(rows)


@pytest.fixture
def film(tmp_path):
    """film(name, kind, seed): write a video under `videos` and return the folder."""

    def write(name="snow/a", kind="lasting", seed=0, folder="videos", frames=20):
        path = tmp_path / folder / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_mp4(pictures(kind, seed, frames), 10))
        return str(tmp_path / folder)

    return write


class ProgramVlm:
    """A judge that is a function of a prompt and of how many prompts came before; it counts what it is asked."""

    def __init__(self, answer, name="program"):
        self.name, self.answer, self.prompts = name, answer, []

    def replies(self, prompts):
        for number, prompt in enumerate(prompts):
            self.prompts.append(prompt)
            answer = self.answer(prompt, len(self.prompts) - 1)
            yield number, answer if isinstance(answer, Reply) else Reply(answer, prompt_tokens=10, completion_tokens=5)


def reply(trigger=1, **scores):
    """A reply that fits the schema; scores default to 5."""
    values = {"trigger": trigger, **{name: scores.get(name, 5) for name in DIMENSIONS[1:]}}
    return json.dumps({name: {"evidence": f"frames 1 to 3: {name}", "score": value} for name, value in values.items()})


@pytest.fixture
def program(monkeypatch):
    """program(answer): run InterBench with that judge; `.reply` builds replies."""
    from model.evaluation.interbench import run

    def use(answer):
        vlm = ProgramVlm(answer)
        monkeypatch.setattr(run, "load", lambda settings: vlm)
        return vlm

    return SimpleNamespace(use=use, reply=reply)
