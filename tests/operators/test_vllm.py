"""What goes into the engines and what comes out; the engines themselves run in `make test-vlm`."""

import json

import pyarrow as pa
import pytest

from curation.vlm import EngineSettings, Prompt, answers
from operators import vllm

SCHEMA = {"type": "object", "properties": {"keep": {"type": "boolean"}}}


@pytest.fixture(autouse=True)
def no_cache():
    yield
    answers.use(None)


def test_questions_become_rows_and_equal_ones_one_row():
    one, other = Prompt("q", "Keep?", SCHEMA, (b"jpeg",), ("Frame 1:",)), Prompt("q", "Why?", SCHEMA)
    asked = {"u1": [one, other], "u2": [one]}
    rows = vllm._questions(asked.get, "m")(pa.table({"unit": ["u1", "u2"]})).to_pylist()
    assert [row["key"] for row in rows] == [one.key("m"), other.key("m")]
    parts = json.loads(rows[0]["chat"])[0]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "text"]
    assert json.loads(rows[0]["schema"]) == SCHEMA


def test_a_unit_without_questions_gives_no_rows():
    table = vllm._questions(lambda unit: [], "m")(pa.table({"unit": ["u1"]}))
    assert (len(table), table.schema.names) == (0, ["key", "chat", "schema"])


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
    vllm._store(str(tmp_path))(pa.Table.from_pylist(rows))
    good, bad = answers.get("a" * 16), answers.get("b" * 16)
    assert (good.text, good.error, good.prompt_tokens, good.completion_tokens) == ("{}", None, 7, 2)
    assert bad.error == "the engine failed: too long"


def test_without_a_gpu_the_engine_is_told_so():
    assert "tensor_parallel_size" not in vllm._engine_arguments(EngineSettings(gpus=0))
    assert vllm._engine_arguments(EngineSettings(gpus=4))["tensor_parallel_size"] == 4
