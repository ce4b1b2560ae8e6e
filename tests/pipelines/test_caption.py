"""Captions and interactions in the pipeline: without a model, and with a server that answers, errs, dies and comes back."""

import json
import shutil
from dataclasses import replace

import pytest

from curation import shards, source_files, vlm
from curation.captions import embeddings
from curation.vlm import ServerSettings, VlmSettings
from curation.vlm.frames import FrameSettings, grab_frames
from pipelines import ledger, phases, planning, recipes, run, sources
from pipelines.phases import Phase

BEFORE = ["partition", "score", "annotate"]
TOLD = [*BEFORE, "caption", "relate"]


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """The local runner's work in this process."""
    monkeypatch.setattr(run.runners, "run_local", lambda phase, todo, show: (phases.work(phase, unit) for unit in todo))
    vlm.load.cache_clear()
    embeddings.load_encoder.cache_clear()
    grab_frames.cache_clear()


@pytest.fixture(scope="session")
def film(make_video, tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("film") / "film.mp4", seconds=19, seed=4)


@pytest.fixture(scope="session")
def scored(film, tmp_path_factory):
    """An output as it is before anything is said about its clips."""
    out = tmp_path_factory.mktemp("scored") / "o"
    made = [phases.work(unit_phase, unit) for unit_phase, unit in _units(film, str(out))]
    assert all(record.failure is None for record in made)
    return out


def _units(film, out):
    recipe = recipes.smoke()
    run._write_dataset(out, recipe, [], {})
    for name in BEFORE:
        listing = sources.Listing(source_files.find_sources([film], exclude=out), recipe)
        for group in planning.pending_units(name, out, recipe, listing):
            yield from ((Phase(name, recipe, out), unit) for unit in group.units)


@pytest.fixture
def out(scored, tmp_path):
    shutil.copytree(scored, tmp_path / "o")
    return str(tmp_path / "o")


def measured():
    return recipes.smoke()


def asking(url, rules=None, **vlm):
    smoke = recipes.smoke()
    server = ServerSettings(url, retries=1, backoff_s=0.01, timeout_s=2.0)
    model = VlmSettings("http", "a-model", server=server, **vlm)
    caption = replace(smoke.caption, vlm=model, frames=FrameSettings(count=4, width_px=112))
    return replace(smoke, caption=replace(caption, consistency=replace(caption.consistency, **(rules or {}))))


def one_at_a_time(url):
    """Questions come in a known order: the check of every clip, then every caption."""
    recipe = asking(url)
    model = replace(recipe.caption.vlm, server=replace(recipe.caption.vlm.server, concurrency=1))
    return replace(recipe, caption=replace(recipe.caption, vlm=model))


def willing(serve):
    """A server that answers every question with something that fits."""
    return serve(lambda body, number: serve.say(json.dumps(serve.fitting(_schema(body))), 100, 50))


def _schema(body):
    return body["response_format"]["json_schema"]["schema"]


def kept(out):
    return ledger.kept_clips(ledger.clips(out)).to_pylist()


def curate(film, out, recipe, names=TOLD):
    return run.curate([film], out, recipe, phases=names)


def test_without_a_model_captions_are_measured_and_everything_says_so(film, out):
    done = curate(film, out, measured(), [*TOLD, "shard"])
    rows = kept(out)
    assert len(rows) == done.stored >= 3
    for row in rows:
        assert row["caption_source"] == "measured"
        assert row["caption_short"].startswith("The camera ")
        assert row["consistency_status"] == "skipped: no VLM is configured"
        assert row["consistency_flags"] is row["caption_error"] is None
        assert row["interactive_source"] == "measured"
    said = dict(done.notes)
    assert said["semantic check"] == f"{len(rows)} skipped: no VLM is configured"
    assert said["captions"] == f"{len(rows)} measured"
    assert "VLM" not in said
    assert not any(record.vlm.get("calls") for record in done.records)


def test_a_recipe_may_show_clips_as_videos_and_pairs_of_clips_stay_images(film, out, serve):
    pytest.importorskip("qwen_vl_utils")
    server = willing(serve)
    recipe = asking(server.url)
    frames = FrameSettings(width_px=112, form="video", fps=1.0, total_pixels=100_000)
    done = curate(film, out, replace(recipe, caption=replace(recipe.caption, frames=frames)))
    assert done.failures == []
    assert {row["caption_source"] for row in kept(out)} == {"a-model"}
    contents = [body["messages"][0]["content"] for body in server.bodies]
    kinds = [tuple(part["type"] for part in content) for content in contents]
    about_clips = ("text", "video_url", "text")
    assert set(kinds) == {about_clips, (*("text", "image_url") * 4, "text")}
    assert kinds.count(about_clips) == 3 * len(kept(out))
    labels = [content[0]["text"] for content, kind in zip(contents, kinds, strict=True) if kind == about_clips]
    assert all(label.startswith("A video of ") and "frames, one every" in label for label in labels)


def test_captions_and_interactions_go_into_the_shards(film, out):
    curate(film, out, measured(), [*TOLD, "shard"])
    rows = {row["clip_id"]: row for row in kept(out)}
    samples = [sample for name in shards.list_committed(out) for sample in shards.read_samples(out, name)]
    assert {sample.clip_id for sample in samples} == set(rows)
    for sample in samples:
        row = rows[sample.clip_id]
        for name in ("caption_short", "caption_long", "caption_json", "caption_source", "interactive"):
            assert sample.meta.get(name) == row[name]
        assert sample.meta.get("interaction_caption") == row["interaction_caption"]


def test_neighbours_in_the_source_are_related_and_the_last_clip_is_not(film, out):
    curate(film, out, measured())
    rows = kept(out)
    assert [row["interaction_next"] for row in rows] == [*(row["clip_id"] for row in rows[1:]), None]
    assert [bool(row["interaction_caption"]) for row in rows] == [True] * (len(rows) - 1) + [False]


def test_a_model_is_asked_three_questions_a_clip_and_one_a_pair(film, out, serve):
    server = willing(serve)
    done = curate(film, out, asking(server.url))
    rows = kept(out)
    names = [body["response_format"]["json_schema"]["name"] for body in server.bodies]
    assert {name: names.count(name) for name in names} == {
        "consistency": len(rows), "caption": len(rows), "interaction": len(rows), "between": len(rows) - 1,
    }  # fmt: skip
    for row in rows:
        assert (row["caption_source"], row["action_source"], row["interactive_source"]) == ("a-model",) * 3
        assert row["consistency_status"] == "checked"
        assert row["caption_short"] == "something"
        assert row["interaction_category"] == "environment"
    assert sum(record.vlm["prompt_tokens"] for record in done.records if record.vlm) == 100 * len(names)
    assert dict(done.notes)["VLM"].startswith(f"{len(names)} calls, 0 from the cache; {150 * len(names):,} tokens")
    assert "by a-model" in dict(done.notes)["captions"]
    assert {record.decodes.get("vlm", 0) for record in done.records if record.phase == "caption"} == {len(rows)}


def test_frames_are_sent_with_the_questions_and_the_facts_are_told(film, out, serve):
    server = willing(serve)
    curate(film, out, asking(server.url))
    for body in server.bodies:
        parts = body["messages"][0]["content"]
        assert [part["type"] for part in parts].count("image_url") == 4
        assert "Measured" in parts[-1]["text"]
        assert "A clip of " in parts[-1]["text"]


def test_another_rule_asks_nothing_again(film, out, serve):
    server = willing(serve)
    curate(film, out, asking(server.url))
    asked = len(server.bodies)
    done = curate(film, out, asking(server.url, {"watermark": "ignore"}))
    assert len(server.bodies) == asked
    assert [record.phase for record in done.records] == ["caption", "relate"]
    assert sum(record.vlm["cached"] for record in done.records) == asked
    assert curate(film, out, asking(server.url, {"watermark": "ignore"})).records == []


def test_a_server_at_another_address_is_the_same_recipe(film, out, serve):
    curate(film, out, asking(willing(serve).url))
    assert curate(film, out, asking(willing(serve).url)).records == []


def met(body, name):
    """The answers of a check in which one criterion is met."""
    fine = {"present": False, "frames": [], "evidence": ""}
    return dict.fromkeys(_schema(body)["properties"], fine) | {
        name: {"present": True, "frames": [1], "evidence": "a list of items"}
    }


def test_a_clip_that_fails_the_semantic_check_is_rejected_with_the_evidence_and_has_no_neighbours(film, out, serve):
    server = serve(lambda body, n: serve.say(json.dumps(met(body, "menu") if n == 1 else serve.fitting(_schema(body)))))
    curate(film, out, one_at_a_time(server.url))
    rows = ledger.clips(out).to_pylist()
    assert rows[1]["reject"] == "menu: a list of items (frame 1)"
    assert rows[1]["consistency_flags"] == ["menu"]
    assert rows[1]["caption_source"] is None  # not asked about any more
    assert rows[0]["interaction_next"] is None
    assert rows[2]["interaction_next"] == (rows[3]["clip_id"] if len(rows) > 3 else None)


def broken_for_captions(serve, reply):
    def answer(body, number):
        bad = body["response_format"]["json_schema"]["name"] == "caption"
        return reply if bad else serve.say(json.dumps(serve.fitting(_schema(body))))

    return serve(answer)


def test_a_clip_without_a_valid_caption_keeps_the_measured_one_and_the_reason(film, out, serve):
    done = curate(film, out, asking(broken_for_captions(serve, serve.say("I cannot help with that.")).url))
    rows = kept(out)
    assert len(rows) >= 3
    for row in rows:
        assert row["caption_source"] == "measured"
        assert row["caption_error"].startswith("the reply is not JSON")
        assert row["action_source"] == "a-model"
    assert dict(done.notes)["no valid answer"] == f"{len(rows)} the reply is not JSON"


def test_the_recipe_may_want_clips_without_a_valid_caption_out(film, out, serve):
    server = broken_for_captions(serve, serve.status(500, b"no"))
    curate(film, out, asking(server.url, on_error="reject"))
    assert kept(out) == []
    assert {row["reject"] for row in ledger.clips(out).to_pylist()} == {"no caption: the server answered 500: no"}


def test_a_server_that_is_gone_fails_the_unit_and_the_next_run_asks_only_what_is_missing(film, out, serve):
    server = serve(None)

    def dies(body, number):
        if number == 3:
            server._http.socket.close()
        return serve.say(json.dumps(serve.fitting(_schema(body)))) if number < 4 else serve.cut_off

    server.answer = dies
    first = curate(film, out, one_at_a_time(server.url), [*TOLD, "shard"])
    assert [record.phase for record in first.failures] == ["caption"]
    assert "no VLM answers at" in first.failures[0].failure
    assert (first.stored, shards.list_plans(out)) == (0, [])
    total = len(kept(out))
    answered = {json.dumps(body["messages"]) for body in server.bodies[:4]}
    again = willing(serve)
    vlm.load.cache_clear()
    second = curate(film, out, asking(again.url), [*TOLD, "shard"])
    assert second.failures == []
    assert second.stored == len(kept(out)) == total
    asked = {json.dumps(body["messages"]) for body in again.bodies}
    assert not answered & asked
    assert len(answered | asked) == 4 * total - 1
    assert len(asked) == len(again.bodies)


def test_a_refused_key_fails_the_unit_and_the_next_run_asks_again(film, out, serve, monkeypatch):
    def answer(body, number):
        right = server.headers[number].get("Authorization") == "Bearer right"
        return serve.say(json.dumps(serve.fitting(_schema(body)))) if right else serve.status(401, b"Incorrect API key")

    server = serve(answer)
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    first = curate(film, out, asking(server.url), TOLD)
    assert [record.phase for record in first.failures] == ["caption"]
    assert "Unavailable: the VLM at" in first.failures[0].failure
    assert "set the environment variable OPENAI_API_KEY" in first.failures[0].failure
    assert not any(row["caption_error"] for row in ledger.clips(out).to_pylist()), "no clip's reason"
    monkeypatch.setenv("OPENAI_API_KEY", "right")
    second = curate(film, out, asking(server.url), TOLD)
    assert second.failures == []
    assert {row["caption_source"] for row in kept(out)} == {"a-model"}


def test_engines_on_a_cluster_need_the_cluster(film, out):
    engines = replace(measured(), caption=replace(measured().caption, vlm=VlmSettings("vllm", "a-model")))
    with pytest.raises(ValueError, match=r"backend vllm runs engines on a Ray cluster: use --runner ray, or backend http"):
        curate(film, out, engines)


def test_a_changed_caption_recipe_is_allowed_until_shards_are_planned(film, out, serve):
    curate(film, out, measured(), [*TOLD, "shard"])
    with pytest.raises(ValueError, match=r"was made with another recipe \(caption.vlm.backend: none, now http"):
        curate(film, out, asking(willing(serve).url))
