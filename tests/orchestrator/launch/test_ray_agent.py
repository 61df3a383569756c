"""Requests to the process that speaks with Ray are answered side by side, failures in one line."""

from __future__ import annotations

import io
import json
import threading
from typing import Any

import pytest

from orchestrator.launch.ray_client import RayClient
from orchestrator.nodes import Node
from placement.errors import WorkerStartError


class Answers:
    """Stands for Ray: `slow` answers once `quick` was asked."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def slow(self) -> str:
        assert self._asked.wait(30.0)
        return "slow"

    def quick(self, number: int) -> int:
        self._asked.set()
        return 2 * number

    def refuses(self) -> None:
        raise WorkerStartError("no such node")

    def breaks(self) -> None:
        raise ZeroDivisionError("division by zero\nsecond line")


def replies(*requests: dict[str, Any]) -> dict[int, dict[str, Any]]:
    # Here, since every process of pytest collects all tests, and this loads Ray.
    from orchestrator.launch.ray_agent import serve

    out = io.StringIO()
    serve(Answers(), io.StringIO("".join(json.dumps(request) + "\n" for request in requests)), out)
    return {reply["id"]: reply for reply in map(json.loads, out.getvalue().splitlines())}


def test_a_slow_answer_keeps_no_other_waiting() -> None:
    found = replies({"id": 1, "do": "slow"}, {"id": 2, "do": "quick", "number": 4})
    assert found == {1: {"id": 1, "answer": "slow"}, 2: {"id": 2, "answer": 8}}


def test_every_failure_is_one_line_and_ends_nothing() -> None:
    found = replies(
        {"id": 1, "do": "refuses"}, {"id": 2, "do": "breaks"}, {"id": 3, "do": "quick", "number": 1}
    )
    assert found[1]["error"] == "no such node"
    assert found[2]["error"] == "ZeroDivisionError: division by zero"
    assert found[3]["answer"] == 2


def test_where_no_ray_listens_it_is_said_in_one_line_and_soon() -> None:
    with (
        pytest.raises(WorkerStartError, match=r"^Ray at 127\.0\.0\.1:9: .*refused$"),
        RayClient("127.0.0.1:9", {}),
    ):
        pass


def test_a_node_travels_as_plain_data() -> None:
    node = Node("ab", "10.0.0.2", 4, frozenset({"den", "10.0.0.2"}))
    assert Node.from_dict(json.loads(json.dumps(node.to_dict()))) == node
