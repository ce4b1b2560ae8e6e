"""Frames prepared by qwen-vl-utils: as one video within a pixel budget, or as images."""

import cv2
import numpy as np
import pytest

from curation.errors import Unavailable
from curation.vlm import Prompt, VideoForm, VlmSettings, load, qwen
from curation.vlm.local import chat_messages

pytest.importorskip("qwen_vl_utils")
SCHEMA = {
    "type": "object",
    "properties": {"keep": {"type": "boolean"}, "kind": {"enum": ["door", "shot"]}, "why": {"type": "string", "maxLength": 12}},
    "required": ["keep", "kind", "why"],
    "additionalProperties": False,
}


def video(jpeg, frames=6, fps=2.0, total_pixels=6 * 28 * 28 * 12):
    levels = np.linspace(20, 220, frames).astype(int)
    return Prompt("q", "Keep?", SCHEMA, tuple(jpeg(int(k)) for k in levels), ("A video.",), video=VideoForm(fps, total_pixels))


def sizes(frames):
    return {cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_COLOR).shape for frame in frames}


def test_frames_of_a_video_are_multiples_of_the_patch_within_the_budget(jpeg):
    prompt = video(jpeg)
    frames = qwen.resized_frames(prompt)
    ((height, width, _),) = sizes(frames)
    assert len(frames) == 6
    assert height % 28 == width % 28 == 0
    assert len(frames) / 2 * height * width <= prompt.video.total_pixels
    means = [cv2.imdecode(np.frombuffer(frame, np.uint8), 0).mean() for frame in frames]
    assert means == pytest.approx(np.linspace(20, 220, 6).astype(int), abs=2), "in order"
    ((small, _, _),) = sizes(qwen.resized_frames(video(jpeg, total_pixels=6 * 28 * 28 * 4)))
    assert small < height


def test_an_odd_number_of_frames_is_filled_up_with_the_last(jpeg):
    assert len(qwen.resized_frames(video(jpeg, frames=5))) == 6


def test_without_qwen_vl_utils_a_video_says_what_to_install(jpeg, monkeypatch):
    monkeypatch.setattr(qwen, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"caption\.frames\.form video needs qwen-vl-utils: pip install"):
        qwen.resized_frames(video(jpeg))


@pytest.fixture(scope="module")
def local(tiny_vlm):
    pytest.importorskip("transformers")
    return load(VlmSettings("transformers", str(tiny_vlm), max_tokens=200))


def test_a_model_of_transformers_gets_one_video(local, jpeg):
    inputs = local._inputs(video(jpeg))
    assert inputs["video_grid_thw"].tolist() == [[3, 8, 8]], "pairs of frames, 112 x 112 px in patches of 14"
    assert "image_grid_thw" not in inputs
    pad = local._processor.tokenizer.convert_tokens_to_ids("<|video_pad|>")
    assert int((inputs["input_ids"] == pad).sum()) == 3 * 8 * 8 // 4


def test_the_rate_of_the_video_reaches_the_model(local, jpeg):
    """Qwen2.5-VL places frames in time by the seconds between them."""
    seconds = [float(local._inputs(video(jpeg, fps=fps))["second_per_grid_ts"][0]) for fps in (1.0, 2.0)]
    assert seconds == pytest.approx([2.0, 1.0])


def test_separate_images_go_through_the_same_preparation(local, jpeg):
    prompt = Prompt("q", "Keep?", SCHEMA, (jpeg(20), jpeg(90)), ("Frame 1:", "Frame 2:"))
    inputs = local._inputs(prompt)
    assert inputs["image_grid_thw"].tolist() == [[1, 6, 8]] * 2, "90 x 120 px, rounded to multiples of 28"
    assert [part["type"] for part in chat_messages(prompt)[0]["content"]] == ["text", "image", "text", "image", "text"]


def test_a_question_about_a_video_is_answered_within_its_schema(local, jpeg):
    pytest.importorskip("llguidance")
    reply = local._reply(video(jpeg))
    assert reply.error is None
    # Random weights may fill the rest of the reply with blanks, which JSON allows.
    assert "".join(reply.text.split()).startswith('{"keep"')
    assert reply.completion_tokens > 8


def test_a_model_of_another_family_refuses_videos_and_prepares_images_itself(local, jpeg, monkeypatch):
    monkeypatch.setattr(qwen, "is_qwen", lambda processor: False)
    with pytest.raises(Unavailable, match=r"form video needs a model of Qwen and qwen-vl-utils"):
        local._inputs(video(jpeg))
    assert "image_grid_thw" in local._inputs(Prompt("q", "Keep?", SCHEMA, (jpeg(),)))


def test_the_form_is_part_of_the_answers_name_and_that_of_images_is_as_before(jpeg):
    frames = (jpeg(), jpeg(5))
    images, moving = Prompt("q", "Keep?", SCHEMA, frames), Prompt("q", "Keep?", SCHEMA, frames, video=VideoForm(2.0, 10_000))
    slower = Prompt("q", "Keep?", SCHEMA, frames, video=VideoForm(1.0, 10_000))
    assert len({prompt.cache_key("m") for prompt in (images, moving, slower)}) == 3
