"""A real server on loopback: how answers begin, wait, break off and end."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest

from orchestrator.api.log_lines import logging_to
from orchestrator.api.server import serve
from orchestrator.api.settings import ApiSettings
from orchestrator.api.writer import COMMENT
from orchestrator.cluster.tls import make_tls
from orchestrator.serving.answer import Prefilled, Refused, Started, Text
from tests.orchestrator.api.scripted import HELLO, STARTED, Scripted, finished
from tests.orchestrator.api.serving import Server, client, served, wait_until

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = {"model": "m", "messages": MESSAGES}
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "m", "prompt": "hi"},
    "/v1/responses": {"model": "m", "input": "hi"},
    "/v1/messages": {**CHAT, "max_tokens": 5},
}
QUIET_S = 0.05


@pytest.fixture(scope="module")
def engine() -> Scripted:
    return Scripted()


@pytest.fixture(scope="module")
def server(engine: Scripted) -> Iterator[Server]:
    settings = ApiSettings(port=0, grace_s=0.0, quiet_s=QUIET_S, most_body_bytes=1_000_000, write_s=0.2)
    with served(engine, settings) as running:
        yield running


@pytest.fixture
def http(server: Server, engine: Scripted) -> Iterator[httpx2.Client]:
    engine.script = HELLO
    with client(server) as made:
        yield made


def raw(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    made = socket.create_connection((host, int(port)), timeout=60)
    made.settimeout(60)
    return made


def head(path: str, *lines: str) -> bytes:
    return "\r\n".join((f"POST {path} HTTP/1.1", "Host: localhost", *lines, "", "")).encode()


def reply(connection: socket.socket) -> bytes:
    found = b""
    while part := connection.recv(65536):
        found += part
    return found


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("has_started", [False, True])
def test_a_client_that_leaves_ends_its_answer(
    server: Server, engine: Scripted, path: str, stream: bool, has_started: bool
) -> None:
    engine.script = (*((STARTED, Text("x")) if has_started else ()), asyncio.Event())
    closed = engine.closed
    body = json.dumps({**ROUTES[path], "stream": stream}).encode()
    with raw(server) as connection:
        connection.sendall(head(path, f"Content-Length: {len(body)}") + body)
        wait_until(lambda: engine.open == 1)
        if stream and has_started:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    wait_until(lambda: engine.open == 0)
    assert engine.closed == closed + 1


def test_a_client_that_leaves_ends_all_of_its_answers(server: Server, engine: Scripted) -> None:
    engine.script = (STARTED, asyncio.Event())
    body = json.dumps({**CHAT, "n": 4}).encode()
    with raw(server) as connection:
        connection.sendall(head("/v1/chat/completions", f"Content-Length: {len(body)}") + body)
        wait_until(lambda: engine.open == 4)
    wait_until(lambda: engine.open == 0)


def test_a_client_that_does_not_read_ends_its_answer(server: Server, engine: Scripted) -> None:
    engine.script = (STARTED, *[Text("x" * 100_000)] * 1000, finished())
    body = json.dumps({**CHAT, "stream": True}).encode()
    with raw(server) as connection:
        connection.sendall(head("/v1/chat/completions", f"Content-Length: {len(body)}") + body)
        wait_until(lambda: engine.open == 1)
        wait_until(lambda: engine.open == 0)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("steps", [(), (STARTED,), (STARTED, Prefilled(5))])
def test_something_is_sent_while_nothing_happens(
    server: Server, engine: Scripted, http: httpx2.Client, path: str, steps: tuple[Any, ...]
) -> None:
    gate = asyncio.Event()
    engine.script = (*steps, gate, *HELLO[len(steps[:1]) :])
    sign = "event: ping" if path == "/v1/messages" else ": waiting"
    seen = 0
    with http.stream("POST", path, json={**ROUTES[path], "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line == sign:
                seen += 1
                if seen == 3:
                    server.call(gate.set)
    assert seen >= 3


def test_something_is_sent_while_events_have_nothing_to_say(engine: Scripted, http: httpx2.Client) -> None:
    steps = [part for tokens in range(100) for part in (Prefilled(tokens), QUIET_S / 10)]
    engine.script = (STARTED, *steps, *HELLO[1:])
    text = http.post("/v1/chat/completions", json={**CHAT, "stream": True}).text
    assert text.count(": waiting") >= 2


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (Refused("invalid", "no such token"), 400),
        (Refused("too_long", "9 tokens of 4"), 400),
        (Refused("busy", "later", 3.0), 429),
        (Refused("unavailable", "boxes"), 503),
    ],
)
def test_a_refusal_is_an_error_of_http_in_the_apis_shape(
    engine: Scripted, http: httpx2.Client, path: str, stream: bool, refusal: Refused, status: int
) -> None:
    engine.script = (refusal,)
    response = http.post(path, json={**ROUTES[path], "stream": stream})
    assert response.status_code == status
    assert ("retry-after" in response.headers) is (status in (429, 503))
    document = response.json()
    assert refusal.message in document["error"]["message"]
    assert (document.get("type") == "error") is (path == "/v1/messages")
    if path != "/v1/messages":
        assert (document["error"]["code"] == "context_length_exceeded") is (refusal.kind == "too_long")


def test_a_count_is_refused_likewise(engine: Scripted, http: httpx2.Client) -> None:
    assert http.post("/v1/messages/count_tokens", json=CHAT).json() == {"input_tokens": 12}
    engine.script = (Refused("too_long", "9 tokens of 4"),)
    response = http.post("/v1/messages/count_tokens", json=CHAT)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "prompt is too long: 9 tokens of 4"
    engine.script = (Refused("invalid", "no such role", field="prompt"),)
    response = http.post("/v1/messages/count_tokens", json=CHAT)
    assert response.json()["error"]["message"] == "messages: no such role"


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("stream", [False, True])
def test_answers_that_are_not_taken_are_refused_with_their_status(
    engine: Scripted, http: httpx2.Client, path: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "taking", (Refused("busy", "later", 3.0),))
    several = {"n": 3} if "completions" in path else {}
    response = http.post(path, json={**ROUTES[path], **several, "stream": stream})
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")


@pytest.mark.parametrize("path", ROUTES)
def test_a_stream_whose_answers_are_not_taken_for_long_is_not_silent(
    engine: Scripted, http: httpx2.Client, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client would give up. So a refusal that comes later is an event."""
    body = {**ROUTES[path], "stream": True}
    monkeypatch.setattr(engine, "taking", (4 * QUIET_S,))
    said = http.post(path, json=body).text
    waiting = "event: ping" if path == "/v1/messages" else COMMENT.decode()
    assert said.index(waiting) < said.index("Hel")
    monkeypatch.setattr(engine, "taking", (4 * QUIET_S, Refused("busy", "later", 3.0)))
    response = http.post(path, json=body)
    assert response.status_code == 200
    assert "later" in response.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_its_answers_are_taken_is_forgotten(
    server: Server, engine: Scripted, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    came, gone = len(engine.requests), threading.Event()

    class Gate(asyncio.Event):
        async def wait(self) -> Literal[True]:
            try:
                return await super().wait()
            finally:
                gone.set()

    monkeypatch.setattr(engine, "taking", (Gate(),))
    body = json.dumps({**CHAT, "n": 4, "stream": stream}).encode()
    with raw(server) as connection:
        connection.sendall(head("/v1/chat/completions", f"Content-Length: {len(body)}") + body)
        wait_until(lambda: len(engine.requests) == came + 4)
    assert gone.wait(60)


@pytest.mark.parametrize("path", ROUTES)
def test_a_refusal_after_a_long_wait_is_an_event(
    server: Server, engine: Scripted, http: httpx2.Client, path: str
) -> None:
    gate = asyncio.Event()
    engine.script = (gate, Refused("busy", "come later"))
    with http.stream("POST", path, json={**ROUTES[path], "stream": True}) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        first = next(lines)
        server.call(gate.set)
        text = "\n".join(lines)
    assert first in (": waiting", "event: ping")
    assert "come later" in text


@pytest.mark.parametrize("path", ROUTES)
def test_a_lost_cluster_says_that_it_may_be_tried_again(
    engine: Scripted, http: httpx2.Client, path: str
) -> None:
    engine.script = (STARTED, Text("x"), finished("lost"))
    whole = http.post(path, json=ROUTES[path])
    assert whole.status_code == 503
    assert "retry-after" in whole.headers
    streamed = http.post(path, json={**ROUTES[path], "stream": True})
    assert streamed.status_code == 200
    assert "send the same request again" in whole.text
    assert "send the same request again" in streamed.text


@pytest.mark.parametrize("path", ROUTES)
def test_a_form_that_cannot_be_followed_is_the_requests_fault(
    engine: Scripted, http: httpx2.Client, path: str
) -> None:
    engine.script = (STARTED, Text("x"), finished("form", message="ask for a simpler one"))
    whole = http.post(path, json=ROUTES[path])
    assert whole.status_code == 400
    assert "retry-after" not in whole.headers
    streamed = http.post(path, json={**ROUTES[path], "stream": True})
    for said in (whole.text, streamed.text):
        assert "ask for a simpler one" in said
        assert "again" not in said
        assert "invalid_request_error" in said or "invalid_prompt" in said


@pytest.mark.parametrize("script", [(ValueError("a secret"),), (STARTED,), (STARTED, ValueError("a secret"))])
@pytest.mark.parametrize("path", ROUTES)
def test_a_failure_of_the_engine_is_told_without_its_reasons(
    engine: Scripted, http: httpx2.Client, path: str, script: tuple[Any, ...]
) -> None:
    engine.script = script
    for stream in (False, True):
        response = http.post(path, json={**ROUTES[path], "stream": stream})
        has_begun = stream and script[0] is STARTED and path != "/v1/completions"
        assert response.status_code == (200 if has_begun else 500)
        assert "the server failed" in response.text
        assert "secret" not in response.text


def test_a_body_is_counted_as_it_comes(http: httpx2.Client) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(200):
            yield b" " * 10_000

    for path, kind in (
        ("/v1/chat/completions", "invalid_request_error"),
        ("/v1/messages", "request_too_large"),
    ):
        response = http.post(path, content=parts(), headers={"content-type": "application/json"})
        assert response.status_code == 413
        assert response.json()["error"]["type"] == kind


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"\xff", b'{"a": NaN}', b"[" * 5000, b'{"max_tokens": -1}', b'{"seed": 1, "seed": 1}'],
)
def test_a_bad_body_is_the_clients_fault_in_the_apis_shape(
    http: httpx2.Client, path: str, body: bytes
) -> None:
    response = http.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert (response.json().get("type") == "error") is (path == "/v1/messages")


def test_a_large_body_is_read_too(engine: Scripted, http: httpx2.Client) -> None:
    text = "word " * 100_000
    assert http.post("/v1/completions", json={"model": "m", "prompt": text}).status_code == 200
    assert engine.requests[-1].prompt == text
    assert http.post("/v1/completions", json={"model": "m", "prompt": [text, 3]}).status_code == 400


def test_other_kinds_of_bodies_are_refused(http: httpx2.Client) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        response = http.post("/v1/chat/completions", content=b"{}", headers={"content-type": kind})
        assert response.status_code == 415
    kinds = {"content-type": "application/json; charset=utf-8"}
    assert http.post("/v1/chat/completions", content=json.dumps(CHAT), headers=kinds).status_code == 200


def test_paths_and_methods_that_are_none_have_the_apis_shape(http: httpx2.Client) -> None:
    assert http.get("/v1/nothing").status_code == 404
    response = http.get("/v1/chat/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.json()["error"]["message"].endswith("Method Not Allowed, expected POST")
    assert http.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert http.get("/v1/messages").status_code == 405
    assert http.get("/v1/messages").json()["type"] == "error"
    assert http.get("/v1/nothing", headers={"anthropic-version": "x"}).json()["type"] == "error"


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/messages", "/v1/messages"),
        ("/v1/v1/models", "/v1/models"),
        ("/models", "/v1/models"),
        ("/v1/nothing", None),
        ("/nothing", None),
    ],
)
def test_a_base_url_with_v1_left_out_or_doubled_is_named(
    http: httpx2.Client, path: str, meant: str | None
) -> None:
    response = http.post(path, json=CHAT)
    assert response.status_code == 404
    message = response.json()["error"]["message"]
    assert message.startswith(f"POST {path}: Not Found")
    assert ("did you mean" in message) is (meant is not None)
    assert meant is None or f"did you mean {meant}?" in message


@pytest.mark.parametrize("path", ROUTES)
def test_a_request_need_not_name_the_model(http: httpx2.Client, path: str) -> None:
    body = {name: value for name, value in ROUTES[path].items() if name != "model"}
    response = http.post(path, json=body)
    assert response.status_code == 200
    assert response.json()["model"] == http.get("/v1/models").json()["data"][0]["id"]


def test_models_are_told_to_clients_of_both_apis(http: httpx2.Client) -> None:
    (model,) = http.get("/v1/models").json()["data"]
    assert model == http.get(f"/v1/models/{model['id']}").json()
    assert model["object"] == model["type"] == "model"
    other = http.get("/v1/models/other").json()["error"]
    assert other["code"] == "model_not_found"
    assert model["id"] in other["message"]


def test_every_answer_has_an_id_that_the_log_has_too(engine: Scripted, http: httpx2.Client) -> None:
    found = {http.get(path).headers["x-request-id"] for path in ("/v1/models", "/v1/nothing")}
    assert len(found) == 2
    engine.script = (STARTED, ValueError("a secret"))
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("orchestrator.api")
    logger.addHandler(handler)
    try:
        response = http.post("/v1/chat/completions", json=CHAT)
    finally:
        logger.removeHandler(handler)
    assert response.headers["request-id"] in "".join(lines)


@pytest.mark.parametrize("stream", [False, True])
def test_responses_are_kept_gone_on_from_and_deleted(
    engine: Scripted, http: httpx2.Client, stream: bool
) -> None:
    first = http.post("/v1/responses", json={"model": "m", "input": "1", "stream": stream})
    if stream:
        events = [json.loads(line[6:]) for line in first.text.splitlines() if line.startswith("data: ")]
        stored = events[-1]["response"]
    else:
        stored = first.json()
    url = f"/v1/responses/{stored['id']}"
    assert http.get(url).json()["output"] == stored["output"]
    again = {"model": "m", "input": "2", "previous_response_id": stored["id"], "store": False}
    second = http.post("/v1/responses", json=again).json()
    prompt: Any = engine.requests[-1].prompt
    assert [turn["content"] for turn in prompt.messages] == ["1", "Hello", "2"]
    assert http.get(f"/v1/responses/{second['id']}").status_code == 404
    assert http.delete(url).json()["deleted"]
    assert http.delete(url).status_code == http.get(url).status_code == 404
    gone = http.post("/v1/responses", json=again)
    assert gone.status_code == 404
    assert gone.json()["error"]["code"] == "previous_response_not_found"


def test_a_thousand_idle_connections_are_harmless(server: Server, http: httpx2.Client) -> None:
    idle = [raw(server) for _ in range(1000)]
    assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
    for connection in idle:
        connection.close()


def test_beyond_the_bound_the_connection_that_was_idle_longest_is_closed() -> None:
    engine = Scripted((STARTED, Text("x"), asyncio.Event()))
    settings = ApiSettings(port=0, grace_s=0.0, most_connections=10)
    with served(engine, settings) as server, client(server) as http:
        with http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as busy:
            assert busy.status_code == 200
            idle = [raw(server) for _ in range(20)]
            assert _ended(idle[0]) == b""
            assert engine.open == 1
            with client(server) as other:
                assert other.get("/v1/models").status_code == 200
        for connection in idle:
            connection.close()


def test_slow_senders_are_not_waited_for() -> None:
    settings = ApiSettings(port=0, grace_s=0.0, headers_s=0.5, body_s=0.5, keep_alive_s=1.0)
    with served(Scripted(), settings) as server:
        silent, half, slow = raw(server), raw(server), raw(server)
        half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: local")
        slow.sendall(head("/v1/messages", "Content-Length: 100") + b"{")
        assert _ended(silent) == b""
        assert _ended(half) == b""
        answer = _ended(slow)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b'"type":"error"' in answer
        # A connection that was of use is closed, too, once nothing more comes.
        wait_until(lambda: _asked_once(server).startswith(b"HTTP/1.1 200"))


def _asked_once(server: Server) -> bytes:
    connection = raw(server)
    connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return _ended(connection)


def _ended(connection: socket.socket) -> bytes:
    with connection:
        try:
            return reply(connection)
        except ConnectionResetError:
            return b""


def test_a_server_that_stops_lets_answers_finish() -> None:
    gate = asyncio.Event()
    engine = Scripted((STARTED, gate, *HELLO[1:]))
    with (
        served(engine, ApiSettings(port=0, grace_s=60.0)) as server,
        client(server) as http,
        client(server) as kept,
    ):
        assert kept.get("/v1/models").status_code == 200
        with http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as response:
            server.stop()
            wait_until(lambda: _is_refused(server))
            server.call(gate.set)
            text = response.read().decode()
    assert '"finish_reason":"stop"' in text
    assert "[DONE]" in text


def _is_refused(server: Server) -> bool:
    try:
        with client(server) as http:
            return http.get("/v1/models").status_code == 503
    except httpx2.HTTPError:
        return True


@pytest.mark.parametrize("path", ROUTES)
def test_a_server_that_stops_ends_answers_with_a_reason(path: str) -> None:
    engine = Scripted((STARTED, Text("so far"), asyncio.Event()))
    words = {"/v1/responses": '"reason":"shutdown"', "/v1/messages": '"stop_reason":"max_tokens"'}
    with served(engine) as server, client(server) as http:
        with http.stream("POST", path, json={**ROUTES[path], "stream": True}) as response:
            wait_until(lambda: engine.open == 1)
            server.stop()
            text = response.read().decode()
        assert words.get(path, '"finish_detail":"shutdown"') in text
        assert "so far" in text
        assert engine.open == 0


def test_an_answer_that_has_not_begun_is_refused_by_a_server_that_stops() -> None:
    engine = Scripted((asyncio.Event(),))
    body = json.dumps(ROUTES["/v1/messages"]).encode()
    with served(engine) as server, raw(server) as connection:
        connection.sendall(head("/v1/messages", f"Content-Length: {len(body)}") + body)
        wait_until(lambda: engine.open == 1)
        server.stop()
        answer = reply(connection)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"overloaded_error" in answer


def test_tls_is_spoken_where_there_are_files_for_it(tmp_path: Path) -> None:
    files = make_tls("test", [], datetime.now(UTC))
    for name, content in (
        ("key", files.key),
        ("certificate", files.certificate),
        ("authority", files.authority),
    ):
        (tmp_path / name).write_bytes(content)
    settings = ApiSettings(
        port=0, grace_s=0.0, tls_key=tmp_path / "key", tls_certificate=tmp_path / "certificate"
    )
    with served(Scripted(), settings) as server:
        assert server.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(tmp_path / "authority"))
        with httpx2.Client(base_url=server.url, verify=trusted, trust_env=False) as http:
            assert http.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_a_second_signal_ends_answers_at_once_and_without_a_trace() -> None:
    """Two processes' worth of signals in this one: the server has its handlers while it runs."""
    assert threading.current_thread() is threading.main_thread(), "the signals would end the tests"
    engine = Scripted((STARTED, Text("so far"), asyncio.Event()))
    stream = io.StringIO()

    async def asked(url: str) -> str:
        def ask() -> str:
            with httpx2.Client(base_url=url, timeout=60, trust_env=False, verify=False) as http:
                return http.post("/v1/chat/completions", json={**CHAT, "stream": True}).text

        asking = asyncio.create_task(asyncio.to_thread(ask))
        while engine.open == 0:
            await asyncio.sleep(0.01)
        signal.raise_signal(signal.SIGINT)
        while "Ctrl-C again" not in stream.getvalue():
            await asyncio.sleep(0.01)
        signal.raise_signal(signal.SIGINT)
        return await asking

    async def run() -> str:
        url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        settings = ApiSettings(port=0, grace_s=1000.0)
        serving = asyncio.create_task(serve(engine, settings, ready=url.set_result))
        text = await asked(await url)
        await serving
        return text

    with logging_to(stream):
        text = asyncio.run(asyncio.wait_for(run(), 60))
    assert '"finish_detail":"shutdown"' in text
    assert (
        "stopping: 1 request under way, at most 1000 s; Ctrl-C again ends them at once" in stream.getvalue()
    )
    assert "exception" not in stream.getvalue()


def test_who_speaks_no_http_is_a_line_of_the_log(server: Server) -> None:
    stream = io.StringIO()
    with logging_to(stream), raw(server) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        assert reply(connection).startswith(b"HTTP/1.1 400")
    (line,) = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert line["message"] == f"a client spoke TLS or no HTTP; this server is {server.url}"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_serving_and_not_the_process(number: signal.Signals) -> None:
    assert threading.current_thread() is threading.main_thread(), "the signal would end the tests"
    before = signal.getsignal(number)
    signal.signal(number, signal.SIG_IGN)
    try:
        ready = lambda url: signal.raise_signal(number)  # noqa: E731
        asyncio.run(asyncio.wait_for(serve(Scripted(), ApiSettings(port=0), ready=ready), 60))
    finally:
        signal.signal(number, before)


def test_an_answer_that_starts_is_begun_at_once(
    engine: Scripted, http: httpx2.Client, server: Server
) -> None:
    gate = asyncio.Event()
    engine.script = (Started(3, 0), gate, *HELLO[1:])
    with http.stream("POST", "/v1/messages", json={**ROUTES["/v1/messages"], "stream": True}) as response:
        assert next(response.iter_lines()) == "event: message_start"
        server.call(gate.set)
