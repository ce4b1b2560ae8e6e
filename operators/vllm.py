"""vLLM engines on the Ray cluster, through `ray.data.llm`: the questions of all units in one stream, so that batches stay full.

A unit's own task would hand the engine 64 clips and wait for the slowest. Here the questions of every unit that is left flow
through the engines first, each reply goes into the cache under its question's key, and the units' tasks then find them there. A
row that fails keeps its own error.
"""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from curation.errors import Unavailable
from curation.vlm import EngineSettings, Prompt, Reply, VlmSettings, answers
from curation.vlm.http import chat_messages

# A reply that does not fit is asked for once more.
_ROUNDS = 2
_WAITING_BATCHES = 8  # batches of questions in flight to an engine: under a few it drains between them
_BATCH = 32

Collect = Callable[[str], list[Prompt]]


def answer_ahead(units: Sequence[str], collect: Collect, settings: VlmSettings, folder: str) -> int:
    """Put the replies to all questions of these units into the cache; returns how many were asked.

    `collect` answers a unit (as JSON) with the prompts that the cache does not hold; it runs on the cluster.
    """
    asked, failures = 0, list[str]()
    for _ in range(_ROUNDS):
        more, failed = _round(units, collect, settings, folder)
        asked, failures = asked + more, failures + list(failed.values())
        # One question may be at fault itself; where no question is answered, the engines are.
        if asked == len(failures) > 1:
            raise Unavailable(f"vLLM's engines answer no question ({failures[0]}); see their log, and run again")
        answers.use_folder(folder)
        for key, error in failed.items():
            answers.put(key, Reply(error=error))
    return asked


def _round(units: Sequence[str], collect: Collect, settings: VlmSettings, folder: str) -> tuple[int, dict[str, str]]:
    """Ask once; returns how many were asked, and by their keys why some have no reply."""
    import ray

    blocks = [pa.table({"unit": [unit]}) for unit in units]
    asked = ray.data.from_arrow(blocks).map_batches(
        _questions(collect, settings.model), batch_size=None, batch_format="pyarrow"
    )
    asked = asked.materialize()  # an engine takes a minute to start: not for nothing
    if not asked.count():
        return 0, {}
    told = _processor(settings)(asked).map_batches(_store(folder), batch_size=_BATCH, batch_format="pyarrow")
    blocks = [block.to_pylist() for block in told.iter_batches(batch_size=None, batch_format="pyarrow")]
    rows = [row for block in blocks for row in block]
    return len(rows), {row["key"]: row["error"] for row in rows if row["error"]}


def _questions(collect: Collect, model: str) -> Callable[[pa.Table], pa.Table]:
    """Prompts as rows. What is nested goes as JSON: Arrow would give all rows the fields of all."""

    def questions(block: pa.Table) -> pa.Table:
        prompts = [prompt for unit in block["unit"].to_pylist() for prompt in collect(unit)]
        rows = {prompt.cache_key(model): (json.dumps(chat_messages(prompt)), json.dumps(prompt.schema)) for prompt in prompts}
        chats, schemas = ([row[i] for row in rows.values()] for i in (0, 1))
        columns = {"key": list(rows), "chat": chats, "schema": schemas}
        return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})

    return questions


def _processor(settings: VlmSettings) -> Any:
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    engine = settings.engine
    config = vLLMEngineProcessorConfig(
        model_source=settings.model,
        engine_kwargs=_engine_arguments(engine),
        concurrency=engine.replicas,
        batch_size=_BATCH,
        max_concurrent_batches=_WAITING_BATCHES,
        should_continue_on_error=True,
        log_engine_metrics=False,  # they want ray[serve]
        accelerator_type=None,
        placement_group_config={"bundles": [{"CPU": 1, "GPU": 1} for _ in range(engine.gpus)] or [{"CPU": 1}]},
        prepare_multimodal_stage={"enabled": True},
        chat_template_stage={"enabled": True},
        tokenize_stage={"enabled": False},
        detokenize_stage={"enabled": False},
    )
    sampling = {"temperature": settings.temperature, "max_tokens": settings.max_tokens, "seed": 0}

    def before(row: dict[str, Any]) -> dict[str, Any]:
        held = {**sampling, "structured_outputs": {"json": row["schema"]}}
        return {"messages": json.loads(row["chat"]), "sampling_params": held, "key": row["key"]}

    def after(row: dict[str, Any]) -> dict[str, Any]:
        counts = {name: int(row.get(name) or 0) for name in ("num_input_tokens", "num_generated_tokens")}
        return {"key": row["key"], "text": row["generated_text"], "max_tokens": settings.max_tokens, **counts}

    return build_processor(config, preprocess=before, postprocess=after)


def _engine_arguments(engine: EngineSettings) -> dict[str, Any]:
    """VLLM's own words; without a GPU it must be told not to look for one."""
    gpu = (
        {"tensor_parallel_size": engine.gpus} if engine.gpus else {"enforce_eager": True, "distributed_executor_backend": "uni"}
    )
    return {
        "dtype": engine.dtype,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "limit_mm_per_prompt": {"image": 64, "video": 0},
        "structured_outputs_config": {"disable_any_whitespace": True, "backend": "xgrammar"},
        **gpu,
    }


def _store(folder: str) -> Callable[[pa.Table], pa.Table]:
    def store(block: pa.Table) -> pa.Table:
        answers.use_folder(folder)
        rows = block.to_pylist()
        replies = [_reply(row) for row in rows]
        for row, reply in zip(rows, replies, strict=True):
            if not reply.error:
                answers.put(row["key"], reply)
        told = {"key": [row["key"] for row in rows], "error": [reply.error for reply in replies]}
        return pa.table({name: pa.array(values, pa.string()) for name, values in told.items()})

    return store


def _reply(row: dict[str, Any]) -> Reply:
    if error := row.get("__inference_error__"):
        return Reply(error=f"the engine failed: {' '.join(str(error).split())[:200]}")
    written = row.get("num_generated_tokens") or 0
    stop = "length" if written >= (row.get("max_tokens") or math.inf) else "stop"
    return Reply(row.get("text") or "", None, row.get("num_input_tokens") or 0, written, stop)
