"""`potluck simulate`: how fast a plan would be, without the boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group

from orchestrator.cli.inputs import check_plan
from orchestrator.cli.options import Json
from orchestrator.cli.output import console, print_json, print_note, share, table
from orchestrator.cli.range_words import basis_sentence, likely, range_fields
from orchestrator.cli.simulate_inputs import (
    load_system,
    loss_of,
    new_plan_of,
    shape_of,
    streams_of,
    tokens_of,
)
from orchestrator.cli.workload import (
    Accept,
    Context,
    HeadBits,
    TokensPerStep,
    WorkloadOptions,
    acceptance_of,
    workload_of,
)
from placement.answers.prediction_range import LikelySpeed, range_for
from placement.answers.vram_cache import VramCache, vram_cache
from placement.hardware.spread import packaged_spreads
from placement.model_shape import ModelShape
from placement.plan_file import read_plan
from placement.replay.queueing.scenario import Event
from placement.replay.simulate import simulate as run
from placement.replay.tally import CAUSES, SimulationReport
from placement.units import size
from placement.workload import Workload, describe
from placement.workload_fields import workload_fields


def simulate(
    plan: Annotated[Path, typer.Argument(help="Plan made by `potluck plan`.", metavar="PLAN.json")],
    cluster: Annotated[Path, typer.Option(help="Cluster file with the plan's devices.")],
    trace: Annotated[Path, typer.Option(help="Routing file with a trace (`potluck stats --trace`).")],
    tokens_per_step: TokensPerStep = None,
    accept: Accept = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the drafts' luck.")] = 0,
    in_flight: Annotated[int, typer.Option(min=1, help="Passes under way at once; they queue.")] = 1,
    context: Context = None,
    head_bits: HeadBits = None,
    lose: Annotated[
        list[str] | None, typer.Option(help="WORKER@SECONDS: lost at that time. Repeatable.")
    ] = None,
    new_plan: Annotated[
        list[str] | None, typer.Option(help="PLAN.json@SECONDS: experts move there. Repeatable.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Built-in name or model directory; default the plan's model.")
    ] = None,
    caches: Annotated[
        bool, typer.Option("--vram-cache", help="Also compare fixed experts in VRAM with caches there.")
    ] = False,
    json: Json = False,
) -> None:
    """Replay a trace through a plan: step times, tokens/s, what is busy and what bounds each layer."""
    loaded = read_plan(plan)
    shape = shape_of(loaded, plan, model)
    check_plan(loaded, plan, shape)
    workload = workload_of(
        WorkloadOptions(tokens_per_step, accept, context, head_bits), shape, loaded.dtype, loaded.workload
    )
    acceptance = acceptance_of(workload, seed)
    tokens = tokens_of(trace, shape, in_flight, workload)
    boxes, system, notes = load_system(loaded, plan, cluster, shape, workload, is_assumed=context is None)
    events: list[Event] = [loss_of(text, loaded) for text in lose or ()]
    events += [new_plan_of(text, loaded, plan, boxes) for text in new_plan or ()]
    report = run(system, streams_of(tokens, in_flight, workload, acceptance), events)
    spread = range_for(system.problem, loaded.holder_table, packaged_spreads())
    speed = LikelySpeed(report.tokens_per_s, spread)
    cache = vram_cache(system.problem, tokens) if caches else None
    if json:
        own = {"range": range_fields(speed), "vram_cache": cache_fields(cache)}
        print_json(document(report, shape, workload, notes) | own)
        return
    for part in tables(report, shape):
        console.print(part)
    console.print(f"{likely(speed)} tokens/s are likely. {basis_sentence(spread)}")
    if cache is not None:
        console.print(cache_table(cache))
    console.print(f"Assumed: {describe(workload)}.")
    for note in (*notes, *report.notes):
        print_note(note)
    if report.stopped is not None:
        print_note(f"the run ended early: {report.stopped}")


def document(
    report: SimulationReport, shape: ModelShape, workload: Workload, notes: Sequence[str]
) -> dict[str, Any]:
    """The `--json` document; docs/simulator.md lists its keys."""
    return {
        "method": report.method,
        "workload": workload_fields(workload),
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
        "notes": [*notes, *report.notes],
        "stopped": report.stopped,
    }


def cache_fields(cache: VramCache | None) -> dict[str, Any] | None:
    """The rules of `--vram-cache` in the `--json` document."""
    if cache is None:
        return None
    rules = [
        {
            "rule": result.rule.value,
            "hit_share": result.hit_share,
            "moe_s_per_token": result.moe_s_per_token,
            "copied_bytes_per_step": result.copied_bytes / result.num_steps,
        }
        for result in cache.results
    ]
    return {"chosen": cache.chosen.value, "rules": rules}


def cache_table(cache: VramCache) -> Group:
    """The same for people."""
    rows = [
        (
            result.rule.value,
            share(result.hit_share),
            f"{1000 * result.moe_s_per_token:.2f}",
            size(result.copied_bytes / result.num_steps),
        )
        for result in cache.results
    ]
    title = f"VRAM on the text's second half: {cache.chosen.value} is chosen"
    return table(title, ("experts", "hits", "MoE ms a token", "copied a step"), rows)


def tables(report: SimulationReport, shape: ModelShape) -> list[Group | str]:
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
