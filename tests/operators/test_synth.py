"""The verdict on a made video before a VLM is asked."""

from types import SimpleNamespace

import numpy as np

from curation.media.time_gaps import Segment
from operators import synth
from operators.synth import verify_video
from synth.media import to_png
from synth.metrics import VideoMetrics
from synth.strategies import SynthSettings


def test_a_made_video_with_a_hole_in_time_is_no_clip(monkeypatch):
    parts = Segment(0, 10, 0.0, 1.0), Segment(10, 20, 5.0, 6.0)
    monkeypatch.setattr(synth, "scan", lambda *_: SimpleNamespace(segments=parts))
    monkeypatch.setattr(synth, "measure_video", lambda *_: VideoMetrics(*[0.0] * len(VideoMetrics._fields)))
    monkeypatch.setattr(synth.Request, "from_json", lambda _: SimpleNamespace(interaction=None))
    picture = to_png(np.zeros((16, 16, 3), np.uint8))
    row = {"request": "", "source_uri": "made.mp4", "initial_png": picture, "synth_attempt": 2}
    (found,) = verify_video([row], settings=SynthSettings(attempts=3), scan_settings=None, scene=None)
    assert (found["synth_verdict"], found["reject"]) == ("rejected", "no frame for 4 s at 1.0 s")
