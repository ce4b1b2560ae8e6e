"""The labels of a recording, alike for all engines: when something happens, of which kind, and how the player moves."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.actions.learned import KINDS
from curation.actions.spans import merge_short_runs
from synth.doom import truth
from synth.doom.truth import Truth
from synth.engines.truth_file import OTHER

# Rates of pitch from which a player looks up or down, where the view does not turn faster.
_LOOK_DEG_S = 20.0
_SAME_REGIME_S = 0.3
_RESTLESS = 0.3  # share of the time from which a part of the map moves by itself: a machine, no door
_CUT_S = 0.2  # how long a cut shows in measurements that compare pictures
# What Doom's truth tells beside doors and the weapon, and for how long it shows; from which share of the picture monsters do.
_OTHER_IN_DOOM, _OTHER_SHOWN_S, _MONSTER_SHARE = frozenset({"hurt", "pickup", "kill"}), 0.35, 0.004
# Names of events in recordings of other recorders.
_ALIASES = {
    "fire": "shot",
    "weapon_change": "wield",
    "mover": "door",
    "torch_lit": "torch",
    "tnt_set": "place",
    "weather_snow": "weather",
    "weather_clear": "weather",
    "night": "weather",
    "day": "weather",
    "creature": "appear",
    "snow": "weather",
    "block": "place",
}
# How long an event of the known place (`synth.engines.minetest`) changes the picture, in s; its torch is drawn in the hand.
_PLACE_SHOWN_S = {"snow": 1.2, "night": 1.2, "torch": 0.4, "block": 0.3, "creature": 0.5, "explosion": 1.6}
_PLACE_KINDS = {**_ALIASES, "torch": "wield", "explosion": "explosion"}
# Kinds that an engine's truth does not tell although they may happen.
_UNTOLD = {
    "doom": frozenset({"appear", "explosion"}),
    "openarena": frozenset({"appear"}),
    "minetest": frozenset[str](),
    "painted": frozenset[str](),
    "neverball": frozenset(KINDS),
}


@dataclass(frozen=True)
class LabelSpan:
    """An event that is in view, in frames."""

    kind: str  # one of `KINDS`
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of n frames."""

    truth: Truth
    engine: str  # doom | minetest | openarena | neverball | painted
    spans: tuple[LabelSpan, ...]
    event: NDArray[np.bool_]  # [n], something happens in view
    kinds: NDArray[np.bool_]  # [n, 10], of each of `KINDS`
    knows_kind: NDArray[np.bool_]  # [10], False where the truth does not tell of a kind
    # [n], False where nothing of `KINDS` is known to happen and yet something may be seen to: others are in view and shoot, the
    # player is hurt or takes something, a machine moves all the time; a cut
    known: NDArray[np.bool_]
    regimes: list[str]  # [n], none shorter than 0.3 s


def read_labels(jsonl: str | Path) -> Labels:
    """Read the labels of a recording by any engine. Raises ValueError if it is cut short, as `read_truth` does."""
    recorded = truth.read_truth(jsonl)
    with open(jsonl, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    engine = _engine(recorded.header)
    from_behind = bool(recorded.header.get("third_person")) and engine != "painted"
    doubtful = _doubtful(lines[-1].get("spans", ()), len(recorded), from_behind)
    spans = tuple(_spans(recorded, lines[-1], engine, doubtful))
    kinds = np.zeros((len(recorded), len(KINDS)), bool)
    for span in spans:
        kinds[span.start : span.end, KINDS.index(span.kind)] = True
    visible = truth.interactions(recorded)
    event: NDArray[np.bool_] = visible if engine == "doom" else np.logical_or.reduce(kinds, axis=1)
    known = ~(recorded.weapon_busy & ~visible)  # a weapon that is not drawn still lights the room when it fires
    for frame in truth.discontinuities(recorded):
        near = slice(max(0, frame - 1), frame + round(_CUT_S * recorded.fps))
        known[near] &= event[near]
    for hidden in doubtful:
        known[hidden["start"] : hidden["end"]] &= event[hidden["start"] : hidden["end"]]
    if engine == "doom":
        known &= event | ~_shows_other(recorded, [line for line in lines if "frame" in line])
    return Labels(
        recorded,
        engine,
        spans,
        event,
        kinds,
        np.array([kind not in _UNTOLD[engine] for kind in KINDS]),
        known,
        merge_short_runs(_regimes(recorded), recorded.time_s, _SAME_REGIME_S),
    )


def _engine(header: dict[str, Any]) -> str:
    name = str(header.get("engine", header.get("game", ""))).lower()
    return next((engine for engine in ("minetest", "openarena", "neverball", "painted") if name.startswith(engine)), "doom")


def _spans(recorded: Truth, footer: dict[str, Any], engine: str, doubtful: Sequence[dict[str, Any]]) -> Iterator[LabelSpan]:
    if engine == "doom":
        yield from _doom_spans(recorded)
    elif "spans" in footer:
        hidden = _hand_is_hidden(recorded.header)
        for span in footer["spans"]:
            kind = span.get("kind") or _ALIASES.get(span["name"], span["name"])
            in_view = span.get("in_view", span.get("dist", 0) < 24 and span.get("off", 0) < 45)
            if (
                in_view
                and not (hidden and kind == "wield")
                and kind != OTHER
                and span["end"] > span["start"]
                and span not in doubtful
            ):
                yield LabelSpan(kind, span["start"], span["end"])
    else:
        for event in recorded.events:
            if "caption" in event.details:
                shown = round(_PLACE_SHOWN_S[event.name] * recorded.fps)
                yield LabelSpan(_PLACE_KINDS[event.name], event.frame, min(len(recorded), event.frame + shown))


def _doubtful(spans: Sequence[dict[str, Any]], frames: int, from_behind: bool) -> list[dict[str, Any]]:
    """Return what counts as neither.

    Others shoot, a part of the map moves all the time, something has no kind, or a player who is seen from behind takes another
    tool in a small hand.
    """
    moving: Counter[str] = Counter()
    for span in spans:
        moving[span.get("model", "")] += span["end"] - span["start"]
    restless = {model for model, count in moving.items() if model and count > _RESTLESS * frames}
    return [
        span
        for span in spans
        if span.get("in_view")
        and (
            span.get("by_other")
            or span.get("model") in restless
            or span.get("kind") == OTHER
            or (from_behind and span.get("kind") == "wield")
        )
    ]


def _hand_is_hidden(header: dict[str, Any]) -> bool:
    return "--no-weapon" in header.get("argv", ())


def _doom_spans(recorded: Truth) -> Iterator[LabelSpan]:
    """Yield moving doors, and runs in which the weapon is busy: a shot, or else it is drawn or lowered."""
    for start, end in truth.runs(recorded.moving_in_view):
        yield LabelSpan("door", start, end)
    if _hand_is_hidden(recorded.header):
        return
    names = [(event.frame, event.name) for event in recorded.events]
    for start, end in truth.runs(recorded.weapon_busy):
        switched = any(start - 4 <= frame < end and name == "weapon_switched" for frame, name in names)
        fired = any(start - 4 <= frame < end and name == "shot_fired" for frame, name in names)
        yield LabelSpan("wield" if switched and not fired else "shot", start, end)


def _shows_other(recorded: Truth, frames: Sequence[dict[str, Any]]) -> NDArray[np.bool_]:
    """Return the frames [n] of Doom with something else in view: a monster, or the player is hurt, kills or takes something."""
    header = recorded.header
    min_area = _MONSTER_SHARE * header["width"] * header["height"]
    shown = np.array([any(box["w"] * box["h"] >= min_area for box in frame.get("enemies", ())) for frame in frames], bool)
    for event in recorded.events:
        if event.name in _OTHER_IN_DOOM:
            shown[event.frame : event.frame + round(_OTHER_SHOWN_S * recorded.fps)] = True
    return shown


def _regimes(recorded: Truth) -> list[str]:
    """Return the motion of each frame. Looking up or down counts where it is faster than the turn."""
    names = truth.regimes(recorded)
    look = np.append(np.diff(recorded.pitch_deg) * recorded.fps, 0.0)
    for frame in truth.discontinuities(recorded):
        look[frame - 1] = 0.0
    looks = (np.abs(look) > _LOOK_DEG_S) & (np.abs(look) > np.abs(truth.yaw_rate_deg_s(recorded)))
    return [
        ("look_up" if rate > 0 else "look_down") if is_look else name
        for name, rate, is_look in zip(names, look, looks, strict=True)
    ]
