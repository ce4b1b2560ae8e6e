"""The input and output of every vision-language backend, and the settings that choose one."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from curation.schema import digest

# How much of a reply that does not fit is repeated to the model.
_SHOWN_CHARS = 2000


@dataclass(frozen=True)
class VideoForm:
    """How frames are handed to a model as one video, as Qwen's video models were trained."""

    fps: float  # frames a second of the clip's time
    total_pixels: int  # of all frames after they are resized; two frames count once, since the model merges pairs


@dataclass(frozen=True)
class Prompt:
    """One question with its frames.

    frames: JPEGs, oldest first; each of the `labels` comes before its frame. earlier: a reply that did not fit, and the text
    that tells the model so. video: the frames are one video, and the only label comes before it. None: separate images.
    """

    name: str
    text: str
    schema: Mapping[str, Any]
    frames: tuple[bytes, ...] = ()
    labels: tuple[str, ...] = ()
    earlier: tuple[str, str] | None = None
    video: VideoForm | None = None

    def cache_key(self, model: str) -> str:
        """Return the answer's name in the cache: a digest of model, text (with the question's version), schema and frames."""
        form = [asdict(self.video)] if self.video else []
        words = json.dumps([self.name, self.text, self.schema, self.labels, self.earlier, *form], sort_keys=True)
        return digest(model, words, *(frame.hex() for frame in self.frames))

    def retry(self, reply: str, problem: str) -> "Prompt":
        """Return the same question with a reply that did not fit, and why."""
        correction = f"That does not fit: {problem}. Answer again, with nothing but JSON that fits the schema."
        return replace(self, earlier=(reply[:_SHOWN_CHARS], correction))


@dataclass(frozen=True)
class Reply:
    """The model's text, or the error instead of it, and the tokens used.

    stop: why the model stopped, in OpenAI's words; "length" means that it reached max_tokens.
    """

    text: str = ""
    error: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    stop: str = "stop"


class Vlm(Protocol):
    """A model behind one method. Its `name` goes into the ledger and into the keys of the cache."""

    name: str

    def replies(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Reply]]:
        """Yield the index of a prompt and its reply, in order of arrival, each index once.

        Raise OSError if the model cannot be reached at all, since no prompt is the cause.
        """
        ...


@dataclass(frozen=True)
class ServerSettings:
    """Where a server is and how it is called. None of it changes a result, so a run may continue at another address."""

    url: str = "http://127.0.0.1:8000/v1"  # address of the server, up to and with /v1
    concurrency: int = 16  # requests in flight from one worker; more keep larger batches full
    timeout_s: float = 120.0  # seconds until a request without an answer is retried
    retries: int = 5  # retries of a request that is refused, cut off, timed out, or answered with 408, 429 or 5xx
    backoff_s: float = 1.0  # seconds; the waits before the retries are 0, 2, 4, 8 ... times this, at most 60 s
    api_key_env: str = "OPENAI_API_KEY"  # name of the environment variable with the server's key

    def __post_init__(self) -> None:
        if not re.match(r"https?://\S", self.url):
            raise ValueError(f"url must begin with http:// or https://, not {self.url!r}")
        for name, minimum in (("concurrency", 1), ("retries", 0), ("backoff_s", 0), ("timeout_s", 0.001)):
            if not getattr(self, name) >= minimum:
                raise ValueError(f"{name} must be at least {minimum}, not {getattr(self, name)}")


@dataclass(frozen=True)
class EngineSettings:
    """vLLM engines on a Ray cluster. `dtype`, `max_model_len` and `max_num_seqs` are arguments of vLLM."""

    replicas: int = 1  # engines on the cluster; more answer more clips at a time
    gpus: int = 1  # GPUs for each engine (tensor parallel); 0 runs it on the CPU
    dtype: str = "auto"  # number format of the weights, as vLLM names it
    max_model_len: int = 16_384  # tokens of a question with its frames and its answer
    max_num_seqs: int = 64  # questions that an engine answers at the same time; more need more GPU memory


BACKENDS = ("none", "http", "transformers", "vllm")


@dataclass(frozen=True)
class VlmSettings:
    """Which model answers the questions."""

    # none: no model, and what needs one is skipped with a note | http: any server that speaks OpenAI's protocol, such as
    # `vllm serve` | transformers: in this process, for a video or two | vllm: engines on the Ray cluster, for many videos
    backend: str = "none"
    model: str = ""  # the model's name on the server or on the hub, or its folder
    max_tokens: int = 1024  # tokens of one answer; a longer answer is cut off and is an error
    temperature: float = 0.0  # randomness of the answer; 0 takes the most likely token
    on_error: str = (
        "keep"  # a clip without a valid answer is kept, with the reason in an error column (keep) | dropped (reject)
    )
    server: ServerSettings = field(default_factory=ServerSettings)  # for the backend http
    engine: EngineSettings = field(default_factory=EngineSettings)  # for the backend vllm

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
    def enabled(self) -> bool:
        """Whether there is a model to ask."""
        return self.backend != "none"
