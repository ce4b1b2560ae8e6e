"""Count a whole output, part by part (`ledger.scan`), for the summary of a run, dataset.json and the dataset card."""

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import ledger
from pipelines.caption_summary import COLUMNS as CAPTION_COLUMNS
from pipelines.caption_summary import CaptionSummary
from pipelines.ledger import Part

COLUMNS = tuple(
    dict.fromkeys(
        (
            *("reject", "error", "shard", "start_s", "end_s", "source", "interaction_category", "duplicate_of_clip"),
            *("stored_width", "stored_height"),
            *CAPTION_COLUMNS,
        )
    )
)
"""The columns of clips that are counted."""


@dataclass
class StoredClips:
    """Counts of the clips that shards hold. sizes: by width and height in px. categories: by source and interaction."""

    clips: int = 0
    seconds: float = 0.0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)

    def add(self, clips: pa.Table) -> None:
        """Count those of these clips that are in a shard."""
        table = clips.filter(pc.is_valid(clips["shard"]))
        self.clips += len(table)
        self.seconds += seconds(table)
        self.sizes.update(zip(table["stored_width"].to_pylist(), table["stored_height"].to_pylist(), strict=True))
        for source, category in zip(table["source"].to_pylist(), table["interaction_category"].to_pylist(), strict=True):
            self.categories[f"{source}/{category or 'unknown'}"] += 1


@dataclass
class Totals:
    """Counts of sources by status, and of clips."""

    sources: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    clips: int = 0
    kept: int = 0
    errors: int = 0
    kept_s: float = 0.0
    total_s: float = 0.0
    near_duplicates: int = 0
    near_duplicates_kept: int = 0
    stored: StoredClips = field(default_factory=StoredClips)
    captions: CaptionSummary = field(default_factory=CaptionSummary)

    def notes(self) -> list[tuple[str, str]]:
        """Return what to say about near-duplicates, as (title, words), if there are any."""
        if not self.near_duplicates:
            return []
        words = (
            "clip repeats a clip of another source" if self.near_duplicates == 1 else "clips repeat a clip of another source"
        )
        dropped = self.near_duplicates - self.near_duplicates_kept
        return [("near-duplicates", f"{self.near_duplicates} {words}; {dropped} dropped (score.duplicates)")]

    def add(self, part: Part) -> None:
        kept = ledger.kept_clips(part.clips)
        self.sources += len(part.videos)
        self.statuses.update(part.videos["status"].to_pylist())
        self.clips += len(part.clips)
        self.kept += len(kept)
        self.errors += len(part.clips) - part.clips["error"].null_count
        self.kept_s += seconds(kept)
        self.total_s += seconds(part.clips)
        self.near_duplicates += _count(part.clips)
        self.near_duplicates_kept += _count(kept)
        self.stored.add(part.clips)
        self.captions.add(kept)


def _count(clips: pa.Table) -> int:
    """Count the clips that repeat a clip of another source."""
    return len(clips) - clips["duplicate_of_clip"].null_count


def seconds(clips: pa.Table) -> float:
    """Return the length of clips together."""
    return float(sum(e - s for s, e in zip(clips["start_s"].to_pylist(), clips["end_s"].to_pylist(), strict=True)))
