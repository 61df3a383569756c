"""A file twice the memory budget: what the planner says of it, and what a run takes.

    python -m benchmarks.disk_plan FOLDER [--moe-layers 2] [--experts q4_k] [--turns 24]

FOLDER takes a random model of the real shapes (6 GB with 2 MoE layers), which is deleted at the end. The
budget of this machine's memory holds half of its experts, the other half stays on the disk. No figure of the
prediction comes from the run: the disk's rate is a plain loop's of direct reads, the memory's and the
kernels' are probed, and the software between matrices is measured on a model with small experts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.disk_tier import PlainLoop
from benchmarks.random_gguf import SMALL, FileShape, FileTypes, expert_types, write_random_gguf
from benchmarks.real_size.machine import Machine, probe
from benchmarks.real_size.measured import Passes
from benchmarks.real_size.predict import NODE, Layout, memory_device, narrow, software
from benchmarks.real_size.run import DTYPE, measure, start, timed_passes, tokens_of
from benchmarks.real_size.work import FileWork
from benchmarks.timing import best_s
from orchestrator.sampling import Sampler, choose_in_ram
from orchestrator.sampling_params import GREEDY
from orchestrator.session import open_session
from placement.answers.planner import DEFAULT_POLICY, as_plan
from placement.given.cluster_spec import ClusterSpec, DeviceSpec, NodeSpec
from placement.given.head_memory import head_memory_bytes
from placement.given.problem import problem_for
from placement.model_shape import ModelShape
from placement.plan import Plan, planned_layers, wires_of
from placement.policies.registry import find_policy
from placement.units import size
from placement.workload import DEFAULT_CONTEXT, Workload
from workers.disk.tier import DiskTier
from workers.formats.open_model import kept_forms, open_model
from workers.holdings import Holdings

PROBE_BYTES = 2 * 10**9
"""Of the disk, read before the run and after it."""
SHORT = 16
"""Tokens before the passes."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Passes of one number of rows, and the bytes that the disk gave in each of them on average."""

    passes: Passes
    read_bytes: float
    hit_share: float


def half_in_memory(model: Path, machine: Machine, disk_bytes_per_s: float) -> tuple[Plan, ClusterSpec]:
    """The planner's own plan of a box whose memory holds half of the experts beside the head."""
    opened = open_model(model)
    config, checkpoint = opened
    shape = opened.shape
    layers = planned_layers(shape, kept_forms(checkpoint, config, DTYPE))
    work = FileWork.of(model, shape)
    workload = Workload(
        context=DEFAULT_CONTEXT,
        head_bits_per_weight=work.head_bits,
        head_forms=work.head_forms,
    )
    expert_bytes = max(layer.expert_bytes for layer in layers)
    budget = shape.num_routed_experts // 2 * expert_bytes + head_memory_bytes(shape, workload)
    ram = memory_device("ram", machine, budget)
    disk = DeviceSpec("disk", "disk", "cpu", 10**12, 0, disk_bytes_per_s, machine.prompt_flops_per_s)
    cluster = ClusterSpec(NODE, (NodeSpec(NODE, None, (ram, disk), None),))
    form = layers[0].form
    wires = wires_of(layers, DTYPE)
    problem = problem_for(shape, cluster, expert_bytes, None, workload, expert_form=form, layer_wires=wires)
    table = find_policy(DEFAULT_POLICY)(problem)
    return as_plan(problem, table, DEFAULT_POLICY, form.split("/")[0], layers=layers), cluster


def run(model: Path, plan: Plan, rows: Sequence[int], turns: int) -> Iterator[Measured]:
    """Time the plan in this process."""
    random = np.random.default_rng(1)
    with open_session(open_model(model), plan) as session:
        head = session.head
        (disk,) = disk_tiers(session.local)
        text = start(head, tokens_of(random, head, SHORT), max_tokens=10**6)
        # A slot's memory comes with its first expert.
        timed_passes(head, [text], max(rows), 8, random)
        for number in rows:
            before = replace(disk.counts)
            passes = timed_passes(head, [text], number, turns, random)
            counts, asked = disk.counts, disk.counts.asked - before.asked
            # One pass more warms up.
            read = (counts.read_bytes - before.read_bytes) / (turns + 1)
            yield Measured(passes, read, (counts.hits - before.hits) / max(1, asked))


def disk_tiers(local: Holdings) -> list[DiskTier]:
    return [tier for tier in local.tiers if isinstance(tier, DiskTier)]


def main(
    folder: Annotated[Path, typer.Argument(help="For the model, which is deleted at the end.")],
    moe_layers: Annotated[int, typer.Option(min=1, help="About 2.55 GB each in q4_k.")] = 2,
    experts: Annotated[str, typer.Option(help="A form or gate/up/down; layers with commas.")] = "q4_k",
    turns: Annotated[int, typer.Option(min=1, help="Passes of each number of rows.")] = 24,
    threads: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
    small: Annotated[bool, typer.Option("--small", help="Shapes of tests, for a try.")] = False,
) -> None:
    """Plan, predict, run, print both."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    shape = replace(SMALL if small else FileShape(), moe_layers=moe_layers, mtp_layers=0)
    types = FileTypes(expert_types(experts))
    model = write_random_gguf(folder / "disk-plan.gguf", shape, types)
    slim = write_random_gguf(folder / "narrow.gguf", narrow(shape), types)
    try:
        compare(model, slim, threads, turns, PROBE_BYTES if not small else 10**7)
    finally:
        model.unlink()
        slim.unlink()


def compare(model: Path, slim: Path, threads: int, turns: int, probe_bytes: int) -> None:
    """Predict a model's passes from probes and the narrow model `slim`, run it, print the table."""
    console, rows = Console(width=110), (1, 2, 4)
    forms = sorted(FileWork.of(model, _shape(model)).forms, key=lambda form: form.name)
    machine = probe(forms, threads)
    own = measure(slim, 0, rows=(1, 2, 3, 4, 8), context=0, turns=4 * turns, prefill_tokens=512)
    logits, choice = torch.randn(_shape(model).vocab_size), Sampler(GREEDY).choice(0)
    choice_s = best_s(lambda: choose_in_ram(logits.numpy(), choice))
    found = software(slim, own, None, (machine, machine), None, choice_s)
    before = disk_rate(model, probe_bytes)
    plan, cluster = half_in_memory(model, machine, before)
    held = dict(zip((tier.name for tier in plan.tiers), plan.experts_per_tier().tolist(), strict=True))
    measured = list(run(model, plan, rows, turns))
    after = disk_rate(model, probe_bytes)
    rate = fmean((before, after))
    layout = found.put_into(Layout(plan, FileWork.of(model, _shape(model)), with_disk_rate(cluster, rate)))
    total_bytes = sum(tier.budget_bytes for tier in plan.tiers if tier.kind == "ram")
    console.print(
        f"{held} experts, {size(total_bytes)} of memory for them; it reads at "
        f"{machine.read_bytes_per_s / 1e9:.1f} GB/s, the disk at {before / 1e9:.2f} GB/s before and "
        f"{after / 1e9:.2f} after; {threads} threads"
    )
    table = Table("rows", "measured", "least", "predicted", "ratio", "read a pass", "predicted", "cache hits")
    on_disk = plan.holder_table.table[:, :, 0] == [tier.kind for tier in plan.tiers].index("disk")
    for one in measured:
        predicted_s = layout.pass_s(one.passes)
        table.add_row(
            str(one.passes.rows),
            f"{1e3 * one.passes.median_s:.1f} ms",
            f"{1e3 * min(one.passes.seconds):.1f} ms",
            f"{1e3 * predicted_s:.1f} ms",
            f"{predicted_s / one.passes.median_s:.2f}",
            size(round(one.read_bytes)),
            size(round(predicted_read(one.passes, on_disk, plan.expert_bytes))),
            f"{100 * one.hit_share:.0f}%",
        )
    console.print(table)


def predicted_read(passes: Passes, on_disk: NDArray[np.bool_], expert_bytes: NDArray[np.int64]) -> float:
    """Bytes of a pass's distinct experts on the disk, on average.

    Args:
        on_disk: bool [num_moe_layers, num_experts].
        expert_bytes: int64 [num_moe_layers].
    """
    return fmean(
        sum(
            int(expert_bytes[layer]) * int(on_disk[layer, np.unique(chosen[:, layer])].sum())
            for layer in range(chosen.shape[1])
        )
        for chosen in passes.chosen()
    )


def with_disk_rate(cluster: ClusterSpec, bytes_per_s: float) -> ClusterSpec:
    (node,) = cluster.nodes
    ram, disk = node.devices
    return replace(
        cluster, nodes=(replace(node, devices=(ram, replace(disk, bandwidth_bytes_per_s=bytes_per_s))),)
    )


def disk_rate(model: Path, num_bytes: int) -> float:
    """Bytes/s of direct reads at random places of the file."""
    plain = PlainLoop(model, read_bytes=min(3 << 20, model.stat().st_size // 8))
    random = np.random.default_rng(0)
    return median(num_bytes / 4 / plain.read(num_bytes // 4, random) for _ in range(4))


def _shape(model: Path) -> ModelShape:
    return open_model(model).shape


if __name__ == "__main__":
    typer.run(main)
