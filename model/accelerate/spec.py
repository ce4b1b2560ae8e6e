"""Which ways to make play faster are switched on."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from curation.errors import InputError

BACKENDS = ("eager", "traced", "onnxruntime")
_CHOICES = {
    "backend": ("auto", *BACKENDS),
    "weights": ("as_stored", "fp8"),
    "fp8_backend": ("auto", "torchao", "own"),
    "cache": ("model", "fp8"),
    "attention": ("sdpa", "cudnn", "flex", "sage"),
    "decode": ("serial", "overlapped"),
}


@dataclass(frozen=True)
class AccelerateSpec:
    """Switches of play. They are given to `gamecraft play`, `rollout` and `bench infer`, and never stored in a world.

    The table in docs/play.md names each switch's bound and the test that holds it.
    """

    # how a small world runs on a processor: eager, the plain code; traced by TorchScript; onnxruntime; auto, the fastest of
    # them, measured at the start. Other worlds are eager
    backend: str = "auto"
    compile: bool = False  # compile each block with torch.compile; the block that fills the window takes tens of seconds
    compile_backend: str = "inductor"  # that of torch.compile; aot_eager compiles nothing, for tests
    weights: str = "as_stored"  # as_stored; fp8: linear layers of the blocks in fp8, weights and activations
    fp8_backend: str = "auto"  # what computes them: torchao, own, or auto: torchao on a GPU where it is installed
    cache: str = "model"  # keys and values of the past: model, in the model's dtype; fp8, with a scale for each head
    # kernel of self-attention: sdpa, PyTorch's choice; cudnn; flex; sage: SageAttention, where it is installed
    attention: str = "sdpa"
    # serial: frames are decoded before the block is committed; overlapped: while it is committed and the next one is made
    decode: str = "serial"
    decode_parts: int = 1  # parts of a picture that are decoded separately, on as many ranks as share a session; exact
    sequence_parallel: int = 1  # ranks that share a session's tokens (Ulysses); start as many with torchrun
    cuda_graphs: bool = False  # replay the kernels of a pass as one CUDA graph
    keeps_text: bool = True  # compute keys of the text and scales of the steps once, not in every pass

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")
        for name in ("decode_parts", "sequence_parallel"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.backend in BACKENDS[1:]:
            other = AccelerateSpec()
            names = ("compile", "weights", "cache", "attention", "sequence_parallel", "cuda_graphs")
            if switched := [name for name in names if getattr(self, name) != getattr(other, name)]:
                raise ValueError(f"backend {self.backend} computes whole passes, so {switched[0]} has no effect there")
        if self.cuda_graphs and not self.keeps_text:
            raise ValueError("cuda_graphs needs keeps_text: a graph reads the text's keys, it does not compute them")
        if self.cuda_graphs and self.sequence_parallel > 1:
            raise ValueError("cuda_graphs does not record the exchange between ranks: use sequence_parallel without it")

    @property
    def needs_warm_up(self) -> bool:
        """Whether the first passes with a full window take longer than others."""
        return self.compile or self.cuda_graphs

    @property
    def computes_passes(self) -> bool:
        """Whether a switch changes how passes are computed, so that a backend must not replace them."""
        other = AccelerateSpec()
        names = ("compile", "weights", "cache", "attention", "sequence_parallel", "cuda_graphs")
        return any(getattr(self, name) != getattr(other, name) for name in names)

    def identity(self) -> dict[str, Any]:
        """Return the switches that can change frames: records of other ones do not replay bit for bit."""
        exact = ("backend", "decode", "decode_parts", "keeps_text")
        return {name: value for name, value in asdict(self).items() if name not in exact}


def parse(words: Sequence[str]) -> AccelerateSpec:
    """Read switches: `compile`, `weights=fp8`, several joined by commas. InputError names one that is not known."""
    kinds = {each.name: each.type for each in fields(AccelerateSpec)}
    values: dict[str, Any] = {}
    for word in (part.strip() for each in words for part in each.split(",")):
        name, _, value = word.partition("=")
        if not word:
            continue
        if name not in kinds:
            raise InputError(f"--accelerate {word}: no such switch; there are {', '.join(kinds)}")
        values[name] = _value(word, str(kinds[name]), value)
    try:
        return AccelerateSpec(**values)
    except ValueError as error:
        raise InputError(f"--accelerate: {error}") from error


def _value(word: str, kind: str, value: str) -> Any:
    if "bool" in kind:
        if value in ("", "on", "off"):
            return value != "off"
        raise InputError(f"--accelerate {word}: must be on or off")
    if "int" in kind:
        if value.isdecimal():
            return int(value)
        raise InputError(f"--accelerate {word}: must be a whole number")
    return value
