"""How a command speaks with Ray: through a process that it starts and ends. This one imports no Ray."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orchestrator.launch.python import python_command, python_environment
from orchestrator.nodes import Node
from orchestrator.stopping import uninterrupted
from placement.errors import WorkerStartError
from workers.log_file import last_of_log

CONNECT_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 45.0
END_TIMEOUT_S = 40.0


class RayClient:
    """A connection to a running Ray. Its methods may be called from several threads.

    A context manager: with the block ends what was started without `outlives`.
    """

    def __init__(self, address: str, environment: Mapping[str, str], log: Path | None = None) -> None:
        """
        Args:
            address: of Ray, such as 10.0.0.1:6379, or "auto".
            environment: for Ray, see `orchestrator.cluster.ray_env`; on top of this process's.
            log: where Ray's messages go; nowhere by default.
        """
        self._address = address
        self._environment = environment
        self._log = log
        self._ids = count()
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Any]] = {}
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        """
        Raises:
            WorkerStartError: Ray cannot be reached, or refuses the token or the certificate.
        """
        log = (
            subprocess.DEVNULL
            if self._log is None
            else os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        )
        try:
            self._process = subprocess.Popen(
                python_command("orchestrator.launch.ray_agent"),
                env=python_environment() | dict(self._environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # Ctrl-C is for the process that asks; it then ends this one in order.
                start_new_session=True,
            )
        finally:
            if log >= 0:
                os.close(log)
        threading.Thread(target=self._listen, name="ray-agent", daemon=True).start()
        try:
            self._ask("connect", CONNECT_TIMEOUT_S, address=self._address)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def nodes(self) -> list[Node]:
        """Those that Ray believes alive."""
        return [Node.from_dict(entry) for entry in self._ask("nodes", CALL_TIMEOUT_S)]

    def keep(
        self, node_id: str, folder: str, order: str, *, node: str = "", outlives: bool
    ) -> dict[str, Any]:
        """Have a worker run on a node; `ray_agent.Agent.keep`."""
        fields = {"node_id": node_id, "folder": folder, "order": order, "node": node, "outlives": outlives}
        answer: dict[str, Any] = self._ask("keep", CALL_TIMEOUT_S, **fields)
        return answer

    def state(self, node_id: str, folder: str) -> dict[str, Any]:
        """`kept_worker.KeptState` of the worker there, and the box's version."""
        answer: dict[str, Any] = self._ask("state", CALL_TIMEOUT_S, node_id=node_id, folder=folder)
        return answer

    def stop(self, node_id: str, folder: str) -> None:
        """End the worker there."""
        self._ask("stop", CALL_TIMEOUT_S, node_id=node_id, folder=folder)

    def close(self) -> None:
        """End the process, and with it what does not outlive it. Harmless when closed."""
        process, self._process = self._process, None
        if process is None:
            return
        with uninterrupted():
            if process.stdin is not None:
                with suppress(OSError):
                    process.stdin.close()
            try:
                process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _ask(self, what: str, timeout_s: float, **fields: Any) -> Any:
        process = self._process
        if process is None or process.stdin is None:
            raise WorkerStartError("the connection to Ray is closed")
        answer: Future[Any] = Future()
        with self._lock:
            number = next(self._ids)
            self._waiting[number] = answer
            try:
                process.stdin.write(json.dumps({"id": number, "do": what} | fields) + "\n")
                process.stdin.flush()
            except OSError:
                answer.set_exception(self._gone())
        if process.poll() is not None and not answer.done():
            raise self._gone()
        try:
            return answer.result(timeout_s)
        except NoAnswer:
            raise WorkerStartError(f"Ray at {self._address}: no answer within {timeout_s:g} s") from None
        finally:
            with self._lock:
                self._waiting.pop(number, None)

    def _listen(self) -> None:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        for line in process.stdout:
            reply = json.loads(line)
            with self._lock:
                waiting = self._waiting.get(reply["id"])
            if waiting is None:
                continue
            if "error" in reply:
                waiting.set_exception(WorkerStartError(reply["error"]))
            else:
                waiting.set_result(reply["answer"])
        with self._lock:
            left = list(self._waiting.values())
        for waiting in left:
            if not waiting.done():
                waiting.set_exception(self._gone())

    def _gone(self) -> WorkerStartError:
        said = "" if self._log is None else last_of_log(self._log)
        return WorkerStartError(f"Ray at {self._address}: the process that speaks with it ended: {said}")
