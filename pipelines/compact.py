"""Pack the files of units after each phase, and by `gamecraft compact`, here or by tasks on Ray
(`UnitFiles.run_tasks`).

The next manifest is the commit, and the files that it replaces are deleted after it (`pipelines.unit_files`). Before the first
manifest dataset.json gets the version of packed outputs, so that an older release refuses it instead of doing all again.
"""

from curation import shards
from curation.schema import PACKED_VERSION
from pipelines import unit_files
from pipelines.lock import hold_lock, renew_lock
from pipelines.unit_files import FOLDERS

MIN_UNITS = 1024
"""A folder with this many files of units is packed at the end of a phase."""


def compact(out: str, wait_s: float = 0.0) -> int:
    """Pack all files of units of an output, however few. Return how many. InputError where another run holds the output."""
    with hold_lock(out, wait_s), unit_files.pinned(out):
        return pack(out, min_units=1)


def pack(out: str, min_units: int | None = None) -> int:
    """Pack the folders that have at least `min_units` files of units (None: `MIN_UNITS`). Return how many were packed.

    Needs the lock.
    """
    files, packed = unit_files.of(out), 0
    min_units = MIN_UNITS if min_units is None else min_units
    for folder in FOLDERS:
        files.remove_replaced(folder)
        if files.count_files(folder) >= max(1, min_units):
            renew_lock(out)
            _mark_packed(out)
            packed += files.pack(folder)
    if packed:
        files.remove_unused()
    return packed


def _mark_packed(out: str) -> None:
    dataset = shards.read_dataset(out)
    if dataset and dataset["schema_version"] != PACKED_VERSION:
        shards.write_dataset(out, {**dataset, "schema_version": PACKED_VERSION})
