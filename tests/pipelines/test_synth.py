"""Synthesis as a pipeline: attempts on the ledger, retries, resuming, equal bytes. Later phases treat clips like footage."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from curation import shards
from curation.vlm import ServerSettings, VlmSettings, load
from pipelines import ledger, phases, recipes, run
from pipelines.report.page import write_report
from synth import strategies, taxonomy
from synth.models.base import ModelFailed, ModelSettings
from synth.requests import InitialFrame
from synth.strategies import ProceduralSettings, SynthSettings, SynthVideo


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Run the local runner's units in this process."""
    monkeypatch.setattr(run.runners, "run_local", lambda phase, todo, show: (phases.work(phase, unit) for unit in todo))


def recipe(**synth):
    return replace(recipes.smoke(), synth=SynthSettings(**({"each": 1, "attempts": 3} | synth)))


def rows(out):
    return sorted(ledger.clips(out).to_pylist(), key=lambda row: (row["interaction"], row["synth_attempt"]))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("pictures") / "a.png")
    cv2.imwrite(path, np.random.default_rng(0).integers(0, 256, (96, 160, 3), np.uint8))
    return path


def scene():
    rng = np.random.default_rng(1)
    return rng.integers(60, 160, (15, 20, 3), np.uint8).repeat(8, 0).repeat(8, 1)


def made(happens=True, by=4):
    """Two seconds of a scene in which four tenths of the picture grow bright, and go on moving a little."""
    pictures = np.repeat(scene()[None], 32, axis=0)
    for number in range(8, 32) if happens else ():
        pictures[number, :, 96:] += np.uint8(by * min(number - 8, 16) + 2 * by * (number // 2 % 2))
    return SynthVideo(pictures, 16.0, scene(), "start_end", ("some model",), {"prompt": "p"})


@pytest.fixture
def maker(monkeypatch):
    """Replace the models by a list of results, one per attempt; an exception in it is raised."""
    given, seeds = [], []

    def make(request, seed, settings):
        seeds.append(seed)
        give = given.pop(0) if given else made()
        if isinstance(give, Exception):
            raise give
        return give

    monkeypatch.setattr(strategies, "synthesise", make)
    return given, seeds


def test_an_accepted_attempt_becomes_a_clip_in_a_shard(maker, picture, tmp_path):
    done = run.synthesise(["snow"], [picture], str(tmp_path / "o"), recipe())
    assert not done.failures
    assert (done.clips, done.kept, done.stored) == (1, 1, 1)
    (row,) = rows(done.out)
    assert (row["source"], row["strategy"], row["interaction"]) == ("synthetic", "start_end", "snow")
    assert row["instruction"] in taxonomy.built_in()["snow"].templates
    assert row["synth_models"] == ["some model"]
    assert json.loads(row["synth_prompt"]) == {"prompt": "p"}
    assert row["synth_verdict"] == "accepted"
    assert row["interaction_category"] == "environment"
    assert row["caption_short"]
    assert (row["interactive"], row["interactive_source"]) == (True, "synthesis")
    assert row["action_caption"].lower() == f"{row['instruction'].lower()}."
    (sample,) = shards.read_samples(done.out, "000000")
    assert sample.meta["synth_seed"] == row["synth_seed"]
    assert "synth_frame" not in sample.meta
    assert shards.read_dataset(done.out)["counts"]["kept"] == 1


def test_an_attempt_that_fails_is_a_row_and_another_seed_is_tried(maker, picture, tmp_path):
    given, seeds = maker
    given += [made(happens=False), RuntimeError("out of memory"), made()]
    done = run.synthesise(["snow"], [picture], str(tmp_path / "o"), recipe())
    assert [row["synth_verdict"] for row in rows(done.out)] == ["retry", "retry", "accepted"]
    assert rows(done.out)[0]["reject"].startswith("nothing changes: share of the picture 0")
    assert rows(done.out)[1]["reject"] == "not made: RuntimeError: out of memory"
    assert len(set(seeds)) == 3
    assert not done.failures


@pytest.mark.parametrize(
    "trouble", [ModelFailed("m gave NaN or infinity in 5 of 9 pixels"), ModelFailed("m gave nothing within 1 s"), KeyError("x")]
)
def test_a_backend_that_keeps_failing_ends_in_a_rejected_row(maker, picture, tmp_path, trouble):
    maker[0].extend([trouble] * 3)
    done = run.synthesise(["snow"], [picture], str(tmp_path / "o"), recipe())
    assert [row["synth_verdict"] for row in rows(done.out)] == ["retry", "retry", "rejected"]
    assert all(row["reject"] == f"not made: {type(trouble).__name__}: {trouble}" for row in rows(done.out))
    assert (done.kept, done.rejected, done.failures) == (0, 3, [])


def test_a_model_is_asked_where_the_signals_find_nothing(maker, picture, tmp_path, serve):
    answers = [
        {"happened": False, "end_state_holds": False, "evidence": "no flakes"},
        {"happened": True, "end_state_holds": True, "evidence": "flakes in frame 6"},
    ]
    server = serve(lambda body, number: serve.say(json.dumps(answers[number])))
    maker[0].extend([made(happens=False), made(), made(by=5)])
    load.cache_clear()
    vlm = VlmSettings("http", "some-vlm", server=ServerSettings(url=server.url, retries=0, timeout_s=5.0))
    done = run.synthesise(["snow"], [picture], str(tmp_path / "o"), recipe(vlm=vlm))
    assert [row["synth_verdict"] for row in rows(done.out)] == ["retry", "retry", "accepted"]
    assert rows(done.out)[1]["reject"] == "the model sees no such interaction: no flakes"
    assert json.loads(rows(done.out)[2]["synth_answer"]) == answers[1]
    assert len(server.bodies) == 2
    labels = [part["text"] for part in server.bodies[0]["messages"][0]["content"] if part["type"] == "text"]
    assert {word for label in labels for word in ("before", "during", "after") if f"{word} the action" in label} == {
        "before",
        "during",
        "after",
    }


def test_a_refused_request_is_not_tried_again(maker, picture, tmp_path):
    maker[0].append(strategies.Refused("there is no door"))
    done = run.synthesise(["open_door"], [picture], str(tmp_path / "o"), recipe())
    (row,) = rows(done.out)
    assert (row["synth_verdict"], row["reject"]) == ("rejected", "refused: there is no door")


def test_a_server_that_is_gone_leaves_the_attempt_to_the_next_run(maker, picture, tmp_path):
    maker[0].append(ConnectionError("no model answers"))
    first = run.synthesise(["snow"], [picture], str(tmp_path / "o"), recipe())
    assert [record.failure for record in first.failures] == ["ConnectionError: no model answers"]
    assert first.clips == 0
    again = run.synthesise(["snow"], [picture], str(tmp_path / "o"), recipe())
    assert (again.clips, again.kept, again.failures) == (1, 1, [])


def test_a_second_run_makes_nothing_again_and_more_interactions_add(maker, picture, tmp_path):
    out = str(tmp_path / "o")
    run.synthesise(["snow"], [picture], out, recipe())
    again = run.synthesise(["snow"], [picture], out, recipe())
    assert again.records == []
    more = run.synthesise(["snow", "rain"], [picture], out, recipe())
    assert len([record for record in more.records if record.phase == "generate"]) == 1
    assert (more.clips, more.shards) == (2, 2)
    assert len(maker[1]) == 2


def test_footage_and_made_clips_share_an_output(maker, picture, raw, tmp_path):
    out = str(tmp_path / "o")
    curated = run.curate([str(raw / "b.mp4")], out, recipe())
    both = run.synthesise(["snow"], [picture], out, recipe())
    assert (both.kept, both.shards) == (curated.kept + 1, 2)
    kinds = {row["source"] for row in ledger.clips(out).to_pylist()}
    assert kinds == {"curated", "synthetic"}
    from_clips = run.synthesise(["rain"], [out], str(tmp_path / "p"), recipe())
    assert rows(from_clips.out)[0]["synth_frame"].startswith("clip:")


def test_categories_are_balanced_by_recipe_and_what_is_over_waits(maker, picture, tmp_path):
    how = recipe()
    how = replace(how, shard=replace(how.shard, max_category_ratio=1.0))
    out = str(tmp_path / "o")
    one = run.synthesise(["snow", "rain", "human"], [picture], out, how)
    assert (one.kept, one.stored) == (3, 2)
    assert shards.read_dataset(out)["counts"]["stored_by_category"] == {"synthetic/entity": 1, "synthetic/environment": 1}
    more = run.synthesise(["snow", "rain", "human", "dog"], [picture], out, how)
    assert (more.kept, more.stored) == (4, 4)


def test_the_report_shows_strips_and_reasons(maker, picture, tmp_path):
    maker[0].append(made(happens=False))
    done = run.synthesise(["snow"], [picture], str(tmp_path / "o"), recipe())
    page = Path(write_report(done.out)).read_text()
    assert page.count('class="five"') == 2
    assert "nothing changes: share of the picture 0 &lt; 0.04" in page
    assert "some model, attempt 2" in page


@pytest.mark.parametrize(
    ("interactions", "frames", "said"),
    [(["sonw"], ["paint"], "unknown interaction 'sonw'"), (["snow"], ["/no/such"], "no picture found")],
)
def test_what_the_user_got_wrong_is_said(interactions, frames, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        run.synthesise(interactions, frames, str(tmp_path / "o"), recipe())


def test_equal_seeds_and_recipe_give_equal_ids_and_bytes(tmp_path):
    pytest.importorskip("vizdoom", reason='the game engine is in the extra "demo"')
    how = recipe(procedural=ProceduralSettings(seconds=4.0, width=320, height=240))
    outs = [run.synthesise(["fog"], ["doom:freedoom2:MAP02"], str(tmp_path / name), how).out for name in "ab"]
    assert [row["clip_id"] for row in rows(outs[0])] == [row["clip_id"] for row in rows(outs[1])]
    assert rows(outs[0])[-1]["synth_verdict"] == "accepted"
    assert rows(outs[0])[-1]["synth_truth"].startswith("true: fog at MAP02")
    files = [{f.name: f.read_bytes() for f in sorted((Path(out) / "shards").iterdir())} for out in outs]
    assert files[0] == files[1]


def test_settings_that_name_requests_do_not_name_what_was_made():
    assert recipe(each=2).digest("generate") == recipe(each=5).digest("generate")
    assert recipe().digest("generate") != recipe(procedural=ProceduralSettings(seconds=6.0)).digest("generate")
    assert replace(recipe(), score=recipes.Score()).digest("partition") == recipe().digest("partition")


def test_the_digest_of_footage_does_not_depend_on_synthesis():
    other = recipe(models=ModelSettings(animator="x"))
    assert all(recipe().digest(phase) == other.digest(phase) for phase in recipes.CLIP_PHASES[:-1])


def test_a_frame_is_named_by_its_content():
    assert InitialFrame("/a/b.png").kind == "picture"
    assert [InitialFrame(name).kind for name in ("doom:freedoom2:MAP01", "clip:abc@1.00", "paint")] == ["doom", "clip", "paint"]
