"""The HTTP backend against a real server on loopback: what it sends, and how it handles every kind of bad reply."""

import base64
import json
import socket
import time

import pytest

from curation.errors import ServerGone, Unavailable
from curation.vlm import Prompt, ServerSettings, VideoForm, VlmSettings, ask, load

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


def test_a_video_is_one_part_of_the_message_with_its_rate(serve, jpeg, usage):
    pytest.importorskip("qwen_vl_utils")
    server = serve(lambda body, number: serve.say(GOOD, 30, 4))
    moving = prompt(frames=(jpeg(), jpeg(5), jpeg(9), jpeg(20)), labels=("A video.",), video=VideoForm(2.0, 100_000))
    (answer,) = ask(load(settings(server.url)), [moving])
    assert answer.value == {"keep": True}
    (body,) = server.bodies
    label, video, question = body["messages"][0]["content"]
    assert (label["text"], question["text"]) == ("A video.", "Keep q?")
    form, _, data = video["video_url"]["url"].partition(",")
    assert form == "data:video/jpeg;base64"
    frames = [base64.b64decode(frame) for frame in data.split(",")]
    assert [frame[:2] for frame in frames] == [b"\xff\xd8"] * 4
    assert body["mm_processor_kwargs"] == {"fps": 2.0, "do_sample_frames": False}
    assert body["media_io_kwargs"] == {"video": {"num_frames": -1, "fps": 2.0}}


def test_frames_question_schema_and_key_reach_the_server(serve, jpeg, usage, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = serve(lambda body, number: serve.say(GOOD, 30, 4))
    (answer,) = ask(load(settings(server.url)), [prompt(frames=(jpeg(), jpeg(5)), labels=("Frame 1:", "Frame 2:"))])
    assert answer.value == {"keep": True}
    (body,) = server.bodies
    assert body["model"] == "some-model"
    assert body["temperature"] == 0
    assert not {"mm_processor_kwargs", "media_io_kwargs"} & body.keys(), "hosted servers refuse what they do not know"
    assert body["response_format"] == {"type": "json_schema", "json_schema": {"name": "q", "schema": SCHEMA, "strict": True}}
    kinds = [part["type"] for part in body["messages"][0]["content"]]
    assert kinds == ["text", "image_url", "text", "image_url", "text"]
    sent = body["messages"][0]["content"][3]["image_url"]["url"]
    assert base64.b64decode(sent.removeprefix("data:image/jpeg;base64,")) == jpeg(5)
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert (usage["calls"], usage["prompt_tokens"], usage["completion_tokens"]) == (1, 30, 4)


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
    serve, usage, reply, reason
):
    server = serve(lambda body, number: serve.say(reply))
    (answer,) = ask(load(settings(server.url)), [prompt()])
    assert answer.value is None
    assert answer.error.startswith(reason)
    first, second = server.bodies
    assert len(first["messages"]) == 1
    assert second["messages"][1] == {"role": "assistant", "content": (reply or "")[:2000]}
    assert "That does not fit: the reply" in second["messages"][2]["content"][0]["text"]
    assert (usage["calls"], usage["invalid"]) == (2, 1)


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
        (
            lambda s: s.status(200, b"<html>hello</html>"),
            "the server's answer is not a chat completion (JSONDecodeError): <html>",
        ),
        (lambda s: s.status(200, b'{"choices": []}'), "the server's answer is not a chat completion (IndexError)"),
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


REFUSALS = {
    "wrong key": (
        401,
        b'{"error": {"code": "invalid_api_key"}}',
        "answered 401: .* set the environment variable OPENAI_API_KEY",
    ),
    "no right": (403, b"no", "answered 403: no.* give the key the right"),
    "no such model": (
        404,
        b"The model `qwen` does not exist.",
        "answered 404: The model `qwen` does not exist.*caption.vlm.model",
    ),
    "spent": (429, b'{"error": {"code": "insufficient_quota"}}', "answered 429: .*insufficient_quota.* wait until the quota"),
    "too many": (429, b"slow down", "answered 429: slow down"),
    "broken": (500, b"CUDA error", "answered 500: CUDA error"),
    "no pictures": (400, b"this model is not multimodal", "answered 400: this model is not multimodal"),
    "no schemas": (400, b"response_format is not supported", "answered 400: response_format .*see what the server takes"),
    "html": (200, b"<html>", "is not a chat completion"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_server_that_answers_no_question_is_no_rows_fault(name, serve, cache):
    code, body, words = REFUSALS[name]
    server = serve(lambda asked, number: serve.status(code, body))
    with pytest.raises(Unavailable, match=f"(?s)answers no question.*{words}"):
        ask(load(settings(server.url, retries=1)), [prompt("a"), prompt("b")])
    assert not list(cache.rglob("*.json"))


def test_a_server_that_lists_its_models_and_answers_no_question_is_no_rows_fault(serve):
    server = serve(lambda asked, number: serve.hang(2.0))
    with pytest.raises(ServerGone, match=r"no VLM answers at .*no answer after 1 tries of 0.2 s: ReadTimeoutError"):
        ask(load(settings(server.url, timeout_s=0.2, retries=0)), [prompt()])


def test_a_spent_quota_is_not_waited_for(serve):
    server = serve(lambda asked, number: serve.status(429, b'{"error": {"code": "insufficient_quota"}}'))
    with pytest.raises(Unavailable):
        ask(load(settings(server.url, retries=5, backoff_s=30.0)), [prompt()])
    assert len(server.bodies) == 2, "the question and the plain one that decides whose fault it is"


def test_the_plain_question_shows_a_picture_and_asks_for_a_form(serve):
    server = serve(lambda asked, number: serve.say(GOOD) if number else serve.status(403, b"flagged by moderation"))
    (answer,) = ask(load(settings(server.url)), [prompt()])
    assert answer.error == "the server answered 403: flagged by moderation"
    first, plain = server.bodies
    assert [part["type"] for part in plain["messages"][0]["content"]] == ["image_url", "text"]
    assert plain["response_format"]["type"] == first["response_format"]["type"] == "json_schema"


def test_a_key_is_read_for_each_request(serve, monkeypatch):
    server = serve(lambda asked, number: serve.say(GOOD) if number >= 2 else serve.status(401))
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with pytest.raises(Unavailable):
        ask(load(settings(server.url)), [prompt()])
    monkeypatch.setenv("OPENAI_API_KEY", "right")
    assert ask(load(settings(server.url)), [prompt()])[0].value == {"keep": True}
    assert [headers["Authorization"] for headers in server.headers] == ["Bearer wrong", "Bearer wrong", "Bearer right"]


def test_a_server_that_takes_no_bounds_in_a_schema_is_asked_without_them(serve):
    bound = {
        "type": "object",
        "properties": {"minLength": {"type": "string", "minLength": 1}, "of": {"type": "array", "items": {"maximum": 3}}},
    }

    def answer(asked, number):
        text = str(asked["response_format"])
        return (
            serve.status(400, b"Invalid schema: 'minLength' is not permitted") if "'minLength': 1" in text else serve.say(said)
        )

    said = '{"minLength": "a", "of": []}'
    server = serve(answer)
    vlm = load(settings(server.url))
    (found,) = ask(vlm, [Prompt("q", "What?", bound)])
    assert found.value == {"minLength": "a", "of": []}
    kept = server.bodies[-1]["response_format"]["json_schema"]["schema"]
    assert kept["properties"] == {"minLength": {"type": "string"}, "of": {"type": "array", "items": {}}}
    said = '{"minLength": "", "of": []}'
    assert "breaks the schema at minLength" in ask(vlm, [Prompt("q", "Which?", bound)])[0].error, "it is held against them here"
    assert len(server.bodies) == 4, "what the server takes is learned once"


def test_a_reply_that_was_cut_off_is_not_asked_for_again(serve, usage):
    body = {"choices": [{"finish_reason": "length", "message": {"content": '{"keep"'}}], "usage": {"completion_tokens": 7}}
    server = serve(lambda asked, number: serve.status(200, json.dumps(body).encode()))
    (answer,) = ask(load(settings(server.url)), [prompt()])
    assert answer.error == "the reply is cut off by max_tokens after 7 tokens; raise vlm.max_tokens"
    assert (len(server.bodies), usage["invalid"]) == (1, 1)


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


def test_what_was_answered_before_the_server_died_is_not_asked_again(serve, cache, free_port, usage):
    """The run after an interrupted run asks only the questions without an answer."""
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
    assert usage["cached"] == 5


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]
