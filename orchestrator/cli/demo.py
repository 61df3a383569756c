"""`potluck demo`: the shipped model, planned and served by several worker processes of this machine."""

from __future__ import annotations

import json as json_module
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.markup import escape

from orchestrator.cli.inputs import check_mtp
from orchestrator.cli.options import Json
from orchestrator.cli.output import console, print_json, print_note
from orchestrator.cli.plan_output import plan_table
from orchestrator.cli.run_tables import report_document, run_tables
from orchestrator.cli.stream import Stream
from orchestrator.generate import GenerationParams
from orchestrator.runnable import DEFAULT_DTYPE
from orchestrator.sampling_params import SamplingParams
from orchestrator.session import open_session
from orchestrator.tokenizer import Tokenizer
from placement.answers.planner import DEFAULT_POLICY, as_plan
from placement.answers.summary import summarise
from placement.errors import InputError
from placement.given.cluster_file import load_cluster
from placement.given.problem import PlanningProblem, problem_for
from placement.given.stats import RoutingStats
from placement.plan import Plan
from placement.policies.registry import find_policy
from placement.replay.simulate import simulate_alone
from placement.replay.steps import Acceptance
from placement.replay.system import System
from placement.routing.planning_text import spread_steps, text_of
from placement.weight_format import planned_format
from placement.workload import describe, usual_workload
from workers.formats.open_model import open_model
from workers.model_config import Step35Config

MODELS = Path(__file__).resolve().parents[2] / "models"
MODEL = MODELS / "potluck-tiny"
# What `python -m benchmarks.tiny_model` finds on held-out text, each given those before it.
_ACCEPTANCE = (0.58, 0.7, 0.7)
# Steps of the routing file to look at.
_MOST_STEPS = 2000


def demo(
    max_tokens: Annotated[int, typer.Option(min=2, help="For each prompt.")] = 96,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 is greedy: so small a model then repeats itself.")
    ] = 0.7,
    mtp: Annotated[int, typer.Option(min=0, help="Drafts a step, 0 to 3.")] = 3,
    json: Json = False,
) -> None:
    """Plan, start and run the shipped model on three worker processes of this machine."""
    if not MODEL.is_dir():
        raise InputError(f"{MODEL} is not there; the demo runs from a clone of the repository")
    model = open_model(MODEL)
    check_mtp(model.contents, mtp)
    problem, plan = plan_demo(mtp)
    if not json:
        console.print(*description(problem, plan), sep="\n")
    print_note(f"starting {len(plan.asked_workers)} workers …")
    tokenizer = Tokenizer.load(MODEL)
    prompts: dict[str, str] = json_module.loads((MODEL / "prompts.json").read_text())
    params = GenerationParams(max_tokens, SamplingParams(temperature), ignore_eos=True, mtp=mtp)
    texts: dict[str, str] = {}
    with open_session(model, plan) as session:
        for domain, prompt in prompts.items():
            if not json:
                console.print(f"\n[bold]{domain}[/] [dim]prompt, then what the model writes[/]")
                console.print(f"[dim]{escape(prompt)}[/]", end="", soft_wrap=True)
            stream = Stream(tokenizer, silent=json)
            session.generate(tokenizer.encode_prompt(prompt), params, stream.push)
            texts[domain] = stream.finish()
        report = session.report()
    if json:
        print_json({"texts": texts} | report_document(report))
    else:
        console.print("", *run_tables(report), sep="\n")
        print_note("stopped all workers")


def plan_demo(mtp: int) -> tuple[PlanningProblem, Plan]:
    """The shipped model on the demo's boxes, planned for what its routing file says."""
    dtype = DEFAULT_DTYPE
    shape = Step35Config.load(MODEL).shape(MODEL.name)
    routing = RoutingStats.load(MODEL / "routing.npz", shape)
    boxes = load_cluster(MODELS / "demo-cluster.yaml")
    expert_bytes = shape.expert_bytes(planned_format(dtype).bits)
    chances = _ACCEPTANCE[:mtp]
    accepted = Acceptance(chances).mean_accepted
    workload = replace(usual_workload(dtype), drafts=mtp, accepted_drafts=accepted, acceptance=chances)
    problem = problem_for(shape, boxes, expert_bytes, routing, workload)
    return problem, as_plan(problem, find_policy(DEFAULT_POLICY)(problem), DEFAULT_POLICY, dtype)


def description(problem: PlanningProblem, plan: Plan) -> tuple[Group | str, ...]:
    """What sits where, and what a run can be held against."""
    return (
        plan_table(plan, summarise(plan, problem.stats)),
        f"Expected: {remote_layers_per_step(problem, plan):.1f} of {problem.shape.num_moe_layers} MoE layers "
        f"ask another box in a step of 1 token and {problem.workload.drafts} drafts; the more drafts hold, "
        "the fewer for each token.",
        f"Assumed: {describe(problem.workload)}.",
    )


def remote_layers_per_step(problem: PlanningProblem, plan: Plan) -> float:
    """MoE layers that ask another box in a step of the problem's workload, on its statistics.

    The figure a run can be held against: a layer asks once for all rows of a step, and how many tokens a
    step gives depends on the drafts that hold.
    """
    assert problem.stats is not None
    rows = problem.workload.tokens_per_step
    steps = spread_steps(text_of(problem.stats, rows), rows, _MOST_STEPS)
    report = simulate_alone(System.build(plan, problem.devices, problem.shape, problem.workload), [steps])
    return report.remote_layers_per_token * report.num_tokens / report.num_steps
