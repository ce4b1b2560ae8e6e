"""Events logged by a game engine: a file next to the video, `<video's name>.events.json`, says what happened and when.

Clips are divided where events begin and end. From its first frame on an event's caption is the interaction caption of the
clips, until it ends or the next one begins. A log without events says that nothing happens.

    {"events": [{"frame": 70, "time_s": 4.0, "caption": "it starts to snow", "category": "environment"}]}
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

from curation import storage
from curation.captions.interaction import definition

SOURCE = "engine"  # of captions, as the schema has it
_SAME_FRAME_S = 2e-3  # as in `curation.cameras.engine`


@dataclass(frozen=True)
class EngineEvent:
    """One event of a recording."""

    frame: int  # the first in which it shows
    time_s: float  # of that frame, from the start of the video
    caption: str
    category: str  # environment | actor | entity
    end_s: float | None = None  # when it is over, from the start of the video; None: it lasts, as snow and night do


def log_uri(source_uri: str) -> str:
    """Return where a video's event log is expected: the video's uri with the ending `.events.json`."""
    folder, slash, name = source_uri.rpartition("/")
    return f"{folder}{slash}{name.rpartition('.')[0] or name}.events.json"


def to_json(events: Sequence[EngineEvent]) -> str:
    """Return the text of a log."""
    return json.dumps({"events": [asdict(event) for event in events]}, indent=1) + "\n"


@lru_cache(maxsize=4)
def read_log(source_uri: str) -> tuple[EngineEvent, ...] | None:
    """Return a recording's events in order of time; None if it has no log. Raises ValueError for a file that is no log."""
    uri = log_uri(source_uri)
    try:
        data = storage.read(uri)
    except FileNotFoundError:
        return None
    try:
        events = tuple(EngineEvent(**event) for event in json.loads(data)["events"])
        known = definition()["categories"]
        if wrong := next((event for event in events if event.end_s is not None and event.end_s <= event.time_s), None):
            raise ValueError(f"the event at {wrong.time_s:g} s ends at {wrong.end_s:g} s")
        if unknown := sorted({event.category for event in events} - set(known)):
            raise ValueError(f"unknown category {', '.join(unknown)}; known: {', '.join(known)}")
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{uri} is not a log of events: {error}") from error
    return tuple(sorted(events, key=lambda event: event.time_s))


def boundaries_s(source_uri: str) -> list[float]:
    """Return the times at which a recording's events begin or end; none if it has no log."""
    events = read_log(source_uri) or ()
    return sorted({*(event.time_s for event in events), *(event.end_s for event in events if event.end_s is not None)})


def event_at(events: Sequence[EngineEvent], time_s: float) -> EngineEvent | None:
    """Return the event at a time: the last that has begun, None where it is over."""
    begun = (event for event in events if event.time_s <= time_s + _SAME_FRAME_S)
    last = max(begun, key=lambda event: event.time_s, default=None)
    over = last is not None and last.end_s is not None and last.end_s <= time_s + _SAME_FRAME_S
    return None if over else last
