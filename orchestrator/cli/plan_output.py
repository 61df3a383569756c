"""What `potluck plan` says of a plan: as one JSON document, or as tables and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Group

from orchestrator.cli.output import share, table
from orchestrator.cli.plan_export import export_document
from orchestrator.cli.plan_head import heads_document, heads_parts
from orchestrator.cli.range_words import basis_sentence, change, likely, range_fields
from placement.answers.head_choice import HeadChoice
from placement.answers.prediction import AtContext, Prediction
from placement.answers.range_inputs import PlanRange
from placement.answers.replan import Replan
from placement.answers.summary import PlanSummary
from placement.answers.survival import Survival
from placement.given.other_head import HeadPlace
from placement.interop.export import Exported
from placement.plan import LOCAL_WORKER, Plan
from placement.units import between, compared, size
from placement.workload import describe
from placement.workload_fields import workload_fields

# What a Prediction was made from, in words; a plan fits the text it was made from better than other text.
_BASES = {
    "trace": "the very text it is planned from (other text is slower)",
    "counts": "tokens drawn from the counts it is planned from (other text is slower)",
    "even routing": "even routing",
}
# Waits that would be printed as 0.0%.
_LEAST_SHARE_SHOWN = 0.0005
# Of a Prediction, under the same names; null where there is none.
_PREDICTED = (
    "basis",
    "step_time_s",
    "head_s",
    "tokens_per_s",
    "prefill_tokens_per_s",
    "lower_bound_s",
    "gap",
)


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan and what is known about it.

    `prediction`, `range`: None where the head's own speed is unknown. `head`: where it computes, None where
    its node has no device. `heads`: what was tried, None where nobody asked.
    """

    plan: Plan
    summary: PlanSummary
    prediction: Prediction | None
    contexts: list[AtContext]
    advice: list[str]
    replan: Replan | None
    survival: Survival
    exports: Sequence[Exported] = ()
    head: HeadPlace | None = None
    heads: HeadChoice | None = None
    range: PlanRange | None = None


def plan_document(planned: Planned) -> dict[str, Any]:
    """docs/json.md lists the keys."""
    made, summary, prediction, moved = planned.plan, planned.summary, planned.prediction, planned.replan
    return {
        "model": made.model,
        "policy": made.policy,
        "quant": made.form,
        "expert_bytes": made.mean_expert_bytes,
        "workload": None if made.workload is None else workload_fields(made.workload),
        **{key: getattr(prediction, key, None) for key in _PREDICTED},
        "range": None if planned.range is None else range_fields(planned.range.speed),
        "range_inputs": [] if planned.range is None else _inputs_document(planned.range),
        "remote_layers_per_token": (
            summary.remote_layers_per_token if prediction is None else prediction.remote_layers_per_token
        ),
        "bound_by": {} if prediction is None else prediction.bound_by,
        "bound_by_cause": {} if prediction is None else prediction.causes,
        "by_context": [_context_document(at, planned.range) for at in planned.contexts],
        "replicas": summary.replicas,
        "copies": None if prediction is None or prediction.copies is None else asdict(prediction.copies),
        "survive": _survival_document(planned),
        "head": None if planned.head is None else str(planned.head),
        "heads": heads_document(planned.heads),
        "advice": planned.advice,
        "replan": None if moved is None else _replan_document(moved),
        "exports": [export_document(exported) for exported in planned.exports],
        "devices": [
            {
                "name": worker.name,
                "node": worker.node,
                "tier": worker.tier,
                "experts": worker.num_experts,
                "bytes": worker.held_bytes,
                "budget_bytes": worker.budget_bytes,
                "share_of_activations": worker.share_of_activations,
            }
            for worker in summary.workers
        ],
    }


def _context_document(at: AtContext, found: PlanRange | None) -> dict[str, Any]:
    """With the same range as at the workload's own context."""
    low = high = None
    if found is not None and at.tokens_per_s is not None:
        speed = replace(found.speed, tokens_per_s=at.tokens_per_s)
        low, high = speed.low, speed.high
    return {"context": at.context, "tokens_per_s": at.tokens_per_s, "low": low, "high": high}


def _inputs_document(found: PlanRange) -> list[dict[str, Any]]:
    speed = found.speed.tokens_per_s
    return [
        {"input": each.input, "low": each.low * speed, "high": each.high * speed, "why": each.why}
        for each in found.inputs
    ]


def _survival_document(planned: Planned) -> dict[str, Any]:
    survival, without = planned.survival, planned.survival.without
    return {
        "losses": planned.plan.survive,
        "second_holders": survival.second_holders,
        "asked_losses": survival.losses,
        "short_experts": survival.short_experts,
        "single_experts": survival.single_experts,
        "missing_bytes": survival.missing_bytes,
        "tokens_per_s_without": None if without is None else without.tokens_per_s,
        "prefill_tokens_per_s_without": None if without is None else without.prefill_tokens_per_s,
    }


def _replan_document(moved: Replan) -> dict[str, Any]:
    return {
        "moved_experts": moved.moved_experts,
        "moved_bytes": moved.moved_bytes,
        "transfer_s": moved.transfer_s,
        "moe_s_before": moved.before_s,
        "moe_s_after": moved.after_s,
        "prompt_s_before": moved.prompt_before_s,
        "prompt_s_after": moved.prompt_after_s,
        "payback_s": moved.payback_s,
    }


def plan_table(made: Plan, summary: PlanSummary, head: HeadPlace | None = None) -> Group:
    """What sits where, and with statistics who is asked how often; `head`: whose device that is."""
    is_measured = any(worker.share_of_activations is not None for worker in summary.workers)
    rows = [
        (
            worker.name if head is None or worker.name != LOCAL_WORKER else f"{worker.name} ({head})",
            worker.tier,
            f"{worker.num_experts:,}",
            size(worker.held_bytes),
            size(worker.budget_bytes),
            *((share(worker.share_of_activations or 0.0),) if is_measured else ()),
        )
        for worker in summary.workers
    ]
    each = f"{made.form} of {size(made.mean_expert_bytes)} each"
    title = f"{made.model}: experts in {each}, policy {made.policy}"
    columns = ("device", "memory", "experts", "bytes", "budget", *(("of choices",) if is_measured else ()))
    return table(title, columns, rows)


def plan_parts(planned: Planned) -> list[Group | str]:
    """What sits where, predicted speed, the bound, what limits it, and what the plan says about the boxes."""
    parts: list[Group | str] = [plan_table(planned.plan, planned.summary, planned.head)]
    parts += heads_parts(planned.heads)
    num_layers = planned.summary.num_moe_layers
    if (prediction := planned.prediction) is not None:
        waits = [
            (name, share(part))
            for name, part in sorted(prediction.bound_by.items(), key=lambda item: -item[1])[:8]
            if part >= _LEAST_SHARE_SHOWN
        ]
        no_room = _no_room(planned.contexts)
        speeds = [(f"{at.context:,}", *_speed(at.tokens_per_s, planned.range)) for at in planned.contexts]
        cause, part = max(prediction.causes.items(), key=lambda item: item[1])
        disks = {worker.name for worker in planned.summary.workers if worker.tier == "disk"}
        mostly = f"{cause} ({share(part)})"
        if cause == "memory" and waits and waits[0][0] in disks:
            # Its share is in the table: that of memory is both together.
            mostly = "reading the disk"
        parts += [
            table("Predicted tokens/s by context", ("context", "tokens/s", "likely"), speeds),
            *no_room,
            *([""] if no_room else []),
            table("Which device a layer waits for", ("device", "of layers"), waits),
            *_range_parts(planned.range),
            f"{prediction.tokens_per_s:.2f} tokens/s{_likely(planned.range)}: a step takes "
            f"{_ms(prediction.step_time_s)} "
            f"on {_BASES[prediction.basis]}, of which the head {_ms(prediction.head_s)}. "
            f"{_remote(prediction.remote_layers_per_token, num_layers)} MoE layers a token ask another box.",
            f"Prompts: about {prediction.prefill_tokens_per_s:.0f} tokens/s.",
            f"No plan for these boxes is faster than {_ms(prediction.lower_bound_s)} a step: this one is at "
            f"most {share(prediction.gap)} above the best. Layers wait mostly for {mostly}.",
        ]
        if (copies := prediction.copies) is not None:
            parts.append(
                f"Copies: {copies.num_copies:,} experts, decode {compared(1 + copies.decode_gain)}, "
                f"prompts {compared(1 + copies.prompt_gain)}."
            )
    parts += _survival_lines(planned)
    if (workload := planned.plan.workload) is not None:
        parts.append(f"Assumed: {describe(workload)}.")
    if (moved := planned.replan) is not None:
        parts.append(_move_line(moved))
    return [*parts, *(f"{sentence[0].upper()}{sentence[1:]}." for sentence in planned.advice)]


def _survival_lines(planned: Planned) -> list[str]:
    """What may be lost, what that costs, and what there is no memory for."""
    survival, losses = planned.survival, planned.plan.survive
    boxes = "any one box" if survival.losses == 1 else f"any {survival.losses} boxes"
    lines = []
    if losses and not survival.second_holders and not survival.short_experts:
        lines.append(f"Survives the loss of {boxes}, the head's apart: no other box holds experts alone.")
    elif losses:
        lines.append(
            f"Survives the loss of {boxes}, the head's apart"
            + (":" if not survival.short_experts else f", but for {survival.short_experts:,} experts:")
            + f" experts have {survival.second_holders:,} more holders on other boxes."
        )
        if (without := survival.without) is not None and planned.prediction is not None:
            decode = compared(planned.prediction.tokens_per_s / without.tokens_per_s)
            prompts = compared(planned.prediction.prefill_tokens_per_s / without.prefill_tokens_per_s)
            lines.append(
                f"A plan without them: {without.tokens_per_s:.2f} tokens/s, prompts about "
                f"{without.prefill_tokens_per_s:.0f} tokens/s. So they make decoding {decode} and prompts "
                f"{prompts}."
            )
    if survival.short_experts and len(planned.plan.workers) > 1:
        number = (
            f"{survival.single_experts:,} experts have one holder only, and come from disks after its loss"
        )
        if losses:
            lines.append(f"{number}: memory for {size(survival.missing_bytes)} of holders is missing.")
        elif survival.missing_bytes:
            lines.append(
                f"{number}. Memory for second holders is short by {size(survival.missing_bytes)}: --survive "
                f"{survival.losses} makes as many as there is room for."
            )
        else:
            lines.append(f"{number}. There is memory for second holders: --survive {survival.losses}.")
    return lines


def _remote(layers: float, of_layers: int) -> str:
    return f"None of the {of_layers}" if layers < 0.05 else f"{layers:.1f} of {of_layers}"


def _no_room(contexts: Sequence[AtContext]) -> list[str]:
    """What to do about contexts that do not fit, a short table's other half."""
    if all(at.tokens_per_s is not None for at in contexts):
        return []
    return [
        "Where there is no room, this plan has none. One made with that --context may have it: fewer experts "
        "then stay on the head's device."
    ]


def _move_line(moved: Replan) -> str:
    if not moved.moved_experts:
        return "No move within the budget gains anything."
    if moved.payback_s is None:
        return (
            f"Moving {moved.moved_experts} experts ({size(moved.moved_bytes)}, {_seconds(moved.transfer_s)}) "
            f"lets more of them survive a loss. MoE layers go from {_ms(moved.before_s)} to "
            f"{_ms(moved.after_s)} a step{_prompt_move(moved)}."
        )
    return (
        f"Moving {moved.moved_experts} experts ({size(moved.moved_bytes)}, {_seconds(moved.transfer_s)}) "
        f"takes MoE layers from {_ms(moved.before_s)} to {_ms(moved.after_s)} a step{_prompt_move(moved)}: "
        f"paid back after {_seconds(moved.payback_s)}."
    )


def _prompt_move(moved: Replan) -> str:
    if not moved.prompt_before_s:
        return ""
    return f" and its prompts from {_ms(moved.prompt_before_s)} to {_ms(moved.prompt_after_s)}"


def _speed(tokens_per_s: float | None, found: PlanRange | None) -> tuple[str, str]:
    if tokens_per_s is None:
        return "no room", ""
    return f"{tokens_per_s:.2f}", "" if found is None else likely(
        replace(found.speed, tokens_per_s=tokens_per_s)
    )


def _likely(found: PlanRange | None) -> str:
    return "" if found is None else f" ({likely(found.speed)} likely)"


def _range_parts(found: PlanRange | None) -> list[Group | str]:
    """What one input alone makes of the speed, and what the range comes from."""
    if found is None:
        return []
    speed = found.speed.tokens_per_s
    rows = [
        (
            f"{each.input}: {each.why}",
            between(each.low * speed, each.high * speed),
            change(each.low, each.high),
        )
        for each in found.inputs
    ]
    names = [each.input for each in found.inputs if each.input != "memory"]
    others = f"{' and '.join(names)} leave{'s' if len(names) == 1 else ''}"
    return [
        table("What one input alone makes of it", ("input", "tokens/s", "change"), rows),
        f"{basis_sentence(found.figures)} What {others} open is added.",
        "Other routing is judged with this plan kept: one made for such text may gain.",
    ]


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else _ms(seconds)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"
