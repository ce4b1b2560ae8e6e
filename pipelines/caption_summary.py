"""Summarise captions and interactions in a few lines for a run's summary and the report: sources, verdicts, errors, cost."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ledger import Work
from pipelines.wording import plural

COLUMNS = (
    *("caption_source", "consistency_status", "caption_conflicts", "caption_error", "action_error", "interaction_error"),
    *("interactive", "interaction_category", "action_unknown", "interaction_next", "interaction_source", "delta_encoder"),
)
"""The columns of clips that a summary needs."""
_MAX_KINDS = 4
_ERRORS = ("caption_error", "action_error", "interaction_error")

Kinds = Counter[tuple[str, str]]
"""Counts of pairs of a word and a detail."""


@dataclass
class CaptionSummary:
    """Counts over kept clips that have a caption, which can be added table by table."""

    clips: int = 0
    checks: Kinds = field(default_factory=Counter)
    captions: Kinds = field(default_factory=Counter)
    conflicts: int = 0
    verdicts: Counter[bool | None] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    related: int = 0
    relations: Kinds = field(default_factory=Counter)
    encoders: set[str] = field(default_factory=set)
    errors: Kinds = field(default_factory=Counter)

    def add(self, kept: pa.Table) -> None:
        """Count kept clips."""
        table = kept.filter(pc.is_valid(kept["caption_source"]))
        self.clips += len(table)
        for status in _values(table, "consistency_status"):
            word, _, detail = status.partition(": ")
            self.checks[word, detail] += 1
        self.captions.update(_sources(table, "caption_source"))
        self.conflicts += sum(bool(conflicts) for conflicts in table["caption_conflicts"].to_pylist())
        self.verdicts.update(table["interactive"].to_pylist())
        self.categories.update(_values(table, "interaction_category"))
        self.unknown.update(reason.partition(":")[0] for reason in _values(table, "action_unknown"))
        related = table.filter(pc.is_valid(table["interaction_next"]))
        self.related += len(related)
        self.relations.update(_sources(related, "interaction_source"))
        self.encoders.update(_values(related, "delta_encoder"))
        for name in _ERRORS:
            self.errors.update((error.partition(":")[0], "") for error in _values(table, name))

    def lines(self, work: Work) -> list[tuple[str, str]]:
        """Return the title and text of each line: of the captions, and of the cost of a model if one was asked."""
        return [*(self._caption_lines() if self.clips else ()), *_vlm_line(work)]

    def _caption_lines(self) -> Iterator[tuple[str, str]]:
        yield "semantic check", _describe(self.checks)
        conflicts = f"; {self.conflicts:,} contradict the measurements" if self.conflicts else ""
        yield "captions", _describe(self.captions) + conflicts
        yield "interactive", self._interactive()
        yield "interaction captions", self._relations()
        if self.errors:
            yield "no valid answer", _describe(self.errors)

    def _interactive(self) -> str:
        names = {True: "yes", False: "no", None: "unknown"}
        verdicts = ", ".join(f"{self.verdicts[value]:,} {name}" for value, name in names.items() if self.verdicts[value])
        categories = ", ".join(f"{count:,} {kind}" for kind, count in self.categories.most_common())
        unknown = ", ".join(f"{count:,}: {reason}" for reason, count in self.unknown.most_common())
        return "; ".join(filter(None, (verdicts, categories, unknown)))

    def _relations(self) -> str:
        if not self.related:
            return "none: no kept clip is directly followed by another one"
        return (
            f"{self.related:,} of {plural(self.clips, 'clip')}: {_describe(self.relations)}; "
            f"embeddings by {', '.join(sorted(self.encoders))}"
        )


def lines(kept: pa.Table, work: Work) -> list[tuple[str, str]]:
    """Return the title and text of each line about these kept clips."""
    summary = CaptionSummary()
    summary.add(kept)
    return summary.lines(work)


def _vlm_line(work: Work) -> Iterator[tuple[str, str]]:
    """Yield the calls, tokens and seconds of a model, if one was asked."""
    usage, clips = work.vlm, work.captioned or 1
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


def _sources(table: pa.Table, name: str) -> Iterator[tuple[str, str]]:
    return (("measured" if source == "measured" else f"by {source}", "") for source in _values(table, name))


def _describe(kinds: Kinds) -> str:
    """Return counts in words, most common first. Details of failures differ from clip to clip, so they are left out."""
    counts: Counter[str] = Counter()
    for (word, detail), count in kinds.items():
        counts[f"{word}: {detail}" if detail and word != "failed" else word] += count
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common(_MAX_KINDS))
