"""A worker process that misbehaves when a file says so, and else is what it should be.

`python -m tests.faults.bad_worker`, with the folder of the files in FOLDER_VARIABLE; what follows on the
command line is ignored. A file is called as the worker; its text is the name of a fault, with a number
where it takes one. Without a file the worker behaves.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from transport.expert_rows import ExpertRows
from workers.fixed_point import PartialSum
from workers.holdings import Holdings
from workers.serve import main
from workers.spec import WorkerSpec

FOLDER_VARIABLE = "POTLUCK_TEST_FAULTS"
_LOOK_S = 0.02

_time = time.time

Forward = Callable[[Holdings, int, ExpertRows], PartialSum]


class Misbehaving:
    """Stands in front of what a worker computes with."""

    def __init__(self, forward: Forward, folder: Path) -> None:
        self._forward = forward
        self._folder = folder
        self.name = ""

    def fault(self) -> list[str]:
        """The words of this worker's file; none without one."""
        try:
            return (self._folder / self.name).read_text(encoding="utf-8").split()
        except OSError:
            return []

    def forward(self, holdings: Holdings, layer: int, rows: ExpertRows) -> PartialSum:
        fault = self.fault()
        if not fault:
            return self._forward(holdings, layer, rows)
        if fault[0] == "refuse":
            raise RuntimeError("it does not want to")
        if fault[0] == "no-memory":
            raise MemoryError
        if fault[0] == "full-disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if fault[0] == "die":
            os._exit(9)
        if fault[0] == "eat-memory":
            # Touched, in a group that ends it long before all of this is taken.
            eaten = [np.ones(2**23) for _ in range(32)]
            raise MemoryError(len(eaten))
        if fault[0] == "clock" and time.time is _time:
            patched: Any = time
            patched.time = lambda: _time() - 86_400
        while fault == ["hang"]:
            time.sleep(_LOOK_S)
            fault = self.fault()
        began = time.perf_counter()
        found = self._forward(holdings, layer, rows)
        if fault[:1] == ["slow"]:
            time.sleep((float(fault[1]) - 1) * (time.perf_counter() - began))
        if fault == ["nonsense"]:
            noise = np.random.default_rng().integers(-1000, 1000, found.values.shape, dtype=np.int32)
            return PartialSum(found.values + noise, found.saturated)
        return found


def misbehave() -> None:
    """Put the faults in front of this process's experts."""
    misbehaving = Misbehaving(Holdings.forward, Path(os.environ[FOLDER_VARIABLE]))
    read = WorkerSpec.from_json

    def noting_the_name(line: str) -> WorkerSpec:
        spec = read(line)
        misbehaving.name = spec.name
        return spec

    def forward(holdings: Holdings, layer: int, rows: ExpertRows) -> PartialSum:
        return misbehaving.forward(holdings, layer, rows)

    replaced: Any = WorkerSpec
    replaced.from_json = staticmethod(noting_the_name)
    patched: Any = Holdings
    patched.forward = forward


if __name__ == "__main__":
    misbehave()
    sys.stdout.flush()
    code = main()
    logging.shutdown()
    os._exit(code)
