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
from model.play.world_files import DEMO  # noqa: E402


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


def test_it_says_that_it_follows_no_prompts(engine):
    with pytest.raises(InputError, match="does not follow prompts"):
        engine.start(Start(engine.info.start_images[0].picture, prompt="it starts to snow"))
