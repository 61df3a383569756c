"""`potluck whatif`: which single change to the boxes buys most speed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from orchestrator.cli.inputs import given_model, planned_form
from orchestrator.cli.options import Json, Quant
from orchestrator.cli.output import console, errors, print_json, print_note, table
from orchestrator.cli.planning_only import planning_only_note
from orchestrator.cli.range_words import basis_sentence, likely, range_fields
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
from placement.answers.planner import DEFAULT_POLICY
from placement.answers.prediction_range import SpeedRange
from placement.answers.study.routing_source import FileSource, Routing, RoutingSource, SyntheticSource
from placement.answers.whatif import Outcome, WhatIf, changes, rank_changes, reached_bytes_per_s
from placement.given.cluster_file import load_known_cluster
from placement.given.cluster_spec import LinkSpec
from placement.given.traces import GENERAL
from placement.hardware.spread import packaged_spreads
from placement.policies.registry import POLICIES, RUN_POLICIES
from placement.units import gain_of
from placement.workload import describe
from placement.workload_fields import workload_fields

USUAL_CABLE = "ethernet-2.5g"


def whatif(
    cluster: Annotated[
        Path, typer.Argument(help="Cluster file; its prices, where given, are shown.", metavar="CLUSTER")
    ],
    model: Annotated[
        str, typer.Option(help="Built-in name such as step-3.5-flash, model directory or GGUF file.")
    ],
    quant: Quant = None,
    stats: Annotated[
        Path | None, typer.Option(help="Routing file with a trace; without it synthetic general text.")
    ] = None,
    tokens_per_step: TokensPerStep = None,
    accept: Accept = None,
    context: Context = None,
    head_bits: HeadBits = None,
    prompt_ratio: PromptRatio = None,
    policy: Annotated[
        str, typer.Option(help=f"How each variant is planned: {', '.join((*POLICIES, *RUN_POLICIES))}.")
    ] = DEFAULT_POLICY,
    cable_round_trip: Annotated[
        float,
        typer.Option(min=0, help="Seconds over a new cable: in place of Wi-Fi, or to a box like the head's."),
    ] = 3e-4,
    cable_gbits: Annotated[
        float | None,
        typer.Option(min=0.001, help="Gbit/s of a new cable; without it what 2.5 gigabit Ethernet carries."),
    ] = None,
    json: Json = False,
) -> None:
    """Rank single changes to a cluster by tokens per second."""
    given = given_model(model)
    shape = given.shape
    check_finite("--cable-round-trip", cable_round_trip)
    cable_rate = reached_bytes_per_s(USUAL_CABLE)
    if cable_gbits is not None:
        check_finite("--cable-gbits", cable_gbits)
        cable_rate = cable_gbits * 1e9 / 8
    kept = planned_form(given, quant, None)
    form = kept.expert_form
    expert_bytes = max(layer.expert_bytes for layer in kept.layers)
    workload = workload_of(
        WorkloadOptions(tokens_per_step, accept, context, head_bits, prompt_ratio),
        shape,
        kept.form,
        head=kept.head,
    )
    boxes = load_known_cluster(cluster, print_note)
    source: RoutingSource = SyntheticSource("general", GENERAL, GENERAL, 3072, 0)
    if stats is not None:
        source = FileSource(stats.name, stats, None)
    routing: Routing = source.load(shape)
    possible = list(changes(boxes, LinkSpec(cable_round_trip, cable_rate)))
    print_note(f"planning {1 + len(possible)} clusters, some seconds each …")
    result = rank_changes(
        shape,
        boxes,
        track(possible, description="changes", console=errors, transient=True),
        expert_bytes,
        routing,
        workload,
        policy=policy,
        spreads=packaged_spreads(),
        expert_form=form,
        layer_wires=kept.wires,
    )
    if json:
        print_json(
            {
                "workload": workload_fields(workload),
                "now": _document(result, result.now),
                "changes": [_document(result, outcome) for outcome in result.outcomes],
            }
        )
        return
    heading: tuple[str, ...] = ("change", "tokens/s", "likely", "gain", "remote layers")
    if any(change.price is not None for change in possible):
        heading += ("price", "gain for 100")
    rows = [row[: len(heading)] for row in ranking_rows(result)]
    console.print(table(f"{shape.name} in {form}: what one change buys", heading, rows))
    if ranges := _ranges(result):
        console.print(
            f"{' '.join(map(basis_sentence, ranges))} Changes of one number differ by no more, nor do those "
            "without one from what there is."
        )
    console.print(f"Assumed: {describe(workload)}.")
    if result.now.note:
        print_note(f"as it is: {result.now.note}")
    if (planning_only := planning_only_note([boxes])) is not None:
        print_note(planning_only)
    if kept.note is not None:
        print_note(kept.note)
    if stats is None:
        print_note("routing is synthetic general text; --stats FILE.npz makes this about your own")


def _document(result: WhatIf, outcome: Outcome) -> dict[str, object]:
    return {
        "what": outcome.what,
        "price": outcome.price,
        "place": outcome.place,
        "verdict": outcome.verdict,
        "tokens_per_s": outcome.tokens_per_s,
        "range": range_fields(outcome.speed),
        "remote_layers_per_token": outcome.remote_layers_per_token,
        "note": outcome.note,
        "gain": result.gain(outcome),
    }


def ranking_rows(result: WhatIf) -> list[tuple[str, ...]]:
    """The cluster as it is, changes that have a place, the others behind a line with their verdict."""
    rows = [_line(result, result.now)]
    said = None
    for outcome in result.outcomes:
        if outcome.verdict != said and outcome.place is None and outcome.speed is not None:
            rows.append((f"{outcome.verdict}:", *[""] * (len(rows[0]) - 1)))
        said = outcome.verdict
        rows.append(_line(result, outcome))
    return rows


def _line(result: WhatIf, outcome: Outcome) -> tuple[str, ...]:
    if outcome.speed is None or outcome.remote_layers_per_token is None:
        return outcome.what, "does not fit", "", "", "", _price(outcome.price), ""
    gain = result.gain(outcome)
    is_now = outcome is result.now
    return (
        outcome.what if outcome.place is None else f"{outcome.place}. {outcome.what}",
        f"{outcome.speed.tokens_per_s:.2f}",
        likely(outcome.speed),
        "" if is_now else "now fits" if gain is None else gain_of(gain),
        f"{outcome.remote_layers_per_token:.1f}",
        _price(outcome.price),
        "" if is_now or gain is None or not outcome.price else f"{100 * gain / outcome.price * 100:+.1f}%",
    )


def _ranges(result: WhatIf) -> list[SpeedRange]:
    """One for each kind of figures that a speed is from."""
    speeds = [outcome.speed for outcome in (result.now, *result.outcomes) if outcome.speed is not None]
    return list({speed.range.basis: speed.range for speed in speeds}.values())


def _price(price: float | None) -> str:
    return "" if price is None else f"{price:.0f}"
