"""`potluck status`: how a cluster's boxes are."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import Json
from orchestrator.cli.output import age, console, print_json, print_note, table
from orchestrator.cluster.launcher_file import load_launcher
from orchestrator.cluster.status import BoxStatus, ClusterStatus, cluster_status
from orchestrator.migration.migration import MigrationState
from placement.units import size
from workers.spec import LINGER_S


def status(
    cluster: Annotated[Path, typer.Argument(help="Cluster file.", metavar="CLUSTER")],
    json: Json = False,
) -> None:
    """Show each box of a running cluster: what it holds, since when, its last word."""
    launcher = load_launcher(cluster)
    found = cluster_status(launcher)
    if json:
        print_json(document(found))
        return
    now = time.time()
    rows = [_row(box, now) for box in found.boxes]
    columns = ("box", "state", "experts", "memory", "since", "round trip")
    console.print(table(f"{found.state.cluster}: {found.state.model_path}", columns, rows))
    for line in words(found, now):
        print_note(line)


def words(found: ClusterStatus, now: float) -> list[str]:
    """What the table does not say. `now`: seconds since 1970."""
    lines = [
        # Why a box is missing names it already.
        box.word if box.word.startswith(box.node) else f"{box.node}: {box.word}"
        for box in found.boxes
        if box.word
    ]
    idle = [box.node for box in found.boxes if box.state == "idle"]
    if idle:
        lines.append(f"{', '.join(idle)}: idle, because the plan puts no experts there")
    if found.lost_experts:
        lines.append(f"{found.lost_experts:,} experts are in no box's memory")
    if found.migration is not None:
        lines.append(_moving(found.migration, now))
    if found.keeper is None:
        lines.append(
            "the keeper does not run: boxes that come back are not taken in, and workers end when no run has "
            f"spoken to them for {LINGER_S:g} s; run `potluck up` again"
        )
    elif found.keeper_word:
        lines.append(f"keeper: {found.keeper_word}")
    return lines


def document(found: ClusterStatus) -> dict[str, object]:
    """The JSON that scripts rely on (docs/json.md)."""
    return {
        "cluster": found.state.cluster,
        "head": found.state.head,
        "model": found.state.model_path,
        "plan": found.state.plan,
        "started": found.state.started,
        "lost_experts": found.lost_experts,
        "keeper": {"pid": found.keeper, "last_word": found.keeper_word},
        "linger_s": LINGER_S,
        "migration": None if found.migration is None else asdict(found.migration),
        "boxes": [asdict(box) for box in found.boxes],
    }


def _moving(last: MigrationState, now: float) -> str:
    """What a run decided last about moving experts."""
    line = f"moving experts, {age(now - last.decided_s)} ago: {last.phase}: {last.reason}"
    if last.payback_s is not None:
        line += f"; pays within {math.ceil(last.payback_s)} s"
    if last.moved_experts:
        line += f"; {last.moved_experts:,} experts ({size(last.moved_bytes)}) have moved"
    return line


def _row(box: BoxStatus, now: float) -> tuple[str, ...]:
    serves = box.state in ("ready", "up", "loading")
    return (
        box.node if box.role != "head" else f"{box.node} (head)",
        box.state,
        f"{box.num_experts:,}" if serves else "",
        size(box.held_bytes) if serves else "",
        age(now - box.since) if box.since else "",
        f"{1e3 * box.round_trip_s:.1f} ms" if box.round_trip_s is not None else "",
    )
