"""One worker process: started with its spec, and what it says of itself."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

from orchestrator.launch.python import python_command, python_environment
from placement.errors import WorkerStartError
from workers.log_file import last_of_log
from workers.spec import WorkerInfo, WorkerSpec


def spawn(spec: WorkerSpec, *, prefix: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Start a worker process and hand it its spec; errors of its own it writes to the spec's log.

    It has a session of its own: Ctrl-C and a closed terminal are the starter's to act on. Standard input
    stays open: a worker with a lifeline ends when it is closed.

    Args:
        prefix: a command that runs it, such as one that enters a network namespace.

    Raises:
        WorkerStartError: the system starts no process.
    """
    try:
        process = subprocess.Popen(
            [*prefix, *python_command("workers.serve")],
            env=python_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
    except OSError as error:
        raise WorkerStartError(f"worker {spec.name}: no process starts: {error.strerror}") from error
    assert process.stdin is not None
    # One that has died already is told of by its silence.
    with suppress(OSError):
        process.stdin.write(spec.to_json() + "\n")
        process.stdin.flush()
    return process


def wait_ready(spec: WorkerSpec, said: IO[str]) -> WorkerInfo:
    """Listen to a starting worker until it serves.

    Args:
        said: its standard output.

    Raises:
        WorkerStartError: it failed, or its process died; one line.
    """
    for line in said:
        event = json.loads(line)
        if event["event"] == "ready":
            return WorkerInfo.from_dict(event["info"])
        if event["event"] == "failed":
            raise WorkerStartError(named(spec.name, event["message"]))
    raise WorkerStartError(why_died(spec))


def why_died(spec: WorkerSpec) -> str:
    """One line about a worker whose process ended by itself: the last of its log, where it says anything."""
    num_experts = sum(tier.num_experts for tier in spec.tiers)
    return f"worker {spec.name}: its process with {num_experts} experts died: " + (
        last_of_log(spec.log_path) or "it was killed, or there was no memory for it"
    )


def named(worker: str, message: str) -> str:
    """A message about a worker, which may begin with its name already."""
    prefix = f"worker {worker}"
    return message if message.startswith(prefix) else f"{prefix}: {message}"
