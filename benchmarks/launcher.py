"""From bare boxes to the first token, and to the next one after a head was killed, on three hosts here.

    sudo python -m benchmarks.launcher

It needs root, for network namespaces (`benchmarks.namespaces`). All hosts share this machine's processors.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.cluster_of_hosts import write_cluster_file
from benchmarks.namespaces import Host, hosts, why_no_hosts

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "potluck-tiny"
NET = "10.34.2.0/24"
PATIENCE_S = 900.0


def potluck(host: Host, *arguments: object) -> tuple[dict[str, Any], float]:
    """What a command printed as JSON on a host, and how long it took."""
    words = " ".join(f"'{word}'" for word in (*arguments, "--json"))
    program = f"{sys.executable} -c 'from orchestrator.cli.main import main; main()'"
    began_s = time.monotonic()
    done = host.run(f"cd / && PYTHONPATH={ROOT} {program} {words}", timeout_s=PATIENCE_S)
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed, time.monotonic() - began_s


def kill_a_run(head: Host, arguments: tuple[object, ...]) -> None:
    """Start a long run on the head's box and end it by kill -9 once it has printed some text."""
    words = " ".join(f"'{word}'" for word in arguments)
    program = f"{sys.executable} -u -c 'from orchestrator.cli.main import main; main()'"
    before = set(head.pids())
    command = f"cd / && PYTHONPATH={ROOT} {program} generate {words} 2000"
    with head.popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        assert run.stdout is not None
        if not run.stdout.read(20):
            raise RuntimeError("the run that was to be killed printed nothing")
        for pid, line in head.pids().items():
            if pid not in before and " generate " in line:
                os.kill(pid, signal.SIGKILL)


def worker_pids(head: Host, file: Path) -> dict[str, int]:
    """By name of the box."""
    status, _ = potluck(head, "status", file)
    return {box["node"]: box["pid"] for box in status["boxes"]}


def main() -> None:
    """Print a table of seconds."""
    reason = why_no_hosts()
    if reason is not None:
        sys.exit(f"benchmarks.launcher: {reason}")
    with hosts(3, NET) as made:
        head = made[0]
        file = write_cluster_file(head.home, made)
        up, up_s = potluck(head, "up", file, "--model", MODEL)
        rows = [(f"up: {stage}", seconds) for stage, seconds in up["seconds"].items()]
        rows.append(("up: all of it", up_s))
        _, again_s = potluck(head, "up", file, "--model", MODEL)
        rows.append(("up again, all of it running", again_s))
        arguments = ("--cluster", file, "--prompt", "The following options", "--ignore-eos", "--max-tokens")
        _, first_s = potluck(head, "generate", *arguments, 1)
        rows.append(("generate --cluster, to its one token and its end", first_s))
        pids = worker_pids(head, file)
        kill_a_run(head, arguments)
        _, next_s = potluck(head, "generate", *arguments, 1)
        rows.append(("the same after a head was killed in a run", next_s))
        if worker_pids(head, file) != pids:
            raise RuntimeError("the next head did not adopt the workers: they were started again")
        _, down_s = potluck(head, "down", file)
        rows.append(("down", down_s))
    for stage, seconds in rows:
        print(f"{seconds:8.2f} s  {stage}")
    print(f"{up_s + first_s:8.2f} s  from bare boxes to the first token")


if __name__ == "__main__":
    main()
