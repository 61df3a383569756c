"""An echo as a child process on the same box."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict

from placement.errors import WorkerStartError
from workers.probe.echo import EchoInfo, EchoSpec


@contextmanager
def running_echo(spec: EchoSpec) -> Iterator[EchoInfo]:
    """Start it, and end it with the block.

    Raises:
        WorkerStartError: it did not start; with the last line it wrote.
    """
    command = [sys.executable, "-m", "workers.probe.echo"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        process.stdin.write(json.dumps(asdict(spec)) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            said = process.stderr.read().strip().splitlines()
            raise WorkerStartError(f"the echo did not start: {said[-1] if said else 'it said nothing'}")
        fields = json.loads(line)
        yield EchoInfo(tuple(fields["endpoints"]), fields["public_key"])
    except BrokenPipeError:
        said = process.stderr.read().strip().splitlines()
        raise WorkerStartError(f"the echo did not start: {said[-1] if said else 'it said nothing'}") from None
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with suppress(BrokenPipeError):
                pipe.close()
