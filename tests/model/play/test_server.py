"""A real server and real sockets: inputs end to end, back-pressure, clients that misbehave, queue, limits and records."""

import asyncio
import base64
import contextlib
import dataclasses
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable

import cv2
import numpy as np
import pytest
import websockets
from mock_engine import BLOCK, RED, MockEngine, picture
from play_client import Client, Server, connect, serving

from curation.errors import InputError
from model.play.hub import check_comparable
from model.play.keys import parse_keys
from model.play.limits import Limits
from model.play.record import parse_record, replay, sha_of

FAST = Limits(stall_pause_s=0.3, stall_close_s=0.9, grace_s=1.0)


def play(scenario: Callable[[Server], Awaitable[None]], *engines: MockEngine, limits: Limits | None = None, **options) -> None:
    with serving(engines or (MockEngine(fps=64),), limits, **options) as server:
        asyncio.run(scenario(server))


def get(server: Server, path: str, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(f"{server.url}/{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def red(frames: np.ndarray) -> list[int]:
    return [int(value) for value in frames[:, 10, 10, 0]]


def near(values: list[int], expected: list[int]) -> bool:
    return all(abs(value - other) <= 3 for value, other in zip(values, expected, strict=True))


async def quiet(client: Client) -> None:
    """Read until nothing comes any more."""
    with contextlib.suppress(asyncio.TimeoutError):
        while True:
            await client.receive(0.2)


# Inputs


def test_a_key_shows_in_the_block_after_the_one_in_the_making():
    async def scenario(server: Server) -> None:
        async with connect(server, {}) as client:
            for _ in range(3):
                header, frames = await client.block()
            assert (header.block, header.frame0, header.n) == (2, 1 + BLOCK, BLOCK)
            assert near(red(frames), [10] * BLOCK)
            seq = await client.ctl("W")
            while seq not in header.ctl_seq:
                header, frames = await client.block()
                assert header.block <= 4
            assert near(red(frames), [RED["W"]] * BLOCK)
            assert header.t_in <= header.t_sample <= header.t_start

    play(scenario)


def test_a_tap_of_20_ms_is_not_lost_and_the_mouse_moves_once():
    async def scenario(server: Server) -> None:
        async with connect(server, {}) as client:
            await client.block()
            await client.ctl("D", dx=40)
            await asyncio.sleep(0.02)
            last = await client.ctl()
            shown = [await client.block() for _ in range(4)]
            pulses = [red(frames) for header, frames in shown if not near(red(frames), [10] * BLOCK)]
            assert len(pulses) in (1, 2)  # two where the block began within the 20 ms
            assert all(near(pulse, [RED["D"]] * BLOCK) for pulse in pulses)
            assert shown[-1][0].ctl_seq == (last,) * BLOCK
            green = shown[-1][1][-1, 10, 10, 1]
            assert abs(int(green) - 40) <= 3  # 40 counts in all
            yaw = shown[-1][0].poses[-1][2]
            assert yaw == pytest.approx(4.0)  # at 0.1 degrees a count

    play(scenario)


def test_frames_are_sent_before_the_commit():
    engine = MockEngine(fps=64)
    arrived = threading.Event()
    waits: list[bool] = []

    def wait_for_frames() -> None:
        if len(waits) == 0 and engine.log[-1] == ("commit", 2):
            waits.append(arrived.wait(3))

    async def scenario(server: Server) -> None:
        engine.on_commit = wait_for_frames
        async with connect(server, {}) as client:
            while (await client.block())[0].block < 2:
                pass
            arrived.set()
            await client.block()

    play(scenario, engine)
    assert waits == [True]


def test_with_overlapped_decoding_a_block_is_committed_and_the_next_one_begun_before_its_frames_come():
    engine = MockEngine(fps=64, decode_s=0.15)

    async def scenario(server: Server) -> None:
        async with connect(server, {"seed": 2}) as client:
            await client.ctl("W")
            while len(client.blocks) < 7:
                await client.receive()
            await client.send("prompt", seq=1, text="snow")
            await client.message("state", lambda state: state["prompts"] and state["prompts"][0]["state"] == "active")
            await client.send("pause")
            await quiet(client)
            headers = [header for header, _ in client.blocks]
            assert [header.block for header in headers] == list(range(len(headers)))
            assert [header.frame0 for header in headers] == [0, *range(1, 1 + BLOCK * (len(headers) - 1), BLOCK)]
            _, data = await asyncio.to_thread(get, server, f"sessions/{client.token}/record.gcplay")
            record = parse_record(data.decode(), "session")
            assert [block.sha for block in record.blocks] == [header.sha[0] for header in headers]
            assert [sha_of(block.frames) for block in replay(record, MockEngine(fps=64))] == [h.sha[0] for h in headers]

    play(scenario, engine)
    order = {event: number for number, event in reversed(list(enumerate(engine.log)))}
    blocks = range(2, 7)
    assert all(order["commit", block] < order["decoded", block] for block in blocks)
    assert any(order["generate", block + 1] < order["decoded", block] for block in blocks)
    assert all(order["decoded", block - 1] < order["generate", block + 1] for block in blocks), "a block ahead at most"


def test_an_error_of_overlapped_decoding_ends_its_session_only(caplog):
    engine = MockEngine(fps=64, decode_s=0.01)
    engine.broken_block = 3

    async def scenario(server: Server) -> None:
        async with connect(server, {}) as client:
            error = await client.closed()
            assert (error["id"], error["detail"]) == ("engine", "RuntimeError: the decoder broke")
            assert [header.block for header, _ in client.blocks] == [0, 1, 2]
        engine.broken_block = -1
        async with connect(server, {}) as client:
            while len(client.blocks) < 5:
                await client.receive()

    play(scenario, engine)
    assert "a session stopped" in caplog.text


# Back-pressure


def test_generation_leads_the_acknowledged_frame_by_a_block_at_most():
    async def scenario(server: Server) -> None:
        async with connect(server, {}, acks=False) as client:
            first, one = (await client.block())[0], (await client.block())[0]
            with pytest.raises(asyncio.TimeoutError):
                await client.block(0.15)
            await client.ack(first)
            assert (await client.block())[0].block == 2
            with pytest.raises(asyncio.TimeoutError):
                await client.block(0.15)
            await client.send("ack", gen=1, frame=one.frame0 + 2)  # not its last frame yet
            with pytest.raises(asyncio.TimeoutError):
                await client.block(0.15)
            await client.ack(one)
            assert (await client.block())[0].block == 3
            for frame in (0, 2, 10**6):  # old ones, and one that was never sent
                await client.send("ack", gen=1, frame=frame)
            with pytest.raises(asyncio.TimeoutError):
                await client.block(0.15)

    play(scenario)


def test_a_session_runs_no_faster_than_the_time_of_its_world():
    async def scenario(server: Server) -> None:
        async with connect(server, {}) as client:
            while len(client.blocks) < 9:
                await client.receive()
            intervals = np.diff(client.arrived_s[2:])
            assert 0.8 * BLOCK / 32 < np.median(intervals) < 1.5 * BLOCK / 32

    play(scenario, MockEngine(fps=32))


def test_a_client_that_shows_nothing_is_paused_closed_and_may_come_back():
    async def scenario(server: Server) -> None:
        async with connect(server, {}, acks=False) as client:
            first = (await client.block())[0]
            paused = await client.message("state", lambda state: state["paused"] == "stalled")
            assert paused["block"] == 1
            await client.ack(first)
            await client.message("state", lambda state: state["paused"] == "")
            assert (await client.block())[0].block == 2
            assert (await client.closed())["id"] == "stalled"
        async with connect(server, resume=client.token) as again:
            assert again.messages[0]["resumed"]
            assert (await again.block())[0].block == 3

    play(scenario, limits=FAST)


# Commands


def test_after_a_reset_no_frame_of_an_older_generation_comes():
    async def scenario(server: Server) -> None:
        async with connect(server, {"seed": 1}) as client:
            while len(client.blocks) < 4:
                await client.receive()
            await client.ctl("W")
            await client.send("reset", seed=2)
            await client.message("state", lambda state: state["gen"] == 2)
            count = len(client.blocks)
            for _ in range(3):
                await client.block()
            assert [header.gen for header, _ in client.blocks[count:]] == [2, 2, 2]
            assert [header.block for header, _ in client.blocks[count:]] == [0, 1, 2]
            assert client.blocks[-1][0].seed == 2
            assert near(red(client.blocks[-1][1]), [10] * BLOCK)  # the key is up again

    play(scenario, MockEngine(block_s=0.03, fps=64))


def test_pause_step_and_resume():
    async def scenario(server: Server) -> None:
        async with connect(server, {}) as client:
            await client.block()
            await client.send("pause")
            await client.message("state", lambda state: state["paused"] == "user")
            await quiet(client)
            last = client.blocks[-1][0].block
            for number in (1, 2):
                await client.send("step")
                assert (await client.block())[0].block == last + number
                with pytest.raises(asyncio.TimeoutError):
                    await client.block(0.1)
            await client.ctl("W")
            await client.ctl()
            await client.send("resume")
            header, frames = await client.block()
            assert header.block == last + 3
            assert near(red(frames), [10] * BLOCK)  # what was pressed in the pause does not act

    play(scenario)


def test_a_prompt_is_queued_recached_and_active_from_the_named_block_on():
    engine = MockEngine(fps=32)

    async def scenario(server: Server) -> None:
        async with connect(server, {}) as client:
            await client.block()
            await client.send("prompt", seq=1, text="snow", blend_blocks=3)
            await client.send("prompt", seq=2, text="rain")
            await client.send("prompt", seq=3, text="night")
            states: list[tuple[str, ...]] = []

            def is_over(state) -> bool:
                states.append(tuple(prompt["state"] for prompt in state["prompts"]))
                return states[-1] == ("active", "refused", "active")

            prompts = (await client.message("state", is_over))["prompts"]
            names = [state for i, state in enumerate(states) if state and (i == 0 or state != states[i - 1])]
            assert [state[0] for state in names][:2] == ["queued", "queued"] or names[0] == ("queued",)
            assert ("recached", "queued", "queued") in names
            assert ("active", "queued", "queued") in names
            snow, rain, night = prompts
            assert night["block"] == snow["block"] + 3  # the blend is over first
            assert "does not know 'rain'" in rain["detail"]
            await client.block()
            for header, frames in client.blocks[1:]:
                blue = 0 if header.block < snow["block"] else 200 if header.block < night["block"] else 100
                assert abs(int(frames[0, 10, 10, 2]) - blue) <= 3, header.block
                assert header.prompt_seq == {0: 0, 200: 1, 100: 3}[blue]
            assert client.blocks[-1][0].prompt_state == "active"
            await client.send("prompt", seq=3, text="snow")
            assert (await client.message("error"))["id"] == "prompt"

    play(scenario, engine)


def test_ping_is_answered_with_the_state():
    async def scenario(server: Server) -> None:
        async with connect(server, {}) as client:
            await client.send("ping", t=12.5)
            state = await client.message("state", lambda state: state["ping"] == 12.5)
            assert state["clock"] > 0

    play(scenario)


def test_exact_pictures_are_the_frames_that_were_hashed():
    async def scenario(server: Server) -> None:
        async with connect(server, {}, query="&exact=1") as client:
            for _ in range(3):
                header, frames = await client.block()
                assert header.format == "png"
                assert header.sha == (sha_of(frames),)

    play(scenario)


def test_start_images_presets_and_seeds():
    async def scenario(server: Server) -> None:
        async with connect(server, {"preset": "yard", "seed": 2}) as client:
            assert near(red((await client.block())[1]), [140])
            assert abs(int((await client.block())[1][0, 10, 10, 1]) - 80) <= 3  # seed * 40
            image = cv2.imencode(".png", np.full((9, 9, 3), (0, 0, 77), np.uint8))[1].tobytes()
            await client.send("start", image=base64.b64encode(image).decode())
            await client.message("state", lambda state: state["gen"] == 2)
            assert near(red((await client.block())[1]), [77])
            for fields, id_ in (
                ({"preset": "moon"}, "preset"),
                ({"image": "AAAA"}, "image"),
                ({"engines": ["best"]}, "engines"),
                ({"spec": "0123"}, "spec"),
                ({"prompt": "x" * 401}, "message"),
            ):
                await client.send("start", **fields)
                assert (await client.message("error"))["id"] == id_
            assert (await client.block())[0].gen == 2  # it goes on

    play(scenario)


def test_the_page_lists_start_images_and_has_what_it_needs():
    with serving([MockEngine()]) as server:
        starts = json.loads(get(server, "starts")[1])
        assert [start["name"] for start in starts] == ["cave", "hall", "yard"]
        image = cv2.imdecode(np.frombuffer(get(server, starts[1]["url"])[1], np.uint8), cv2.IMREAD_COLOR)
        assert np.array_equal(image[..., ::-1], picture(90))
        assert get(server, "starts/9.png")[0] == 404
        assert json.loads(get(server, "health")[1]) == {"state": "ready", "players": 0}
        assert get(server, "attract.mp4")[0] == 204
        page = get(server, "")[1].decode()
        for name in ("style.css", "main.js", "icon.svg"):
            assert f"static/{name}" in page
            assert get(server, f"static/{name}")[0] == 200


# Two engines


def test_two_engines_are_played_on_the_same_inputs_and_seed():
    async def scenario(server: Server) -> None:
        async with connect(server, {"engines": ["a", "b"], "seed": 1}, query="&exact=1") as client:
            await client.ctl("A")
            for _ in range(4):
                header, frames = await client.block()
            assert header.engines == ("a", "b")
            assert len(frames) == 2 * header.n == 2 * BLOCK
            assert np.array_equal(frames[:BLOCK], frames[BLOCK:])
            assert header.sha == (sha_of(frames[:BLOCK]), sha_of(frames[BLOCK:]))
            assert red(frames) == [RED["A"]] * 2 * BLOCK
            for engine in (0, 1):
                status, data = get(server, f"sessions/{client.token}/record.gcplay?engine={engine}")
                assert (status, parse_record(data.decode(), "").header.engine) == (200, "ab"[engine])

    play(scenario, MockEngine("a", fps=64), MockEngine("b", fps=64))


def test_engines_that_cannot_be_compared_are_refused():
    with pytest.raises(InputError, match=r"a and b cannot be played on the same inputs: fps is 16.0 and 8"):
        check_comparable([MockEngine("a"), MockEngine("b", fps=8)])
    with pytest.raises(InputError, match="two checkpoints have the name 'a'"):
        check_comparable([MockEngine("a"), MockEngine("a")])


# Clients that misbehave


async def p95_interval(client: Client, blocks: int) -> float:
    count = len(client.blocks) + blocks
    while len(client.blocks) < count:
        await client.receive()
    return float(np.quantile(np.diff(client.arrived_s[-blocks:]), 0.95))


async def is_steady(client: Client, limit_s: float) -> bool:
    """Measure up to three times: other programs on the machine also hold a client up."""
    for _ in range(3):
        if await p95_interval(client, 10) < limit_s:
            return True
    return False


@pytest.mark.exhaustive  # twenty seconds of waiting
def test_flooding_garbage_stalled_and_vanished_clients_harm_nobody():
    async def flood(server: Server, over: asyncio.Event) -> None:
        async with connect(server, {}) as client:
            while not over.is_set():
                await client.ctl("W", dx=1)
                await asyncio.sleep(0)  # the other clients of this test share the loop
            client.socket.transport.abort()  # a goodbye would wait behind the flood

    async def garbage(server: Server, over: asyncio.Event) -> None:
        texts = ("{", "[1]", '{"type":"ctl"}', "x" * 30_000, b"\x00\x01", '{"type":"hello","v":1}', '{"type":"pause"}')
        while not over.is_set():
            async with connect(server) as client:
                for text in texts:
                    await client.socket.send(text)
                await asyncio.sleep(0.02)

    async def stalled(server: Server, over: asyncio.Event) -> None:
        async with connect(server, {}, acks=False):
            await over.wait()

    async def vanished(server: Server, over: asyncio.Event) -> None:
        while not over.is_set():
            async with connect(server, {}) as client:
                await client.block()
                client.socket.transport.abort()
            await asyncio.sleep(0.02)

    async def scenario(server: Server) -> None:
        async with connect(server, {}) as good:
            alone = await p95_interval(good, 10)
            for bad in (flood, garbage, stalled, vanished):
                over = asyncio.Event()
                task = asyncio.create_task(bad(server, over))
                await asyncio.sleep(0.2)
                steady = await is_steady(good, 1.1 * alone + 0.02)
                over.set()
                await task
                assert steady, bad.__name__
            assert good.blocks[-1][0].gen == 1

    play(scenario, MockEngine(block_s=0.005, fps=32), limits=Limits(sessions=6, grace_s=0.1))


def test_a_flood_is_read_late_and_its_sender_is_told():
    async def scenario(server: Server) -> None:
        async with connect(server, {}) as client:
            began = time.monotonic()
            for _ in range(60):
                await client.ctl("W")
            assert (await client.message("error"))["id"] == "rate"
            while not client.blocks or client.blocks[-1][0].ctl_seq[0] < 60:
                await client.block()
            assert time.monotonic() - began > 0.3  # 60 messages, 20 at once and 100 a second

    play(scenario, limits=Limits(message_burst=20))


@pytest.mark.parametrize(
    ("messages", "id_"),
    [
        ([{"type": "start"}], "hello"),
        ([{"type": "hello", "v": 9}], "version"),
        ([], "hello"),
    ],
)
def test_a_conversation_begins_with_hello(messages, id_):
    async def scenario(server: Server) -> None:
        async with websockets.connect(f"ws://127.0.0.1:{server.port}/ws?v=1") as socket_:
            client = Client(socket_)
            for message in messages:
                await socket_.send(json.dumps(message))
            assert (await client.closed())["id"] == id_

    play(scenario, limits=Limits(hello_s=0.3))


def test_another_version_in_the_address_is_refused():
    async def scenario(server: Server) -> None:
        async with websockets.connect(f"ws://127.0.0.1:{server.port}/ws?v=2") as socket_:
            assert (await Client(socket_).closed())["id"] == "version"

    play(scenario)


def test_messages_out_of_order_are_refused_and_the_connection_stays():
    async def scenario(server: Server) -> None:
        async with connect(server) as client:
            for message in ({"type": "pause"}, {"type": "hello", "v": 1}):
                await client.send(type_=message["type"], **{key: value for key, value in message.items() if key != "type"})
                assert (await client.message("error"))["id"] == "order"
            await client.send("start")
            await client.block()

    play(scenario)


def test_other_hosts_and_origins_are_refused():
    async def scenario(server: Server) -> None:
        address = f"ws://127.0.0.1:{server.port}/ws?v=1"
        for origin in ("http://evil.example", "http://127.0.0.1:1", "null"):
            with pytest.raises(websockets.InvalidStatus, match="403"):
                await websockets.connect(address, origin=origin)
        async with websockets.connect(address, origin=f"http://127.0.0.1:{server.port}"):
            pass

    with serving([MockEngine()]) as server:
        asyncio.run(scenario(server))
        assert get(server, "", Host="evil.example")[0] == 403
        assert get(server, "", Host=f"localhost:{server.port}")[0] == 200
        assert get(server, "", Origin="http://evil.example")[0] == 403
    with serving([MockEngine()], hosts=()) as server:
        assert get(server, "", Host="a.name.of.this.machine")[0] == 200


def test_an_error_of_the_engine_ends_its_session_only(caplog):
    engine = MockEngine(fps=64)

    async def scenario(server: Server) -> None:
        async with connect(server, {}) as good, connect(server, {}) as bad:
            await bad.block()
            session = server.hub.players[bad.token]._worlds[0]._session
            session._prompt = "a text that the mock cannot colour"
            error = await bad.closed()
            assert (error["id"], error["detail"][:8]) == ("engine", "KeyError")
            count = len(good.blocks)
            while len(good.blocks) < count + 3:
                await good.receive()

    play(scenario, engine)
    assert "a session stopped" in caplog.text


# Sessions


def test_a_session_is_resumed_within_the_grace_time_and_not_after():
    async def scenario(server: Server) -> None:
        async with connect(server, {"seed": 5}) as client:
            while len(client.blocks) < 4:
                await client.receive()
            await client.ctl("W")
            client.socket.transport.abort()
        await asyncio.sleep(0.2)
        async with connect(server, resume=client.token) as again:
            assert again.messages[0]["resumed"]
            header, frames = await again.block()
            assert (header.gen, header.seed) == (1, 5)
            assert header.block >= 4
            assert near(red(frames), [10] * BLOCK)  # keys do not stay down
            await again.ctl("S")
            while not near(red(frames), [RED["S"]] * BLOCK):
                header, frames = await again.block()
            assert header.ctl_seq == (1,) * BLOCK
            again.socket.transport.abort()
        await asyncio.sleep(1.6)
        async with connect(server, resume=client.token) as late:
            assert not late.messages[-1]["resumed"]
            assert "resume" in [message.get("id") for message in late.messages]

    play(scenario, limits=FAST)


def test_a_second_connection_takes_a_session_over():
    async def scenario(server: Server) -> None:
        async with connect(server, {}) as client:
            await client.block()
            async with connect(server, resume=client.token) as other:
                assert (await client.closed())["id"] == "replaced"
                await other.block()
                assert len(server.hub.players) == 1

    play(scenario)


def test_who_comes_when_all_places_are_taken_waits_and_is_told_the_place():
    async def scenario(server: Server) -> None:
        async with connect(server, {}) as first, connect(server, {}) as second, connect(server, {}) as third:
            await first.block()
            assert (await second.message("busy"))["queue"] == 1
            busy = await third.message("busy")
            assert busy["queue"] == 2
            assert 0 < busy["eta"] <= 1800
            async with connect(server, {}) as fourth:
                assert (await fourth.closed())["id"] == "full"
            await first.socket.close(1000)
            assert (await second.block())[0].block == 0
            assert (await third.message("busy", lambda busy: busy["queue"] == 1))["queue"] == 1
            second.socket.transport.abort()  # no goodbye: the place is kept for the grace time
            assert (await third.block())[0].block == 0

    play(scenario, limits=Limits(sessions=1, waiting=2, grace_s=0.3))


@pytest.mark.parametrize(("limits", "id_"), [(Limits(idle_s=0.4), "idle"), (Limits(lifetime_s=0.4), "lifetime")])
def test_sessions_end_when_nobody_plays_and_when_they_are_old(limits, id_):
    async def scenario(server: Server) -> None:
        async with connect(server, {}) as client:
            assert (await client.closed())["id"] == id_
            assert not server.hub.players

    play(scenario, limits=limits)


def test_too_many_connections_are_turned_away():
    async def scenario(server: Server) -> None:
        async with connect(server), websockets.connect(f"ws://127.0.0.1:{server.port}/ws?v=1") as socket_:
            assert (await Client(socket_).closed())["id"] == "full"

    play(scenario, limits=Limits(connections=1))


# Records


def test_a_session_is_downloaded_and_replayed_bit_for_bit(tmp_path):
    async def scenario(server: Server) -> None:
        async with connect(server, {"preset": "hall", "seed": 4}) as client:
            await client.ctl("W", dx=3)
            while len(client.blocks) < 5:
                await client.receive()
            await client.send("prompt", seq=1, text="snow")
            await client.message("state", lambda state: state["prompts"] and state["prompts"][0]["state"] == "active")
            await client.send("pause")
            await quiet(client)
            status, data = await asyncio.to_thread(get, server, f"sessions/{client.token}/record.gcplay")
            assert status == 200
            record = parse_record(data.decode(), "session")
            shas = [header.sha[0] for header, _ in client.blocks]
            assert [block.sha for block in record.blocks] == shas
            assert [sha_of(block.frames) for block in replay(record, MockEngine(fps=32))] == shas
            status, video = await asyncio.to_thread(get, server, f"sessions/{client.token}/video.mp4")
            assert (status, video[4:8]) == (200, b"ftyp")
            assert "video" in [message.get("id") for message in client.messages] or await client.message("stage")
            rollout = json.loads((await asyncio.to_thread(get, server, f"sessions/{client.token}/rollout"))[1])
            assert (rollout["seed"], rollout["prompt_changes"]) == (4, 1)
            assert parse_keys(rollout["keys"]) == record.controls()
            await client.send("record", on=False)
            await client.message("state", lambda state: not state["recording"])
            assert (await asyncio.to_thread(get, server, f"sessions/{client.token}/record.gcplay"))[0] == 404
        for path in ("record.gcplay", "video.mp4", "rollout"):
            assert (await asyncio.to_thread(get, server, f"sessions/unknown/{path}"))[0] == 404

    play(scenario, MockEngine(fps=32))


def post(server: Server, data: bytes) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"{server.url}/replays", data, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def record_of(engine: MockEngine, blocks: int = 5) -> str:
    from model.control.spec import ControlState
    from model.play.engine import Start
    from model.play.record import start_recorded

    session, _ = start_recorded(engine, Start(picture(70)))
    for _ in range(blocks):
        session.generate([ControlState(frozenset("W"))] * BLOCK)
        session.commit()
    return session.text()


def test_a_record_that_is_sent_becomes_a_video_or_is_refused(tmp_path):
    with serving([MockEngine()], Limits(record_bytes=100_000)) as server:
        status, video = post(server, record_of(MockEngine()).encode())
        assert (status, video[4:8]) == (200, b"ftyp")
        status, body = post(server, record_of(MockEngine(identity={"checkpoint": "other"})).encode())
        assert status == 422
        assert "identity.causal is missing in the record" in json.loads(body)["error"]
        assert "line 1 is not the header" in json.loads(post(server, b"garbage")[1])["error"]
        assert post(server, b"x" * 200_000)[0] == 413


def test_a_replay_for_nobody_stops_and_players_come_first():
    async def scenario(server: Server) -> None:
        async with connect(server, {}) as client:
            alone = await p95_interval(client, 8)
            record = record_of(MockEngine(fps=32), blocks=300).encode()
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"POST /replays HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(record) + record)
            while not server.hub._videos:
                await client.receive()
            assert await is_steady(client, 1.1 * alone + 0.04)  # a block of the replay takes 20 ms
            writer.close()
            while server.hub._videos:
                await client.receive()
            assert len(server.hub.scheduler._sources) == 1

    play(scenario, MockEngine(block_s=0.02, fps=32))


def test_the_attract_loop_is_made_from_a_record(tmp_path):
    path = tmp_path / "attract.gcplay"
    path.write_text(record_of(MockEngine()))
    with serving([MockEngine()], attract=str(path)) as server:
        deadline = time.monotonic() + 10
        while get(server, "attract.mp4")[0] != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    path.write_text(record_of(MockEngine(identity={"checkpoint": "other"})))
    with serving([MockEngine()], attract=str(path)) as server:
        assert "identity.causal" in str(server.hub.failure)


def test_a_world_may_bring_its_attract_loop():
    engine = MockEngine()
    engine.info = dataclasses.replace(engine.info, attract=b"a film")
    with serving([engine]) as server:
        deadline = time.monotonic() + 10
        while get(server, "attract.mp4")[0] != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert get(server, "attract.mp4")[1] == b"a film"


def test_loading_is_shown_and_its_failure_too():
    release = threading.Event()

    def load(log):
        log("reading weights")
        release.wait(5)
        raise InputError("no such checkpoint")

    async def scenario(server: Server) -> None:
        async with websockets.connect(f"ws://127.0.0.1:{server.port}/ws?v=1") as socket_:
            client = Client(socket_)
            await client.send("hello", v=1)
            assert (await client.message("stage"))["id"] == "load"
            await client.send("start")
            assert (await client.message("error"))["id"] == "order"
            release.set()
            error = await client.closed()
            assert (error["id"], error["detail"]) == ("load", "InputError: no such checkpoint")

    with serving(load) as server:
        asyncio.run(scenario(server))
