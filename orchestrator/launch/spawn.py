"""One worker process: started with its spec, and what it says of itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from placement.errors import WorkerStartError
from workers.spec import WorkerInfo, WorkerSpec

ROOT = Path(__file__).resolve().parents[2]


def spawn(spec: WorkerSpec, *, prefix: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Start a worker process and hand it its spec; errors of its own it writes to the spec's log.

    It has a session of its own: Ctrl-C and a closed terminal are the starter's to act on. Standard input
    stays open: a worker with a lifeline ends when it is closed.

    Args:
        prefix: a command that runs it, such as one that enters a network namespace.

    Raises:
        WorkerStartError: the system starts no process.
    """
    # Not from the current folder, where a module may be called as one of ours.
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    try:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-P", "-m", "workers.serve"],
            env=os.environ | {"PYTHONPATH": path},
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
            prefix = f"worker {spec.name}"
            message = event["message"]
            raise WorkerStartError(message if message.startswith(prefix) else f"{prefix}: {message}")
    num_experts = sum(tier.num_experts for tier in spec.tiers)
    raise WorkerStartError(
        f"worker {spec.name}: its process died before it was ready to serve {num_experts} experts: "
        + (_last_line(spec.log_path) or "killed, or out of memory: give it a smaller budget in the plan")
    )


def _last_line(log_path: str) -> str:
    """Of a log, for the reason why a process died; nothing where there is none."""
    try:
        text = Path(log_path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text.splitlines()[-1].strip() if text else ""
