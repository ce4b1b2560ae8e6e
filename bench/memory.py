"""Measure the peak memory of a scan of a 1-minute and a 20-minute video of the same material. It must not grow with length.

python -m bench.memory
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import av

from bench.machine import describe
from synth.doom.record import Recording, record


def main() -> None:
    """Print the environment, both peaks, and their difference."""
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        minute = Path(folder) / "minute.mp4"
        record(minute, Recording([("freedoom2", "MAP01", 30.0), ("freedoom1", "E1M1", 30.0)], seed=5))
        peaks = {}
        for minutes in (1, 20):
            path = Path(folder) / f"{minutes}.mp4"
            repeat(minute, path, minutes)
            child = subprocess.run([sys.executable, __file__, str(path)], capture_output=True, text=True, check=True)
            peaks[minutes] = int(child.stdout)
            print(f"{minutes:3} min: peak {peaks[minutes] / 1024:.0f} MiB")
        print(f"growth: {(peaks[20] - peaks[1]) / 1024:.0f} MiB for 19 minutes")


def repeat(source: Path, target: Path, times: int) -> None:
    """Write the packets of a video `times` times in a row, without encoding again."""
    with av.open(str(target), "w") as output:
        start, stream = 0, None
        for _ in range(times):
            with av.open(str(source)) as container:
                video = container.streams.video[0]
                stream = stream or output.add_stream_from_template(video)
                for packet in container.demux(video):
                    if packet.dts is not None and packet.pts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + start, packet.dts + start, stream
                        output.mux(packet)
                start += video.duration or 0


def scan_once(path: str) -> None:
    """Scan a video, and print this process's peak memory in KiB. Called in a separate process."""
    from curation.partition.chunks import ScanSettings
    from curation.partition.optical_flow import FlowSettings
    from curation.partition.scan import scan

    scan(path, ScanSettings(FlowSettings(backend="dis")))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    scan_once(sys.argv[1]) if len(sys.argv) > 1 else main()
