"""What of a plan this release can run; plans and simulations know more kinds of memory than that."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from placement.errors import InputError, PlanError
from placement.files.quote import quote
from placement.plan import LOCAL_WORKER, Plan
from placement.weight_format import FORMATS, ExpertFormat
from workers.tiers import why_not_run

if TYPE_CHECKING:
    from workers.formats.checkpoint import Checkpoint
    from workers.model_config import Step35Config


class DtypeName(StrEnum):
    """How weights and caches are kept, as torch names it. Sums are float32 in both."""

    float32 = "float32"
    bfloat16 = "bfloat16"


DEFAULT_DTYPE = DtypeName.bfloat16
"""Of every run where neither a plan nor `--dtype` says otherwise, and of plans without `--quant`."""


def check_runnable(plan: Plan) -> None:
    """Raise PlanError for a plan that would not run as it says: a form, a tier's memory or device."""
    for layer in plan.layers:
        try:
            ExpertFormat.of_name(layer.form)
        except InputError:
            raise PlanError(
                f"the plan keeps experts in {quote(layer.form)}; this release runs {', '.join(FORMATS)}: "
                "make a plan with --quant bfloat16"
            ) from None
    for tier, num_experts in zip(plan.tiers, plan.experts_per_tier().tolist(), strict=True):
        # What holds nothing is not started; the head always is.
        if num_experts or tier.name == LOCAL_WORKER:
            problem = why_not_run(tier.kind, tier.device)
            if problem is not None:
                name = f"worker {quote(tier.worker)}"
                if tier.name != tier.worker:
                    name += f", device {quote(tier.name)}"
                raise PlanError(f"{name}: {problem}; `potluck simulate` takes the plan as it is")


def check_forms(plan: Plan, checkpoint: Checkpoint, config: Step35Config) -> None:
    """Raise PlanError for a plan whose experts' form or bytes are not what the model's files give."""
    for layer in plan.layers:
        form = ExpertFormat.of_name(layer.form)
        stored = checkpoint.expert_format(layer.index, config)
        if not stored.gives(form):
            raise PlanError(
                f"the plan keeps experts of layer {layer.index} in {quote(layer.form)}, but "
                f"{checkpoint.path} has them in {stored.name}: make a plan with `potluck plan --model` and "
                "these files, without --quant"
            )
        num_bytes = form.expert_bytes(config.hidden_size, config.moe_intermediate_size)
        if layer.expert_bytes != num_bytes:
            raise PlanError(
                f"layers.{layer.index}.expert_bytes: expected {num_bytes}, which an expert in {layer.form} "
                f"takes, found {layer.expert_bytes}; make a new plan with `potluck plan`"
            )
