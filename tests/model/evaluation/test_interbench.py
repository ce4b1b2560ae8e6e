"""InterBench: the test set, the scales, table 5's arithmetic, and a run with judges that are programs or tiny models."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from curation.errors import InputError
from curation.vlm import Reply, VlmSettings
from model.evaluation.cases import read_cases, write_cases
from model.evaluation.interbench import judge, scores, suite
from model.evaluation.interbench.judge import JudgeSettings, shown_times
from model.evaluation.interbench.results import BenchSettings
from model.evaluation.interbench.run import run
from model.evaluation.interbench.scores import DIMENSIONS, SCALE, VideoScore, aggregate, apply_trigger, overall
from model.evaluation.run import interbench, judge_model
from synth import taxonomy

JUDGE = BenchSettings("ours", JudgeSettings(VlmSettings("http", "program"), frames=4, width_px=80))


def images(count, kind="scene"):
    return [suite.BenchImage(f"{kind}{k:03}", f"/{kind}{k}.png", f"Scene {k}.") for k in range(count)]


def test_the_papers_images_give_the_counts_of_table_3():
    cases = list(suite.cases(images(100), images(20, "door")))
    counts = {name: sum(case.subset.name == name for case in cases) for name in suite.subsets()}
    assert counts == {name: subset.count for name, subset in suite.subsets().items()}
    assert len(counts) == 20
    assert sum(counts.values()) == 1320
    assert {c.image.id[:4] for c in cases if c.subset.name == "open_door"} == {"door"}
    assert cases[0].prompt == "Scene 0. It starts to snow."


def test_the_test_set_is_that_of_the_synthesis():
    """Table 3 is in two places, since the packages do not share data; they must not drift apart."""
    paper = {
        one.name: (one.category, one.sub_category.lower(), one.level, one.paper_count) for one in taxonomy.paper_interactions()
    }
    ours = {n: (s.category, s.sub_category.lower(), s.level, s.count) for n, s in suite.subsets().items()}
    assert ours == paper


def test_images_of_a_user(tmp_path):
    for name in ("a.png", "b.JPG", "notes.md", "doors/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a.txt").write_text("A street\nat night.\n")
    scenes, doors = suite.read_images(str(tmp_path))
    assert [(i.id, i.base_prompt) for i in scenes] == [("a", "A street at night."), ("b", "")]
    assert [i.id for i in doors] == ["c"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no picture"):
        suite.read_images(str(tmp_path / "empty"))


def test_the_overall_formula():
    """Worked by hand for the first and the last row of table 5: (4.81 + 21.748) / 6 and (4.72 + 20.772) / 6."""
    rows = {(c, m): values for c, m, *values in scores.table5()}
    assert overall(rows["environment", "GameCraft-2"]) == pytest.approx(26.558 / 6)
    assert overall(rows["entity", "GameCraft-2"]) == pytest.approx(25.492 / 6)
    assert overall([1, 5, 5, 5, 5, 5]) == pytest.approx(5)
    assert overall([0] * 6) == 0


def test_the_numbers_that_the_papers_text_derives_from_table_5():
    rows = {(c, m): dict(zip(DIMENSIONS, values, strict=True)) for c, m, *values in scores.table5()}

    def margin(category, name):
        others = [values[name] for (c, m), values in rows.items() if c == category and m != "GameCraft-2"]
        return rows[category, "GameCraft-2"][name] - max(others)

    assert margin("environment", "physics") == pytest.approx(0.683)
    assert margin("entity", "physics") == pytest.approx(0.524)
    assert margin("actor", "fluency") == pytest.approx(0.70, abs=0.005)
    assert margin("actor", "end_state") == pytest.approx(0.63, abs=0.005)
    for values in rows.values():
        assert all(values[name] <= 5 * values["trigger"] for name in DIMENSIONS[1:])


def videos_with(means, subset, count=1000):
    """Videos whose scores have exactly these means, under the rule of the trigger."""
    triggered = round(means[0] * count)
    table = np.zeros((count, 6))
    table[:triggered, 0] = 1
    for column, mean in enumerate(means[1:], start=1):
        left = round(mean * count)
        for row in range(triggered):
            table[row, column] = next(v for v in (5, 3, 1, 0) if v <= left)
            left -= table[row, column]
        assert left == 0
    return [VideoScore(f"{subset}/{k}", subset, tuple(row)) for k, row in enumerate(table.tolist())]


@pytest.mark.parametrize("method", ["GameCraft-2", "HunyuanVideo"])
def test_means_over_videos_reproduce_table_5(method, monkeypatch):
    monkeypatch.setattr(scores, "bootstrap", lambda *_: scores.Interval(0, 0))
    wanted = {c: values for c, m, *values in scores.table5() if m == method}
    first = {c: next(n for n, s in suite.subsets().items() if s.category == c) for c in wanted}
    groups = {g.name: g for g in aggregate([v for c, means in wanted.items() for v in videos_with(means, first[c])])}
    for category, means in wanted.items():
        assert groups[category].means == pytest.approx(means)
        assert groups[category].overall == pytest.approx(overall(means))
    assert groups["all"].means == pytest.approx(np.mean(list(wanted.values()), 0))
    assert groups["all"].videos == 3000


def test_subsets_of_different_size_weigh_the_same_or_by_their_videos():
    videos = [VideoScore(f"a{k}", "snow", (1.0, 5, 5, 5, 5, 5)) for k in range(3)] + [VideoScore("b", "rain", (0.0,) * 6)]
    by_subset = {g.name: g for g in aggregate(videos)}
    by_video = {g.name: g for g in aggregate(videos, "video")}
    assert by_subset["environment"].overall == pytest.approx(2.5)
    assert by_video["environment"].overall == pytest.approx(3.75)
    low, high = by_subset["environment"].interval
    assert low - 1e-9 <= 2.5 <= high + 1e-9


def test_a_video_without_a_valid_reply_is_never_a_zero():
    videos = [VideoScore("a", "snow", (1.0, 5, 5, 5, 5, 5)), VideoScore("b", "snow", None), VideoScore("c", "rain", None)]
    groups = {g.name: g for g in aggregate(videos)}
    assert groups["snow"].overall == pytest.approx(5)
    assert (groups["snow"].videos, groups["snow"].invalid) == (1, 1)
    assert np.isnan(groups["rain"].overall)
    assert groups["all"].overall == pytest.approx(5)
    assert (groups["all"].videos, groups["all"].invalid) == (1, 2)


def test_the_scales():
    rng = np.random.default_rng(3)
    for _ in range(300):
        drawn = {n: int(rng.choice((0, 1) if n == "trigger" else SCALE)) for n in DIMENSIONS}
        applied = apply_trigger(drawn)
        assert applied == (drawn if drawn["trigger"] else dict.fromkeys(DIMENSIONS, 0))
        assert 0 <= overall(list(applied.values())) <= 5
        better = apply_trigger(drawn | {"align": 5})
        assert overall(list(better.values())) >= overall(list(applied.values()))
    for name, wrong in (("trigger", 5), ("align", 2), ("physics", 4), ("scope", -1)):
        with pytest.raises(ValueError, match=name):
            apply_trigger(dict.fromkeys(DIMENSIONS, 1) | {name: wrong})


def test_every_repeat_shows_both_ends_and_other_moments_between():
    shown = [shown_times(9.3, 16, repeat, 3) for repeat in range(3)]
    assert all(times[0] == 0 and times[-1] == pytest.approx(9.299) for times in shown)
    assert all(list(times) == sorted(times) and len(set(times)) == 16 for times in shown)
    assert len({times[5] for times in shown}) == 3
    assert shown_times(9.3, 16, 0, 1)[1] == pytest.approx(9.299 / 15)


def test_the_question_names_everything_that_is_judged():
    subset = suite.find_subset("snow")
    prompt = judge.question(subset, 'A "quiet" street.', "", [b"x", b"y"], ["Frame 1:", "Frame 2:"])
    assert "A 'quiet' street. It starts to snow." in prompt.text
    assert judge.rubric_hash() in prompt.text
    assert "{" not in prompt.text
    for part in judge.rubric()["dimensions"].values():
        assert all(text in re.sub(r"\s+", " ", prompt.text) for text in part["levels"].values())
    assert list(prompt.schema["properties"]) == list(DIMENSIONS)


def test_a_run_from_folder_to_page(film, program, tmp_path):
    folder = film("snow/a", "lasting")
    film("snow/b", "still", seed=1)
    film("draw_gun/a-7", "vanishing", seed=2)
    vlm = program.use(lambda prompt, _: program.reply(fluency=3, scope=1))
    summary = run(read_cases(folder), str(tmp_path / "out"), JUDGE, log=lambda _: None)
    assert len(vlm.prompts) == 3
    groups = {g["name"]: g for g in summary["groups"]}
    assert groups["snow"]["videos"] == 2
    assert groups["snow"]["overall"] == pytest.approx((5 + 5 + 3 + 1 + 5 + 5) / 6)
    assert summary["rubric"]["hash"] == judge.rubric_hash()
    assert summary["cost"] == {
        "replies": 3, "new_questions": 3, "invalid": 0, "forced_to_zero": 0, "prompt_tokens": 30, "completion_tokens": 15,
    }  # fmt: skip
    page = (tmp_path / "out" / "report.html").read_text()
    assert "../videos/snow/a.mp4" in page
    assert "GameCraft-2, paper: Actor Actions" in page
    assert "triggered, but nothing changes" in page  # the still video
    assert "end state 5, but the change is gone" in page  # the vanishing one
    csv = (tmp_path / "out" / "interbench.csv").read_text()
    assert csv.splitlines()[0].startswith("row,kind,Trigger,Align")
    assert r"\toprule" in (tmp_path / "out" / "interbench.tex").read_text()


def test_a_killed_run_asks_no_question_twice(film, program, tmp_path):
    for k in range(10):
        folder = film(f"snow/{k}", seed=k)

    def killed(prompt, number):
        if number == 5:
            raise KeyboardInterrupt
        return "no JSON" if number == 3 else program.reply()

    first = program.use(killed)
    with pytest.raises(KeyboardInterrupt):
        run(read_cases(folder), str(tmp_path / "out"), JUDGE, log=lambda _: None)
    second = program.use(lambda *_: program.reply())
    summary = run(read_cases(folder), str(tmp_path / "out"), JUDGE, log=lambda _: None)
    answered = {p.cache_key("program") for p in first.prompts[:5]}
    again = [p.cache_key("program") for p in second.prompts]
    assert not answered & set(again)
    assert len(again) == 10 - 5 + 1  # the reply that did not fit is asked about once, with the reason
    assert summary["cost"]["invalid"] == 0
    third = program.use(lambda *_: program.reply())
    assert run(read_cases(folder), str(tmp_path / "out"), JUDGE, log=lambda _: None)["groups"] == summary["groups"]
    assert third.prompts == []


def test_ceilings_are_judged_and_stand_in_the_tables(film, program, tmp_path):
    film("snow/a", "lasting", folder="real")
    folder = film("snow/a", "vanishing")
    film("snow/b", seed=1)
    film("snow/c", seed=2)
    cases = [
        replace(case, real=str(tmp_path / "real/snow/a.mp4") if case.name == "snow/a" else "") for case in read_cases(folder)
    ]
    vlm = program.use(lambda *_: program.reply(fluency=3))
    settings = replace(JUDGE, ceilings=2)
    summary = run(cases, str(tmp_path / "out"), settings, log=lambda _: None)
    assert len(vlm.prompts) == 3 + 1 + 2 + 2  # the model's, the real one, two coded, two still
    assert summary["videos"] == 3
    assert summary["cost"]["replies"] == 8
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "interbench.csv").read_text())))
    ceilings = {row["row"]: (row["Fluency"], row["Videos"]) for row in rows if row["kind"] == "ceiling"}
    assert ceilings["real, first frame repeated"] == ("3", "1")
    assert len(ceilings) == 5
    signals = (tmp_path / "out" / "signals.md").read_text()
    assert "*real, first frame repeated* (ceiling)" in signals
    assert "*the model's, coded again* (ceiling)" in signals
    again = program.use(lambda *_: program.reply())
    run(cases, str(tmp_path / "out"), settings, log=lambda _: None)
    assert again.prompts == []


def test_an_invalid_reply_is_invalid_and_kept_with_its_text(film, program, tmp_path):
    folder = film("snow/a")
    program.use(lambda *_: "the gun is drawn, 5 of 5")
    summary = run(read_cases(folder), str(tmp_path / "out"), JUDGE, log=lambda _: None)
    assert summary["cost"]["invalid"] == 1
    (group, *_) = summary["groups"]
    assert (group["videos"], group["invalid"], group["overall"]) == (0, 1, None)
    (stored,) = (tmp_path / "out" / "videos").iterdir()
    (one,) = json.loads(stored.read_text())["judgements"]
    assert one["scores"] is None
    assert one["raw"] == ["the gun is drawn, 5 of 5"] * 2
    assert "not JSON" in one["error"]
    assert "No valid judgement" in (tmp_path / "out" / "report.html").read_text()


def test_a_server_that_fails_is_asked_again_by_the_next_run(film, program, tmp_path):
    folder = film("snow/a")
    program.use(lambda *_: Reply(error="timed out"))
    assert run(read_cases(folder), str(tmp_path / "out"), JUDGE, log=lambda _: None)["cost"]["invalid"] == 1
    program.use(lambda *_: program.reply())
    assert run(read_cases(folder), str(tmp_path / "out"), JUDGE, log=lambda _: None)["cost"]["invalid"] == 0


def test_without_a_trigger_everything_is_zero_and_counted(film, program, tmp_path):
    folder = film("snow/a")
    program.use(lambda *_: program.reply(trigger=0, align=3))
    summary = run(read_cases(folder), str(tmp_path / "out"), JUDGE, log=lambda _: None)
    assert summary["cost"]["forced_to_zero"] == 1
    assert summary["groups"][0]["overall"] == 0


def test_repeats_agree_as_much_as_they_do(film, program, tmp_path):
    folder = film("snow/a")
    film("snow/b", seed=5)
    settings = BenchSettings("ours", JudgeSettings(VlmSettings("http", "program"), frames=4, width_px=80, repeats=3))
    program.use(lambda prompt, _: program.reply(fluency=3 if prompt.name.endswith("2") else 5))
    summary = run(read_cases(folder), str(tmp_path / "out"), settings, log=lambda _: None)
    assert summary["agreement"]["fluency"]["equal_pairs"] == pytest.approx(1 / 3)
    assert summary["agreement"]["align"] == {"equal_pairs": 1.0, "alpha": None}
    assert summary["groups"][0]["fluency"] == pytest.approx(13 / 3)


def test_another_rubric_is_another_question(film, program, tmp_path, monkeypatch):
    folder = film("snow/a")
    program.use(lambda *_: program.reply())
    run(read_cases(folder), str(tmp_path / "out"), JUDGE, log=lambda _: None)
    monkeypatch.setattr(judge, "rubric_hash", lambda: "another")
    vlm = program.use(lambda *_: program.reply(align=1))
    assert run(read_cases(folder), str(tmp_path / "out"), JUDGE, log=lambda _: None)["groups"][0]["align"] == 1
    assert len(vlm.prompts) == 1


def test_without_a_judge_there_are_signals(film, tmp_path):
    folder = film("snow/a", "lasting")
    film("rain/a", "jump")
    summary = interbench(folder, str(tmp_path / "out"), BenchSettings("ours"), log=lambda _: None)
    assert summary["groups"] == []
    table = (tmp_path / "out" / "signals.md").read_text()
    assert "Snow" in table
    assert "Rain" in table
    assert not (tmp_path / "out" / "interbench.csv").exists()


def test_a_video_that_cannot_be_read_is_named(film, program, tmp_path):
    folder = film("snow/a")
    (Path(folder) / "snow" / "b.mp4").write_bytes(b"no video")
    program.use(lambda *_: program.reply())
    summary = run(read_cases(folder), str(tmp_path / "out"), JUDGE, log=lambda _: None)
    assert [row["name"] for row in summary["unreadable"]] == ["snow/b"]
    assert summary["groups"][0]["invalid"] == 1


def test_cases_are_written_and_read_again(film, tmp_path):
    folder = film("snow/a-3")
    (case,) = read_cases(folder)
    assert (case.subset, case.image, case.seed) == ("snow", "a", 3)
    write_cases(folder, [case])
    assert read_cases(folder) == [case]
    with pytest.raises(InputError, match="no video there of rain"):
        read_cases(folder, ["rain"])
    (Path(folder) / "cases.jsonl").write_text('{"video": "x.mp4", "colour": 1}\n')
    with pytest.raises(InputError, match=r"line 1: unknown fields \['colour'\]"):
        read_cases(folder)


def test_a_folder_that_names_no_subset_is_refused(film, tmp_path):
    folder = film("elsewhere")
    with pytest.raises(InputError, match="SUBSET/IMAGE"):
        interbench(folder, str(tmp_path / "out"), JUDGE)
    folder = film("flying/a", folder="other")
    with pytest.raises(InputError, match="unknown subset 'flying'"):
        interbench(folder, str(tmp_path / "out"), JUDGE)


def test_the_judge_on_the_command_line():
    assert judge_model("") == VlmSettings()
    http = judge_model("http:Qwen/Qwen2.5-VL-7B-Instruct@http://127.0.0.1:9/v1")
    assert (http.backend, http.model, http.server.url) == ("http", "Qwen/Qwen2.5-VL-7B-Instruct", "http://127.0.0.1:9/v1")
    assert judge_model("transformers:/models/judge").model == "/models/judge"
    for wrong in ("judge", "fax:judge", "http:", "vllm:judge"):
        with pytest.raises(InputError, match="--vlm"):
            judge_model(wrong)
