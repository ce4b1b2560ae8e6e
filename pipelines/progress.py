"""How far a run is: OUT/progress.json for whoever watches from outside, and metrics of Ray for a dashboard.

    {"state": "running", "phase": "score", "phases": {"partition": {"done": 12, "total": 12, ...}, ...}, "eta_s": 340.0, ...}

The file is written every 30 s and at the end of each phase, also while one long unit is worked on. `updated` says how old it
is. A watcher that finds no newer one for some minutes knows that the run is gone.
"""

import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from curation import storage
from curation.output_folder import OutputFolder
from pipelines.ledger import Record

_EVERY_S = 30.0
# Units from which a rate is computed: a phase begins with slow ones, which load models.
_RATE_UNITS = 200

METRICS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "gamecraft_units_total": ("Counter", "Units done, by phase and result (done or failed)", ("phase", "result")),
    "gamecraft_clips_total": ("Counter", "Clips by verdict (kept, rejected, error) and reason", ("phase", "verdict", "reason")),
    "gamecraft_unit_seconds": ("Histogram", "Seconds that a unit took", ("phase",)),
    "gamecraft_cpu_seconds_total": ("Counter", "CPU seconds by operator", ("operator",)),
    "gamecraft_s3_requests_total": ("Counter", "Requests to S3 by workers, all and throttled", ("kind",)),
    "gamecraft_worker_deaths_total": ("Counter", "Worker processes that died, by cause", ("cause",)),
    "gamecraft_units_left": ("Gauge", "Units of the current phase that are left", ("phase",)),
}  # fmt: skip
"""What a run on Ray reports: kind, description and tags of each metric. Prometheus has them as ray_<name>."""
_SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)


@dataclass
class PhaseProgress:
    """Counts of one phase of this run. before: units that earlier runs did. part: what is done of current units.

    total: units of this run, of which so many are planned.
    """

    total: int
    before: int
    planned: int = 0
    done: int = 0
    failed: int = 0
    rows: int = 0
    rejected: int = 0
    errors: int = 0
    part: float = 0.0
    wall_s: float = 0.0
    cpu_s: Counter[str] = field(default_factory=Counter)


class RunProgress:
    """Counts the records of a run, and writes what it counted."""

    def __init__(self, out: str, runner: str) -> None:
        self._out, self._runner, self._began = out, runner, time.time()
        self._phases: dict[str, PhaseProgress] = {}
        self._phase, self._phase_began, self._state = "", 0.0, "running"
        self._s3: Counter[str] = Counter()
        self._ended: list[float] = []
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._metrics = _make_metrics() if runner == "ray" else {}

    @contextmanager
    def written(self) -> Iterator["RunProgress"]:
        """Write the file now and then during this context, and at its end."""
        thread = threading.Thread(target=self._write_regularly, daemon=True)
        thread.start()
        try:
            yield self
            self._state = "ended"
        except BaseException:
            self._state = "stopped"
            raise
        finally:
            self._stop.set()
            thread.join(_EVERY_S)
            self.write()

    def plan(self, phase: str, units: int, before: int, share: float = 1.0) -> None:
        """Add a group of a phase with so many units, with which this share of the phase is planned.

        Until all groups are planned, the total is an estimate by those that are.
        """
        with self._lock:
            known = self._phases.setdefault(phase, PhaseProgress(0, 0))
            known.planned, known.before = known.planned + units, known.before + before
            known.total = max(known.planned, round(known.planned / share)) if share else known.planned
            if phase != self._phase:
                self._phase, self._phase_began, self._ended = phase, time.monotonic(), []
        self._gauge(phase)

    def total(self, phase: str) -> int:
        return self._phases[phase].total

    def done(self, phase: str) -> int:
        return self._phases[phase].done

    def set_part(self, part: float) -> None:
        """Set how much of the current units is done, summed over them."""
        with self._lock:
            self._phases[self._phase].part = part

    def add(self, record: Record) -> None:
        """Count a unit."""
        with self._lock:
            phase = self._phases[record.phase]
            phase.done, phase.failed = phase.done + 1, phase.failed + bool(record.failure)
            phase.rows, phase.rejected = phase.rows + record.rows, phase.rejected + record.rejected
            phase.errors, phase.wall_s = phase.errors + record.errors, phase.wall_s + record.wall_s
            phase.cpu_s.update(record.cpu_s)
            self._s3.update(record.s3)
            self._ended = [*self._ended[-_RATE_UNITS + 1 :], time.monotonic()]
        self._report(record)

    def _eta_s(self) -> float | None:
        """Return seconds until the current phase is done, from the pace of its last units."""
        phase = self._phases.get(self._phase)
        if phase is None or not self._ended:
            return None
        since = self._ended[0] if len(self._ended) == _RATE_UNITS else self._phase_began
        pace_s = (self._ended[-1] - since) / max(1, len(self._ended) - (len(self._ended) == _RATE_UNITS))
        return max(0.0, phase.total - phase.done - phase.part) * pace_s

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        with self._lock:
            eta_s = self._eta_s()
            phases = {name: _rounded({**asdict(phase), "cpu_s": _rounded(phase.cpu_s)}) for name, phase in self._phases.items()}
            return {
                "state": self._state,
                "phase": self._phase,
                "eta_s": None if eta_s is None else round(eta_s, 1),
                "phases": phases,
                "s3": dict(self._s3),
                "runner": self._runner,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "began": _stamp(self._began),
                "updated": _stamp(time.time()),
            }

    def write(self) -> None:
        """Write the file. A store that does not answer now must not end the run."""
        with suppress(OSError):
            storage.put(OutputFolder(self._out).progress, json.dumps(self.to_json(), indent=2).encode() + b"\n")

    def _write_regularly(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self.write()

    def _report(self, record: Record) -> None:
        """Update Ray's metrics, if this run has a cluster."""
        if not self._metrics:
            return
        metrics, phase = self._metrics, record.phase
        metrics["gamecraft_units_total"].inc(1, {"phase": phase, "result": "failed" if record.failure else "done"})
        metrics["gamecraft_unit_seconds"].observe(record.wall_s, {"phase": phase})
        kept = record.rows - record.rejected - record.errors
        counts = [("kept", "", kept), *((verdict, reason, count) for (verdict, reason), count in _reasons(record))]
        for verdict, reason, count in counts:
            if count > 0:
                metrics["gamecraft_clips_total"].inc(count, {"phase": phase, "verdict": verdict, "reason": reason})
        for name, tag, values in (
            ("gamecraft_cpu_seconds_total", "operator", record.cpu_s),
            ("gamecraft_s3_requests_total", "kind", record.s3),
            ("gamecraft_worker_deaths_total", "cause", record.deaths),
        ):
            for key, value in values.items():
                if value > 0:
                    metrics[name].inc(value, {tag: key})
        self._gauge(phase)

    def _gauge(self, name: str) -> None:
        if self._metrics:
            phase = self._phases[name]
            self._metrics["gamecraft_units_left"].set(phase.total - phase.done, {"phase": name})


def _reasons(record: Record) -> Iterator[tuple[tuple[str, str], int]]:
    """Yield how many rows each kind of reason dropped."""
    for kind, count in record.reasons.items():
        verdict, _, reason = kind.partition(" ")
        yield (verdict, reason), count


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}


def _stamp(time_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_s))


def _make_metrics() -> dict[str, Any]:
    from ray.util import metrics

    made = {}
    for name, (kind, description, tags) in METRICS.items():
        options: dict[str, Any] = {"boundaries": list(_SECONDS)} if kind == "Histogram" else {}
        made[name] = getattr(metrics, kind)(name, description=description, tag_keys=tags, **options)
    return made
