"""What a plan says about losses: what it survives, what that costs, and what memory is short of."""

from __future__ import annotations

from dataclasses import dataclass, replace

from placement.answers.planner import as_plan
from placement.answers.prediction import Prediction, predict
from placement.given.problem import PlanningProblem
from placement.holders import HolderTable
from placement.plan import Plan
from placement.policies.cover import Boxes, lacking_experts
from placement.policies.registry import place
from placement.routing.planning_text import PlanningText

DEFAULT_LOSSES = 1
"""What a plan survives if nobody says, on clusters that have the memory."""


@dataclass(frozen=True, slots=True)
class Survival:
    """A plan and the loss of boxes.

    Attributes:
        losses: that every expert should survive.
        second_holders: holders beyond the first of each expert, the head's own box apart.
        short_experts: on fewer boxes than that takes. After a loss they may have to come from disks.
        single_experts: of those, on one box only.
        missing_bytes: memory that the holders they lack would take; in a plan that was made without second
            holders, what the boxes have too little of for them.
        without: the prediction of a plan that need not survive any loss; None where it was not made.
    """

    losses: int
    second_holders: int
    short_experts: int
    single_experts: int
    missing_bytes: int
    without: Prediction | None = None


def losses_to_survive(problem: PlanningProblem) -> int:
    """1 on two or more boxes with memory for a second holder of every expert, else 0."""
    has_boxes = Boxes.of(problem).number > 1
    return DEFAULT_LOSSES if has_boxes and not lacking_experts(problem, DEFAULT_LOSSES) else 0


def survival(problem: PlanningProblem, plan: Plan) -> Survival:
    """What the plan survives and lacks, at the problem's `survive`, or at the default where that is 0."""
    boxes = Boxes.of(problem)
    losses = problem.survive or DEFAULT_LOSSES
    masks = plan.holder_table.masks(len(problem.devices))
    held = boxes.held(masks)
    short = boxes.short(masks, losses)
    num_boxes = held.sum(axis=0)
    is_single = (short > 0) & (num_boxes == 1)
    return Survival(
        losses=losses,
        second_holders=int((num_boxes - 1).sum()),
        short_experts=int((short > 0).sum()),
        single_experts=int(is_single.sum()),
        missing_bytes=(
            int((short.sum(axis=1) * plan.expert_bytes).sum())
            if problem.survive
            else lacking_experts(problem, losses) * problem.expert_bytes
        ),
    )


def prediction_without(problem: PlanningProblem, plan: Plan, text: PlanningText) -> Prediction:
    """What the same policy's plan would do if it need not survive any loss.

    Raises as `predict`.
    """
    plain = replace(problem, survive=0)
    table: HolderTable = place(plain, plan.policy)
    other = as_plan(plain, table, plan.policy, plan.dtype, plan.epoch, layers=plan.layers)
    return predict(plain, other, text)
