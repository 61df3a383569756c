"""One line of JSON for each request at its end."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.api.keys import make_key
from orchestrator.api.log_lines import logging_to
from orchestrator.api.settings import ApiSettings
from orchestrator.serving.answer import Refused, Text
from tests.orchestrator.api.scripted import STARTED, THOUGHT, USAGE, Scripted, finished
from tests.orchestrator.api.serving import client, served, wait_until
from tests.orchestrator.api.watched import Watched

CHAT = {"model": "m", "messages": [{"role": "user", "content": "a secret"}]}
ANN, ANNS = make_key("ann")


class Log:
    """What was logged since it began."""

    def __init__(self, stream: io.StringIO) -> None:
        self._stream = stream

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]

    def ended(self) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line["logger"] == "orchestrator.api.request_log"]

    def the_end(self) -> dict[str, Any]:
        """Of the one request; a client has its answer a moment before the line is written."""
        wait_until(lambda: bool(self.ended()))
        (line,) = self.ended()
        return line


@pytest.fixture
def log() -> Iterator[Log]:
    stream = io.StringIO()
    with logging_to(stream):
        yield Log(stream)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"model": "m", "prompt": "a secret"}),
        ("/v1/responses", {"model": "m", "input": "a secret"}),
        ("/v1/messages", {**CHAT, "max_tokens": 5}),
    ],
)
def test_a_request_is_told_with_what_it_took(log: Log, path: str, body: dict[str, Any], stream: bool) -> None:
    with served(Scripted(THOUGHT)) as server, client(server) as http:
        response = http.post(path, json={**body, "stream": stream})
        line = log.the_end()
    assert line["request_id"] == response.headers["x-request-id"]
    assert (line["level"], line["client"], line["route"], line["status"]) == (
        "info",
        "local",
        f"POST {path}",
        200,
    )
    assert line["finish"] == ["stop"]
    assert line["prompt_tokens"] == USAGE.prompt_tokens
    assert line["cached_tokens"] == USAGE.cached_tokens
    assert line["completion_tokens"] == USAGE.completion_tokens
    assert line["reasoning_tokens"] == USAGE.reasoning_tokens
    assert 0 <= line["started_s"] <= line["first_token_s"] <= line["seconds"]
    assert "secret" not in json.dumps(log.lines())


def test_tokens_of_all_answers_are_added_up(log: Log) -> None:
    with served(Scripted(THOUGHT)) as server, client(server) as http:
        http.post("/v1/chat/completions", json={**CHAT, "n": 3})
        line = log.the_end()
    assert line["finish"] == ["stop"] * 3
    assert line["completion_tokens"] == 3 * USAGE.completion_tokens


def test_what_does_not_come_to_an_end_has_no_reason_for_one(log: Log) -> None:
    with served(Scripted((Refused("busy", "later"),))) as server, client(server) as http:
        http.post("/v1/chat/completions", json=CHAT)
        line = log.the_end()
    assert (line["status"], line["finish"], line["started_s"], line["first_token_s"]) == (429, [], None, None)


def test_a_lost_cluster_is_told_also_where_the_stream_had_begun(log: Log) -> None:
    with served(Scripted((STARTED, Text("x"), finished("lost")))) as server, client(server) as http:
        http.post("/v1/chat/completions", json={**CHAT, "stream": True})
        line = log.the_end()
    assert (line["status"], line["finish"]) == (200, ["lost"])


def test_a_client_that_leaves_is_told(log: Log) -> None:
    engine = Scripted((STARTED, asyncio.Event()))
    with served(engine) as server:
        with (
            client(server) as http,
            http.stream("POST", "/v1/messages", json={**CHAT, "max_tokens": 5, "stream": True}),
        ):
            wait_until(lambda: engine.open == 1)
        line = log.the_end()
    assert (line["status"], line["finish"]) == (200, [])


def test_who_is_nobody_has_no_name_and_paths_have_no_ids(log: Log) -> None:
    settings = ApiSettings(port=0, grace_s=0.0, keys=(ANNS,))
    with served(Scripted(), settings) as server, client(server) as http:
        http.get("/v1/models", headers={"x-api-key": "wrong"})
        http.get("/v1/responses/resp_0123", headers={"x-api-key": ANN})
        http.get(f"/{'x' * 500}", headers={"x-api-key": ANN})
        wait_until(lambda: len(log.ended()) == 3)
    first, second, third = log.ended()
    assert (first["client"], first["status"]) == (None, 401)
    assert (second["client"], second["route"], second["status"]) == (
        "ann",
        "GET /v1/responses/{response_id}",
        404,
    )
    assert (third["route"], third["status"]) == (f"GET /{'x' * 195}", 404)
    assert ANN not in json.dumps(log.lines())


def test_who_watches_fills_no_log_unless_it_is_refused(log: Log) -> None:
    settings = ApiSettings(port=0, grace_s=0.0, keys=(ANNS,))
    with served(Scripted(), settings, source=Watched()) as server, client(server) as http:
        for path in ("/", "/api/state", "/metrics"):
            assert http.get(path, headers={"x-api-key": ANN}).status_code == 200
        assert http.get("/metrics").status_code == 401
        line = log.the_end()
    assert (line["route"], line["status"]) == ("GET /metrics", 401)


def test_a_failure_of_ours_has_its_traceback_and_its_requests_id(log: Log) -> None:
    with served(Scripted((STARTED, ValueError("broken")))) as server, client(server) as http:
        response = http.post("/v1/chat/completions", json=CHAT)
        wait_until(lambda: bool(log.ended()))
    failed, ended = log.lines()
    assert (failed["level"], ended["status"]) == ("error", 500)
    assert failed["request_id"] == ended["request_id"] == response.headers["x-request-id"]
    assert "ValueError: broken" in failed["exception"]
