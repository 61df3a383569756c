"""`potluck demo`: the shipped model, planned and served by several worker processes of this machine."""

from __future__ import annotations

import json as json_module
import platform
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.generate import Stream
from orchestrator.cli.options import DtypeName, Json
from orchestrator.cli.output import console, print_json, print_note
from orchestrator.cli.plan import plan_table
from orchestrator.cli.run_tables import report_document, run_tables
from orchestrator.generate import GenerationParams
from orchestrator.session import open_session
from orchestrator.tokenizer import Tokenizer
from placement.cluster_file import load_cluster
from placement.errors import InputError
from placement.plan import Plan
from placement.planner import DEFAULT_POLICY, as_plan
from placement.policies import named_policy
from placement.problem import PlanningProblem, problem_for
from placement.quantisation import bits_per_weight
from placement.routing.planning_text import spread_steps, text_of
from placement.simulate import simulate_alone
from placement.simulation.system import System
from placement.stats import RoutingStats
from placement.summary import summarise
from placement.workload import Workload
from workers.model_config import Step35Config

MODELS = Path(__file__).resolve().parents[2] / "models"
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
    model = MODELS / "potluck-tiny"
    if not model.is_dir():
        raise InputError(f"{model} is not there; the demo runs from a clone of the repository")
    dtype = DtypeName.bfloat16
    config = Step35Config.load(model)
    shape = config.shape(model.name)
    routing = RoutingStats.load(model / "routing.npz", shape)
    boxes = load_cluster(MODELS / "demo-cluster.yaml")
    expert_bytes = shape.expert_bytes(bits_per_weight(dtype.value))
    problem = problem_for(shape, boxes, expert_bytes, routing, Workload(drafts=mtp))
    plan = as_plan(problem, named_policy(DEFAULT_POLICY)(problem), DEFAULT_POLICY, dtype.value)
    if not json:
        console.print(plan_table(plan, summarise(plan, routing)))
        remote = f"{remote_layers_per_step(problem, plan):.1f} of {shape.num_moe_layers}"
        console.print(
            f"Expected: {remote} MoE layers ask another box in a step of 1 token and {mtp} drafts; "
            "the more drafts hold, the fewer for each token."
        )
    print_note(f"starting Ray and {len(plan.workers) - 1} workers …")
    tokenizer = Tokenizer.load(model)
    prompts: dict[str, str] = json_module.loads((model / "prompts.json").read_text())
    params = GenerationParams(max_tokens, temperature, ignore_eos=True, mtp=mtp)
    texts: dict[str, str] = {}
    # The boxes of the demo's cluster file are all this machine.
    addresses = {worker.node: platform.node() for worker in plan.workers}
    with open_session(model, plan, addresses=addresses) as session:
        for domain, prompt in prompts.items():
            if not json:
                console.print(f"\n[bold]{domain}[/] [dim]prompt, then what the model writes[/]")
                console.print(f"[dim]{prompt.replace('[', chr(92) + '[')}[/]", end="", soft_wrap=True)
            stream = Stream(tokenizer, silent=json)
            session.generate(tokenizer.encode_prompt(prompt), params, stream.push)
            texts[domain] = stream.finish()
        report = session.report()
    if json:
        print_json({"texts": texts} | report_document(report))
    else:
        console.print("", *run_tables(report), sep="\n")
        print_note("stopped all workers and Ray")


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
