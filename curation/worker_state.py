"""What one process counts and remembers while it works through a unit, in one place.

Operators of a unit run one after another in one process, and its commit comes last. What they hand to each other without a
column, and what a unit's record counts, is here: `worker`. It is never shared between processes. A process that forks takes a
copy with it, so counts are always read as differences.
"""

import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from curation.errors import GamecraftError, is_machine_fault

_MAX_TRACEBACKS = 20


@dataclass
class WorkerState:
    """State of this process.

    s3_requests: requests to S3: "all", and those that the store "throttled".
    decodes: decodes of videos, by purpose. vlm_usage: prompts, cached answers and tokens of vision-language models.
    scan: the last scan of a source, as (uri, settings, signals); one is kept, since signals of an hour are 70 MB.
    on_decode: called with the part (0 to 1) of a source that is decoded. tracebacks: of errors that nobody foresaw, in the unit
    that is worked on.
    """

    s3_requests: Counter[str] = field(default_factory=Counter)
    decodes: Counter[str] = field(default_factory=Counter)
    vlm_usage: Counter[str] = field(default_factory=Counter)
    scan: tuple[str, Any, Any] | None = None
    on_decode: Callable[[float], None] | None = None
    tracebacks: list[str] = field(default_factory=list)

    def note_unexpected(self, error: BaseException) -> None:
        """Keep the traceback of an error that this package did not raise on purpose, for the log of the unit."""
        if not (isinstance(error, GamecraftError) or is_machine_fault(error)) and len(self.tracebacks) < _MAX_TRACEBACKS:
            self.tracebacks.append("".join(traceback.format_exception(error)))


worker = WorkerState()
