"""Fidelity as CI judges it, within a time: `make fidelity`.

Times say something about the model only on a machine that is ours. Where others work on it, attempts are
repeated until the limit, and then nothing is judged.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Annotated

import typer

LIMIT_S = 300.0
JUDGE = (sys.executable, "-m", "benchmarks.fidelity.judge")


def main(limit_s: Annotated[float, typer.Option(min=1, help="Then nothing is judged.")] = LIMIT_S) -> None:
    """Exit with 1 if predictions are clearly worse than the reference, or counts are not exact."""
    if sys.platform != "linux":
        print("fidelity: not judged, the probes read Linux's schedstat")
        return
    code = run_within(JUDGE, limit_s)
    if code is None:
        print(f"fidelity: not judged, the machine was busy for {limit_s:.0f} s")
    elif code:
        sys.exit(1)


def run_within(command: Sequence[str], limit_s: float) -> int | None:
    """A command's exit code; None when it took longer and was ended, with all that it had started.

    It works in a temporary directory that goes with it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        process = subprocess.Popen(command, env=os.environ | {"TMPDIR": scratch}, start_new_session=True)
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                # Its workers are in its group.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


if __name__ == "__main__":
    typer.run(main)
