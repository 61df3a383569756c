"""Experts that follow the traffic: decode speed before a change of domain, after it, and as experts move.

python -m benchmarks.migration

Two workers of this machine hold the tiny model; they are *played*: each waits until its memory's rate would
have let it read what it computed. The plan is made for one domain, then the text changes to another. Then the
same prompts are run once more without a move: for comparison, and to see that every token is the same.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from orchestrator.cli.migrating import migrating
from orchestrator.generate import GenerationParams
from orchestrator.launch.local import LocalWorkers
from orchestrator.migration.migration import MigrationLimits, MigrationPhase, MigrationState
from orchestrator.routing_trace import record_trace
from orchestrator.run_folder import run_folder, short_temp_dir
from orchestrator.session import Session, load_local, open_session
from orchestrator.tokenizer import Tokenizer
from placement.answers.planner import as_plan
from placement.given.problem import PlanningDevice, PlanningProblem
from placement.given.stats import RoutingStats
from placement.message_size import MAX_MESSAGE_ROWS
from placement.model_shape import ModelShape
from placement.plan import Plan, PlannedTier
from placement.policies.least_time.policy import least_time
from transport.messages import WireLimits
from workers.formats.open_model import OpenModel, open_model
from workers.spec import WorkerSpec

TINY = Path(__file__).parents[1] / "models" / "potluck-tiny"
PACES = {"fast": 80e6, "slow": 12e6}
"""Bytes a second at which the played boxes read experts."""
_ROOM = 0.6
"""Share of all experts that each box has memory for."""
_PROMPT_TOKENS, _NEW_TOKENS, _WINDOW = 64, 32, 512
_PLANNED_TOKENS = 3000
# Of the first domain there is more than the test of a change compares with, 4,096 tokens.
_FIRST_TEXTS, _TEXTS, _MOST_TEXTS = 50, 25, 1000
# For the planner, which computes only while a core is idle, and for the move.
_LONGEST_S = 240.0
_LOAD_BYTES_PER_S = 200_000


@contextmanager
def paced_workers(plan: Plan, shape: ModelShape, path: Path) -> Iterator[LocalWorkers]:
    """The plan's workers here, each at its pace."""
    limits = WireLimits.for_shape(shape, MAX_MESSAGE_ROWS)
    with run_folder(short_temp_dir()) as folder:
        running = LocalWorkers(
            [
                WorkerSpec.of_plan(
                    plan,
                    worker.name,
                    limits,
                    model_dir=str(path),
                    endpoint=f"ipc://{folder}/{worker.name}.data",
                    pulse_endpoint=f"ipc://{folder}/{worker.name}.pulse",
                    num_threads=1,
                    lifeline=True,
                    log_path=str(folder / f"{worker.name}.log"),
                    pace_bytes_per_s=PACES[worker.name],
                )
                for worker in plan.asked_workers
            ],
            60.0,
        )
        try:
            yield running
        finally:
            running.stop()


def plan_for(model: OpenModel, tokens: list[int]) -> Plan:
    """The planner's, for the routing of this text."""
    shape = model.shape
    stats = RoutingStats.from_trace(
        shape, record_trace(load_local(model, torch.bfloat16), [tokens], _WINDOW), "the first domain"
    )
    size = shape.expert_bytes(16)
    room = round(_ROOM * shape.num_routed_experts) * size
    devices = tuple(
        PlanningDevice(
            PlannedTier(name, "this-machine", "cpu", "ram", room), True, pace, 1e15, round_trip_s=2e-4
        )
        for name, pace in PACES.items()
    )
    problem = PlanningProblem(shape, devices, size, stats)
    plan = as_plan(problem, least_time(problem), "least-time", "bfloat16")
    return replace(plan, workload=None)


@dataclass(slots=True)
class Meter:
    """What was read.

    Attributes:
        phase, moved: of a migration: what goes on, and experts that have moved.
        steps: these two and seconds of decode steps.
        texts: by where their prompts start.
    """

    phase: MigrationPhase = MigrationPhase.WATCHING
    moved: int = 0
    steps: list[tuple[MigrationPhase, int, float]] = field(default_factory=list)
    texts: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def note(self, state: MigrationState) -> None:
        self.phase, self.moved = state.phase, state.moved_experts
        print(f"  {state.phase.value}: {state.reason}", file=sys.stderr, flush=True)

    def tell(
        self,
        what: str,
        phases: Iterable[MigrationPhase] = tuple(MigrationPhase),
        has_moved: Iterable[bool] = (False, True),
    ) -> None:
        """Print some phases' step and how many there were."""
        some = [s * 1e3 for phase, moved, s in self.steps if phase in phases and (moved > 0) in has_moved]
        if some:
            lower, middle, upper = np.percentile(some, [25, 50, 75])
            print(
                f"{what}: {middle:.2f} ms a token ({lower:.2f} to {upper:.2f}, {len(some):,} steps)",
                flush=True,
            )


def read(
    session: Session,
    tokens: list[int],
    starts: Iterable[int],
    meter: Meter,
    is_over: Callable[[], bool] = lambda: False,
) -> None:
    """Prompts cut from a text, each continued by some tokens, until something is over."""
    for start in starts:
        if is_over():
            return
        last_s: list[float] = []

        def note(_: list[int], last_s: list[float] = last_s) -> None:
            now_s = time.perf_counter()
            if last_s:
                meter.steps.append((meter.phase, meter.moved, now_s - last_s[0]))
            last_s[:] = [now_s]

        meter.texts[start] = session.generate(
            tokens[start : start + _PROMPT_TOKENS],
            GenerationParams(max_tokens=_NEW_TOKENS, ignore_eos=True),
            note,
        ).token_ids


def starts(tokens: list[int], seed: int, num: int) -> list[int]:
    """Of prompts, none in the text that the plan is made for."""
    draws = np.random.default_rng(seed)
    found: list[int] = draws.integers(_PLANNED_TOKENS, len(tokens) - _PROMPT_TOKENS, num).tolist()
    return found


def main() -> None:
    model = open_model(TINY)
    tokenizer = Tokenizer.load(TINY)
    texts = {
        name: tokenizer.encode((TINY / "heldout" / f"{name}.txt").read_text()) for name in ("python", "prose")
    }
    plan = plan_for(model, texts["python"][:_PLANNED_TOKENS])
    limits = MigrationLimits(check_s=5.0, payback_s=600.0, rate_bytes_per_s=_LOAD_BYTES_PER_S)
    # Less than a move takes: it goes in steps.
    room = dict.fromkeys(PACES, 2_000_000)
    python, prose = texts["python"], texts["prose"]
    first, changed, after = Meter(), Meter(), Meter()
    with ExitStack() as stack:
        session = stack.enter_context(
            open_session(model, plan, workers=paced_workers(plan, model.shape, TINY), positions=256)
        )
        assert session.watched is not None
        watch = session.watched.watch
        stack.enter_context(
            migrating(
                session.head,
                session.dispatcher,
                watch,
                model.shape,
                limits=limits,
                room=room,
                use=lambda moved: "" if watch.change(moved) else "a worker was lost",
                note=changed.note,
            )
        )
        read(session, python, starts(python, 1, _FIRST_TEXTS), first)
        first.tell("first domain, plan for it")

        until_s = time.monotonic() + _LONGEST_S

        def is_over() -> bool:
            return watch.log.counts()["migrated"] > 0 or time.monotonic() > until_s

        read(session, prose, starts(prose, 2, _MOST_TEXTS), changed, is_over)
        changed.tell("second domain, until the change was seen", [MigrationPhase.WATCHING])
        changed.tell("while the planner works", [MigrationPhase.PLANNING])
        moving = [MigrationPhase.LOADING, MigrationPhase.LETTING_GO]
        changed.tell("while the first of them load", moving, [False])
        changed.tell("while more load", moving, [True])
        read(session, prose, starts(prose, 3, _TEXTS), after)
        after.tell("second domain, after the move")
        print(f"events: {session.report().events}")
    again = Meter()
    with open_session(model, plan, workers=paced_workers(plan, model.shape, TINY), positions=256) as session:
        read(session, prose, starts(prose, 3, _TEXTS), again)
        again.tell("second domain, no move")
        # The last ones were read while experts moved.
        read(session, prose, list(changed.texts)[-_TEXTS:], again)
    known = changed.texts | after.texts
    both = again.texts.keys() & known.keys()
    same = sum(again.texts[start] == known[start] for start in both)
    print(f"texts with and without a move: {same} of {len(both)} the same")


if __name__ == "__main__":
    main()
