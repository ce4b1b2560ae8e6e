"""The input and output of the engines. The engines themselves run in `make test-vlm`."""

import json

import cv2
import numpy as np
import pyarrow as pa
import pytest

from curation.errors import Unavailable
from curation.vlm import EngineSettings, Prompt, VideoForm, VlmSettings, answers
from operators import vllm

SCHEMA = {"type": "object", "properties": {"keep": {"type": "boolean"}}}


@pytest.fixture(autouse=True)
def no_cache():
    yield
    answers.use_folder(None)


def test_questions_become_rows_and_equal_ones_one_row():
    one, other = Prompt("q", "Keep?", SCHEMA, (b"jpeg",), ("Frame 1:",)), Prompt("q", "Why?", SCHEMA)
    prompts = {"u1": [one, other], "u2": [one]}
    rows = vllm._prompt_rows(prompts.get, "m")(pa.table({"unit": ["u1", "u2"]})).to_pylist()
    assert [row["key"] for row in rows] == [one.cache_key("m"), other.cache_key("m")]
    parts = json.loads(rows[0]["chat"])[0]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "text"]
    assert json.loads(rows[0]["schema"]) == SCHEMA
    assert json.loads(rows[0]["processor_options"]) is None


def test_a_video_carries_the_rate_of_its_frames_to_the_engine():
    pytest.importorskip("qwen_vl_utils")
    frame = bytes(cv2.imencode(".jpg", np.full((90, 120, 3), 90, np.uint8))[1])
    moving = Prompt("q", "Keep?", SCHEMA, (frame,) * 4, ("A video.",), video=VideoForm(2.0, 100_000))
    (row,) = vllm._prompt_rows({"u": [moving]}.get, "m")(pa.table({"unit": ["u"]})).to_pylist()
    assert [part["type"] for part in json.loads(row["chat"])[0]["content"]] == ["text", "video_url", "text"]
    assert json.loads(row["processor_options"]) == {"fps": 2.0, "do_sample_frames": False}
    images, videos = (vllm._engine_arguments(EngineSettings(), videos=videos) for videos in (False, True))
    assert (images["limit_mm_per_prompt"]["video"], videos["limit_mm_per_prompt"]["video"]) == (0, 1)
    assert videos["media_io_kwargs"] == {"video": {"num_frames": -1}}


def test_a_unit_without_questions_gives_no_rows():
    table = vllm._prompt_rows(lambda unit: [], "m")(pa.table({"unit": ["u1"]}))
    assert (len(table), table.schema.names) == (0, ["key", "chat", "schema", "processor_options"])


def test_replies_go_into_the_cache_and_a_failed_row_keeps_its_own_error(tmp_path):
    rows = [
        {"key": "a" * 16, "text": "{}", "num_input_tokens": 7, "num_generated_tokens": 2, "__inference_error__": ""},
        {
            "key": "b" * 16,
            "text": None,
            "num_input_tokens": None,
            "num_generated_tokens": None,
            "__inference_error__": "too\nlong",
        },
    ]
    results = vllm._store_replies(str(tmp_path))(pa.Table.from_pylist(rows)).to_pylist()
    good = answers.get("a" * 16)
    assert (good.text, good.error, good.prompt_tokens, good.completion_tokens) == ("{}", None, 7, 2)
    assert [row["error"] for row in results] == [None, "the engine failed: too long"]
    assert answers.get("b" * 16) is None, "the cause of a failure is known only after all replies"


def rounds(monkeypatch, *of_rounds):
    left = iter(of_rounds)
    monkeypatch.setattr(vllm, "_round", lambda *_: next(left))


def test_one_question_that_fails_keeps_its_reason(tmp_path, monkeypatch):
    rounds(monkeypatch, (3, {"b" * 16: "too long"}), (1, {"c" * 16: "too long"}))
    assert vllm.fill_answer_cache([], None, VlmSettings("vllm", "m"), str(tmp_path)) == 4
    assert [answers.get(key * 16).error for key in "bc"] == ["too long"] * 2


def test_engines_that_answer_nothing_are_no_clips_fault(tmp_path, monkeypatch):
    rounds(monkeypatch, (2, {"b" * 16: "CUDA is gone", "c" * 16: "CUDA is gone"}))
    with pytest.raises(Unavailable, match=r"answer no question \(CUDA is gone\)"):
        vllm.fill_answer_cache([], None, VlmSettings("vllm", "m"), str(tmp_path))
    assert not list(tmp_path.rglob("*.json")), "nothing of it is kept"


def test_a_reply_as_long_as_may_be_was_cut_off():
    row = {"text": "{", "num_input_tokens": 7, "num_generated_tokens": 64, "max_tokens": 64}
    assert vllm._reply(row).stop == "length"
    assert vllm._reply({**row, "num_generated_tokens": 63}).stop == "stop"


def test_without_a_gpu_the_engine_is_told_so():
    assert "tensor_parallel_size" not in vllm._engine_arguments(EngineSettings(gpus=0))
    assert vllm._engine_arguments(EngineSettings(gpus=4))["tensor_parallel_size"] == 4
