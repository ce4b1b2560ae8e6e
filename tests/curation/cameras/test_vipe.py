"""The ViPE adapter: on real artifacts, and on a program that writes ViPE's layout, rightly and wrongly."""

import os
import stat
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from curation.cameras import vipe
from curation.cameras.annotate import missing_requirement
from curation.cameras.clip import ClipView
from curation.cameras.settings import CameraSettings
from curation.media.decode import Span
from curation.media.viewport import Rect

SHARED = Path(os.environ.get("GAMECRAFT_SHARED", Path(__file__).resolve().parents[4] / "shared"))
GOLDEN = SHARED / "data" / "vipe_golden"

# What `vipe infer CLIP -o OUT -p PRESET` leaves: a walk that turns, as many poses as the clip has frames.
PROGRAM = """#!{python}
import sys, os
import av, numpy as np
words = sys.argv[1:]
assert words[0] == "infer" and words[2] == "-o" and words[4] == "-p", words
clip, out = words[1], words[3]
with av.open(clip) as video:
    frames = list(video.decode(video=0))
n, (width, height) = len(frames), (frames[0].width, frames[0].height)
angle = np.linspace(0, 0.5, n)
pose = np.tile(np.eye(4, dtype=np.float32), (n, 1, 1))
pose[:, 0, 0] = pose[:, 2, 2] = np.cos(angle)
pose[:, 0, 2], pose[:, 2, 0] = np.sin(angle), -np.sin(angle)
pose[:, 2, 3] = 3 + np.linspace(0, 4, n)
intrinsics = np.tile(np.array([width, width, width / 2, height / 2], np.float32), (n, 1))
inds = np.arange(n)
{twist}
for kind, data in (("pose", pose), ("intrinsics", intrinsics)):
    os.makedirs(f"{{out}}/{{kind}}", exist_ok=True)
    np.savez(f"{{out}}/{{kind}}/clip.npz", data=data, inds=inds)
"""


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Twelve frames of 160x120."""
    path = tmp_path_factory.mktemp("vipe") / "v.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for i in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((120, 160, 3), 10 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 12)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return str(path)


@pytest.fixture
def run_vipe(video, tmp_path):
    """A function: the program with a twist in it -> what the adapter says of the clip."""

    def run(twist="", view=(0, 0, 160, 100)):
        program = tmp_path / "vipe"
        program.write_text(PROGRAM.format(python=sys.executable, twist=twist))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        clip = ClipView(video, Span(0.0, 1.0), Rect(*view), Rect(0, 0, 160, 120))
        return vipe.annotate(clip, replace(CameraSettings(), backend="vipe", vipe_command=str(program)))

    return run


def test_real_artifacts_are_read():
    if not GOLDEN.is_dir():
        pytest.skip(f"no shared footage at {GOLDEN}")
    artifacts = vipe.read_artifacts(str(GOLDEN), "cosmos-example")
    vipe.check_artifacts(artifacts, 81)
    assert 0.3 < np.linalg.norm(artifacts.pose[-1, :3, 3]) < 10  # metres
    np.testing.assert_allclose(artifacts.intrinsics[0, 2:], [640, 352], atol=0.01)


def test_a_good_run_is_a_camera_in_px_of_the_source(run_vipe):
    facts, camera = run_vipe()
    assert (facts.status, facts.backend, facts.model) == ("ok", "vipe", "general")
    assert facts.turn_deg == pytest.approx(np.degrees(0.5), rel=1e-3)
    np.testing.assert_allclose(camera.pose[0], np.eye(4), atol=1e-6)
    assert camera.pose[-1, 2, 3] == pytest.approx(4, rel=1e-3)
    np.testing.assert_allclose(camera.intrinsics[0], [160, 160, 80, 50])  # the centre of the view, not of the picture
    assert (camera.size, camera.viewport, camera.scale_source) == ((160, 120), (0, 0, 160, 100), "metric")
    np.testing.assert_allclose(camera.times_s, np.arange(12) / 12, atol=1e-4)


def test_an_odd_view_is_fed_even_and_its_centre_comes_back(run_vipe):
    _, camera = run_vipe(view=(11, 7, 121, 91))
    np.testing.assert_allclose(camera.intrinsics[0, 2:], [11 + 60.5, 7 + 45.5], atol=1e-6)


@pytest.mark.parametrize(
    ("twist", "reason"),
    [
        ("pose = pose[:-1]; inds = inds[:-1]; intrinsics = intrinsics[:-1]", "(11, 4, 4) poses and (11, 4) intrinsics for 12"),
        ("inds = inds * 2", "vipe left frames out of its poses"),
        ("pose[3, 0, 0] = np.nan", "numbers that are not finite"),
        ("pose[:, :3, :3] *= 2", "not rigid motions"),
        ("pose[5, :3, 0] *= -1", "not rigid motions"),
        ("intrinsics[:, 0] = -1", "a focal length that is not positive"),
        ("sys.exit('CUDA error: out of memory')", "vipe ended with status 1: CUDA error: out of memory"),
        ("sys.exit(0)", "vipe wrote no pose/clip.npz"),
        (
            "os.makedirs(out + '/pose'); open(out + '/pose/clip.npz', 'w').write('x'); sys.exit(0)",
            "pose/clip.npz cannot be read",
        ),
    ],
)
def test_a_bad_run_is_a_reason_and_no_camera(run_vipe, twist, reason):
    facts, camera = run_vipe(twist)
    assert camera is None
    assert facts.status.startswith("failed:")
    assert reason in facts.status


def test_a_run_that_hangs_is_ended(run_vipe, monkeypatch):
    monkeypatch.setattr(vipe, "_START_S", 1.0)
    monkeypatch.setattr(vipe, "_S_PER_FRAME", 0.0)
    facts, camera = run_vipe("import time; time.sleep(60)")
    assert (facts.status, camera) == ("failed:vipe did not end within 1 s", None)


def test_a_jump_is_suspect(run_vipe):
    facts, camera = run_vipe("pose[6:, 0, 3] += 30")
    assert facts.status == "suspect"
    assert "step" in facts.why
    assert camera is not None


def test_no_vipe_here_is_said():
    settings = replace(CameraSettings(), backend="vipe", vipe_command="no-such-vipe")
    assert missing_requirement(settings) == (
        "ViPE needs the package nvidia-vipe and CUDA, or the program 'no-such-vipe', and neither is here; "
        "install one of them, or choose the backend klt, which needs neither"
    )
