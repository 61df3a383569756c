"""The planner beside its baselines and bounds, on text it has not seen: the tables of docs/planner.md.

python -m benchmarks.planner
"""

from __future__ import annotations

import itertools
import math
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from placement.bounds.bound import lower_bound_s
from placement.errors import PlanDoesNotFit
from placement.given.cluster_spec import Overheads
from placement.given.problem import PlanningDevice, PlanningProblem
from placement.given.stats import RoutingStats
from placement.given.traces import CODING, Domain, SyntheticRouter
from placement.model_shape import STEP_3_5_FLASH
from placement.plan import LOCAL_WORKER, PlannedTier
from placement.policies.least_time.policy import least_time
from placement.policies.registry import BASELINES
from placement.replay.evaluate import Evaluation, evaluate
from placement.workload import Workload

SHAPE = STEP_3_5_FLASH
EXPERT_BYTES = SHAPE.expert_bytes(4.5)
FIT_TOKENS, HELD_OUT_TOKENS = 3000, 2000
# Of the head for each request (`overheads.message_s`), about as a probe finds them, and the one case of three
# devices to try them on.
MESSAGES_S = (3e-5, 1e-4)
OF_THREE = "0.5 ms, 1 a step, box of 6000, skew 1.1"


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    devices: tuple[PlanningDevice, ...]
    router: SyntheticRouter
    domain: Domain
    drafts: int


def main() -> None:
    print(
        "| case | best baseline, ms | least-time, ms (on its own text) | gain | remote layers "
        "| copies | bound, ms | above it | plan, s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for case in cases():
        _report(case)
    print("\n| case | message, us | unaware, ms | aware, ms | gain | messages a layer, unaware | aware |")
    print("|---|---|---|---|---|---|---|")
    for case, message_s in itertools.product(cases(), MESSAGES_S):
        if len(case.devices) > 3 or case.name == OF_THREE:
            _report_messages(case, message_s)
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def cases() -> Iterator[Case]:
    independent = SyntheticRouter(SHAPE, stickiness=0)
    for round_trip_s, drafts, ram, remote in (
        (5e-4, 0, 5000, 6000),
        (2e-3, 0, 5000, 6000),
        (2e-3, 1, 5000, 6000),
        (5e-4, 1, 9000, 2100),
    ):
        study = (
            device(LOCAL_WORKER, 1800, 900, tier="vram"),
            device("study-ram", ram, 65, home=True),
            device("box", remote, 65, round_trip_s=round_trip_s, gbits_per_s=10),
        )
        for skew in (0.5, 1.1, 1.7):
            name = f"{round_trip_s * 1e3:g} ms, {1 + drafts} a step, box of {remote}, skew {skew}"
            yield Case(name, study, independent, Domain(f"skew {skew}", skew, 1e7), drafts)
    head = (device(LOCAL_WORKER, 1100, 900, tier="vram"), device("study-ram", 4000, 65, home=True))
    mixed = [
        device(f"box{i}", room, speed, round_trip_s=trip, gbits_per_s=gbits)
        for i, (room, speed, trip, gbits) in enumerate(
            [
                (1200, 42, 3e-4, 1),
                (1500, 65, 2e-4, 2.5),
                (1800, 90, 5e-4, 1),
                (2100, 250, 3e-4, 10),
                (2400, 65, 1e-3, 1),
                (2700, 30, 3e-4, 2.5),
            ]
        )
    ]
    generator = np.random.default_rng(1)
    nodes = [
        device(
            f"node{i}-{kind}",
            room + 15 * (i % 3),
            speed * float(generator.uniform(1, 1.3)),
            round_trip_s=2e-4,
            gbits_per_s=10,
        )
        for i in range(63)
        for kind, room, speed in (("gpu", 60, (300, 500, 900)[i % 3]), ("ram", 120, (42, 65, 90)[i % 3]))
    ]
    small_head = (device(LOCAL_WORKER, 500, 900, tier="vram"), device("study-ram", 2000, 65, home=True))
    for name, devices in (
        ("8 mixed devices", (*head, *mixed)),
        ("64 nodes, 128 devices", (*small_head, *nodes)),
    ):
        for drafts in (0, 3):
            yield Case(
                f"{name}, {1 + drafts} a step, coding", devices, SyntheticRouter(SHAPE), CODING, drafts
            )


def device(
    name: str,
    room: int,
    gbytes_per_s: float,
    *,
    tier: str = "ram",
    home: bool = False,
    round_trip_s: float = 0.0,
    gbits_per_s: float = math.inf,
) -> PlanningDevice:
    home = home or name == LOCAL_WORKER
    worker = PlannedTier(name, "home" if home else name.split("-")[0], "cpu", tier, room * EXPERT_BYTES)
    return PlanningDevice(worker, home, gbytes_per_s * 1e9, 1e13, round_trip_s, gbits_per_s * 1e9 / 8)


def _report(case: Case) -> None:
    trace = case.router.trace(case.domain, FIT_TOKENS)
    held_out = case.router.trace(case.domain, HELD_OUT_TOKENS, stream_seed=1)
    stats = RoutingStats.from_trace(SHAPE, trace, case.domain.name)
    problem = PlanningProblem(SHAPE, case.devices, EXPERT_BYTES, stats, Workload(drafts=case.drafts))
    # Processor time: other work on the machine is not the planner's.
    start = time.process_time()
    table = least_time(problem)
    plan_s = time.process_time() - start
    ours = evaluate(problem, table, held_out)
    name, baseline = min(_baselines(problem, held_out), key=lambda item: item[1].mean_s)
    own_s = evaluate(problem, table, trace).mean_s
    bound_s = lower_bound_s(problem, held_out)
    copies = int(table.experts_per_worker(len(case.devices)).sum()) - SHAPE.num_routed_experts
    print(
        f"| {case.name} | {baseline.mean_s * 1e3:.1f} ({name}) | {ours.mean_s * 1e3:.1f} ({own_s * 1e3:.1f}) "
        f"| {1 - ours.mean_s / baseline.mean_s:.1%} | {ours.remote_layers.mean():.1f} | {copies} "
        f"| {bound_s * 1e3:.1f} | {ours.mean_s / bound_s - 1:.1%} | {plan_s:.1f} |",
        flush=True,
    )


def _report_messages(case: Case, message_s: float) -> None:
    """Where messages cost the head: a plan made as if they did not, and one that knows."""
    trace = case.router.trace(case.domain, FIT_TOKENS)
    held_out = case.router.trace(case.domain, HELD_OUT_TOKENS, stream_seed=1)
    stats = RoutingStats.from_trace(SHAPE, trace, case.domain.name)
    free = PlanningProblem(SHAPE, case.devices, EXPERT_BYTES, stats, Workload(drafts=case.drafts))
    head, *others = case.devices
    dear = replace(free, devices=(replace(head, overheads=Overheads(message_s=message_s)), *others))
    seconds, messages = [], []
    for planned in (free, dear):
        table = least_time(planned)
        seconds.append(evaluate(dear, table, held_out).mean_s)
        sent_s = seconds[-1] - evaluate(free, table, held_out).mean_s
        messages.append(sent_s / message_s / SHAPE.num_moe_layers)
    print(
        f"| {case.name} | {message_s * 1e6:.0f} | {seconds[0] * 1e3:.1f} | {seconds[1] * 1e3:.1f} "
        f"| {1 - seconds[1] / seconds[0]:.1%} | {messages[0]:.2f} | {messages[1]:.2f} |",
        flush=True,
    )


def _baselines(
    problem: PlanningProblem, held_out: np.ndarray[tuple[int, ...], np.dtype[np.uint16]]
) -> Iterator[tuple[str, Evaluation]]:
    for name, policy in BASELINES.items():
        try:
            yield name, evaluate(problem, policy(problem), held_out)
        except PlanDoesNotFit:
            continue


if __name__ == "__main__":
    main()
