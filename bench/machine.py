"""Describe the machine on which a benchmark runs. Every benchmark prints this first."""

import os
import platform
from pathlib import Path

import av
import cv2


def describe() -> str:
    """Return one line: processor, cores, load, Python and the libraries that do the work."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in cpu.splitlines() if line.startswith("model name")), platform.machine())
    load = os.getloadavg()[0]
    libraries = f"PyAV {av.__version__}, OpenCV {cv2.__version__}"
    return f"{model}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}, {libraries}"
