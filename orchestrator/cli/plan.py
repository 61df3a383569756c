"""`potluck plan`: decide where every expert lives, and say how fast that should be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.inputs import (
    digests_of,
    files_read,
    given_model,
    load_plan,
    name_in_errors,
    planned_form,
)
from orchestrator.cli.options import Json, Kv, Quant
from orchestrator.cli.output import console, print_json, print_note
from orchestrator.cli.plan_export import Buffer, Export, ExportOptions, export_notes, write_exports
from orchestrator.cli.plan_head import AUTO, Head, elsewhere_note
from orchestrator.cli.plan_output import Planned, plan_document, plan_parts
from orchestrator.cli.plan_picture import picture_suffix, write_heatmap
from orchestrator.cli.planning_only import why_planning_only
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
from placement.answers.advice import advice
from placement.answers.head_choice import choose_head, head_advice
from placement.answers.planner import DEFAULT_POLICY, as_plan
from placement.answers.prediction import by_context
from placement.answers.prediction import predict as predict_speed
from placement.answers.range_inputs import plan_range
from placement.answers.replan import Replan, replan
from placement.answers.summary import summarise
from placement.answers.survival import losses_to_survive, prediction_without, survival
from placement.cost.head import head_seconds
from placement.errors import InputError, PlanDoesNotFit, PlanError
from placement.fields.cluster_fields import parse_size
from placement.files.atomic import check_targets
from placement.given.cluster_file import load_known_cluster
from placement.given.cluster_spec import ClusterSpec
from placement.given.other_head import as_planned, find_head, head_place, with_head
from placement.given.problem import PlanningProblem, problem_for
from placement.hardware.spread import packaged_spreads
from placement.interop.export import ExportInputs
from placement.interop.read import read_routing
from placement.plan import Plan, PlannedLayer
from placement.plan_file import write_plan
from placement.policies.cover import Boxes
from placement.policies.registry import POLICIES, find_policy, place
from placement.routing.planning_text import PlanningText, planning_text

# Contexts people ask about, up to the model's own length; those without room on the head are said not to fit.
_CONTEXTS = (1024, 4096, 16384, 65536, 262144)


def plan(
    cluster: Annotated[
        Path, typer.Argument(help="Cluster file: boxes, memory, links (see cluster.yaml).", metavar="CLUSTER")
    ],
    model: Annotated[
        str, typer.Option(help="Built-in name such as step-3.5-flash, model directory or GGUF file.")
    ],
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
    kv: Kv = None,
    head: Head = None,
    current: Annotated[
        Path | None, typer.Option(help="Plan in use: find the best one within the move budget.")
    ] = None,
    move_bytes: Annotated[str | None, typer.Option(help="What may be moved, such as 20GB.")] = None,
    move_seconds: Annotated[float | None, typer.Option(min=0, help="How long moving may take.")] = None,
    survive: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Boxes that may be lost without reading from disks: each expert is held by one box more "
            "than that, or by the head's. 1 where two or more boxes have the memory.",
        ),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Write a heatmap, layer x expert, here: .png or .svg.")
    ] = None,
    export: Export = None,
    buffer: Buffer = None,
    out: Annotated[Path | None, typer.Option(help="Write the plan here, as JSON.")] = None,
    predict: Annotated[
        bool, typer.Option(help="Also predict speeds, which takes longer than a small model's plan.")
    ] = True,
    json: Json = False,
) -> None:
    """Decide which box and memory holds each expert, and predict the speed."""
    given = given_model(model)
    shape = given.shape
    find_policy(policy)
    if move_seconds is not None:
        check_finite("--move-seconds", move_seconds)
    if (move_bytes is not None or move_seconds is not None) and current is None:
        raise InputError("--move-bytes and --move-seconds: expected --current PLAN.json, the plan in use")
    if current is not None and policy != DEFAULT_POLICY:
        raise InputError(f"--current: plans again with {DEFAULT_POLICY}; leave out --policy {policy}")
    if current is not None and head is not None:
        raise InputError(
            "--head with --current: the head stays where the plan in use has it; leave out --head"
        )
    exports = ExportOptions.parse(export or (), buffer or ())
    written = (out, picture, *(path for _, path in exports.files))
    check_targets(written, inputs=files_read(cluster, model, stats, current))
    if picture is not None:
        picture_suffix(picture)
    of_file = load_known_cluster(cluster, print_note)
    routing = read_routing(stats, shape) if stats is not None else None
    in_use = None if current is None else load_plan(current, shape)
    boxes = of_file if in_use is None else as_planned(of_file, in_use)
    if head is not None and head != AUTO:
        boxes = with_head(of_file, find_head(of_file, head))
    kept = planned_form(given, quant, in_use)
    form, layers = kept.form, kept.layers
    said = WorkloadOptions(tokens_per_step, accept, context, head_bits, prompt_ratio, kv)
    workload = workload_of(said, shape, form, None if in_use is None else in_use.workload, kept.head)
    largest_bytes = max(layer.expert_bytes for layer in layers)

    def problem_on(seen: ClusterSpec) -> PlanningProblem:
        problem = problem_for(
            shape,
            seen,
            largest_bytes,
            routing,
            workload,
            expert_form=kept.expert_form,
            layer_wires=kept.wires,
        )
        return replace(problem, survive=_losses(problem, survive, in_use))

    moved, choice = None, None
    with name_in_errors(cluster, PlanDoesNotFit):
        if head == AUTO:
            print_note("planning for the head in several places, some seconds each …")
            choice = choose_head(of_file, problem_on, policy, packaged_spreads())
            boxes, problem = choice.best.cluster, choice.problem
        else:
            problem = problem_on(boxes)
        if in_use is None:
            table = place(problem, policy) if choice is None else choice.table
            made = as_plan(problem, table, policy, form, layers=layers)
        else:
            with name_in_errors(f"--current: {current}", PlanError):
                _check_same_boxes(problem, in_use, form, layers)
            moved = _replan(problem, in_use, move_bytes, move_seconds)
            made = as_plan(problem, moved.table, DEFAULT_POLICY, form, in_use.epoch + 1, layers=layers)
    made = replace(made, digests=digests_of(given))
    # Before the seconds that a prediction takes: another engine may not be able to do what is planned.
    exported = write_exports(exports, ExportInputs(made, shape, routing, exports.buffers))

    def on_heads(text: PlanningText) -> list[str]:
        # Of a plan in use experts are moved; its head is not.
        if choice is not None or moved is not None:
            return []
        return head_advice(of_file, problem, made.holder_table, problem_on, policy, text, packaged_spreads())

    described = _describe(problem, boxes, made, moved, on_heads) if predict else _stated(problem, made, moved)
    planned = replace(described, exports=exported, head=head_place(boxes), heads=choice)
    if picture is not None:
        write_heatmap(made, picture, routing)
    if out is not None:
        write_plan(made, out)
    if json:
        print_json(plan_document(planned))
        return
    for part in plan_parts(planned):
        console.print(part)
    for path in (out, picture):
        if path is not None:
            print_note(f"wrote {path}")
    if (elsewhere := elsewhere_note(boxes, of_file, cluster)) is not None:
        print_note(elsewhere)
    for note in (note for one in exported for note in export_notes(one)):
        print_note(note)
    if kept.note is not None:
        print_note(kept.note)
    if (why := why_planning_only(made, boxes)) is not None:
        print_note(f"for planning and simulation only: {why}")


def _losses(problem: PlanningProblem, asked: int | None, in_use: Plan | None) -> int:
    """How many losses every expert should survive: as asked, as in the plan in use, or the default."""
    if asked is None:
        return losses_to_survive(problem) if in_use is None else in_use.survive
    most = Boxes.of(problem).number - 1
    if asked > most:
        boxes = "1 box" if most == 0 else f"{most + 1} boxes"
        raise InputError(f"--survive {asked}: expected at most {most}, since the cluster has {boxes}")
    return asked


def _check_same_boxes(
    problem: PlanningProblem, in_use: Plan, quant: str, layers: tuple[PlannedLayer, ...]
) -> None:
    if in_use.layers != layers:
        raise PlanError(f"a plan for {in_use.form}, expected one for --quant {quant}")
    names = [worker.name for worker in in_use.tiers]
    wanted = [device.tier.name for device in problem.devices]
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
        head_s=head_seconds(problem).total_s if problem.head is not None else 0.0,
    )


def _stated(problem: PlanningProblem, made: Plan, moved: Replan | None) -> Planned:
    """What the plan says by itself."""
    return Planned(made, summarise(made, problem.stats), None, [], [], moved, survival(problem, made))


def _describe(
    problem: PlanningProblem,
    boxes: ClusterSpec,
    made: Plan,
    moved: Replan | None,
    on_heads: Callable[[PlanningText], list[str]],
) -> Planned:
    summary = summarise(made, problem.stats)
    text = planning_text(problem)
    sentences = [*on_heads(text), *advice(replace(problem, survive=0), made.holder_table, text)]
    survived = survival(problem, made)
    if problem.head is None:
        sentences.append(
            "the head's node has no device in the cluster file, so a step's time is not known: give it one "
            "(its memory_bytes may equal its reserved_bytes)"
        )
        return Planned(made, summary, None, [], sentences, moved, survived)
    prediction = predict_speed(problem, made, text)
    if problem.survive and moved is None:
        survived = replace(survived, without=prediction_without(problem, made, text))
    longest = problem.shape.max_positions
    asked = {*(c for c in _CONTEXTS if c < longest), min(longest, _CONTEXTS[-1]), problem.workload.context}
    contexts = by_context(problem, boxes, made, prediction, sorted(asked))
    likely = plan_range(problem, made, text, prediction, packaged_spreads())
    return Planned(made, summary, prediction, contexts, sentences, moved, survived, range=likely)
