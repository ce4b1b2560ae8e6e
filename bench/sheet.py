"""A contact sheet of the strongest interaction spans of some footage. A row shows a span: before, start, peak, end, after.

python -m bench.sheet OUT.jpg VIDEO... [--detector learned]
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from curation.actions.detect import DETECTORS, ActionSettings, detect_actions
from curation.actions.spans import ActionSpan
from curation.media.decode import Span, read_frames
from curation.partition.chunks import ScanSettings
from curation.partition.optical_flow import FlowSettings
from curation.partition.scan import scan

_SIZE = (256, 144)
_AROUND_S = 0.4


def main() -> None:
    """Write the sheet and list its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--detector", default="auto", choices=DETECTORS)
    parser.add_argument("--count", type=int, default=10)
    options = parser.parse_args()
    spans = [(span, uri) for uri in options.videos for span in _interactions(uri, options.detector)]
    strongest = sorted(spans, key=lambda item: -item[0].energy)[: options.count]
    cv2.imwrite(str(options.out), np.vstack([_row(*item) for item in strongest]), [cv2.IMWRITE_JPEG_QUALITY, 80])


def _interactions(uri: str, detector: str) -> list[ActionSpan]:
    actions = detect_actions(scan(uri, ScanSettings(FlowSettings(backend="dis"))), ActionSettings(detector=detector))
    print(f"{Path(uri).name}: {actions.detector}, distance {actions.distance:.2f}")
    return [span for span in actions.spans if span.kind == "interaction"]


def _row(span: ActionSpan, uri: str) -> np.ndarray:
    times = (span.start_s - _AROUND_S, span.start_s, span.peak_s, span.end_s, span.end_s + _AROUND_S)
    pictures = [_picture(uri, max(0.0, time_s)) for time_s in times]
    label = f"{Path(uri).stem} {span.start_s:.1f}-{span.end_s:.1f} s, {span.energy:.2f}"
    print(label)
    return np.hstack([cv2.putText(pictures[0], label, (4, 12), 0, 0.4, (0, 255, 255), 1, cv2.LINE_AA), *pictures[1:]])


def _picture(uri: str, time_s: float) -> np.ndarray:
    """Return the picture on screen at a time, or the last one if the source ends before it."""
    frames = read_frames(uri, Span(max(0.0, time_s - 0.5), time_s + 0.1))
    index = max(0, int(np.searchsorted(frames.times_s, time_s + 1e-6)) - 1)
    return cv2.cvtColor(cv2.resize(frames.rgb[index], _SIZE, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)


if __name__ == "__main__":
    main()
