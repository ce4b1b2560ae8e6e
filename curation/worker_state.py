"""What one process counts and keeps while it works through a unit, in one place.

Operators of a unit run one after another in one process, and its commit comes last. What they hand to each other without a
column, and what a unit's record counts, is here: `worker`. It is never shared between processes. A forked process has a
copy, so counts are always read as differences.
"""

import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from curation.errors import GamecraftError, is_machine_fault

_MAX_TRACEBACKS = 20

Kept = tuple[tuple[Any, ...], Any] | None
"""A result with what it was made from: its uri first, then its settings."""


@dataclass
class WorkerState:
    """State of this process."""

    s3_requests: Counter[str] = field(default_factory=Counter)  # "all", and those that the store "throttled"
    decodes: Counter[str] = field(default_factory=Counter)  # decodes of videos, by purpose
    # Damage met in sources: "damaged packets" (skipped, or concealed by the decoder), "frames not advancing".
    damage: Counter[str] = field(default_factory=Counter)
    # Of vision-language models: calls, prompt_tokens, completion_tokens, milliseconds, failed (calls without a reply), invalid
    # (replies that do not fit), cached (answered from the cache without a call).
    vlm_usage: Counter[str] = field(default_factory=Counter)
    scan: Kept = None  # the last scan of a source; only one, since the signals of an hour are 70 MB
    chunk: Kept = None  # the last scan of a chunk
    on_decode: Callable[[float], None] | None = None  # called with the part (0 to 1) of a source that is decoded
    tracebacks: list[str] = field(default_factory=list)  # of errors that nobody foresaw, in the current unit

    def has_scan(self, key: tuple[Any, ...]) -> bool:
        return self.scan is not None and self.scan[0] == key

    def finished(self, kept: Kept, key: tuple[Any, ...]) -> Any:
        """Return a result that an operator of this unit must have left. RuntimeError where it is gone.

        A commit calls this, so that a lost result is an error and not a second decode.
        """
        if kept is None or kept[0] != key:
            raise RuntimeError(f"the scan of {key[0]} is gone from this process; operators must run right before the commit")
        return kept[1]

    def note_unexpected(self, error: BaseException) -> None:
        """Keep the traceback of an error that this package did not raise on purpose, for the log of the unit."""
        if not (isinstance(error, GamecraftError) or is_machine_fault(error)) and len(self.tracebacks) < _MAX_TRACEBACKS:
            self.tracebacks.append("".join(traceback.format_exception(error)))


worker = WorkerState()
