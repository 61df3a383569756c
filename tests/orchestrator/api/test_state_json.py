"""What is written of a state is what is read of it."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from orchestrator.api.state_json import read_state, state_json
from orchestrator.serving.state import ServerState
from tests.orchestrator.api.watched import HOSTILE, STATE


def test_a_state_is_read_as_it_was_written() -> None:
    state = replace(STATE, heat=((0.5, 0.25, 0.25), (0.3, 0.7, 0.0)))
    read = read_state(state_json(state))
    assert read.boxes == list(state.boxes)
    assert read.requests == list(state.requests)
    assert read.totals == state.totals
    assert read.events == list(state.events)
    assert (read.places, read.heat) == ([[0, 0, 1], [1, 1, -1]], [[0.5, 0.25, 0.25], [0.3, 0.7, 0.0]])


def test_json_has_the_fields_of_a_state_by_their_names() -> None:
    found = json.loads(state_json(STATE))
    assert set(found) == {field.name for field in fields(ServerState)}
    assert found["requests"][0]["client"] == HOSTILE
    assert found["totals"]["first_token_s"][-1] == [None, 1]
    assert found["heat"][1][0] == 0.333333
    assert found["boxes"][0]["round_trip_s"] is None


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"", "the document"),
        (b"[]", "the document"),
        (b'{"model": 3}', "model"),
        (state_json(STATE).replace(b'"writing"', b'"sleeping"'), "requests.0.place"),
        (state_json(STATE).replace(b"[0,0,1]", b'[0,"x",1]'), "places.0.1"),
        (b"\xff\xfe", "the document"),
        (b"[" * 100_000, "the document"),
    ],
)
def test_what_is_no_state_is_said_in_one_line(content: bytes, where: str) -> None:
    with pytest.raises(ValueError, match=f"^{where}: .+$") as caught:
        read_state(content)
    assert len(str(caught.value).splitlines()) == 1
