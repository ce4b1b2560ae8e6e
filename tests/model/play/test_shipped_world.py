"""The world that ships: small, complete, and it moves as its keys say."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("fastapi", reason="the extra `play` is not installed")

from curation.errors import InputError  # noqa: E402 (after the packages are known to be here)
from model.control.spec import ControlState  # noqa: E402
from model.evaluation.control_accuracy import follows, video_motion  # noqa: E402
from model.play.engine import Start  # noqa: E402
from model.play.world import load_engine  # noqa: E402
from model.world_files import DEMO  # noqa: E402


@pytest.fixture(scope="module")
def engine():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tests run side by side; threads that wait for each other take most of their time
    yield load_engine("demo", lambda _: None, "eager")
    torch.set_num_threads(threads)


def held(engine, key, start=0, frames=8):
    """The frames of a key that is held down."""
    session, first = engine.start(Start(engine.info.start_images[start].picture))
    made = [first.frames]
    for _ in range(frames):
        made.append(session.generate([ControlState(frozenset({key}))]).frames)
        session.commit()
    return np.concatenate(made)


def test_it_is_small_and_names_its_licence(engine):
    files = [path for path in Path(DEMO).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    assert "CC-BY-SA 3.0" in (Path(DEMO) / "NOTICE.md").read_text()
    assert engine.info.size == (128, 96)
    assert engine.info.fps == 17.5
    assert len(engine.info.start_images) == 6


@pytest.mark.parametrize(("key", "direction"), [("RIGHT", "right"), ("LEFT", "left"), ("W", "forward"), ("S", "back")])
def test_it_moves_as_its_keys_say(engine, key, direction):
    assert follows(direction, video_motion(held(engine, key, start=1)))


def test_turning_away_and_back_shows_what_was_there(engine):
    session, _ = engine.start(Start(engine.info.start_images[1].picture))
    for key in ["RIGHT"] * 10 + ["LEFT"] * 10:
        block = session.generate([ControlState(frozenset({key}))])
        session.commit()
    real = engine.info.start_images[1].picture.astype(float)
    after = np.abs(block.frames[0] - real).mean()
    other = np.abs(engine.info.start_images[2].picture - real).mean()
    assert after < 0.35 * other


PROMPTS = ("a creature appears", "an explosion", "it starts to snow", "night falls", "place a block", "take out a torch")


def test_it_offers_what_happens_in_its_footage_and_refuses_other_prompts(engine):
    assert engine.info.prompts == PROMPTS
    assert sorted(engine.loaded.file.lasts_s) == ["a creature appears", "an explosion", "place a block"]
    with pytest.raises(InputError, match="does not know the prompt 'a dragon'"):
        engine.start(Start(engine.info.start_images[0].picture, prompt="a dragon"))


def test_a_block_is_yellow_where_it_is_placed(engine):
    def most_yellow(prompt):
        session, _ = engine.start(Start(engine.info.start_images[1].picture))
        made = []
        for number in range(14):
            if number == 5:
                session.set_prompt(prompt)
            made.append(session.generate([ControlState()]).frames[0].astype(int))
            session.commit()
        return max(int(((f[..., 0] > 150) & (f[..., 1] > 130) & (f[..., 2] < 90)).sum()) for f in made[5:])

    assert most_yellow("place a block") > 40 + 3 * most_yellow("")
