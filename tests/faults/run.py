"""A session whose workers can be hurt at chosen moments, and what came of it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Thread
from types import MappingProxyType
from typing import Any
from unittest import mock

import numpy as np

from orchestrator.cli.even_plan import even_plan
from orchestrator.dispatch.view import WorkerAddress
from orchestrator.generate import GenerationParams
from orchestrator.launch.local import LocalWorkers, local_workers
from orchestrator.launch.python import ROOT
from orchestrator.launch.spawn import spawn
from orchestrator.sampling_params import SamplingParams
from orchestrator.session import Session, open_session
from orchestrator.tokenizer import Tokenizer
from placement.holders import HolderTable
from placement.plan import Plan
from tests.faults.bad_worker import FOLDER_VARIABLE
from tests.faults.cable import Cable
from tests.forks.forks import Forks, Spawn
from tests.orchestrator.processes import wait_until
from workers.formats.open_model import OpenModel, open_model

MODEL = ROOT / "models" / "potluck-tiny"
PROMPT = tuple(
    Tokenizer.load(MODEL).encode_prompt(
        (MODEL / "heldout" / "python.txt").read_text(encoding="utf-8")[1000:1200]
    )
)[:32]
NUM_WORKERS = 3
WORKERS = tuple(f"worker-{number}" for number in range(NUM_WORKERS))

Act = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a generation gave.

    Attributes:
        token_ids: generated.
        prefill_s: until the first token.
        steps_s: of each later step, in order.
    """

    token_ids: tuple[int, ...]
    prefill_s: float
    steps_s: tuple[float, ...]

    @property
    def longest_s(self) -> float:
        """Of the steps after the first token."""
        return max(self.steps_s)


def plan_of(model: OpenModel, copies: int, num_workers: int = NUM_WORKERS) -> Plan:
    """Every expert on `copies` of the workers, in turn, or all in the head's process; float32."""
    plan = even_plan(model.shape, num_workers, "float32")
    if not num_workers:
        return plan
    num_experts = plan.num_experts
    masks = np.zeros((num_workers, len(plan.layers), num_experts), np.bool_)
    for copy in range(copies):
        for expert in range(num_experts):
            masks[(expert + copy) % num_workers, :, expert] = True
    held = copies * -(-num_experts // num_workers) * sum(layer.expert_bytes for layer in plan.layers)
    tiers = tuple(replace(tier, budget_bytes=held) for tier in plan.tiers)
    return replace(plan, tiers=tiers, holder_table=HolderTable.from_masks(masks))


def params(tokens: int, *, seeded: bool = False, mtp: int = 0) -> GenerationParams:
    """Greedy, or drawn with a seed."""
    return GenerationParams(
        tokens,
        SamplingParams(0.8 if seeded else 0.0, seed=11),
        ignore_eos=True,
        mtp=mtp,
        chunk_size=16,
    )


@dataclass(slots=True)
class Trial:
    """A running session, and ways to hurt its workers.

    Attributes:
        faults: the folder in which each worker's fault is written.
        cables: by worker, where there are any.
        lines: what people were told while it ran.
    """

    session: Session
    workers: LocalWorkers
    faults: Path
    cables: Mapping[str, Cable]
    lines: list[str] = field(default_factory=list)

    def generate(
        self,
        wanted: GenerationParams,
        inject: Mapping[int, Act] = MappingProxyType({}),
        *,
        prompt: Sequence[int] = PROMPT,
        in_prefill: Act | None = None,
    ) -> Outcome:
        """Generate, and do harm when so many tokens have come.

        Args:
            inject: number of tokens -> what to do then, in the thread that generates.
            in_prefill: done while the prompt is read, as soon as something was asked of a worker.
        """
        times = [time.perf_counter()]
        done: set[int] = set()
        count = 0

        def on_tokens(token_ids: list[int]) -> None:
            nonlocal count
            count += len(token_ids)
            times.append(time.perf_counter())
            for at in [at for at in inject if at <= count and at not in done]:
                done.add(at)
                inject[at]()

        hurt = None
        if in_prefill is not None:
            hurt = Thread(target=self._after_messages, args=(2, in_prefill), daemon=True)
            hurt.start()
        result = self.session.generate(prompt, wanted, on_tokens)
        if hurt is not None:
            hurt.join()
        took = np.diff(times).tolist()
        assert set(inject) <= done, "a fault's moment never came"
        return Outcome(result.token_ids, took[0], tuple(took[1:]))

    def _after_messages(self, num_messages: int, act: Act) -> None:
        usage = self.session.dispatcher.usage
        until = usage.messages + num_messages
        wait_until_soon(lambda: usage.messages >= until)
        act()

    def kill(self, *names: str) -> None:
        self.signal(signal.SIGKILL, *names)

    def pause(self, *names: str) -> None:
        self.signal(signal.SIGSTOP, *names)

    def resume(self, *names: str) -> None:
        self.signal(signal.SIGCONT, *names)

    def signal(self, number: signal.Signals, *names: str) -> None:
        pids = self.workers.pids
        for name in names:
            os.kill(pids[name], number)

    def misbehave(self, name: str, fault: str) -> None:
        """From its next request on; see `bad_worker`."""
        new = self.faults / f"{name}.new"
        new.write_text(fault)
        new.rename(self.faults / name)

    def behave(self, name: str) -> None:
        (self.faults / name).unlink(missing_ok=True)

    def events(self) -> Mapping[str, int]:
        """How often each kind has happened so far."""
        assert self.session.watched is not None
        return self.session.watched.watch.log.counts()

    def wait_all_well(self, timeout_s: float = 60.0) -> None:
        """Until every worker takes part again."""
        wait_until(lambda: len(self.well()) == NUM_WORKERS, timeout_s)

    def someone(self, timeout_s: float = 60.0) -> str:
        """A worker that takes part, as another does too; one that was given up is left alone for a while."""
        wait_until(lambda: len(self.well()) >= NUM_WORKERS - 1, timeout_s)
        return self.well()[0]

    def well(self) -> list[str]:
        """Workers that run and take part, by name."""
        standing = self.session.standing()
        view = standing.view
        if not view.is_complete:
            return []
        troubled = {view.names[index] for index in standing.dead | standing.suspects}
        return sorted(set(self.workers.pids) & set(view.names) - troubled)


def started(faults: Path) -> Spawn:
    """As the program starts its workers."""
    prefix = ["env", f"{FOLDER_VARIABLE}={faults}", sys.executable, "-m", "tests.faults.bad_worker"]
    return partial(spawn, prefix=prefix)


def forked(forks: Forks) -> Callable[[Path], Spawn]:
    """Within a tenth of the time."""

    def start(faults: Path) -> Spawn:
        environment = {FOLDER_VARIABLE: str(faults)}
        return partial(forks.spawn, module="tests.faults.bad_worker", environment=environment)

    return start


@contextmanager
def trial(
    plan: Plan,
    folder: Path,
    *,
    model_path: Path = MODEL,
    with_cables: bool = False,
    start: Callable[[Path], Spawn] = started,
    **more: Any,
) -> Iterator[Trial]:
    """A session over worker processes of this machine that can be made to misbehave.

    Args:
        folder: for what it needs; ends with the caller.
        start: what starts a worker process, with the folder of faults.
        more: for `open_session`.
    """
    model = open_model(model_path)
    faults = folder / "faults"
    faults.mkdir()
    told: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(mock.patch("orchestrator.launch.local.spawn", start(faults)))
        workers = Wired(plan, model, folder if with_cables else None)
        session = stack.enter_context(
            open_session(model, plan, workers=workers.running(), say=told.append, **more)
        )
        stack.callback(workers.close)
        yield Trial(session, workers.local, faults, workers.cables, told)


class Wired:
    """Local workers, each at the end of a cable where there is a folder for cables."""

    keys = None

    def __init__(self, plan: Plan, model: OpenModel, folder: Path | None) -> None:
        self._plan, self._model, self._folder = plan, model, folder
        self.cables: dict[str, Cable] = {}
        self.local: LocalWorkers

    @contextmanager
    def running(self) -> Iterator[Wired]:
        with local_workers(self._plan, self._model.shape, self._model.path, num_threads=1) as local:
            self.local = local
            yield self

    def alone(self) -> bool:
        return self.local.alone()

    def wait_ready(self) -> dict[str, WorkerAddress]:
        addresses = self.local.wait_ready()
        if self._folder is None:
            return addresses
        wired = {}
        for name, address in addresses.items():
            here = [f"{self._folder}/{name}.{kind}" for kind in ("data", "pulse")]
            there = [address.endpoint, address.pulse_endpoint]
            ends = {own: other.removeprefix("ipc://") for own, other in zip(here, there, strict=True)}
            self.cables[name] = Cable(ends)
            wired[name] = replace(address, endpoint=f"ipc://{here[0]}", pulse_endpoint=f"ipc://{here[1]}")
        return wired

    def now_at(self) -> dict[str, WorkerAddress]:
        return {}

    def close(self) -> None:
        for cable in self.cables.values():
            cable.close()


def wait_until_soon(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """As `wait_until`, for what must be noticed within a millisecond."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not so after {timeout_s:g} s"
        time.sleep(0.0005)
