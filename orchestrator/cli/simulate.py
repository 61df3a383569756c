"""`potluck simulate`: how fast a plan would be, without the boxes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

from orchestrator.cli.inputs import load_shape
from orchestrator.cli.options import Json
from orchestrator.cli.output import console, print_json, print_note, share, size, table
from orchestrator.cli.workload import Accept, Context, TokensPerStep, acceptance_of, check_drafts, workload_of
from placement.cluster_file import load_cluster
from placement.errors import InputError, RoutingFileError
from placement.model_shape import PUBLISHED_SHAPES, ModelShape
from placement.plan import Plan
from placement.simulate import simulate as run
from placement.simulation.scenario import Event, NewPlan, Stream, WorkerLoss
from placement.simulation.steps import Acceptance, split_trace
from placement.simulation.system import System
from placement.simulation.tally import CAUSES, SimulationReport
from placement.stats import RoutingStats
from placement.study.config import DEFAULT_CONTEXT
from placement.workload import Workload


def simulate(
    plan: Annotated[Path, typer.Argument(help="Plan made by `potluck plan`.", metavar="PLAN.json")],
    cluster: Annotated[Path, typer.Option(help="Cluster file with the plan's devices.")],
    trace: Annotated[Path, typer.Option(help="Routing file with a trace (`potluck stats --trace`).")],
    tokens_per_step: TokensPerStep = None,
    accept: Accept = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the drafts' luck.")] = 0,
    in_flight: Annotated[int, typer.Option(min=1, help="Passes under way at once; they queue.")] = 1,
    context: Context = DEFAULT_CONTEXT,
    head_bits: Annotated[float, typer.Option(min=1, help="Bits of each of the head's own weights.")] = 16.0,
    lose: Annotated[
        list[str] | None, typer.Option(help="WORKER@SECONDS: lost at that time. Repeatable.")
    ] = None,
    new_plan: Annotated[
        list[str] | None, typer.Option(help="PLAN.json@SECONDS: experts move there. Repeatable.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Built-in name or model directory; default the plan's model.")
    ] = None,
    json: Json = False,
) -> None:
    """Replay a trace through a plan: step times, tokens/s, what is busy and what bounds each layer."""
    loaded = Plan.load(plan)
    shape = _shape(loaded, plan, model)
    tokens = _tokens(trace, shape)
    acceptance = acceptance_of(accept, seed)
    check_drafts(acceptance, shape)
    workload = workload_of(tokens_per_step, acceptance, context=context, head_bits=head_bits)
    system = System.build(loaded, load_cluster(cluster), shape, workload)
    events: list[Event] = [WorkerLoss(*_at(text, "--lose WORKER@SECONDS")) for text in lose or ()]
    for text in new_plan or ():
        path, at_s = _at(text, "--new-plan PLAN.json@SECONDS")
        events.append(NewPlan(Plan.load(path), at_s))
    report = run(system, _streams(tokens, in_flight, workload, acceptance), events)
    if json:
        print_json(document(report, shape))
        return
    for part in tables(report, shape):
        console.print(part)
    for note in report.notes:
        print_note(note)
    if report.stopped is not None:
        print_note(f"the run ended early: {report.stopped}")


def document(report: SimulationReport, shape: ModelShape) -> dict[str, Any]:
    """The `--json` document; docs/simulator.md lists its keys."""
    return {
        "method": report.method,
        "step_time_s": asdict(report.step_time_s),
        "token_time_s": asdict(report.token_time_s),
        "tokens_per_s": report.tokens_per_s,
        "steps": report.num_steps,
        "tokens": report.num_tokens,
        "duration_s": report.duration_s,
        "remote_layers_per_token": report.remote_layers_per_token,
        "busy": dict(report.busy),
        "bytes_moved": report.bytes_moved,
        "bytes_by_link": dict(report.bytes_by_link),
        "layers": [
            {"layer": layer, "bound_by_device": device, "bound_by_cause": cause}
            for layer, device, cause in _bounds(report, shape)
        ],
        "counts": asdict(report.counts),
        "notes": list(report.notes),
        "stopped": report.stopped,
    }


def tables(report: SimulationReport, shape: ModelShape) -> list[Table | str]:
    """Times, busy shares, and what most often bounds each layer."""
    times = [
        (name, *(f"{1000 * seconds:.2f}" for seconds in (t.mean, t.p50, t.p95, t.p99, t.max)))
        for name, t in (("step", report.step_time_s), ("token", report.token_time_s))
    ]
    busy = [
        (name, share(part), size(report.bytes_by_link.get(name, 0))) for name, part in report.busy.items()
    ]
    bounds = [
        (str(layer), device, share(devices[device]), cause, share(causes[cause]))
        for layer, devices, causes in _bounds(report, shape)
        for device, cause in [(max(devices, key=devices.__getitem__), max(causes, key=causes.__getitem__))]
    ]
    return [
        table(f"{report.num_steps} steps, ms", ("", "mean", "p50", "p95", "p99", "max"), times),
        table("Busy", ("device or link", "of the time", "bytes"), busy),
        table("What a layer waits for", ("layer", "device", "of passes", "mostly for", "of passes"), bounds),
        f"{report.tokens_per_s:.2f} tokens/s ({report.method}); {report.remote_layers_per_token:.1f} remote "
        f"layers and {size(report.bytes_moved / report.num_tokens)} over links for each token.",
    ]


def _bounds(
    report: SimulationReport, shape: ModelShape
) -> list[tuple[int, dict[str, float], dict[str, float]]]:
    return [
        (layer, _shares(report.devices, devices.tolist()), _shares(CAUSES, causes.tolist()))
        for layer, devices, causes in zip(
            shape.moe_layers, report.bound_by_device, report.bound_by_cause, strict=True
        )
    ]


def _shares(names: tuple[str, ...], parts: list[float]) -> dict[str, float]:
    """Those above 0, or the first where all are (a run that ended before the layer)."""
    found = {name: part for name, part in zip(names, parts, strict=True) if part > 0}
    return found or {names[0]: 0.0}


def _shape(plan: Plan, path: Path, model: str | None) -> ModelShape:
    if model is None and plan.model.lower() not in PUBLISHED_SHAPES:
        raise InputError(f"{path}: model {plan.model!r} is not built in: expected --model DIRECTORY")
    return load_shape(model if model is not None else plan.model)


def _tokens(path: Path, shape: ModelShape) -> NDArray[np.uint16]:
    stats = RoutingStats.load(path, shape)
    if stats.trace is None:
        raise RoutingFileError(f"{path}: expected a trace, found counts only (`potluck stats --trace`)")
    return stats.trace


def _streams(
    tokens: NDArray[np.uint16], in_flight: int, workload: Workload, acceptance: Acceptance | None
) -> list[Stream]:
    """The trace cut into one text a stream; with drafts into one a sequence: each advances on its own."""
    texts = workload.num_sequences if acceptance is not None else 1
    parts = split_trace(tokens, in_flight * texts)
    return [Stream(parts[i * texts : (i + 1) * texts], acceptance) for i in range(in_flight)]


def _at(text: str, form: str) -> tuple[str, float]:
    name, separator, time = text.rpartition("@")
    try:
        at_s = float(time)
    except ValueError:
        at_s = -1.0
    if not separator or not name or not at_s >= 0:
        raise InputError(f"expected {form}, found {text!r}")
    return name, at_s
