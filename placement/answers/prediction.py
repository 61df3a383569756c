"""How fast a plan should be: its simulated step, the bound on every plan's, and what the time goes into."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from placement.bounds.bound import lower_bound_s
from placement.cost.prefill import prefill_seconds
from placement.errors import PlanDoesNotFit
from placement.given.cluster_spec import ClusterSpec
from placement.given.head_memory import head_memory_bytes
from placement.given.problem import PlanningProblem, planning_devices
from placement.plan import LOCAL_WORKER, Plan
from placement.policies.least_time.copies import without_copies
from placement.policies.least_time.objective import prefill_load, prefill_pass_s
from placement.replay.evaluate import evaluate
from placement.replay.simulate import simulate_alone
from placement.replay.system import System
from placement.replay.tally import CAUSES
from placement.routing.planning_text import PlanningText, spread_steps

# Steps to predict from: the mean's standard error is then well under 1%.
_MOST_STEPS = 2000


@dataclass(frozen=True, slots=True)
class CopiesWorth:
    """What a plan's copies change, beside the same plan with each expert in its fastest place alone.

    Attributes:
        num_copies: places that hold an expert which another place holds too, one of each left out.
        decode_gain, prompt_gain: of the tokens/s, 0.02 for 2% more; below 0 where copies cost.
    """

    num_copies: int
    decode_gain: float
    prompt_gain: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """A plan's expected decode step on the text it was planned with.

    Attributes:
        basis: what that text was: a recorded trace, tokens drawn from counts, or from even routing.
        step_time_s: `head_s` and the MoE layers.
        lower_bound_s: no plan for these boxes has a faster step on this text (placement/bounds/bound.py).
        prefill_tokens_per_s: reading a prompt, in passes of `workload.prefill_tokens`.
        bound_by: share of (step, layer) that waited for each device.
        causes: the same by the largest part of that wait.
        copies: what they gain and cost; None for a plan without.
    """

    basis: Literal["trace", "counts", "even routing"]
    step_time_s: float
    head_s: float
    tokens_per_s: float
    remote_layers_per_token: float
    lower_bound_s: float
    prefill_tokens_per_s: float
    bound_by: dict[str, float]
    causes: dict[str, float]
    copies: CopiesWorth | None = None

    @property
    def gap(self) -> float:
        return self.step_time_s / self.lower_bound_s - 1


@dataclass(frozen=True, slots=True)
class AtContext:
    """`tokens_per_s` with that many positions in a KV cache, None if it does not fit beside the experts."""

    context: int
    tokens_per_s: float | None


def predict(problem: PlanningProblem, plan: Plan, text: PlanningText) -> Prediction:
    """Simulate `plan` on `text`, the problem's own (`planning_text`).

    Raises:
        InputError: the head's node has no device, so its speed is unknown.
    """
    workload = problem.workload
    steps = spread_steps(text.trace, workload.tokens_per_step, _MOST_STEPS)
    system = System.build(plan, problem.devices, problem.shape, workload)
    report = simulate_alone(system, [steps])
    head_s = system.head_s
    known = replace(problem, stats=text.stats)
    share, held = prefill_load(known, plan.holder_table)
    prefill_s = prefill_seconds(known, share, held, workload.prefill_tokens)
    step_time_s = report.step_time_s.mean
    copies = None
    if plan.holder_table.has_replicas:
        single = without_copies(known, plan.holder_table)
        num_copies = int(plan.experts_per_tier().sum()) - problem.shape.num_routed_experts
        decode_gain = (evaluate(known, single, steps).mean_s + head_s) / step_time_s - 1
        copies = CopiesWorth(num_copies, decode_gain, prefill_pass_s(known, single) / prefill_s - 1)
    return Prediction(
        basis=text.basis,
        step_time_s=step_time_s,
        head_s=head_s,
        tokens_per_s=workload.tokens_out_per_step / step_time_s,
        remote_layers_per_token=report.remote_layers_per_token,
        lower_bound_s=lower_bound_s(problem, steps) + head_s,
        prefill_tokens_per_s=workload.prefill_tokens / prefill_s,
        bound_by=_shares(report.devices, report.bound_by_device),
        causes=_shares(CAUSES, report.bound_by_cause),
        copies=copies,
    )


def by_context(
    problem: PlanningProblem,
    cluster: ClusterSpec,
    plan: Plan,
    prediction: Prediction,
    contexts: Iterable[int],
) -> list[AtContext]:
    """The speed of a plan with this `prediction` at other contexts: only the head's part changes.

    Args:
        cluster: what the problem's devices are made of; says what the head may keep beside the experts.

    Raises:
        InputError: the head's node has no device.
    """
    found = []
    workload = problem.workload
    moe_s = prediction.step_time_s - prediction.head_s
    for context in contexts:
        other = replace(workload, context=context)
        if not _has_room(cluster, plan, head_memory_bytes(problem.shape, other)):
            found.append(AtContext(context, None))
            continue
        head_s = System.build(plan, problem.devices, problem.shape, other).head_s
        found.append(AtContext(context, workload.tokens_out_per_step / (moe_s + head_s)))
    return found


def _has_room(cluster: ClusterSpec, plan: Plan, head_bytes: int) -> bool:
    """Whether the head can keep so much beside the experts it holds."""
    try:
        devices = planning_devices(cluster, head_bytes)
    except PlanDoesNotFit:
        return False
    if plan.head_tier is None:
        return True
    budget_bytes = next(d.tier.budget_bytes for d in devices if d.tier.name == LOCAL_WORKER)
    return int(plan.bytes_per_tier()[plan.head_tier]) <= budget_bytes


def _shares(names: tuple[str, ...], by_layer: NDArray[np.float64]) -> dict[str, float]:
    mean = by_layer.mean(axis=0).tolist()
    return {name: share for name, share in zip(names, mean, strict=True) if share > 0}
