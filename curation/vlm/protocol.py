"""What every backend of a vision-language model takes and gives, and the settings that choose one."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from curation.schema import digest

# How much of a reply that does not fit is shown back to the model.
_SHOWN_CHARS = 2000


@dataclass(frozen=True)
class Prompt:
    """One question with its frames (JPEG), oldest first; `labels` stand before them. `earlier`: a reply that did not fit, and
    what the model is told about it.
    """

    name: str
    text: str
    schema: Mapping[str, Any]
    frames: tuple[bytes, ...] = ()
    labels: tuple[str, ...] = ()
    earlier: tuple[str, str] | None = None

    def key(self, model: str) -> str:
        """Names the answer in the cache: model, words (the version of the question is one of them), schema, pictures."""
        words = json.dumps([self.name, self.text, self.schema, self.labels, self.earlier], sort_keys=True)
        return digest(model, words, *(frame.hex() for frame in self.frames))

    def again(self, reply: str, problem: str) -> "Prompt":
        """The same question after a reply that does not fit."""
        told = f"That does not fit: {problem}. Answer again, with nothing but JSON that fits the schema."
        return replace(self, earlier=(reply[:_SHOWN_CHARS], told))


@dataclass(frozen=True)
class Reply:
    """What a model said, or why it said nothing, and what it cost. `stop`: why it stopped, in OpenAI's words; "length" is at
    max_tokens.
    """

    text: str = ""
    error: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    stop: str = "stop"


class Vlm(Protocol):
    """A model behind one method. `name` goes into the ledger and into the keys of the cache."""

    name: str

    def replies(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Reply]]:
        """The number of a prompt and its reply, as they come in, each once. OSError where the model cannot be had: then it is
        no prompt's fault.
        """
        ...


@dataclass(frozen=True)
class ServerSettings:
    """Where a server is and how it is treated. None of it decides a result, so a run may go on at another address.

    url: up to and with /v1. concurrency: requests in flight from a worker. retries: of a request that is refused, cut off, not
    answered within timeout_s, or answered with 429 or 5xx, after pauses of backoff_s that double. api_key_env: the
    environment variable with the key.
    """

    url: str = "http://127.0.0.1:8000/v1"
    concurrency: int = 16
    timeout_s: float = 120.0
    retries: int = 5
    backoff_s: float = 1.0
    api_key_env: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        if not re.match(r"https?://\S", self.url):
            raise ValueError(f"url must begin with http:// or https://, not {self.url!r}")
        for name, least in (("concurrency", 1), ("retries", 0), ("backoff_s", 0), ("timeout_s", 0.001)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")


@dataclass(frozen=True)
class EngineSettings:
    """vLLM engines on a Ray cluster: how many, GPUs of each (0: on the processor), and vLLM's arguments of these names."""

    replicas: int = 1
    gpus: int = 1
    dtype: str = "auto"
    max_model_len: int = 16_384
    max_num_seqs: int = 64


BACKENDS = ("none", "http", "transformers", "vllm")


@dataclass(frozen=True)
class VlmSettings:
    """Which model answers.

    backend: none: no model; what needs one is skipped and says so. http: any server that speaks OpenAI's protocol, such as
    `vllm serve`. transformers: in this process, for a video or two. vllm: engines on the Ray cluster, for many videos.
    model: its name on the server or on the hub, or its folder. max_tokens: of one answer. on_error: what becomes of a clip
    whose question got no valid answer: "keep" (the reason is in a column of its own) or "reject".
    """

    backend: str = "none"
    model: str = ""
    max_tokens: int = 1024
    temperature: float = 0.0
    on_error: str = "keep"
    server: ServerSettings = field(default_factory=ServerSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {self.backend!r}")
        if self.on_error not in ("keep", "reject"):
            raise ValueError(f"on_error must be keep or reject, not {self.on_error!r}")
        if self.backend != "none" and not self.model:
            raise ValueError(f"backend {self.backend} needs a model: its name on the server or the hub, or its folder")
        if self.max_tokens < 16:
            raise ValueError(f"max_tokens must be at least 16, not {self.max_tokens}")

    @property
    def asked(self) -> bool:
        return self.backend != "none"
