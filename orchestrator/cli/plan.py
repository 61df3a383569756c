"""`potluck plan`: decide where every expert lives, and say how fast that should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group

from orchestrator.cli.inputs import files_read, load_plan, load_shape, named
from orchestrator.cli.options import Json, Quant
from orchestrator.cli.output import console, print_json, print_note, share, table
from orchestrator.cli.workload import (
    Accept,
    Context,
    HeadBits,
    PromptRatio,
    TokensPerStep,
    WorkloadOptions,
    check_finite,
    workload_of,
)
from orchestrator.plan_picture import write_heatmap
from placement.advice import advice
from placement.atomic import check_targets
from placement.cluster_file import load_cluster, parse_size
from placement.cluster_spec import ClusterSpec
from placement.cost import head_seconds
from placement.errors import InputError, PlanDoesNotFit, PlanError
from placement.interop.read import read_routing
from placement.plan import LOCAL_WORKER, Plan
from placement.planner import DEFAULT_POLICY, as_plan
from placement.policies import POLICIES, named_policy
from placement.prediction import AtContext, Prediction, by_context, predict
from placement.problem import PlanningProblem, problem_for
from placement.quantisation import bits_per_weight
from placement.replan import Replan, replan
from placement.routing.planning_text import planning_text
from placement.summary import PlanSummary, summarise
from placement.units import size
from placement.workload import described
from placement.workload_fields import workload_fields

# Contexts people ask about, up to the model's own length; those without room on the head are said not to fit.
_CONTEXTS = (1024, 4096, 16384, 65536, 262144)

_LEAST_SHARE_SHOWN = 0.0005


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan and what is known about it; `prediction` None where the head's own speed is unknown."""

    plan: Plan
    summary: PlanSummary
    prediction: Prediction | None
    contexts: list[AtContext]
    advice: list[str]
    replan: Replan | None


def plan(
    cluster: Annotated[
        Path, typer.Argument(help="Cluster file: boxes, memory, links (see cluster.yaml).", metavar="CLUSTER")
    ],
    model: Annotated[str, typer.Option(help="Built-in name such as step-3.5-flash, or a model directory.")],
    quant: Quant = None,
    stats: Annotated[
        Path | None, typer.Option(help="Routing file of `potluck stats`, or another engine's counts.")
    ] = None,
    policy: Annotated[str, typer.Option(help=f"{', '.join(POLICIES)}.")] = DEFAULT_POLICY,
    tokens_per_step: TokensPerStep = None,
    accept: Accept = None,
    context: Context = None,
    head_bits: HeadBits = None,
    prompt_ratio: PromptRatio = None,
    current: Annotated[
        Path | None, typer.Option(help="Plan in use: find the best one within the move budget.")
    ] = None,
    move_bytes: Annotated[str | None, typer.Option(help="What may be moved, such as 20GB.")] = None,
    move_seconds: Annotated[float | None, typer.Option(min=0, help="How long moving may take.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Write a heatmap, layer x expert, here: .png or .svg.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the plan here, as JSON.")] = None,
    json: Json = False,
) -> None:
    """Decide which box and memory holds each expert, and predict the speed."""
    shape = load_shape(model)
    named_policy(policy)
    if move_seconds is not None:
        check_finite("--move-seconds", move_seconds)
    if (move_bytes is not None or move_seconds is not None) and current is None:
        raise InputError("--move-bytes and --move-seconds: expected --current PLAN.json, the plan in use")
    if current is not None and policy != DEFAULT_POLICY:
        raise InputError(f"--current: plans again with {DEFAULT_POLICY}; leave out --policy {policy}")
    check_targets((out, picture), inputs=files_read(cluster, model, stats, current))
    boxes = load_cluster(cluster)
    routing = read_routing(stats, shape) if stats is not None else None
    in_use = None if current is None else load_plan(current, shape)
    form = quant or ("bfloat16" if in_use is None else in_use.dtype)
    bits = bits_per_weight(form)
    said = WorkloadOptions(tokens_per_step, accept, context, head_bits, prompt_ratio)
    workload = workload_of(said, shape, form, None if in_use is None else in_use.workload)
    moved = None
    with named(cluster, PlanDoesNotFit):
        problem = problem_for(shape, boxes, shape.expert_bytes(bits), routing, workload)
        if in_use is None:
            made = as_plan(problem, named_policy(policy)(problem), policy, form)
        else:
            with named(f"--current: {current}", PlanError):
                _check_same_boxes(problem, in_use, form)
            moved = _replan(problem, in_use, move_bytes, move_seconds)
            made = as_plan(problem, moved.table, DEFAULT_POLICY, form, in_use.epoch + 1)
    planned = _describe(problem, boxes, made, moved)
    if picture is not None:
        write_heatmap(made, picture, routing)
    if out is not None:
        made.save(out)
    if json:
        print_json(_document(planned))
        return
    for part in [plan_table(made, planned.summary), *_speed_tables(planned)]:
        console.print(part)
    for path in (out, picture):
        if path is not None:
            print_note(f"wrote {path}")


def _check_same_boxes(problem: PlanningProblem, in_use: Plan, quant: str) -> None:
    if (in_use.dtype, in_use.expert_bytes) != (quant, problem.expert_bytes):
        raise PlanError(f"a plan for {in_use.dtype}, expected one for --quant {quant}")
    names = [worker.name for worker in in_use.workers]
    wanted = [device.worker.name for device in problem.devices]
    if names != wanted:
        raise PlanError(
            f"a plan for the workers {', '.join(names)}, expected those of the cluster: {', '.join(wanted)}"
        )


def _replan(
    problem: PlanningProblem, in_use: Plan, move_bytes: str | None, move_seconds: float | None
) -> Replan:
    try:
        budget_bytes = float("inf") if move_bytes is None else parse_size(move_bytes)
    except ValueError as error:
        raise InputError(f"--move-bytes: {error}") from None
    return replan(
        problem,
        in_use.holder_table,
        budget_bytes=budget_bytes,
        budget_s=float("inf") if move_seconds is None else move_seconds,
        head_s=head_seconds(problem).total_s if _has_head(problem) else 0.0,
    )


def _has_head(problem: PlanningProblem) -> bool:
    return any(device.worker.name == LOCAL_WORKER for device in problem.devices)


def _describe(problem: PlanningProblem, boxes: ClusterSpec, made: Plan, moved: Replan | None) -> Planned:
    summary = summarise(made, problem.stats)
    text = planning_text(problem)
    sentences = advice(problem, made.holder_table, text)
    if not _has_head(problem):
        sentences.append(
            "the head's node has no device in the cluster file, so a step's time is not known: give it one "
            "(its memory_bytes may equal its reserved_bytes)"
        )
        return Planned(made, summary, None, [], sentences, moved)
    prediction = predict(problem, made, text)
    longest = problem.shape.max_positions
    asked = {*(c for c in _CONTEXTS if c < longest), min(longest, _CONTEXTS[-1]), problem.workload.context}
    contexts = by_context(problem, boxes, made, prediction, sorted(asked))
    return Planned(made, summary, prediction, contexts, sentences, moved)


def _document(planned: Planned) -> dict[str, Any]:
    """docs/json.md lists the keys."""
    made, summary, prediction, moved = planned.plan, planned.summary, planned.prediction, planned.replan
    return {
        "model": made.model,
        "policy": made.policy,
        "quant": made.dtype,
        "expert_bytes": made.expert_bytes,
        "workload": None if made.workload is None else workload_fields(made.workload),
        "basis": None if prediction is None else prediction.basis,
        "step_time_s": None if prediction is None else prediction.step_time_s,
        "head_s": None if prediction is None else prediction.head_s,
        "tokens_per_s": None if prediction is None else prediction.tokens_per_s,
        "prefill_tokens_per_s": None if prediction is None else prediction.prefill_tokens_per_s,
        "lower_bound_s": None if prediction is None else prediction.lower_bound_s,
        "gap": None if prediction is None else prediction.gap,
        "remote_layers_per_token": (
            summary.remote_layers_per_token if prediction is None else prediction.remote_layers_per_token
        ),
        "bound_by": {} if prediction is None else prediction.bound_by,
        "bound_by_cause": {} if prediction is None else prediction.causes,
        "by_context": [{"context": c.context, "tokens_per_s": c.tokens_per_s} for c in planned.contexts],
        "replicas": summary.replicas,
        "copies": None if prediction is None or prediction.copies is None else asdict(prediction.copies),
        "advice": planned.advice,
        "replan": None if moved is None else _replan_document(moved),
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


def plan_table(made: Plan, summary: PlanSummary) -> Group:
    """What sits where, and with statistics who is asked how often."""
    is_measured = any(worker.share_of_activations is not None for worker in summary.workers)
    rows = [
        (
            worker.name,
            worker.tier,
            f"{worker.num_experts:,}",
            size(worker.held_bytes),
            size(worker.budget_bytes),
            *((share(worker.share_of_activations or 0.0),) if is_measured else ()),
        )
        for worker in summary.workers
    ]
    title = f"{made.model}: experts in {made.dtype} of {size(made.expert_bytes)} each, policy {made.policy}"
    columns = ("worker", "memory", "experts", "bytes", "budget", *(("of choices",) if is_measured else ()))
    return table(title, columns, rows)


def _speed_tables(planned: Planned) -> list[Group | str]:
    """Predicted speed, the bound, what limits it, and what the plan says about the boxes."""
    parts: list[Group | str] = []
    num_layers = planned.summary.num_moe_layers
    if (prediction := planned.prediction) is not None:
        waits = [
            (name, share(part))
            for name, part in sorted(prediction.bound_by.items(), key=lambda item: -item[1])[:8]
            if part >= _LEAST_SHARE_SHOWN
        ]
        speeds = [(f"{at.context:,}", _speed(at.tokens_per_s)) for at in planned.contexts]
        cause, part = max(prediction.causes.items(), key=lambda item: item[1])
        parts += [
            table("Predicted tokens/s by context", ("context", "tokens/s"), speeds),
            *_no_room(planned.contexts),
            table("Which device a layer waits for", ("worker", "of layers"), waits),
            f"{prediction.tokens_per_s:.2f} tokens/s: a step takes {_ms(prediction.step_time_s)} "
            f"({prediction.basis}), of which the head {_ms(prediction.head_s)}. "
            f"{prediction.remote_layers_per_token:.1f} of {num_layers} MoE layers a token ask another box.",
            f"Prompts: about {prediction.prefill_tokens_per_s:.0f} tokens/s.",
            f"No plan for these boxes is faster than {_ms(prediction.lower_bound_s)} a step: this one is at "
            f"most {share(prediction.gap)} above the best. Layers wait mostly for {cause} ({share(part)}).",
        ]
        if (copies := prediction.copies) is not None:
            parts.append(
                f"Copies: {copies.num_copies:,} experts, decode {copies.decode_gain:+.1%}, "
                f"prompts {copies.prompt_gain:+.1%}."
            )
    if (workload := planned.plan.workload) is not None:
        parts.append(f"Assumed: {described(workload)}.")
    if (moved := planned.replan) is not None:
        parts.append(_move_line(moved))
    return [*parts, *(f"{sentence[0].upper()}{sentence[1:]}." for sentence in planned.advice)]


def _no_room(contexts: Sequence[AtContext]) -> list[str]:
    """What to do about contexts that do not fit, a short table's other half."""
    if all(at.tokens_per_s is not None for at in contexts):
        return []
    return ["Where there is no room, plan with --context: fewer experts then stay on the head's device."]


def _move_line(moved: Replan) -> str:
    if moved.payback_s is None:
        return "No move within the budget gains anything."
    return (
        f"Moving {moved.moved_experts} experts ({size(moved.moved_bytes)}, {_seconds(moved.transfer_s)}) "
        f"takes MoE layers from {_ms(moved.before_s)} to {_ms(moved.after_s)} a step{_prompt_move(moved)}: "
        f"paid back after {_seconds(moved.payback_s)}."
    )


def _prompt_move(moved: Replan) -> str:
    if not moved.prompt_before_s:
        return ""
    return f" and its prompts from {_ms(moved.prompt_before_s)} to {_ms(moved.prompt_after_s)}"


def _speed(tokens_per_s: float | None) -> str:
    return "no room" if tokens_per_s is None else f"{tokens_per_s:.2f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else _ms(seconds)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"
