"""A plan's workers as processes of this machine: started again where one dies, ended with this process."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.dispatch.view import WorkerAddress
from orchestrator.launch.pause import RestartPause
from orchestrator.launch.spawn import spawn, wait_ready
from orchestrator.launch.workers import address_of, start_timeout_s
from orchestrator.run_folder import run_folder, short_temp_dir
from orchestrator.stopping import stopping_by_exception, uninterrupted
from placement.errors import WorkerStartError
from placement.model_shape import ModelShape
from placement.plan import Plan
from transport.keys import KeyPair
from transport.messages import WireLimits
from workers.spec import WorkerInfo, WorkerSpec


@contextmanager
def local_workers(
    plan: Plan,
    shape: ModelShape,
    model_path: Path,
    *,
    num_threads: int | None = None,
    reservation: str = "",
) -> Iterator[LocalWorkers]:
    """Begin to start the workers of the plan that hold experts, all here, whatever its nodes are called.

    They listen on ipc sockets. These are faster than loopback tcp, and they lie in a folder of this user, so
    nobody else on the machine can reach them. A worker that dies is started again. All of them end with the
    block, and with this process, however it ends; what a killed process left in files, the next one removes.
    While the block lasts, stop signals become SystemExit, so that `kill` and a closed terminal stop
    everything as Ctrl-C does.

    Args:
        num_threads: of each worker's tiers; None for an equal share of the cores.
        reservation: of this process, if it covers the workers' memory.

    Raises:
        PlanError: the plan is for another model.
    """
    plan.check(shape)
    workers = plan.asked_workers
    limits = WireLimits.for_shape(shape)
    cores = len(os.sched_getaffinity(0))
    with stopping_by_exception(), run_folder(short_temp_dir()) as folder:
        specs = [
            WorkerSpec.of_plan(
                plan,
                worker.name,
                limits,
                model_dir=str(model_path.resolve()),
                endpoint=f"ipc://{folder}/{number}.data",
                pulse_endpoint=f"ipc://{folder}/{number}.pulse",
                num_threads=num_threads or max(1, cores // len(workers) // len(worker.tiers)),
                lifeline=True,
                log_path=str(folder / f"{number}.log"),
                reservation=reservation,
            )
            for number, worker in enumerate(workers)
        ]
        running = LocalWorkers(specs, start_timeout_s(plan, (worker.name for worker in workers)))
        try:
            yield running
        finally:
            running.stop()


class LocalWorkers:
    """Worker processes that this process keeps, until `stop`."""

    keys: KeyPair | None = None
    """Of the head; none are needed on one machine."""

    def __init__(self, specs: Sequence[WorkerSpec], start_timeout_s: float) -> None:
        """Start them all."""
        self._until_s = time.monotonic() + start_timeout_s
        self._changed = threading.Condition()
        self._kept = {spec.name: _Kept(spec, self._changed) for spec in specs}
        for kept in self._kept.values():
            kept.thread.start()

    def alone(self) -> bool:
        """They are this process's own."""
        return True

    def wait_ready(self) -> dict[str, WorkerAddress]:
        """Until every worker holds its experts and serves them; if one fails, all are stopped.

        Returns:
            By name.

        Raises:
            WorkerStartError: which worker failed first, and why; or which took too long.
        """
        try:
            with self._changed:
                while True:
                    for kept in self._kept.values():
                        if kept.failure is not None:
                            raise WorkerStartError(kept.failure)
                    starting = [name for name, kept in self._kept.items() if kept.info is None]
                    if not starting:
                        break
                    left_s = self._until_s - time.monotonic()
                    if left_s <= 0:
                        names = ", ".join(starting)
                        raise WorkerStartError(
                            f"workers that took too long to start and were stopped: {names}"
                        )
                    self._changed.wait(min(left_s, 1.0))
        except BaseException:
            self.stop()
            raise
        return {name: address_of(info) for name, info in self.infos.items()}

    def now_at(self) -> dict[str, WorkerAddress]:
        """Nowhere else: one that is started again is found where it was."""
        return {}

    @property
    def infos(self) -> dict[str, WorkerInfo]:
        """Of those that were ready once, as they said last."""
        return {name: kept.info for name, kept in self._kept.items() if kept.info is not None}

    @property
    def pids(self) -> Mapping[str, int]:
        """Of the processes that run now."""
        running = {name: kept.process for name, kept in self._kept.items()}
        return {name: process.pid for name, process in running.items() if process is not None}

    def stop(self) -> None:
        """End all workers at once, whatever they are doing. Harmless when stopped."""
        with uninterrupted():
            for kept in self._kept.values():
                kept.begin_to_stop()
            for kept in self._kept.values():
                if kept.thread.ident is not None:
                    kept.thread.join()


@dataclass(slots=True)
class _Kept:
    """One worker: a thread starts it, listens to what it says, and starts it again when it is gone."""

    spec: WorkerSpec
    changed: threading.Condition
    info: WorkerInfo | None = None
    failure: str | None = None
    process: subprocess.Popen[str] | None = None
    thread: threading.Thread = field(init=False)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._keep, name=f"keeps-{self.spec.name}", daemon=True)

    def begin_to_stop(self) -> None:
        with self._lock:
            self._stopping.set()
            if self.process is not None:
                self.process.kill()

    def _keep(self) -> None:
        pause = RestartPause()
        while True:
            started_s = time.monotonic()
            reason = self._run()
            if self._stopping.is_set():
                return
            if self.info is None:
                with self.changed:
                    self.failure = reason
                    self.changed.notify_all()
                return
            if self._stopping.wait(pause.after_s(time.monotonic() - started_s)):
                return

    def _run(self) -> str:
        """One process from its start to its end; why it did not become ready, "" where it did."""
        with self._lock:
            if self._stopping.is_set():
                return "stopped"
            try:
                self.process = process = spawn(self.spec)
            except WorkerStartError as error:
                return str(error)
        try:
            assert process.stdout is not None
            self._note_ready(wait_ready(self.spec, process.stdout))
            process.wait()
        except WorkerStartError as error:
            return str(error)
        finally:
            with self._lock:
                self.process = None
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
        return ""

    def _note_ready(self, info: WorkerInfo) -> None:
        with self.changed:
            # The next process is to be found where this one was.
            self.spec = replace(self.spec, endpoint=info.endpoint, pulse_endpoint=info.pulse_endpoint)
            self.info = info
            self.changed.notify_all()
