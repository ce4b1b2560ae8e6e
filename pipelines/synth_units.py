"""The units of the phase `generate`: requests from interactions and initial frames, and the attempts that are still to be made.

A unit is one attempt at a request. If the last committed attempt of a request says `retry`, there is a next one. So attempts
are listed in rounds, and a run that was killed continues with the round in which it stopped.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from curation import storage
from curation.errors import InputError
from curation.output_folder import OutputFolder
from curation.schema import Row, digest
from pipelines import ledger, units
from pipelines.recipes import Recipe
from pipelines.units import Group, Unit, UnitName
from synth import initial_frames, taxonomy
from synth.requests import InitialFrame, Request, draw_requests


@dataclass(frozen=True)
class SynthAttempt:
    """One attempt at a request. Its name is a digest of everything that decides its outcome."""

    request: Request
    number: int  # counted from 0
    settings_digest: str

    @property
    def name(self) -> str:
        video_id = digest("synthetic", self.request.id, str(self.number), self.settings_digest)
        return str(UnitName(video_id, digest(self.request.id, self.settings_digest)))

    @property
    def unit(self) -> Unit:
        row = {
            "clip_id": digest("clip", UnitName.parse(self.name).video_id),
            "synth_attempt": self.number,
            "synth_seed": self.request.seed_of(self.number),
            "request": self.request.to_json(),
        }
        return Unit("generate", self.name, token=self.request.frame.token, request=json.dumps(row, sort_keys=True))


def plan_requests(interactions: Sequence[str], inputs: Sequence[str], recipe: Recipe) -> list[Request]:
    """Return the requests of a run. Raises InputError for an unknown interaction, or inputs without frames."""
    settings = recipe.synth
    selected = taxonomy.select(interactions, settings.interactions)
    return list(draw_requests(selected, find_frames(inputs), settings.each, settings.seed))


def find_frames(inputs: Sequence[str]) -> list[InitialFrame]:
    """Return the frames that the values of `--frames` name: as `synth.initial_frames`, and quiet moments of kept clips."""
    curated = [item for item in inputs if storage.exists(OutputFolder(storage.normal(item)).dataset)]
    frames = [frame for item in curated for frame in initial_frames.quiet_frames(_kept_clips(item))]
    return frames + initial_frames.find_frames([item for item in inputs if item not in curated])


def _kept_clips(out: str) -> list[Row]:
    rows = ledger.kept_clips(ledger.clips(storage.normal(out))).to_pylist()
    footage = [row for row in rows if row["source"] == "curated"]
    if not footage:
        raise InputError(f"{out}: no kept clip of footage to take an initial frame from")
    return footage


def pending_groups(out: str, recipe: Recipe, requests: Sequence[Request]) -> Iterator[Group]:
    """Yield the attempts to make in rounds, since a failed attempt may be followed by another one. No unit is in two rounds."""
    tried: set[str] = set()
    for _ in range(recipe.synth.attempts):
        left, before = todo(out, recipe, requests)
        new = [unit for unit in left if unit.name not in tried]
        if new or not tried:
            yield Group(new, 0 if tried else before)
        tried |= {unit.name for unit in new}


def todo(out: str, recipe: Recipe, requests: Sequence[Request]) -> tuple[list[Unit], int]:
    """Return the next attempt at each request that has no verdict yet, and the number of attempts already made."""
    settings_digest = f"{recipe.digest('generate')}/{taxonomy.version()}"
    done = {str(name) for name in units.list_committed(out, "partition")}
    made = [_committed_attempts(request, settings_digest, recipe.synth.attempts, done) for request in requests]
    verdicts = storage.at_once(lambda names: _verdict(out, names[-1]) if names else "retry", made)
    left = [
        SynthAttempt(request, len(names), settings_digest).unit
        for request, names, verdict in zip(requests, made, verdicts, strict=True)
        if verdict == "retry" and len(names) < recipe.synth.attempts
    ]
    return left, len(list(chain(*made)))


def _committed_attempts(request: Request, settings_digest: str, max_attempts: int, done: set[str]) -> list[str]:
    names = (SynthAttempt(request, number, settings_digest).name for number in range(max_attempts))
    return list(_until_missing(names, done))


def _until_missing(names: Iterator[str], done: set[str]) -> Iterator[str]:
    for name in names:
        if name not in done:
            return
        yield name


def _verdict(out: str, unit: str) -> str:
    """Return the verdict on a committed attempt. One whose row failed after the video was made counts as rejected."""
    (row,) = ledger.read_unit(out, "partition", unit)
    return row["synth_verdict"] or "rejected"
