"""`potluck up`: bring a cluster's boxes up and start the workers of a plan on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from orchestrator.cli.inputs import model_folder
from orchestrator.cli.options import Json
from orchestrator.cli.output import once, print_error, print_json, print_note
from orchestrator.cluster.launcher_file import load_launcher
from orchestrator.cluster.ssh import Ssh
from orchestrator.cluster.up import Raised, raise_cluster
from placement.plan import Plan


def up(
    cluster: Annotated[Path, typer.Argument(help="Cluster file.", metavar="CLUSTER")],
    model: Annotated[Path, typer.Option(help="Model directory or GGUF file, on every box.")],
    plan: Annotated[
        Path | None, typer.Option(help="Plan of `potluck plan`. Left out: the last one, or a new one.")
    ] = None,
    survive: Annotated[
        int | None, typer.Option(min=0, help="Plan anew, to lose so many boxes without reading disks.")
    ] = None,
    json: Json = False,
) -> None:
    """Start a cluster: Ray, keys and the workers of a plan, on all boxes that are there."""
    launcher = load_launcher(cluster)
    note = once(print_note)

    def tell(line: str) -> None:
        if not json:
            note(line)

    for line in launcher.notes:
        note(line)
    with Ssh() as ssh:
        raised = raise_cluster(launcher, model_folder(model), plan, survive, ssh, tell)
    # Those that were seen to be missing before anything began were named then.
    for why in raised.state.missing.values():
        note(f"missing: {why}")
    if json:
        print_json(document(raised))
    elif not raised.lost_experts:
        is_alone = not raised.state.workers and not raised.state.missing and bool(launcher.others)
        for line in placed(raised.plan, raised.state.head if is_alone else None):
            print_note(line)
        print_note(
            f"up: `potluck generate --cluster {cluster} …` uses it, `potluck status {cluster}` shows it"
        )
    if raised.lost_experts:
        print_error(
            f"{raised.lost_experts:,} experts are on no box that is up: mend what misses, and it is taken "
            f"in (`potluck status {cluster}` shows it); or plan without these boxes"
        )
        raise typer.Exit(2)


def placed(plan: Plan, alone: str | None) -> Iterator[str]:
    """How many experts come from disks, box by box, and why boxes stay idle.

    Args:
        alone: the head's node where the plan leaves all others idle.
    """
    masks = plan.holder_table.masks(len(plan.tiers))
    is_disk = np.array([tier.kind == "disk" for tier in plan.tiers])
    for worker in plan.workers:
        tiers = list(worker.tiers)
        held = masks[tiers].any(axis=0)
        on_disk = held & ~masks[tiers][~is_disk[tiers]].any(axis=0)
        if on_disk.any():
            yield f"{worker.node}: {on_disk.sum():,} of its {held.sum():,} experts are on its disk"
    if alone is not None:
        yield (
            f"all experts are on {alone}: the plan leaves the other boxes idle. `potluck plan` says why; its "
            "--policy uniform --survive 0 spreads them over all boxes"
        )


def document(raised: Raised) -> dict[str, object]:
    """The JSON that scripts rely on (docs/json.md)."""
    state = raised.state
    return {
        "cluster": state.cluster,
        "head": state.head,
        "ray_address": state.ray_address,
        "model": state.model_path,
        "plan": state.plan,
        "usable": not raised.lost_experts,
        "lost_experts": raised.lost_experts,
        "keeper": raised.keeper,
        "workers": [
            {"name": worker.name, "node": worker.node, "pid": worker.pid, "num_experts": worker.num_experts}
            for worker in state.workers
        ],
        "missing": dict(state.missing),
        "seconds": {name: round(seconds, 3) for name, seconds in raised.seconds.items()},
    }
