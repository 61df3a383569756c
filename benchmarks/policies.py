"""Every policy on five clusters, judged on held-out text: step time, remote layers, distance to the bound.

Run from the project's root: `python -m benchmarks.policies` (about eight minutes on two cores). It prints the
tables of docs/studies/policies.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.studies.real_routing import OLMOE_ON_STEP, olmoe, scaled
from benchmarks.studies.tiny_routing import TINY_ON_STEP, tiny_routing
from placement.answers.study.measure import Measured, measure, planning_problem
from placement.answers.study.routing_source import Routing, SyntheticSource
from placement.bounds.bound import lower_bound_s
from placement.errors import InputError, PlanDoesNotFit
from placement.given.cluster_file import load_cluster
from placement.given.traces import CODING, GENERAL
from placement.model_shape import STEP_3_5_FLASH, ModelShape
from placement.policies.registry import BASELINES, RUN_POLICIES
from placement.workload import Workload

CLUSTERS = Path(__file__).resolve().parents[1] / "docs" / "studies" / "clusters"
NAMES = (
    "gpu-workstation",
    "three-cpu-boxes",
    "gpu-and-two-cpu-boxes",
    "eight-mixed-boxes",
    "sixty-four-boxes",
)
TEXTS = (
    "olmoe-general",
    "olmoe-coding",
    "tiny-prose",
    "tiny-python",
    "tiny-technical",
    "synthetic-general",
    "synthetic-coding",
)
WORKLOADS = {"1 token": Workload(), "3 tokens (2 drafts)": Workload(drafts=2, accepted_drafts=1.2)}
OURS = "least-time"
# Belady's rule knows the future: a bound on caches, not a policy.
RUN = tuple(name for name in RUN_POLICIES if name != "opt")
BITS = 4.5
TINY_TOKENS, SYNTHETIC_TOKENS = 6000, 3072

Case = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Result:
    """One case: every policy, None where the experts do not fit its rule; the bound on plans' MoE time."""

    measured: dict[str, Measured | None]
    bound_s: float

    @property
    def ours(self) -> Measured:
        ours = self.measured[OURS]
        assert ours is not None
        return ours

    def best_s(self, policies: Iterable[str]) -> float:
        """The whole step of the fastest of `policies`, since a pipeline moves attention too."""
        possible = (found.step_s for name in policies if (found := self.measured.get(name)) is not None)
        return min(possible, default=math.inf)

    def gain(self, policies: Iterable[str]) -> float:
        """How much longer the best of them takes than ours, in MoE layers and whatever else it moves."""
        ours = self.ours
        return (self.best_s(policies) - ours.head_s) / ours.moe_s - 1


def main() -> None:
    cases = list(product(NAMES, TEXTS, WORKLOADS))
    with ProcessPoolExecutor(2) as pool:
        results = dict(zip(cases, pool.map(run, cases), strict=True))
    for workload in WORKLOADS:
        _print_table(workload, results)
    for title, policies in (("plans", tuple(BASELINES)), ("policies that are run", RUN)):
        gains = np.array([result.gain(policies) for result in results.values()])
        gains = gains[np.isfinite(gains)]
        print(
            f"Against the best of the {title} ({', '.join(policies)}), {len(gains)} cases: "
            f"median {100 * np.median(gains):+.1f}%, worst {100 * gains.min():+.1f}%, "
            f"best {100 * gains.max():+.1f}%, more than 1% slower in {int((gains < -0.01).sum())}.\n"
        )
    hard = [
        result.gain(BASELINES)
        for (name, _, workload), result in results.items()
        if name != "gpu-workstation" and (workload != "1 token" or name != "three-cpu-boxes")
    ]
    print(
        f"Cases with several tokens, slow links or uneven boxes ({len(hard)}; without the one workstation "
        f"and single tokens on three like boxes): median {100 * np.median(hard):+.1f}%."
    )


def run(case: Case) -> Result:
    name, text, workload_name = case
    shape, routing = routing_of(text)
    workload = WORKLOADS[workload_name]
    cluster = scaled(load_cluster(CLUSTERS / f"{name}.yaml"), shape)
    problem = planning_problem(shape, cluster, shape.expert_bytes(BITS), routing, workload)
    bound_s = lower_bound_s(problem, routing.held_out)
    found: dict[str, Measured | None] = {}
    for policy in (*BASELINES, OURS, *RUN_POLICIES):
        try:
            found[policy] = measure(problem, policy, routing)
        except (PlanDoesNotFit, InputError):
            found[policy] = None
    return Result(found, bound_s)


@cache
def routing_of(text: str) -> tuple[ModelShape, Routing]:
    kind, _, domain = text.partition("-")
    if kind == "olmoe":
        return OLMOE_ON_STEP, olmoe(domain)
    if kind == "tiny":
        return TINY_ON_STEP, tiny_routing(domain, TINY_TOKENS)
    source = SyntheticSource(text, *(2 * (GENERAL if domain == "general" else CODING,)), SYNTHETIC_TOKENS, 0)
    return STEP_3_5_FLASH, source.load(STEP_3_5_FLASH)


def _print_table(workload: str, results: dict[Case, Result]) -> None:
    names = (*BASELINES, OURS, *RUN_POLICIES)
    print(f"## {workload} a pass: ms of MoE layers / remote layers\n")
    print(f"| cluster, text | {' | '.join(names)} | best plan / ours | best run / ours | over the bound |")
    print("|---" * (len(names) + 4) + "|")
    for (name, text, of), result in results.items():
        if of != workload:
            continue
        cells = [_cell(result, policy, WORKLOADS[workload]) for policy in names]
        gains = [_percent(result.gain(policies)) for policies in (tuple(BASELINES), RUN)]
        gap = f"{100 * (result.ours.moe_s / result.bound_s - 1):.0f}%"
        print(f"| {name}, {text} | {' | '.join([*cells, *gains, gap])} |")
    print()


def _percent(gain: float) -> str:
    return f"{100 * gain:+.1f}%" if math.isfinite(gain) else "-"


def _cell(result: Result, policy: str, workload: Workload) -> str:
    """A policy's time beside the head's own as we leave it; ours alone is set in bold."""
    measured = result.measured[policy]
    if measured is None:
        return "-"
    remote = measured.remote_layers_per_token * workload.tokens_out_per_step
    cell = f"{1000 * (measured.step_s - result.ours.head_s):.1f} / {remote:.1f}"
    return f"**{cell}**" if policy == OURS else cell


if __name__ == "__main__":
    main()
