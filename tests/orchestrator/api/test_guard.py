"""Who is let in, and how much they may ask."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from threading import Thread

import httpx2
import pytest

from orchestrator.api.keys import ApiKey, make_key
from orchestrator.api.limits import Limits
from orchestrator.api.settings import ApiSettings
from tests.orchestrator.api.scripted import HELLO, STARTED, Scripted
from tests.orchestrator.api.serving import Server, client, served, wait_until

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
ANN, ANNS = make_key("ann")
BOB, BOBS = make_key("bob", Limits(running=1))
CAT, CATS = make_key("cat", Limits(per_minute=2))


@pytest.fixture(scope="module")
def engine() -> Scripted:
    return Scripted()


@pytest.fixture(scope="module")
def open_server(engine: Scripted) -> Iterator[Server]:
    with served(engine) as running:
        yield running


@pytest.fixture(scope="module")
def keyed_server(engine: Scripted) -> Iterator[Server]:
    with served(engine, ApiSettings(port=0, grace_s=0.0, keys=(ANNS, BOBS, CATS))) as running:
        yield running


def status(server: Server, headers: Mapping[str, str], path: str = "/v1/chat/completions") -> int:
    with client(server) as http:
        return http.post(path, json={**CHAT, "max_tokens": 5}, headers=dict(headers)).status_code


def test_no_key_is_told_from_a_wrong_one_and_health_needs_none(keyed_server: Server) -> None:
    with client(keyed_server) as http:
        without = http.get("/v1/models")
        wrong = http.get("/v1/models", headers={"x-api-key": "none"})
        health = http.get("/health")
        assert http.post("/health").status_code == 401
    assert without.status_code == wrong.status_code == 401
    assert "no key was sent" in without.json()["error"]["message"]
    assert "not one of this server's" in wrong.json()["error"]["message"]
    assert (health.status_code, health.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8000"])
def test_without_keys_this_machines_names_are_good(open_server: Server, host: str) -> None:
    assert status(open_server, {"host": host}) == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/openapi.json"])
def test_a_page_whose_name_was_rebound_is_refused(open_server: Server, path: str) -> None:
    with client(open_server) as http:
        response = http.post(path, json=CHAT, headers={"host": "evil.example"})
    assert response.status_code == 403
    assert (response.json().get("type") == "error") is (path == "/v1/messages")


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "file://"])
def test_a_page_of_another_origin_is_refused(
    open_server: Server, keyed_server: Server, engine: Scripted, origin: str
) -> None:
    asked = len(engine.requests)
    assert status(open_server, {"origin": origin}) == 403
    assert status(keyed_server, {"origin": origin, "x-api-key": ANN}) == 403
    assert len(engine.requests) == asked


def test_a_page_of_our_own_is_let_in(open_server: Server) -> None:
    assert status(open_server, {"origin": open_server.url}) == 200


def test_no_page_elsewhere_is_told_that_it_may_read(open_server: Server) -> None:
    with client(open_server) as http:
        headers = {"origin": "http://evil.example", "access-control-request-method": "POST"}
        response = http.options("/v1/chat/completions", headers=headers)
    assert response.status_code == 403
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"authorization": f"Bearer {ANN}"}, 200),
        ({"authorization": f"bearer {ANN}"}, 200),
        ({"x-api-key": ANN}, 200),
        ({"x-api-key": ANN, "host": "box.lan"}, 200),
        ({}, 401),
        ({"authorization": "Bearer x"}, 401),
        ({"authorization": f"Basic {ANN}"}, 401),
        ({"authorization": f"Bearer {ANN}x"}, 401),
        ({"x-api-key": ANN[:-1]}, 401),
        ({"x-api-key": ANNS.sha256}, 401),
    ],
)
def test_with_keys_only_who_has_one_is_let_in(
    keyed_server: Server, headers: dict[str, str], code: int
) -> None:
    assert status(keyed_server, headers) == code
    assert status(keyed_server, headers, "/v1/messages") == code


def test_a_wrong_key_is_refused_in_the_apis_shape(keyed_server: Server) -> None:
    with client(keyed_server) as http:
        openai = http.get("/v1/models")
        anthropic = http.post("/v1/messages", json=CHAT)
        assert http.get("/openapi.json").status_code == 401
    assert openai.json()["error"]["code"] == "invalid_api_key"
    assert openai.headers["www-authenticate"] == "Bearer"
    assert anthropic.json()["error"]["type"] == "authentication_error"


def test_the_engine_is_told_whose_key_it_was(keyed_server: Server, engine: Scripted) -> None:
    engine.script = HELLO
    assert status(keyed_server, {"x-api-key": ANN}) == 200
    assert engine.requests[-1].client == "ann"


def test_a_key_sees_no_responses_of_another(keyed_server: Server) -> None:
    with client(keyed_server) as http:
        mine = http.post(
            "/v1/responses", json={"model": "m", "input": "x"}, headers={"x-api-key": ANN}
        ).json()
        url = f"/v1/responses/{mine['id']}"
        assert http.get(url, headers={"x-api-key": BOB}).status_code == 404
        assert http.delete(url, headers={"x-api-key": BOB}).status_code == 404
        assert http.get(url, headers={"x-api-key": ANN}).status_code == 200


def test_a_key_has_as_much_running_as_it_may(keyed_server: Server, engine: Scripted) -> None:
    gate = asyncio.Event()
    engine.script = (STARTED, gate, *HELLO[1:])
    first = Thread(target=status, args=(keyed_server, {"x-api-key": BOB}))
    first.start()
    wait_until(lambda: engine.open == 1)
    with client(keyed_server) as http:
        for path in ("/v1/chat/completions", "/v1/messages"):
            response = http.post(path, json={**CHAT, "max_tokens": 5}, headers={"x-api-key": BOB})
            assert response.status_code == 429
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["type"] == "rate_limit_error"
        assert http.get("/v1/models", headers={"x-api-key": BOB}).status_code == 200
    keyed_server.call(gate.set)
    first.join(60)
    engine.script = HELLO
    assert status(keyed_server, {"x-api-key": BOB}) == 200


def test_who_leaves_has_nothing_running(keyed_server: Server, engine: Scripted) -> None:
    engine.script = (STARTED, asyncio.Event())
    with client(keyed_server) as http:
        headers = {"x-api-key": BOB}
        with http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}, headers=headers):
            wait_until(lambda: engine.open == 1)
    wait_until(lambda: engine.open == 0)
    engine.script = HELLO
    wait_until(lambda: status(keyed_server, {"x-api-key": BOB}) == 200)


def test_a_key_asks_as_often_as_it_may(keyed_server: Server, engine: Scripted) -> None:
    engine.script = HELLO
    codes = [status(keyed_server, {"x-api-key": CAT}) for _ in range(3)]
    assert codes == [200, 200, 429]
    assert status(keyed_server, {"x-api-key": ANN}) == 200


def test_a_hash_is_all_that_the_server_has_of_a_key() -> None:
    settings = ApiSettings(host="0.0.0.0", keys=(ApiKey("ann", ANNS.sha256),))
    assert ANN not in repr(settings)
    assert ANN not in json.dumps([key.sha256 for key in settings.keys])


def test_requests_that_fail_leave_their_place(keyed_server: Server) -> None:
    with client(keyed_server) as http:
        for _ in range(3):
            response: httpx2.Response = http.post("/v1/messages", json={}, headers={"x-api-key": BOB})
            assert response.status_code == 400
