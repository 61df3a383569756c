"""Errors in the shapes of both APIs."""

from __future__ import annotations

import pytest

from orchestrator.api.errors import ApiError, body_of, headers_of, invalid, lost, refused
from orchestrator.serving.answer import Refused

INVALID = "invalid_request_error"


@pytest.mark.parametrize(
    ("refusal", "status", "code", "openai", "anthropic"),
    [
        (Refused("invalid", "no"), 400, None, INVALID, INVALID),
        (Refused("too_long", "9 of 4"), 400, "context_length_exceeded", INVALID, INVALID),
        (Refused("busy", "later", 2.2), 429, "rate_limit_exceeded", "rate_limit_error", "rate_limit_error"),
        (Refused("unavailable", "boxes"), 503, "service_unavailable", "server_error", "overloaded_error"),
    ],
)
def test_a_refusal_has_its_status_and_the_words_of_both_apis(
    refusal: Refused, status: int, code: str | None, openai: str, anthropic: str
) -> None:
    error = refused(refusal)
    assert error.status == status
    assert body_of(error, "openai")["error"] == {
        "message": refusal.message,
        "type": openai,
        "param": None,
        "code": code,
    }
    shown = body_of(error, "anthropic")
    assert shown["type"] == "error"
    assert shown["error"]["type"] == anthropic
    assert refusal.message in shown["error"]["message"]


def test_a_path_is_written_as_the_api_writes_it() -> None:
    error = invalid("messages.0.content.12", "no")
    shown = body_of(error, "openai")["error"]
    assert (shown["param"], shown["message"]) == ("messages[0].content[12]", "messages[0].content[12]: no")
    assert body_of(error, "anthropic")["error"]["message"] == "messages.0.content.12: no"
    assert body_of(invalid("response_format.json_schema.7up", "no"), "openai")["error"]["param"].endswith(
        "a.7up"
    )


def test_anthropics_message_begins_with_the_field_once() -> None:
    def said(message: str, field: str) -> str:
        error = refused(Refused("invalid", message, field=field), {"output": "output_config.format.schema"})
        return str(body_of(error, "anthropic")["error"]["message"])

    assert said("no such type", "output") == "output_config.format.schema: no such type"
    assert said("ignore_eos with a form", "ignore_eos") == "ignore_eos with a form"
    assert said("toolbox is full", "tool") == "tool: toolbox is full"
    assert said("no", "") == "no"


def test_anthropics_clients_find_the_words_by_which_they_shorten_a_prompt() -> None:
    for message in ("9 tokens of 4", "prompt is too long: 9 tokens of 4"):
        shown = body_of(refused(Refused("too_long", message)), "anthropic")["error"]["message"]
        assert shown == "prompt is too long: 9 tokens of 4"


def test_what_may_be_tried_again_says_when_in_whole_seconds() -> None:
    assert headers_of(refused(Refused("busy", "later", 2.2))) == {"retry-after": "3"}
    assert headers_of(refused(Refused("busy", "later", 0.0))) == {"retry-after": "1"}
    assert int(headers_of(refused(Refused("unavailable", "boxes")))["retry-after"]) > 0
    assert int(headers_of(lost(""))["retry-after"]) > 0
    assert headers_of(refused(Refused("invalid", "no"))) == {}
    assert headers_of(invalid("n", "no")) == {}
    assert headers_of(ApiError(401, "no")) == {"www-authenticate": "Bearer"}
