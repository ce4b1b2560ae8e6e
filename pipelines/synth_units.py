"""What `generate` has to do: requests from interactions and initial frames, and the attempts at each that are still to be made.

An attempt is a unit. It names the next one: a request whose last committed attempt says `retry` has another. So attempts are
listed in rounds, and a killed run goes on in the round it was in.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from curation import storage
from curation.output_folder import OutputFolder
from curation.schema import Row, digest
from pipelines import ledger, units
from pipelines.recipes import Recipe
from pipelines.units import Unit, UnitName
from synth import initial_frames as frames
from synth import taxonomy
from synth.requests import Frame, Request, requests


@dataclass(frozen=True)
class Attempt:
    """One try at a request: its unit, by a name that everything which decides its outcome is hashed into."""

    request: Request
    number: int
    settings: str

    @property
    def name(self) -> str:
        video_id = digest("synthetic", self.request.id, str(self.number), self.settings)
        return str(UnitName(video_id, digest(self.request.id, self.settings)))

    @property
    def unit(self) -> Unit:
        row = {
            "clip_id": digest("clip", UnitName.parse(self.name).video_id),
            "synth_attempt": self.number,
            "synth_seed": self.request.seed_of(self.number),
            "request": self.request.to_json(),
        }
        return Unit("generate", self.name, token=self.request.frame.token, request=json.dumps(row, sort_keys=True))


def plan(interactions: Sequence[str], inputs: Sequence[str], recipe: Recipe) -> list[Request]:
    """The requests of a run. ValueError for an interaction that nobody knows, or frames that are not there."""
    how = recipe.synth
    chosen = taxonomy.chosen(interactions, how.interactions)
    return list(requests(chosen, initial_frames(inputs), how.each, how.seed))


def initial_frames(inputs: Sequence[str]) -> list[Frame]:
    """Return the frames that `--frames` names: those of `synth.initial_frames`, and quiet moments of kept clips."""
    curated = [item for item in inputs if storage.exists(OutputFolder(storage.normal(item)).dataset)]
    found = [frame for item in curated for frame in frames.quiet(_clips(item))]
    return found + frames.frames([item for item in inputs if item not in curated])


def _clips(out: str) -> list[Row]:
    rows = ledger.kept(ledger.clips(storage.normal(out))).to_pylist()
    footage = [row for row in rows if row["source"] == "curated"]
    if not footage:
        raise ValueError(f"{out}: no kept clip of footage there to take an initial frame from")
    return footage


def todo(out: str, recipe: Recipe, wanted: Sequence[Request]) -> tuple[list[Unit], int]:
    """The next attempt at each request that is not settled yet, and how many attempts there were before."""
    settings = f"{recipe.digest('generate')}/{taxonomy.version()}"
    done = {str(name) for name in units.list_committed(out, "partition")}
    made = [_made(request, settings, recipe.synth.attempts, done) for request in wanted]
    verdicts = storage.at_once(lambda tries: _verdict(out, tries[-1]) if tries else "retry", made)
    left = [
        Attempt(request, len(tries), settings).unit
        for request, tries, verdict in zip(wanted, made, verdicts, strict=True)
        if verdict == "retry" and len(tries) < recipe.synth.attempts
    ]
    return left, len(list(chain(*made)))


def _made(request: Request, settings: str, most: int, done: set[str]) -> list[str]:
    return list(_until_open((Attempt(request, number, settings).name for number in range(most)), done))


def _until_open(names: Iterator[str], done: set[str]) -> Iterator[str]:
    for name in names:
        if name not in done:
            return
        yield name


def _verdict(out: str, unit: str) -> str:
    """What became of a committed attempt; one that failed past its making is not tried again."""
    (row,) = ledger.read_unit(out, "partition", unit)
    return row["synth_verdict"] or "rejected"
