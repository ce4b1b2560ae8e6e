"""vLLM engines on the Ray cluster, through `ray.data.llm`: the questions of all units in one stream, so that batches stay full.

If each unit's task asked the engines itself, it would send 64 clips and wait for the slowest. So the questions of all remaining
units go through the engines first. Each reply is stored in the cache under its question's key, and the units' tasks then read
the cache. A question that fails stores its own error.
"""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from curation.errors import Unavailable
from curation.vlm import EngineSettings, Prompt, Reply, VlmSettings, answers
from curation.vlm.http import chat_messages, video_options

_ROUNDS = 2  # a question whose reply does not fit is asked once more
_BATCHES_IN_FLIGHT = 8  # batches of questions in flight to an engine; with only a few it is idle between them
_BATCH = 32

Collect = Callable[[str], list[Prompt]]


def fill_answer_cache(units: Sequence[str], collect: Collect, settings: VlmSettings, folder: str, videos: bool = False) -> int:
    """Store the replies to all questions of these units in the cache. Return the number of questions.

    videos: whether questions may have a video instead of images. `collect` returns the prompts of a unit (as JSON) that are
    not in the cache. It runs on the cluster. Raise Unavailable if no question is answered.
    """
    total, failures = 0, list[str]()
    for _ in range(_ROUNDS):
        count, failed = _round(units, collect, settings, folder, videos)
        total, failures = total + count, failures + list(failed.values())
        # One failed question may itself be the cause. If all questions fail, the engines are.
        if total == len(failures) > 1:
            raise Unavailable(f"vLLM's engines answer no question ({failures[0]}); see their log, and run again")
        answers.use_folder(folder)
        for key, error in failed.items():
            answers.put(key, Reply(error=error))
    return total


def _round(
    units: Sequence[str], collect: Collect, settings: VlmSettings, folder: str, videos: bool
) -> tuple[int, dict[str, str]]:
    """Ask all questions once. Return their number, and the errors of those without a reply by cache key."""
    import ray

    blocks = [pa.table({"unit": [unit]}) for unit in units]
    questions = ray.data.from_arrow(blocks).map_batches(
        _prompt_rows(collect, settings.model), batch_size=None, batch_format="pyarrow"
    )
    questions = questions.materialize()  # an engine takes a minute to start, so start none if there is no question
    if not questions.count():
        return 0, {}
    stored = _engine_processor(settings, videos)(questions).map_batches(
        _store_replies(folder), batch_size=_BATCH, batch_format="pyarrow"
    )
    blocks = [block.to_pylist() for block in stored.iter_batches(batch_size=None, batch_format="pyarrow")]
    rows = [row for block in blocks for row in block]
    return len(rows), {row["key"]: row["error"] for row in rows if row["error"]}


def _prompt_rows(collect: Collect, model: str) -> Callable[[pa.Table], pa.Table]:
    """Return a map function from units to prompts as rows.

    Nested values are JSON, because Arrow would give every row the fields of all rows.
    """

    def questions(block: pa.Table) -> pa.Table:
        prompts = [prompt for unit in block["unit"].to_pylist() for prompt in collect(unit)]
        rows = {
            prompt.cache_key(model): (
                json.dumps(chat_messages(prompt)),
                json.dumps(prompt.schema),
                json.dumps(video_options(prompt).get("mm_processor_kwargs")),
            )
            for prompt in prompts
        }
        chats, schemas, options = ([row[i] for row in rows.values()] for i in (0, 1, 2))
        columns = {"key": list(rows), "chat": chats, "schema": schemas, "processor_options": options}
        return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})

    return questions


def _engine_processor(settings: VlmSettings, videos: bool) -> Any:
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    engine = settings.engine
    config = vLLMEngineProcessorConfig(
        model_source=settings.model,
        engine_kwargs=_engine_arguments(engine, videos),
        concurrency=engine.replicas,
        batch_size=_BATCH,
        max_concurrent_batches=_BATCHES_IN_FLIGHT,
        should_continue_on_error=True,
        log_engine_metrics=False,  # metrics need ray[serve]
        accelerator_type=None,
        placement_group_config={"bundles": [{"CPU": 1, "GPU": 1} for _ in range(engine.gpus)] or [{"CPU": 1}]},
        prepare_multimodal_stage={"enabled": True},
        chat_template_stage={"enabled": True},
        tokenize_stage={"enabled": False},
        detokenize_stage={"enabled": False},
    )
    sampling = {"temperature": settings.temperature, "max_tokens": settings.max_tokens, "seed": 0}

    def before(row: dict[str, Any]) -> dict[str, Any]:
        parameters = {**sampling, "structured_outputs": {"json": row["schema"]}}
        question = {"messages": json.loads(row["chat"]), "sampling_params": parameters, "key": row["key"]}
        options = json.loads(row["processor_options"])
        return {**question, "mm_processor_kwargs": options} if options else question

    def after(row: dict[str, Any]) -> dict[str, Any]:
        counts = {name: int(row.get(name) or 0) for name in ("num_input_tokens", "num_generated_tokens")}
        return {"key": row["key"], "text": row["generated_text"], "max_tokens": settings.max_tokens, **counts}

    return build_processor(config, preprocess=before, postprocess=after)


def _engine_arguments(engine: EngineSettings, videos: bool = False) -> dict[str, Any]:
    """Return the arguments of vLLM. Without a GPU they tell it not to look for one.

    An engine reserves memory for the largest video that it may get, so it is told if there is none.
    """
    gpu = (
        {"tensor_parallel_size": engine.gpus} if engine.gpus else {"enforce_eager": True, "distributed_executor_backend": "uni"}
    )
    return {
        "dtype": engine.dtype,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "limit_mm_per_prompt": {"image": 64, "video": int(videos)},
        **({"media_io_kwargs": {"video": {"num_frames": -1}}} if videos else {}),  # all frames: they are already sampled
        "structured_outputs_config": {"disable_any_whitespace": True, "backend": "xgrammar"},
        **gpu,
    }


def _store_replies(folder: str) -> Callable[[pa.Table], pa.Table]:
    """Return a map function that stores replies in the cache and returns the key and the error of each."""

    def store(block: pa.Table) -> pa.Table:
        answers.use_folder(folder)
        rows = block.to_pylist()
        replies = [_reply(row) for row in rows]
        for row, reply in zip(rows, replies, strict=True):
            if not reply.error:
                answers.put(row["key"], reply)
        columns = {"key": [row["key"] for row in rows], "error": [reply.error for reply in replies]}
        return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})

    return store


def _reply(row: dict[str, Any]) -> Reply:
    if error := row.get("__inference_error__"):
        return Reply(error=f"the engine failed: {' '.join(str(error).split())[:200]}")
    generated = row.get("num_generated_tokens") or 0
    stop = "length" if generated >= (row.get("max_tokens") or math.inf) else "stop"
    return Reply(row.get("text") or "", None, row.get("num_input_tokens") or 0, generated, stop)
