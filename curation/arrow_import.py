"""Keep pyarrow from importing pandas, which costs each process 0.4 CPU-s and 31 MiB (docs/log.md)."""

import importlib.abc
import sys


def skip_pandas() -> None:
    """Let pyarrow convert lists without looking for pandas, for the rest of this process.

    At the first conversion of a list, or of an array to NumPy, pyarrow imports pandas wherever it is installed, and Ray Data
    installs it everywhere. It tries the import once and remembers the result, so this makes it try while pandas is hidden.
    `to_pandas` still works, but `pyarrow.array` then treats a pandas Series as a plain sequence. So call it only where nobody
    converts a Series: in the command line, and in its workers, whose models take and give NumPy arrays.
    """
    import pyarrow as pa

    if "pandas" in sys.modules:
        return
    hidden = _Hidden()
    sys.meta_path.insert(0, hidden)
    try:
        pa.array([])
    finally:
        sys.meta_path.remove(hidden)


class _Hidden(importlib.abc.MetaPathFinder):
    """Says that there is no pandas."""

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError(f"hidden: {fullname}", name=fullname)
