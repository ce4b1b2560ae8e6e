"""What came of captions and interactions, in a few lines for the summary and the report: who wrote them, what is left out."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ledger import Record
from pipelines.wording import plural

_MOST_KINDS = 4
_ERRORS = ("caption_error", "action_error", "interaction_error")


def lines(kept: pa.Table, records: Iterable[Record]) -> list[tuple[str, str]]:
    """Title and words of each line: what the kept clips have, and what a model cost; none where there is neither."""
    captioned, records = kept.filter(pc.is_valid(kept["caption_source"])), list(records)
    return [*(_found(captioned) if len(captioned) else ()), *_cost(records)]


def _found(captioned: pa.Table) -> Iterator[tuple[str, str]]:
    yield "semantic check", _counted(status.partition(": ")[0::2] for status in _values(captioned, "consistency_status"))
    yield "captions", _by_source(captioned, "caption_source") + _conflicts(captioned)
    yield "interactive", _interactive(captioned)
    yield "interaction captions", _relations(captioned)
    if errors := [error for name in _ERRORS for error in _values(captioned, name)]:
        yield "no valid answer", _counted((error.partition(":")[0], "") for error in errors)


def _cost(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """Calls, tokens and seconds of a model, if one was asked."""
    spent: Counter[str] = Counter()
    for record in records:
        spent.update(record.vlm)
    clips = sum(record.rows for record in records if record.phase == "caption") or 1
    if not (spent["calls"] or spent["cached"]):
        return
    tokens = spent["prompt_tokens"] + spent["completion_tokens"]
    trouble = [f"{spent[name]:,} {name}" for name in ("failed", "invalid") if spent[name]]
    calls = plural(spent["calls"], "call") + (f" ({', '.join(trouble)})" if trouble else "")
    seconds = spent["milliseconds"] / 1000
    yield (
        "VLM",
        f"{calls}, {spent['cached']:,} answered before; {tokens:,} tokens; {tokens / clips:,.0f} tokens and "
        f"{seconds / clips:.2f} s a clip",
    )


def _values(table: pa.Table, name: str) -> list[str]:
    return [value for value in table[name].to_pylist() if value]


def _counted(kinds: Iterable[tuple[str, str]]) -> str:
    """Counts of (word, detail), most common first; the details of failures differ, and stay in the ledger."""
    counts = Counter(f"{word}: {detail}" if detail and word != "failed" else word for word, detail in kinds)
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common(_MOST_KINDS))


def _by_source(table: pa.Table, name: str) -> str:
    return _counted(("measured" if s == "measured" else f"by {s}", "") for s in _values(table, name))


def _conflicts(table: pa.Table) -> str:
    count = sum(bool(said) for said in table["caption_conflicts"].to_pylist())
    return f"; {count:,} at odds with what was measured" if count else ""


def _interactive(table: pa.Table) -> str:
    names = {True: "yes", False: "no", None: "unknown"}
    verdicts = Counter(names[value] for value in table["interactive"].to_pylist())
    said = ", ".join(f"{verdicts[name]:,} {name}" for name in names.values() if verdicts[name])
    kinds = Counter(_values(table, "interaction_category"))
    return said + ("; " + ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common()) if kinds else "")


def _relations(table: pa.Table) -> str:
    related = table.filter(pc.is_valid(table["interaction_next"]))
    if not len(related):
        return "no clip has a kept neighbour yet"
    encoders = ", ".join(sorted(set(_values(related, "delta_encoder"))))
    return (
        f"{len(related):,} of {plural(len(table), 'clip')}, {_by_source(related, 'interaction_source')}; deltas by {encoders}"
    )
