"""Describe the machine on which a benchmark runs. Every benchmark prints this first."""

import importlib.metadata
import os
import platform
from pathlib import Path

_LIBRARIES = {"av": "PyAV", "opencv-python-headless": "OpenCV"}


def describe() -> str:
    """Return one line: processor, cores, load, Python and the libraries that do the work."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in cpu.splitlines() if line.startswith("model name")), platform.machine())
    load = os.getloadavg()[0]
    libraries = ", ".join(f"{name} {version(package)}" for package, name in _LIBRARIES.items())
    return f"{model}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}, {libraries}"


def version(package: str) -> str:
    """Return the version of an installed package, or `not installed`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
