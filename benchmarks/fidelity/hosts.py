"""Predicted beside measured on clusters: `python -m benchmarks.fidelity.hosts [--only NUMBER] [--json FILE]`.

Needs root, ip, tc and sshd (`benchmarks/namespaces.py`), and two cores; ten minutes where nothing else runs.
Every row is printed and kept as soon as it is measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.fidelity.boxes import HEAD as HEAD_NODE
from benchmarks.fidelity.boxes import (
    BoxSetup,
    Figures,
    cluster_of,
    head_experts,
    name_of,
    on_the_heads_core,
    probe_boxes,
    probe_links,
    running_boxes,
)
from benchmarks.fidelity.kept_rows import KeptRows, at_most, ended_tidily
from benchmarks.fidelity.model import write_model
from benchmarks.fidelity.run import Comparison, Model, Recorded, Times, predicted_times, record, timed_run
from benchmarks.namespaces import Host, hosts
from placement.errors import PotluckError
from placement.holders import HolderTable
from placement.model_shape import ModelShape
from placement.plan import LOCAL_WORKER, Plan, PlannedTier, like_layers
from transport.client import WorkerClient
from workers.probe.others import OthersShare
from workers.tiers import ExpertTier

NET = "10.36.0.0/24"
SETUP_S = 600.0
"""What takes longer is given up: on a machine where nothing else runs a setup takes about a minute."""


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
    """One setup with a number of drafts.

    Attributes:
        others: share of the cores that other programs took.
        parts_s: seconds of a step and of the prompt by part, of the prediction (the head alone) and of the
            last run: they tell which term is wrong where the error is large.
    """

    setup: str
    is_played: bool
    drafts: int
    decode: Comparison
    prefill: Comparison
    others: float
    parts_s: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


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
    model: Model, setup: HostsSetup, machines: Sequence[Host], before: Figures, rounds: int, tokens: int
) -> tuple[list[HostsLayout], Figures]:
    """Run every number of drafts `rounds` times, and probe the boxes again.

    Its links are probed while its workers wait; each prediction is the mean of those from the probes around.

    Args:
        before: a probe of the boxes right before, its links left aside.

    Returns:
        The layouts, and the probe after.
    """
    plan = plan_of(model.shape, setup)
    local = head_experts(plan, model, {})
    with running_boxes(plan, model, setup.boxes, machines) as clients:
        links = probe_links(setup.boxes, machines)
        recorded = {drafts: record(model, plan, local, clients, drafts, tokens) for drafts in setup.drafts}
        others = OthersShare()
        runs = [_runs(model, plan, local, clients, recorded, tokens) for _ in range(rounds)]
        taken = others.share()
    after = probe_boxes(machines[0], model.directory)
    layouts = []
    for drafts, kept in recorded.items():
        around = [
            predicted_times(model, plan, cluster_of(replace(f, links=links), setup.boxes), drafts, kept)
            for f in (before, after)
        ]
        predicted, times = _mean(around), [run[drafts] for run in runs]
        layouts.append(
            HostsLayout(
                setup.name,
                setup.is_played,
                drafts,
                Comparison([predicted.decode_s] * rounds, [run.decode_s for run in times]),
                Comparison([predicted.prefill_s] * rounds, [run.prefill_s for run in times]),
                taken,
                {
                    "predicted, a step": around[-1].decode_parts_s,
                    "measured, a step": times[-1].decode_parts_s,
                    "predicted, the prompt": around[-1].prefill_parts_s,
                    "measured, the prompt": times[-1].prefill_parts_s,
                },
            )
        )
    return layouts, after


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


def _mean(times: Sequence[Times]) -> Times:
    return Times(sum(t.decode_s for t in times) / len(times), sum(t.prefill_s for t in times) / len(times))


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Of each setup: runs between probes.")] = 3,
    tokens: Annotated[int, typer.Option(min=2, help="Generated in each run.")] = 17,
    only: Annotated[
        list[int] | None, typer.Option(help="Setups by number, from 1; all when left out.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Folder to keep the model in.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Keep rows here; those it has are in the summary too.")
    ] = None,
) -> None:
    """Run every setup, print each row as it is measured, and sum up, real and played apart."""
    kept, failed = KeptRows(json_file), 0
    with ExitStack() as stack:
        stack.enter_context(ended_tidily())
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(on_the_heads_core())
        loaded = Model.load(write_model(model or scratch))
        chosen = {n: setup for n, setup in enumerate(SETUPS, 1) if not only or n in only}
        machines = stack.enter_context(hosts(max(len(setup.boxes) for setup in chosen.values()), NET))
        before: Figures | None = None
        print(HEADING, flush=True)
        for number, setup in chosen.items():
            try:
                with at_most(SETUP_S):
                    before = before or probe_boxes(machines[0], loaded.directory)
                    layouts, before = run_setup(loaded, setup, machines, before, rounds, tokens)
            except (PotluckError, RuntimeError, OSError) as error:
                print(f"{number}  {setup.name}: no figures: {error}", flush=True)
                before, failed = None, failed + 1
                continue
            for layout in layouts:
                print(line(number, layout), flush=True)
                kept.keep(f"{number}, {layout.drafts} drafts", asdict(layout) | {"setup": setup.name})
    for sentence in summary([of_document(row) for row in kept.rows.values()]):
        print(sentence)
    raise typer.Exit(1 if failed else 0)


HEADING = (
    f"{'':2} {'layout':40} drafts  {'step ms: predicted':>18} {'measured':>14} {'error':>7}"
    f"  {'prompt ms: predicted':>20} {'measured':>14} {'error':>7}  others"
)


def line(number: int, layout: HostsLayout) -> str:
    """A row; `others`: share of the cores that other programs took."""
    decode, prefill = _cells(layout.decode, 18), _cells(layout.prefill, 20)
    what = f"{layout.setup}{' (played)' if layout.is_played else ''}"
    return f"{number:2} {what:40} {layout.drafts:6}  {decode}  {prefill}  {layout.others:6.1%}"


def _cells(times: Comparison, width: int) -> str:
    measured = f"{median(times.measured_s) * 1e3:.1f} ±{times.spread:.1%}"
    return f"{median(times.predicted_s) * 1e3:{width}.1f} {measured:>14} {times.error:+7.1%}"


def summary(layouts: Sequence[HostsLayout]) -> Iterator[str]:
    """Errors of all layouts, real and played apart."""
    for is_played, what in ((False, "real"), (True, "played")):
        same = [layout for layout in layouts if layout.is_played == is_played]
        for part in ("decode", "prefill"):
            errors = [abs(getattr(layout, part).error) for layout in same]
            if errors:
                yield (
                    f"{what} boxes, {part}: median error {median(errors):.1%}, worst {max(errors):.1%}, of "
                    f"{len(errors)} layouts"
                )


def of_document(row: Mapping[str, Any]) -> HostsLayout:
    """A layout as `asdict` wrote it."""
    return HostsLayout(
        **{**row, "decode": Comparison(**row["decode"]), "prefill": Comparison(**row["prefill"])}
    )


if __name__ == "__main__":
    typer.run(main)
