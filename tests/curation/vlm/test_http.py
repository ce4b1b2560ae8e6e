"""The HTTP backend against a real server on loopback: what it sends, and what becomes of every kind of bad reply."""

import base64
import socket
import time

import pytest

from curation.vlm import Prompt, ServerSettings, VlmSettings, ask, load
from curation.vlm.http import ServerGone

SCHEMA = {
    "type": "object",
    "properties": {"keep": {"type": "boolean"}},
    "required": ["keep"],
    "additionalProperties": False,
}
GOOD = '{"keep": true}'


def settings(url, **server):
    fast = {"retries": 2, "backoff_s": 0.01, "timeout_s": 5.0} | server
    return VlmSettings("http", "some-model", server=ServerSettings(url, **fast))


def prompt(name="q", **more):
    return Prompt(name, f"Keep {name}?", SCHEMA, **more)


def test_frames_question_schema_and_key_reach_the_server(serve, jpeg, spent, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = serve(lambda body, number: serve.say(GOOD, 30, 4))
    (answer,) = ask(load(settings(server.url)), [prompt(frames=(jpeg(), jpeg(5)), labels=("Frame 1:", "Frame 2:"))])
    assert answer.value == {"keep": True}
    (body,) = server.bodies
    assert body["model"] == "some-model"
    assert body["temperature"] == 0
    assert body["response_format"] == {"type": "json_schema", "json_schema": {"name": "q", "schema": SCHEMA, "strict": True}}
    kinds = [part["type"] for part in body["messages"][0]["content"]]
    assert kinds == ["text", "image_url", "text", "image_url", "text"]
    sent = body["messages"][0]["content"][3]["image_url"]["url"]
    assert base64.b64decode(sent.removeprefix("data:image/jpeg;base64,")) == jpeg(5)
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert (spent["calls"], spent["prompt_tokens"], spent["completion_tokens"]) == (1, 30, 4)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ('{"keep": tr', "the reply is not JSON: Expecting value"),
        ('{"keep": "yes"}', "the reply breaks the schema at keep: 'yes' is not of type 'boolean'"),
        ('{"keep": true, "why": 1}', "the reply breaks the schema: Additional properties are not allowed"),
        ("[true]", "the reply breaks the schema: [True] is not of type 'object'"),
        ("The clip should be kept.", "the reply is not JSON: Expecting value"),
        ('Sure! {"keep": true}', "the reply is not JSON"),
        ("[" * 100_000, "the reply is not JSON"),
        ("", "the reply is empty"),
        (None, "the reply is empty"),
    ],
)
def test_a_reply_that_does_not_fit_is_asked_for_once_more_with_the_reason_and_then_is_the_rows_reason(
    serve, spent, reply, reason
):
    server = serve(lambda body, number: serve.say(reply))
    (answer,) = ask(load(settings(server.url)), [prompt()])
    assert answer.value is None
    assert answer.error.startswith(reason)
    first, second = server.bodies
    assert len(first["messages"]) == 1
    assert second["messages"][1] == {"role": "assistant", "content": (reply or "")[:2000]}
    assert "That does not fit: the reply" in second["messages"][2]["content"][0]["text"]
    assert (spent["calls"], spent["invalid"]) == (2, 1)


def test_a_second_reply_that_fits_is_the_answer(serve):
    server = serve(lambda body, number: serve.say(GOOD if number else "Yes."))
    assert ask(load(settings(server.url)), [prompt()])[0].value == {"keep": True}


def test_a_fence_around_the_json_is_taken_off(serve):
    server = serve(lambda body, number: serve.say(f"```json\n{GOOD}\n```"))
    assert ask(load(settings(server.url)), [prompt()])[0].value == {"keep": True}


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_busy_server_is_asked_again(serve, code):
    server = serve(lambda body, number: serve.say(GOOD) if number >= 2 else serve.status(code))
    assert ask(load(settings(server.url)), [prompt()])[0].value == {"keep": True}
    assert len(server.bodies) == 3


def test_a_server_that_says_when_to_come_back_is_obeyed(serve):
    server = serve(lambda body, number: serve.say(GOOD) if number else serve.status(429, **{"Retry-After": "1"}))
    began = time.monotonic()
    assert ask(load(settings(server.url)), [prompt()])[0].value == {"keep": True}
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (lambda s: s.status(500, b"out of memory"), "the server answered 500: out of memory"),
        (lambda s: s.status(400, b"context too long"), "the server answered 400: context too long"),
        (lambda s: s.status(200, b"<html>hello</html>"), "the server's answer is no chat completion (JSONDecodeError): <html>"),
        (lambda s: s.status(200, b'{"choices": []}'), "the server's answer is no chat completion (IndexError)"),
        (lambda s: s.hang(), "no answer after 2 tries of 0.3 s: ReadTimeoutError"),
        (lambda s: s.cut_off, "no answer after 2 tries of 0.3 s: "),
    ],
    ids=["500s", "400", "html", "no choices", "hanging socket", "cut off"],
)
def test_a_request_that_fails_for_good_is_that_rows_reason_and_no_other_rows(serve, behaviour, reason):
    def answer(body, number):
        return behaviour(serve) if "bad" in str(body["messages"]) else serve.say(GOOD)

    server = serve(answer)
    vlm = load(settings(server.url, retries=1, timeout_s=0.3))
    good, bad, also_good = ask(vlm, [prompt("one"), prompt("bad"), prompt("two")])
    assert good.value == also_good.value == {"keep": True}
    assert bad.value is None
    assert bad.error.startswith(reason)


def test_a_server_that_is_not_there_is_no_rows_fault(free_port):
    with pytest.raises(ServerGone, match=r"no VLM answers at http://127.0.0.1:\d+/v1 .* start the server"):
        ask(load(settings(f"http://127.0.0.1:{free_port}/v1")), [prompt()])


def test_a_server_that_accepts_but_never_says_anything_is_no_rows_fault():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with pytest.raises(ServerGone, match="no VLM answers"):
            ask(load(settings(url, timeout_s=0.2, retries=0)), [prompt()])


def test_no_more_requests_are_in_flight_than_allowed(serve):
    def answer(body, number):
        time.sleep(0.05)
        return serve.say(GOOD)

    server = serve(answer)
    assert all(a.value for a in ask(load(settings(server.url, concurrency=3)), [prompt(f"q{k}") for k in range(12)]))
    assert server.at_once == 3


def test_what_was_answered_before_the_server_died_is_not_asked_again(serve, cache, free_port, spent):
    """The run after the one that was cut off asks for what is missing, and for nothing else."""
    prompts = [prompt(f"q{k}") for k in range(8)]
    server = serve(lambda body, number: serve.say(GOOD))

    def dies_after_five(body, number):
        if number == 4:
            server._http.socket.close()  # nothing new gets in; what is open is answered
        return serve.say(GOOD) if number < 5 else serve.cut_off

    server.answer = dies_after_five
    with pytest.raises(ServerGone):
        ask(load(settings(server.url, concurrency=1, retries=0, timeout_s=0.5)), prompts)
    answered = {body["messages"][0]["content"][-1]["text"] for body in server.bodies[:5]}
    again = serve(lambda body, number: serve.say(GOOD))
    assert all(a.value for a in ask(load(settings(again.url)), prompts))
    asked = {body["messages"][0]["content"][-1]["text"] for body in again.bodies}
    assert len(answered) == 5
    assert not answered & asked
    assert len(asked) == 3
    assert spent["cached"] == 5


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]
