import cv2
import numpy as np
import pytest

from curation.media.decode import Span
from curation.media.viewport import Rect
from curation.vlm.frames import FrameSettings, choose_moments, frame_labels, grab_frames, video_label, video_times


def test_frames_lie_before_during_and_after_the_action_and_at_both_ends():
    chosen = choose_moments(Span(10.0, 16.0), Span(12.0, 13.0), 12.4, count=8)
    times = [m.time_s for m in chosen]
    assert times == sorted(times)
    assert len(times) == 8
    assert times[0] == 10.0
    assert times[-1] == pytest.approx(16.0, abs=0.01)
    assert any(abs(t - 12.4) < 1e-9 for t in times)
    assert {m.role for m in chosen} == {"before", "during", "after"}
    assert max(m.time_s for m in chosen if m.role == "before") == pytest.approx(11.7)
    assert min(m.time_s for m in chosen if m.role == "after") == pytest.approx(13.3)


def test_frames_of_a_video_are_evenly_spaced_and_their_number_is_even():
    times = video_times(Span(10.0, 16.0), fps=2.0)
    assert len(times) == 12
    assert np.diff(times) == pytest.approx([0.5] * 11)
    assert times[0] == 10.0
    assert [len(video_times(Span(0.0, end_s), fps)) for end_s, fps in ((0.5, 2), (5.6, 1), (6.0, 30))] == [4, 6, 64]


def test_the_label_of_a_video_counts_frames_and_names_those_of_the_action():
    span = Span(10.0, 16.0)
    times = video_times(span, fps=2.0)
    words = "A video of 12 frames, one every 0.50 s. Frame 1 is at 0.0 s."
    assert video_label(times, span, None) == words
    assert video_label(times, span, Span(12.0, 13.0)) == f"{words} The strongest action is in frames 5 to 8."
    assert video_label(times, span, Span(15.99, 16.0)) == f"{words} The strongest action is in frames 12 to 12."


@pytest.mark.parametrize("wrong", [{"form": "film"}, {"fps": 0.0}, {"fps": 31.0}, {"total_pixels": 100}])
def test_a_form_that_cannot_be_shown_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FrameSettings(**wrong)


def test_without_an_action_frames_are_spread_evenly():
    times = np.array([m.time_s for m in choose_moments(Span(0.0, 6.0), None, None, count=5)])
    assert np.diff(times) == pytest.approx([1.5] * 4, abs=0.01)


def test_a_short_clip_gives_fewer_frames_rather_than_the_same_ones():
    assert len(choose_moments(Span(0.0, 0.25), None, None, count=8)) == 3


def test_few_frames_still_show_both_ends_and_the_peak():
    chosen = choose_moments(Span(0.0, 6.0), Span(2.0, 3.0), 2.5, count=3)
    assert [round(m.time_s, 1) for m in chosen] == [0.0, 2.5, 6.0]


def test_labels_count_from_the_clips_start_and_name_the_part():
    shown = frame_labels(choose_moments(Span(10.0, 16.0), Span(12.0, 13.0), 12.4, count=3), 10.0)
    assert shown == (
        "Frame 1, 0.0 s, before the action:",
        "Frame 2, 2.4 s, during the action:",
        "Frame 3, 6.0 s, after the action:",
    )


def test_grabbed_frames_are_those_on_screen_at_that_time(write, tmp_path):
    """Frame k of the video has brightness 10 + 8 k."""
    pictures = (np.full((96, 160, 3), 10 + 8 * k, np.uint8) for k in range(25))
    uri = write(tmp_path / "steps.mp4", pictures, (k / 10 for k in range(25)), options={"crf": "1"})
    times = (0.5, 0.95, 1.62, 1.999)
    shots = grab_frames(uri, Span(0.5, 2.0), times, Rect(0, 0, 160, 96), 80)
    level = [cv2.imdecode(np.frombuffer(shot, np.uint8), cv2.IMREAD_COLOR).mean() for shot in shots]
    assert level == pytest.approx([10 + 8 * k for k in (5, 9, 16, 19)], abs=3)
    assert cv2.imdecode(np.frombuffer(shots[0], np.uint8), cv2.IMREAD_COLOR).shape == (48, 80, 3)


def test_the_view_is_cut_out_before_it_is_made_small(write, tmp_path):
    """The left half of the video is dark and the right half is light. Only the right half is in the view."""
    halves = np.concatenate([np.full((96, 80, 3), 20, np.uint8), np.full((96, 80, 3), 200, np.uint8)], 1)
    uri = write(tmp_path / "halves.mp4", [halves] * 12, (k / 10 for k in range(12)))
    (shot,) = grab_frames(uri, Span(0.0, 1.0), (0.5,), Rect(80, 0, 80, 96), 448)
    picture = cv2.imdecode(np.frombuffer(shot, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (96, 80, 3)
    assert picture[:, 4:].mean() > 190


@pytest.mark.parametrize("wrong", [{"hud": "hide"}, {"count": 1}, {"width_px": 10}])
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FrameSettings(**wrong)
