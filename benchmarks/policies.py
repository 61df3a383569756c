"""Every policy on five clusters, judged on held-out text: step time, remote layers, distance to the bound.

Run from the project's root: `python -m benchmarks.policies` (about three minutes on two cores).
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.studies.real_routing import OLMOE_ON_STEP, olmoe, scaled
from placement.cluster_spec import ClusterSpec
from placement.errors import PlanDoesNotFit
from placement.model_shape import STEP_3_5_FLASH, ModelShape
from placement.policies import POLICIES
from placement.study.measure import Measured, measure, planning_problem
from placement.study.routing_source import Routing, SyntheticSource
from placement.traces import CODING, GENERAL
from placement.workload import Workload

CLUSTERS = Path(__file__).resolve().parents[1] / "docs" / "studies" / "clusters"
NAMES = (
    "gpu-workstation",
    "three-cpu-boxes",
    "gpu-and-two-cpu-boxes",
    "eight-mixed-boxes",
    "sixty-four-boxes",
)
TEXTS = ("olmoe-general", "olmoe-coding", "synthetic-general", "synthetic-coding")
WORKLOADS = {"1 token": Workload(), "3 tokens (2 drafts)": Workload(drafts=2, accepted_drafts=1.2)}
OURS = "least-time"
BITS = 4.5

Case = tuple[str, str, str]


def main() -> None:
    cases = list(product(NAMES, TEXTS, WORKLOADS))
    with ProcessPoolExecutor(2) as pool:
        results = dict(zip(cases, pool.map(run, cases), strict=True))
    console = Console(width=200 if not sys.stdout.isatty() else None)
    for workload in WORKLOADS:
        console.print(_table(workload, results))
    gains = np.array([gain for case in cases if (gain := _gain(results[case])) is not None])
    console.print(
        f"ours against the best baseline, MoE time, {len(gains)} cases: "
        f"median {100 * np.median(gains):+.1f}%, "
        f"worst {100 * gains.min():+.1f}%, best {100 * gains.max():+.1f}%, "
        f"more than 1% slower in {int((gains < -0.01).sum())}"
    )


def run(case: Case) -> dict[str, Measured | None]:
    """Every policy in one case; None where the experts do not fit its rule."""
    name, text, workload_name = case
    shape, routing = routing_of(text)
    workload = WORKLOADS[workload_name]
    cluster = scaled(ClusterSpec.load(CLUSTERS / f"{name}.yaml"), shape)
    problem = planning_problem(shape, cluster, shape.expert_bytes(BITS), routing, workload)
    found: dict[str, Measured | None] = {}
    for policy in POLICIES:
        try:
            found[policy] = measure(problem, policy, routing)
        except PlanDoesNotFit:
            found[policy] = None
    return found


@cache
def routing_of(text: str) -> tuple[ModelShape, Routing]:
    kind, _, domain = text.partition("-")
    if kind == "olmoe":
        return OLMOE_ON_STEP, olmoe(domain)
    source = SyntheticSource(text, *(2 * (GENERAL if domain == "general" else CODING,)), 3072, 0)
    return STEP_3_5_FLASH, source.load(STEP_3_5_FLASH)


def _gain(found: dict[str, Measured | None]) -> float | None:
    """How much longer the best baseline's MoE layers take than ours."""
    ours = found[OURS]
    others = [m.moe_s for policy, m in found.items() if m is not None and policy != OURS]
    return None if ours is None or not others else min(others) / ours.moe_s - 1


def _table(workload: str, results: dict[Case, dict[str, Measured | None]]) -> Table:
    table = Table(
        title=f"MoE ms a step / remote layers a step, held-out text, {workload}", title_justify="left"
    )
    table.add_column("cluster, text")
    for policy in POLICIES:
        table.add_column(policy, justify="right")
    table.add_column("best baseline / ours", justify="right")
    table.add_column("ours over the bound", justify="right")
    for (name, text, of), found in results.items():
        if of != workload:
            continue
        ours, gain = found[OURS], _gain(found)
        assert ours is not None
        bound_s = ours.lower_bound_s - ours.head_s
        table.add_row(
            f"{name}, {text}",
            *(_cell(found[policy], WORKLOADS[workload]) for policy in POLICIES),
            "" if gain is None else f"{100 * gain:+.1f}%",
            f"{100 * (ours.moe_s / bound_s - 1):.0f}%",
        )
    return table


def _cell(measured: Measured | None, workload: Workload) -> str:
    if measured is None:
        return "-"
    remote = measured.remote_layers_per_token * workload.tokens_out_per_step
    return f"{1000 * measured.moe_s:.1f} / {remote:.1f}"


if __name__ == "__main__":
    main()
