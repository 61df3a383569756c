"""Predicted beside measured on clusters: `python -m benchmarks.fidelity.hosts [--rounds 3] [--only NAME]`.

Needs root, ip, tc and sshd (`benchmarks/namespaces.py`), and two cores.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.fidelity.boxes import HEAD as HEAD_NODE
from benchmarks.fidelity.boxes import (
    BoxSetup,
    Figures,
    cluster_of,
    head_experts,
    name_of,
    on_the_heads_core,
    probe_boxes,
    running_boxes,
)
from benchmarks.fidelity.model import write_model
from benchmarks.fidelity.run import Comparison, Model, Recorded, Times, predicted_times, record, timed_run
from benchmarks.namespaces import Host, hosts
from placement.holders import HolderTable
from placement.model_shape import ModelShape
from placement.plan import LOCAL_WORKER, Plan, PlannedTier, like_layers
from transport.client import WorkerClient
from workers.probe.others import OthersShare
from workers.tiers import ExpertTier

NET = "10.36.0.0/24"


@dataclass(frozen=True, slots=True)
class HostsSetup:
    """`head_share`: of the experts in the head's process."""

    name: str
    head_share: float
    boxes: tuple[BoxSetup, ...]
    drafts: tuple[int, ...] = (0, 3)

    @property
    def is_played(self) -> bool:
        return any(box.pace_bytes_per_s for box in self.boxes)


_SLOW, _SLOWER = 1.0e9, 0.5e9

SETUPS = (
    HostsSetup("head and 1 box, 1 Gbit/s", 0.5, (BoxSetup(0.5),)),
    HostsSetup("head and 1 box, 2.5 Gbit/s", 0.5, (BoxSetup(0.5, "2500mbit"),)),
    HostsSetup("all on 1 box, 1 Gbit/s", 0.0, (BoxSetup(1.0),)),
    HostsSetup("all on 1 box, 2.5 Gbit/s", 0.0, (BoxSetup(1.0, "2500mbit"),)),
    HostsSetup("head and 1 box, 2 ms away", 0.5, (BoxSetup(0.5, delay_s=1e-3),)),
    HostsSetup("head and 1 slow box, 1 Gbit/s", 0.75, (BoxSetup(0.25, pace_bytes_per_s=_SLOW),)),
    HostsSetup(
        "head and 3 boxes, 2.5 Gbit/s", 0.25, (BoxSetup(0.25, "2500mbit", pace_bytes_per_s=_SLOWER),) * 3
    ),
    HostsSetup("4 boxes, 1 Gbit/s", 0.0, (BoxSetup(0.25, pace_bytes_per_s=_SLOWER),) * 4),
    HostsSetup(
        "head and 3 unequal boxes, one 4 ms away",
        0.25,
        (
            BoxSetup(0.25, "2500mbit", pace_bytes_per_s=_SLOW),
            BoxSetup(0.25, pace_bytes_per_s=_SLOWER),
            BoxSetup(0.25, delay_s=2e-3, pace_bytes_per_s=_SLOWER),
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class HostsLayout:
    """One setup with a number of drafts. `others`: share of the cores that other programs took, at most."""

    setup: str
    is_played: bool
    drafts: int
    decode: Comparison
    prefill: Comparison
    others: float


def plan_of(shape: ModelShape, setup: HostsSetup) -> Plan:
    """Experts dealt by lot, in every layer as many to each as its share says."""
    expert_bytes = shape.expert_bytes(32)
    holders = [(LOCAL_WORKER, HEAD_NODE, setup.head_share, LOCAL_WORKER)] if setup.head_share else []
    holders += [(f"{name_of(i)}-ram", name_of(i), box.share, name_of(i)) for i, box in enumerate(setup.boxes)]
    ends = np.rint(np.cumsum([share for _, _, share, _ in holders]) * shape.num_experts).astype(int)
    counts = np.diff(ends, prepend=0)
    lots = np.random.default_rng(7)
    tiers = np.repeat(np.arange(len(holders)), counts)
    table = np.stack([lots.permutation(tiers) for _ in range(shape.num_moe_layers)])
    budgets = (counts * shape.num_moe_layers * expert_bytes).tolist()
    return Plan(
        shape.name,
        shape.fingerprint,
        like_layers(shape.moe_layers, "float32", expert_bytes),
        "float32",
        tuple(
            PlannedTier(name, node, "cpu", "ram", budget, worker=worker)
            for (name, node, _, worker), budget in zip(holders, budgets, strict=True)
        ),
        HolderTable.from_single(table),
        "by lot",
    )


def run_setup(
    model: Model, setup: HostsSetup, machines: Sequence[Host], rounds: int, tokens: int
) -> list[HostsLayout]:
    """Probe, run all drafts, probe, … : each run is predicted by the mean of the probes around it."""
    plan = plan_of(model.shape, setup)
    local = head_experts(plan, model, {})
    with running_boxes(plan, model, setup.boxes, machines) as clients:
        recorded = {drafts: record(model, plan, local, clients, drafts, tokens) for drafts in setup.drafts}
        before = probe_boxes(setup.boxes, machines)
        found: dict[int, list[tuple[Times, Times]]] = {drafts: [] for drafts in recorded}
        others_at_most = 0.0
        for _ in range(rounds):
            others = OthersShare()
            runs = _runs(model, plan, local, clients, recorded, tokens)
            others_at_most = max(others_at_most, others.share())
            after = probe_boxes(setup.boxes, machines)
            for drafts, times in runs.items():
                around = [_predict(model, plan, setup, f, recorded[drafts], drafts) for f in (before, after)]
                found[drafts].append((_mean(around), times))
            before = after
    return [
        HostsLayout(
            setup.name,
            setup.is_played,
            drafts,
            Comparison([p.decode_s for p, _ in pairs], [m.decode_s for _, m in pairs]),
            Comparison([p.prefill_s for p, _ in pairs], [m.prefill_s for _, m in pairs]),
            others_at_most,
        )
        for drafts, pairs in found.items()
    ]


def _runs(
    model: Model,
    plan: Plan,
    local: ExpertTier | None,
    clients: Mapping[str, WorkerClient],
    recorded: Mapping[int, Recorded],
    tokens: int,
) -> dict[int, Times]:
    return {
        drafts: timed_run(model, plan, local, clients, drafts, tokens, kept)
        for drafts, kept in recorded.items()
    }


def _predict(
    model: Model, plan: Plan, setup: HostsSetup, figures: Figures, kept: Recorded, drafts: int
) -> Times:
    return predicted_times(model, plan, cluster_of(figures, setup.boxes), drafts, kept)


def _mean(times: Sequence[Times]) -> Times:
    return Times(sum(t.decode_s for t in times) / len(times), sum(t.prefill_s for t in times) / len(times))


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Of each setup: runs between probes.")] = 3,
    tokens: Annotated[int, typer.Option(min=2, help="Generated in each run.")] = 17,
    only: Annotated[list[str] | None, typer.Option(help="Names of setups; all when left out.")] = None,
    model: Annotated[Path | None, typer.Option(help="Folder to keep the model in.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the layouts here.")] = None,
) -> None:
    """Run every layout and print its table, real and played apart."""
    console = Console()
    setups = [setup for setup in SETUPS if not only or setup.name in only]
    layouts: list[HostsLayout] = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(on_the_heads_core())
        loaded = Model.load(write_model(model or scratch))
        machines = stack.enter_context(hosts(max(len(setup.boxes) for setup in setups), NET))
        for setup in setups:
            layouts += run_setup(loaded, setup, machines, rounds, tokens)
            console.print(f"{setup.name}: others took at most {layouts[-1].others:.1%}")
            if json_file is not None:
                json_file.write_text(json.dumps([_document(layout) for layout in layouts], indent=1) + "\n")
    for is_played, what in ((False, "real boxes"), (True, "played boxes")):
        same = [layout for layout in layouts if layout.is_played == is_played]
        if same:
            console.print(table(what, same))
    for part in ("decode", "prefill"):
        errors = [abs(getattr(layout, part).error) for layout in layouts]
        console.print(f"{part}: median error {median(errors):.1%}, worst {max(errors):.1%}")


def table(title: str, layouts: Sequence[HostsLayout]) -> Table:
    part = ("measured", "spread", "error")
    found = Table("layout", "drafts", "step ms", *part, "prefill ms", *part, title=title)
    for layout in layouts:
        cells = []
        for times in (layout.decode, layout.prefill):
            cells += [
                f"{median(times.predicted_s) * 1000:.1f}",
                f"{median(times.measured_s) * 1000:.1f}",
                f"±{times.spread:.1%}",
                f"{times.error:+.1%}",
            ]
        found.add_row(layout.setup, str(layout.drafts), *cells)
    return found


def _document(layout: HostsLayout) -> dict[str, object]:
    return {
        "setup": layout.setup,
        "played": layout.is_played,
        "drafts": layout.drafts,
        "others": layout.others,
        **{
            f"{part}_{field}": getattr(getattr(layout, part), field)
            for part in ("decode", "prefill")
            for field in ("predicted_s", "measured_s")
        },
    }


if __name__ == "__main__":
    typer.run(main)
