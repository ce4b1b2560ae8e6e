"""Records of sessions: written, read, replayed bit for bit, or refused with the reason."""

import io
import json
from dataclasses import replace

import av
import numpy as np
import pytest
from mock_engine import BLOCK, MockEngine, picture

from curation.errors import InputError
from model.control.spec import ControlState
from model.play.engine import Start
from model.play.record import Record, parse_record, read_record, replay, sha_of, start_recorded
from model.play.video import Mp4Writer


def played(engine: MockEngine, blocks: int = 4) -> tuple[str, list[np.ndarray]]:
    session, first = start_recorded(engine, Start(picture(70), "night", 3))
    frames = [first.frames]
    for number in range(blocks):
        if number == 2:
            session.set_prompt("snow", 2)
        keys = [frozenset("W"), frozenset(["A", "LEFT"]), frozenset(), frozenset("D")][number % 4]
        frames.append(session.generate([ControlState(keys, 0.1 * i, 1 / 3) for i in range(BLOCK)]).frames)
        session.commit()
    return session.text(), frames


def test_a_replay_gives_the_same_frames():
    text, frames = played(MockEngine())
    record = parse_record(text, "a.gcplay")
    assert [block.sha for block in record.blocks] == [sha_of(block) for block in frames]
    again = list(replay(record, MockEngine()))
    assert [block.number for block in again] == [0, 1, 2, 3, 4]
    for block, before in zip(again, frames, strict=True):
        assert np.array_equal(block.frames, before)
    assert record.controls()[5] == ControlState(frozenset(["A", "LEFT"]), 0.1, 1 / 3)


def test_a_replay_of_a_replay_is_the_same_record():
    text, _ = played(MockEngine())
    record = parse_record(text, "a.gcplay")
    session, _ = start_recorded(MockEngine(), Start(picture(70), "night", 3))
    for block in record.blocks[1:]:
        for prompt in block.prompts:
            session.set_prompt(prompt.text, prompt.blend_blocks)
        session.generate(block.states())
        session.commit()
    assert session.text() == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identity": {"checkpoint": "other", "threads": 1}}, "identity.causal is"),
        ({"identity": MockEngine().info.identity | {"threads": 2}}, "identity.threads is 1 in the record, but 2 in mock"),
        (
            {"identity": MockEngine().info.identity | {"causal": {"sink": 3}}},
            "identity.causal.sink is 1 in the record, but 3 in mock",
        ),
        ({"identity": MockEngine().info.identity | {"flag": True}}, "identity.flag is missing in the record, but true in mock"),
        (
            {"control": replace(MockEngine().info.control, turn_deg_s=45)},
            "control.turn_deg_s is 90.0 in the record, but 45 in mock",
        ),
        ({"block_frames": 8}, "block_frames is 4 in the record, but 8 in mock"),
    ],
)
def test_a_replay_by_another_engine_is_refused_with_the_field(change, message):
    record = parse_record(played(MockEngine())[0], "a.gcplay")
    other = MockEngine()
    other.info = replace(other.info, **change)
    with pytest.raises(InputError, match="cannot be replayed") as caught:
        next(replay(record, other))
    assert message in str(caught.value)


def test_frames_that_differ_stop_a_replay_at_their_block():
    record = parse_record(played(MockEngine())[0], "a.gcplay")
    blocks = list(record.blocks)
    blocks[2] = blocks[2].model_copy(update={"sha": "f" * 64})
    replayed = replay(Record(record.header, tuple(blocks), is_truncated=False), MockEngine())
    assert [next(replayed).number, next(replayed).number] == [0, 1]
    with pytest.raises(InputError, match=r"frames of block 2 have sha256 .{12}, not f{12}"):
        next(replayed)


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_last_line_that_was_cut_off_is_left_out(cut):
    text, _ = played(MockEngine())
    record = parse_record(text[:-cut], "a.gcplay")
    assert len(record.blocks) == (5 if cut == 1 else 4)
    assert record.is_truncated == (cut > 1)
    assert len(list(replay(record, MockEngine()))) == len(record.blocks)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda lines: ["{}", *lines[1:]], "a.gcplay: line 1 is not the header of a .gcplay record"),
        (lambda lines: [lines[0].replace('"gcplay":1', '"gcplay":7'), *lines[1:]], "version 7, but this release reads 1"),
        (lambda lines: [lines[0].replace('"seed"', '"sead"'), *lines[1:]], "line 1 is not the header"),
        (lambda lines: [*lines[:2], "garbage", *lines[3:]], "a.gcplay: line 3 is not a block: Invalid JSON"),
        (lambda lines: [*lines[:-1], "garbage"], "a.gcplay: line 6 is not a block"),
        (lambda lines: [*lines[:2], *lines[3:]], "a.gcplay: line 3 is block 2, but block 1 should come here"),
        (lambda lines: [*lines[:2], lines[2].replace('"W"', '"X"'), *lines[3:]], "a.gcplay: line 3 is not a block: controls"),
    ],
)
def test_garbage_is_refused_with_its_line(spoil, message):
    lines = played(MockEngine())[0].splitlines()
    with pytest.raises(InputError) as caught:
        parse_record("\n".join(spoil(lines)) + "\n", "a.gcplay")
    assert message in str(caught.value)


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_record(str(tmp_path / "none.gcplay"))
    (tmp_path / "empty.gcplay").write_text("")
    with pytest.raises(InputError, match="is empty"):
        read_record(str(tmp_path / "empty.gcplay"))
    (tmp_path / "binary.gcplay").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text file"):
        read_record(str(tmp_path / "binary.gcplay"))


def test_a_start_image_that_is_spoilt_is_refused():
    text, _ = played(MockEngine())
    lines = text.splitlines()
    spoilt = json.loads(lines[0]) | {"image": "AAAA"}
    record = parse_record("\n".join([json.dumps(spoilt), *lines[1:]]) + "\n", "a.gcplay")
    with pytest.raises(InputError, match="start image of this record cannot be decoded"):
        next(replay(record, MockEngine()))


def test_a_video_shows_the_frames_and_odd_sizes_lose_a_line():
    writer = Mp4Writer(16)
    writer.add(np.full((3, 49, 65, 3), 200, np.uint8))
    writer.add(np.full((2, 49, 65, 3), 50, np.uint8))
    with av.open(io.BytesIO(writer.finish())) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        assert video.streams.video[0].average_rate == 16
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 5
    assert [round(float(frame.mean()), -1) for frame in frames] == [200, 200, 200, 50, 50]
