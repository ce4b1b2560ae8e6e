"""Summarise captions and interactions in a few lines for a run's summary and the report: sources, verdicts, errors, cost."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ledger import Record
from pipelines.wording import plural

_MAX_KINDS = 4
_ERRORS = ("caption_error", "action_error", "interaction_error")


def lines(kept: pa.Table, records: Iterable[Record]) -> list[tuple[str, str]]:
    """Return the title and text of each line: the captions of the kept clips, and the cost of a model if one was asked."""
    captioned, records = kept.filter(pc.is_valid(kept["caption_source"])), list(records)
    return [*(_caption_lines(captioned) if len(captioned) else ()), *_vlm_line(records)]


def _caption_lines(captioned: pa.Table) -> Iterator[tuple[str, str]]:
    yield "semantic check", _count_kinds(status.partition(": ")[0::2] for status in _values(captioned, "consistency_status"))
    yield "captions", _by_source(captioned, "caption_source") + _conflicts(captioned)
    yield "interactive", _interactive(captioned)
    yield "interaction captions", _relations(captioned)
    if errors := [error for name in _ERRORS for error in _values(captioned, name)]:
        yield "no valid answer", _count_kinds((error.partition(":")[0], "") for error in errors)


def _vlm_line(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """Yield the calls, tokens and seconds of a model, if one was asked."""
    usage: Counter[str] = Counter()
    for record in records:
        usage.update(record.vlm)
    clips = sum(record.rows for record in records if record.phase == "caption") or 1
    if not (usage["calls"] or usage["cached"]):
        return
    tokens = usage["prompt_tokens"] + usage["completion_tokens"]
    errors = [f"{usage[name]:,} {name}" for name in ("failed", "invalid") if usage[name]]
    calls = plural(usage["calls"], "call") + (f" ({', '.join(errors)})" if errors else "")
    seconds = usage["milliseconds"] / 1000
    yield (
        "VLM",
        f"{calls}, {usage['cached']:,} from the cache; {tokens:,} tokens; {tokens / clips:,.0f} tokens and "
        f"{seconds / clips:.2f} s per clip",
    )


def _values(table: pa.Table, name: str) -> list[str]:
    return [value for value in table[name].to_pylist() if value]


def _count_kinds(kinds: Iterable[tuple[str, str]]) -> str:
    """Count pairs of (word, detail), most common first. Details of failures differ from clip to clip, so they are left out."""
    counts = Counter(f"{word}: {detail}" if detail and word != "failed" else word for word, detail in kinds)
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common(_MAX_KINDS))


def _by_source(table: pa.Table, name: str) -> str:
    return _count_kinds(("measured" if s == "measured" else f"by {s}", "") for s in _values(table, name))


def _conflicts(table: pa.Table) -> str:
    count = sum(bool(conflicts) for conflicts in table["caption_conflicts"].to_pylist())
    return f"; {count:,} contradict the measurements" if count else ""


def _interactive(table: pa.Table) -> str:
    names = {True: "yes", False: "no", None: "unknown"}
    verdicts = Counter(names[value] for value in table["interactive"].to_pylist())
    counts = ", ".join(f"{verdicts[name]:,} {name}" for name in names.values() if verdicts[name])
    kinds = Counter(_values(table, "interaction_category"))
    unknown = Counter(reason.partition(":")[0] for reason in _values(table, "action_unknown"))
    return (
        counts
        + ("; " + ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common()) if kinds else "")
        + ("; " + ", ".join(f"{count:,}: {reason}" for reason, count in unknown.most_common()) if unknown else "")
    )


def _relations(table: pa.Table) -> str:
    related = table.filter(pc.is_valid(table["interaction_next"]))
    if not len(related):
        return "none: no kept clip is directly followed by another one"
    encoders = ", ".join(sorted(set(_values(related, "delta_encoder"))))
    return (
        f"{len(related):,} of {plural(len(table), 'clip')}: {_by_source(related, 'interaction_source')}; "
        f"embeddings by {encoders}"
    )
