"""What of a plan this release can run; plans and simulations know more kinds of memory than that."""

from __future__ import annotations

from enum import StrEnum

from placement.errors import PlanError
from placement.files.shown import shown
from placement.plan import LOCAL_WORKER, Plan
from workers.tiers import why_not_run


class DtypeName(StrEnum):
    """How weights and caches are kept, as torch names it. Sums are float32 in both."""

    float32 = "float32"
    bfloat16 = "bfloat16"


def check_runnable(plan: Plan) -> None:
    """Raise PlanError for a plan that would not run as it says: its dtype, a tier's memory or device."""
    if plan.form not in tuple(DtypeName):
        raise PlanError(
            f"the plan keeps experts in {shown(plan.form)}; this release runs {' and '.join(DtypeName)}: "
            "make a plan with --quant bfloat16"
        )
    for tier, num_experts in zip(plan.tiers, plan.experts_per_tier().tolist(), strict=True):
        # What holds nothing is not started; the head always is.
        if num_experts or tier.name == LOCAL_WORKER:
            problem = why_not_run(tier.kind, tier.device)
            if problem is not None:
                name = f"worker {shown(tier.worker)}"
                if tier.name != tier.worker:
                    name += f", device {shown(tier.name)}"
                raise PlanError(f"{name}: {problem}; `potluck simulate` takes the plan as it is")
