"""Starts a process that outlives its starter: `python -m orchestrator.launch.detached`, an order on stdin.

Ray ends the children of an actor that ends, so a worker must be nobody's child. This process starts it and
ends, and the system adopts it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.launch.python import python_command, python_environment
from placement.errors import WorkerStartError
from placement.files.quote import first_line

START_TIMEOUT_S = 30.0
# What Ray sets for its own processes, and thread counts that a worker decides itself.
_NOT_HANDED_ON = ("RAY_", "OMP_NUM_THREADS", "PYTHONBREAKPOINT")


def start_detached(arguments: Sequence[str], *, given: str, output: Path, log: Path) -> int:
    """Start Python with these arguments, in a session of its own, as a child of nobody here.

    Args:
        given: its standard input, all of it. It is no file and on no command line, so it may hold secrets.
        output: where its standard output goes, emptied first.
        log: where its standard error is added to.

    Returns:
        Its pid.

    Raises:
        WorkerStartError: the system starts no process.
    """
    order = {"arguments": list(arguments), "given": given, "output": str(output), "log": str(log)}
    environment = {n: v for n, v in os.environ.items() if not n.startswith(_NOT_HANDED_ON)}
    try:
        done = subprocess.run(
            python_command("orchestrator.launch.detached"),
            env=python_environment(environment),
            input=json.dumps(order),
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            check=False,
        )
        return int(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise WorkerStartError(f"no process starts here: {first_line(error)}") from error


def main() -> None:
    """Do what the order on standard input says; print the pid."""
    order = json.loads(sys.stdin.read())
    # Ray makes its processes the first to be killed when memory runs out.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("0")
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    process = subprocess.Popen(
        [sys.executable, "-P", *order["arguments"]],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=log,
        text=True,
        start_new_session=True,
        # It must not lie on a disk that is to be taken out.
        cwd="/",
    )
    assert process.stdin is not None
    process.stdin.write(order["given"])
    process.stdin.close()
    print(process.pid)
    sys.stdout.flush()
    # Without waiting for the child, which this object would warn of.
    os._exit(0)


if __name__ == "__main__":
    main()
