"""What the signs of life cost: processor time of a head and its workers while nothing is asked of them.

    python -m benchmarks.pulse_cost [--workers 3] [--seconds 10]

A session with potluck-tiny on this machine stays idle. What its processes compute then is the watch: pings,
their answers, the looks at connections, and ZeroMQ's own threads. Shown as a share of one core, and as time
for each ping. Processor time hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import os
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path

from orchestrator.launch.local import local_workers
from orchestrator.membership.member import PULSE_S
from orchestrator.session import open_session
from tests.faults.run import MODEL, plan_of
from workers.formats.open_model import open_model

SETTLES_S = 1.0


def cpu_s(pid: int) -> float:
    """Processor time of all threads that a process has now."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    model = open_model(MODEL)
    plan = plan_of(model, 1, args.workers)
    with ExitStack() as stack:
        workers = stack.enter_context(local_workers(plan, model.shape, MODEL))
        stack.enter_context(open_session(model, plan, workers=nullcontext(workers)))
        time.sleep(SETTLES_S)
        pids = {"head": os.getpid(), **workers.pids}
        before_s = {name: cpu_s(pid) for name, pid in pids.items()}
        time.sleep(args.seconds)
        used_s = {name: cpu_s(pid) - before_s[name] for name, pid in pids.items()}
    pings = args.seconds / PULSE_S
    for name, used in used_s.items():
        of_pings = pings * (args.workers if name == "head" else 1)
        print(f"{name}: {100 * used / args.seconds:.2f}% of a core, {1e6 * used / of_pings:.0f} µs a ping")


if __name__ == "__main__":
    main()
