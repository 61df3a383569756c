"""Ray in a process of its own, `python -m orchestrator.launch.ray_agent`: requests and answers as JSON lines.

Whatever Ray prints goes to standard error. When this process or Ray dies, the process that asked is told,
and nothing else happens to it. When standard input ends, what was started for it alone is stopped.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import IO, Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.launch.node_actor import NodeActor
from orchestrator.nodes import Node
from placement.errors import PotluckError, WorkerStartError
from placement.files.quote import first_line

NAMESPACE = "potluck"
CONNECT_TIMEOUT_S = 5.0
CALL_TIMEOUT_S = 30.0
MOST_AT_ONCE = 64


class Agent:
    """What may be asked of it: the methods without an underscore, each with plain data in and out."""

    def __init__(self) -> None:
        self._own: dict[str, Any] = {}

    def connect(self, address: str) -> dict[str, Any]:
        """Join the running Ray at an address, "auto" for the one this machine belongs to."""
        _check_reachable(address)
        try:
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError, RayError) as error:
            raise WorkerStartError(f"Ray at {address}: {first_line(error)}") from error
        return {"ray": ray.__version__, "address": ray.get_runtime_context().gcs_address}

    def nodes(self) -> list[dict[str, Any]]:
        """Those that Ray believes alive."""
        entries = ray.nodes()  # type: ignore[no-untyped-call]
        return [Node.from_ray(entry).to_dict() for entry in entries if entry["Alive"]]

    def keep(self, node_id: str, folder: str, order: str, node: str, outlives: bool) -> dict[str, Any]:
        """Have a worker run on a node; see `NodeActor.keep`.

        Args:
            outlives: whether it is to go on when this process ends.
        """
        return self._call(self._actor(node_id, folder, outlives=outlives).keep.remote(order, node))

    def state(self, node_id: str, folder: str) -> dict[str, Any]:
        """How the worker of a folder on a node is; see `NodeActor.state`."""
        return self._call(self._actor(node_id, folder).state.remote())

    def stop(self, node_id: str, folder: str) -> dict[str, Any]:
        """End the worker of a folder on a node, and what keeps it."""
        actor = self._actor(node_id, folder)
        try:
            return self._call(actor.stop.remote())
        finally:
            self._own.pop(_name(node_id, folder), None)
            ray.kill(actor)

    def _stop_own(self) -> None:
        """All that was not to outlive this process."""
        stopping = {name: actor.stop.remote() for name, actor in self._own.items()}
        for stopped in stopping.values():
            with suppress(RayError, GetTimeoutError):
                ray.get(stopped, timeout=CALL_TIMEOUT_S)
        self._own.clear()

    def _actor(self, node_id: str, folder: str, *, outlives: bool = True) -> Any:
        """The actor of a folder on a node; made where there is none."""
        name = _name(node_id, folder)
        if name in self._own:
            return self._own[name]
        remote: Any = ray.remote(num_cpus=0, max_restarts=-1)(NodeActor)
        there = NodeAffinitySchedulingStrategy(node_id, soft=False)
        options: dict[str, Any] = {"scheduling_strategy": there}
        if outlives:
            options |= {"name": name, "lifetime": "detached", "get_if_exists": True}
        actor = remote.options(**options).remote(folder)
        if not outlives:
            self._own[name] = actor
        return actor

    @staticmethod
    def _call(asked: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = ray.get(asked, timeout=CALL_TIMEOUT_S)
        except GetTimeoutError as error:
            raise WorkerStartError(
                f"Ray's actor there does not answer within {CALL_TIMEOUT_S:g} s"
            ) from error
        except RayError as error:
            raise WorkerStartError(first_line(error)) from error
        if "error" in answer:
            raise WorkerStartError(answer["error"])
        return answer


def main() -> None:
    """Answer until standard input ends."""
    # Ray prints on a loss. Nothing but answers may go out.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    agent = Agent()
    try:
        serve(agent, sys.stdin, out)
    finally:
        agent._stop_own()
    # Ray's threads may wait for a server that is gone.
    os._exit(0)


def serve(agent: object, requests: IO[str], out: IO[str]) -> None:
    """Answer requests side by side: {"id", "do", …} gives {"id", "answer"} or {"id", "error"}."""
    writing = threading.Lock()

    def answer(request: Mapping[str, Any]) -> None:
        reply = {"id": request["id"]} | _done(agent, request)
        # The asking process may be gone.
        with writing, suppress(OSError):
            out.write(json.dumps(reply) + "\n")
            out.flush()

    with ThreadPoolExecutor(MOST_AT_ONCE) as pool:
        for line in requests:
            pool.submit(answer, json.loads(line))


def _done(agent: object, request: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in request.items() if name not in ("id", "do")}
    method: Callable[..., Any] = getattr(agent, request["do"])
    try:
        return {"answer": method(**fields)}
    except PotluckError as error:
        return {"error": str(error)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {first_line(error)}"}


def _name(node_id: str, folder: str) -> str:
    return f"{folder} on {node_id}"


def _check_reachable(address: str) -> None:
    """Ray itself tries an address where nobody listens for minutes."""
    host, _, port = address.rpartition(":")
    if not host:
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S):
            pass
    except (OSError, ValueError) as error:
        raise WorkerStartError(f"Ray at {address}: {first_line(error)}") from error


if __name__ == "__main__":
    main()
