"""What becomes of a made video before any model is asked."""

from types import SimpleNamespace

import numpy as np

from curation.media.time_gaps import Segment
from operators import synth
from operators.synth import verify_video
from synth.evidence import Evidence
from synth.media import to_png
from synth.strategies import SynthSettings


def test_a_made_video_with_a_hole_in_time_is_no_clip(monkeypatch):
    parts = Segment(0, 10, 0.0, 1.0), Segment(10, 20, 5.0, 6.0)
    monkeypatch.setattr(synth, "scan", lambda *_: SimpleNamespace(segments=parts))
    monkeypatch.setattr(synth, "evidence", lambda *_: Evidence(*[0.0] * len(Evidence._fields)))
    monkeypatch.setattr(synth, "request", lambda _: SimpleNamespace(interaction=None))
    picture = to_png(np.zeros((16, 16, 3), np.uint8))
    row = {"request": "", "source_uri": "made.mp4", "initial_png": picture, "synth_attempt": 2}
    (found,) = verify_video([row], how=SynthSettings(attempts=3), pass_=None, scene=None)
    assert (found["synth_verdict"], found["reject"]) == ("rejected", "no frame for 4 s at 1.0 s")
