"""Experts that follow the traffic: decode speed before a change of domain, after it, and as experts move.

python -m benchmarks.migration

Two workers of this machine hold the tiny model; they are *played*: each waits until its memory's rate would
have let it read what it computed. The plan is made for one domain, then the text changes to another. Without
a move the same text is run once more, for comparison.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from orchestrator.cli.migrating import migrating
from orchestrator.generate import GenerationParams
from orchestrator.launch.local import LocalWorkers
from orchestrator.migration.migration import MigrationLimits, MigrationPhase, MigrationState
from orchestrator.migration.online_routing import OnlineRouting
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
_PROMPT_TOKENS, _NEW_TOKENS, _WINDOW = 16, 48, 512
_PHASE_S = 15.0
# For the planner, which has the lowest priority, and for the move.
_LONGEST_S = 240.0


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
    """Seconds of decode steps, each with the phase that a migration was in."""

    phase: MigrationPhase = MigrationPhase.WATCHING
    moved: int = 0
    steps: list[tuple[MigrationPhase, int, float]] = field(default_factory=list)
    decisions: list[MigrationState] = field(default_factory=list)

    def note(self, state: MigrationState) -> None:
        self.phase, self.moved = state.phase, state.moved_experts
        self.decisions.append(state)
        print(f"  {state.phase.value}: {state.reason}", file=sys.stderr, flush=True)

    def median_ms(self, first: int, phases: set[MigrationPhase] | None = None) -> float:
        some = [s for phase, _, s in self.steps[first:] if phases is None or phase in phases]
        return float(np.median(some)) * 1e3 if some else float("nan")


def read(
    session: Session,
    tokens: list[int],
    seconds: float,
    meter: Meter,
    seed: int,
    is_over: Callable[[], bool] = lambda: False,
) -> None:
    """Prompts cut from a text, each continued by some tokens, until something is over or time is."""
    draws = np.random.default_rng(seed)
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s and not is_over():
        start = int(draws.integers(0, len(tokens) - _PROMPT_TOKENS))
        last_s: list[float] = []

        def note(_: list[int], last_s: list[float] = last_s) -> None:
            now_s = time.perf_counter()
            if last_s:
                meter.steps.append((meter.phase, meter.moved, now_s - last_s[0]))
            last_s[:] = [now_s]

        session.generate(
            tokens[start : start + _PROMPT_TOKENS],
            GenerationParams(max_tokens=_NEW_TOKENS, ignore_eos=True),
            note,
        )


def main() -> None:
    model = open_model(TINY)
    tokenizer = Tokenizer.load(TINY)
    texts = {
        name: tokenizer.encode((TINY / "heldout" / f"{name}.txt").read_text()) for name in ("python", "prose")
    }
    plan = plan_for(model, texts["python"][:3000])
    limits = MigrationLimits(check_s=5.0, payback_s=600.0, rate_bytes_per_s=400_000)
    # As much as the larger part of the model: a move is one step then.
    room = dict.fromkeys(PACES, 2_000_000)
    routing = OnlineRouting(
        model.shape.moe_layers, model.shape.num_experts, half_life_tokens=4096, piece_tokens=64, num_pieces=6
    )
    meter = Meter()
    with ExitStack() as stack:
        session = stack.enter_context(
            open_session(model, plan, workers=paced_workers(plan, model.shape, TINY), positions=256)
        )
        assert session.watched is not None
        change = session.watched.watch.change
        read(session, texts["python"], 3.0, Meter(), 0)
        stack.enter_context(
            migrating(
                session.head,
                session.dispatcher,
                session.watched.watch,
                model.shape,
                limits=limits,
                room=room,
                use=lambda moved: "" if change(moved) else "a worker was lost",
                note=meter.note,
                routing=routing,
            )
        )
        read(session, texts["python"], _PHASE_S, meter, 1)
        print(f"first domain, plan for it: {meter.median_ms(0):.2f} ms a token", flush=True)
        mark = len(meter.steps)
        events = session.watched.watch.log
        read(session, texts["prose"], _LONGEST_S, meter, 2, lambda: events.counts()["migrated"] > 0)
        print(
            "second domain, until the change was seen: "
            f"{meter.median_ms(mark, {MigrationPhase.WATCHING}):.2f} ms a token"
        )
        moving = {MigrationPhase.LOADING, MigrationPhase.LETTING_GO}
        print(f"while experts load: {meter.median_ms(mark, moving):.2f} ms a token")
        mark = len(meter.steps)
        read(session, texts["prose"], _PHASE_S, meter, 3)
        print(f"second domain, after the move: {meter.median_ms(mark):.2f} ms a token")
        print(f"events: {session.report().events}")
    again = Meter()
    with open_session(model, plan, workers=paced_workers(plan, model.shape, TINY), positions=256) as session:
        read(session, texts["prose"], 3.0, Meter(), 0)
        read(session, texts["prose"], _PHASE_S, again, 3)
    print(f"second domain, no move: {again.median_ms(0):.2f} ms a token")


if __name__ == "__main__":
    main()
