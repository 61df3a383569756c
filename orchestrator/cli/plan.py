"""`potluck plan`: decide where every expert lives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from orchestrator.cli.output import console, print_json, print_note, share, size, table
from placement.cluster_spec import ClusterSpec
from placement.model_shape import ModelShape, published_shape
from placement.plan import Plan
from placement.planner import make_plan
from placement.policies import POLICIES
from placement.quantisation import bits_per_weight
from placement.stats import RoutingStats
from placement.summary import PlanSummary
from workers.model_config import Step35Config


def plan(
    cluster: Annotated[
        Path, typer.Argument(help="Cluster file: boxes, memory, links (see cluster.yaml).", metavar="CLUSTER")
    ],
    model: Annotated[str, typer.Option(help="Built-in name such as step-3.5-flash, or a model directory.")],
    quant: Annotated[
        str, typer.Option(help="How experts are kept: bfloat16, float32, q8, q4, …")
    ] = "bfloat16",
    stats: Annotated[Path | None, typer.Option(help="Routing file made by `potluck stats`.")] = None,
    policy: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(POLICIES)}; default hottest-first with --stats, else uniform."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the plan here, as JSON.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Decide which box and memory holds each expert."""
    shape = load_shape(model)
    spec = ClusterSpec.load(cluster)
    routing = RoutingStats.load(stats, shape) if stats is not None else None
    made = make_plan(
        shape,
        spec,
        routing,
        policy or ("hottest-first" if routing is not None else "uniform"),
        dtype=quant,
        expert_bytes=shape.expert_bytes(bits_per_weight(quant)),
    )
    if out is not None:
        made.save(out)
    summary = made.summary(routing)
    if json:
        print_json(_document(made, summary))
        return
    for part in plan_tables(made, summary):
        console.print(part)
    if out is not None:
        print_note(f"wrote {out}")


def load_shape(model: str) -> ModelShape:
    """The shape of a built-in model, or of the model in a directory."""
    folder = Path(model)
    if folder.is_dir():
        return Step35Config.load(folder).shape(folder.resolve().name)
    return published_shape(model)


def _document(made: Plan, summary: PlanSummary) -> dict[str, Any]:
    return {
        "model": made.model,
        "policy": made.policy,
        "quant": made.dtype,
        "expert_bytes": made.expert_bytes,
        "remote_layers_per_token": summary.remote_layers_per_token,
        "replicas": summary.replicas,
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


def plan_tables(made: Plan, summary: PlanSummary) -> list[Table | str]:
    """What sits where, and how many layers a token ask another box."""
    rows = [
        (
            worker.name,
            worker.tier,
            str(worker.num_experts),
            size(worker.held_bytes),
            size(worker.budget_bytes),
            "" if worker.share_of_activations is None else share(worker.share_of_activations),
        )
        for worker in summary.workers
    ]
    title = f"{made.model}: experts in {made.dtype} of {size(made.expert_bytes)} each, policy {made.policy}"
    parts: list[Table | str] = [
        table(title, ("worker", "memory", "experts", "bytes", "budget", "of activations"), rows)
    ]
    if summary.remote_layers_per_token is not None:
        basis = "measured on the trace" if summary.basis == "trace" else "from counts"
        parts.append(
            f"{summary.remote_layers_per_token:.1f} of {summary.num_moe_layers} MoE layers a token ask "
            f"another box ({basis})."
        )
    return parts
