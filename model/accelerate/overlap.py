"""Decoding of a session on a thread and a CUDA stream of its own, while the block is committed and the next one is made.

The pieces of a session are decoded one after the other, by the same code as without a thread: frames are equal bit for bit.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from model.backbone.stream_decoders import StreamDecoder

Result = TypeVar("Result")


class DecodeThread:
    """Runs decodings in the order in which they are given. Close it with its session."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="decode")

    def adopt(self, decoder: StreamDecoder) -> None:
        """Take over a decoder that has worked on the current stream: what it remembers is read, and freed, by this one."""
        if self._stream is None:
            return
        for each in tree_leaves(vars(decoder)):
            if isinstance(each, Tensor):
                each.record_stream(self._stream)

    def submit(self, decode: Callable[[Tensor], Result], latents: Tensor) -> "Future[Result]":
        """Decode latents that the current stream has made, or will have made. The result is complete when the future is."""
        ready: Any = None
        if self._stream is not None:
            ready = torch.cuda.Event()
            ready.record(torch.cuda.current_stream(self._device))
            latents.record_stream(self._stream)  # its memory is not given to others before it was read
        return self._worker.submit(self._run, decode, latents, ready)

    def then(self, function: Callable[[Any], Result], earlier: "Future[Any]") -> "Future[Result]":
        """Run a function of an earlier result on this thread and stream, such as to bring frames to the processor."""
        return self._worker.submit(self._run, function, earlier, None)

    @torch.no_grad()
    def _run(self, function: Callable[[Any], Result], given: Any, ready: Any) -> Result:
        value = given.result() if isinstance(given, Future) else given
        if self._stream is None:
            return function(value)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            if ready is not None:
                self._stream.wait_event(ready)
            made = function(value)
            self._stream.synchronize()
        if isinstance(made, Tensor):  # the main stream may read it next
            made.record_stream(torch.cuda.default_stream(self._device))
        return made

    def close(self) -> None:
        """Let the thread end after what it was given."""
        self._worker.shutdown(wait=False)
