"""Passes predicted by the cost model, from probes of the machine and of a model too narrow to take long.

No part of a measured run is used. What the runtime does between matrix products is measured on a *narrow*
model: as many layers, rows as wide, as many heads, the same layout of processes, but small experts and a
small vocabulary. What its passes take beyond the cost model's matrices is software, and counts for the real
model too; what they take more behind thousands of tokens is attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import mul
from pathlib import Path

import numpy as np

from benchmarks.random_gguf import FileShape
from benchmarks.real_size.machine import Machine
from benchmarks.real_size.measured import LayoutRun, Passes
from benchmarks.real_size.run import DTYPE, MOST_ROWS
from benchmarks.real_size.work import FileWork
from orchestrator.cli.even_plan import even_plan
from placement.given.cluster_spec import ClusterSpec, DeviceSpec, LinkSpec, MachineSpec, NodeSpec, Overheads
from placement.given.kernel_rates import ATTENTION, KernelRates
from placement.message_size import message_size
from placement.model_shape import ModelShape
from placement.plan import Plan
from placement.replay.recorded_run import replay_decode, replay_prefill
from placement.replay.system import System
from placement.workload import Workload
from workers.formats.open_model import kept_forms, model_name, open_model

NODE = "this-machine"
_ROOM_BYTES = 10**12
_LEAST_ROW_S = 1e-9


def narrow(shape: FileShape) -> FileShape:
    """The same layers, heads and rows as wide, of a thirtieth of the bytes."""
    return replace(
        shape,
        vocab=4096,
        dense_width=256,
        expert_width=256,
        shared_width=256,
        experts=32,
        mtp_layers=0,
    )


@dataclass(frozen=True, slots=True)
class Layout:
    """A model's plan over so many workers, and what its cluster file says so far."""

    plan: Plan
    work: FileWork
    cluster: ClusterSpec

    @classmethod
    def of(cls, model: Path, num_workers: int, alone: Machine, each: Machine) -> Layout:
        """
        Args:
            alone: this machine as one process uses it.
            each: as each of several processes does, with its share of the threads.
        """
        config, checkpoint = open_model(model)
        shape = config.shape(model_name(model))
        plan = even_plan(shape, num_workers, DTYPE, forms=kept_forms(checkpoint, config, DTYPE))
        machine = each if num_workers else alone
        devices = [memory_device("head", machine)]
        devices += [memory_device(tier.name, machine) for tier in plan.tiers if num_workers]
        names = [f"{NODE}-{tier.name}" for tier in plan.tiers] if num_workers else ["head"]
        tiers = tuple(
            replace(tier, name=name, worker=name, node=NODE)
            for tier, name in zip(plan.tiers, names, strict=True)
        )
        link = LinkSpec(0.0, 1e18) if num_workers else None
        shared = MachineSpec(NODE, (NODE,), float(alone.threads), alone.read_bytes_per_s)
        nodes = (NodeSpec(NODE, None, tuple(devices), link),)
        return cls(
            replace(plan, tiers=tiers), FileWork.of(model, _trunk(shape)), ClusterSpec(NODE, nodes, (shared,))
        )

    def with_software(
        self, overheads: Overheads, link: LinkSpec | None, attention: KernelRates | None = None
    ) -> Layout:
        """With what the head and its messages take, and what its attention reaches."""
        node = self.cluster.nodes[0]
        head = node.devices[0]
        kernels = head.kernels if attention is None else (*head.kernels, attention)
        devices = (replace(head, overheads=overheads, kernels=kernels), *node.devices[1:])
        own = replace(node, devices=devices, link=link if node.link else None)
        return replace(self, cluster=replace(self.cluster, nodes=(own,)))

    def pass_s(self, passes: Passes) -> float:
        """Mean seconds of recorded decode passes."""
        texts = -(-passes.rows // MOST_ROWS)
        # A pass of several texts has as many rows; only their few keys are counted as one text's.
        workload = replace(self._workload(), context=passes.context, drafts=passes.rows - 1)
        system = System.build(self.plan, self.cluster, self.work.shape, workload)
        report = replay_decode(system, passes.chosen(), len(passes.routing) * texts)
        return report.duration_s / len(passes.routing)

    def prefill_s(self, run: LayoutRun) -> float:
        """Seconds of the recorded prompt, which was read in one pass."""
        system = System.build(self.plan, self.cluster, self.work.shape, self._workload())
        return replay_prefill(system, [np.array(run.prefill_routing, np.int64)]).duration_s

    def _workload(self) -> Workload:
        return Workload(
            head_bits_per_weight=self.work.head_bits,
            head_forms=self.work.head_forms,
        )


@dataclass(frozen=True, slots=True)
class Software:
    """What the runtime takes besides matrices: the head's overheads, and a message's way to a worker.

    `attention`: by number of workers, since the head has fewer threads beside some.
    """

    overheads: Overheads
    link: LinkSpec
    attention: Mapping[int, KernelRates | None]

    def put_into(self, layout: Layout) -> Layout:
        num_workers = len(layout.plan.asked_workers)
        return layout.with_software(self.overheads, self.link, self.attention.get(num_workers))


def software(
    model: Path,
    one: LayoutRun,
    several: LayoutRun | None,
    before_one: tuple[Machine, Machine],
    before_several: tuple[Machine, Machine] | None,
    choice_s: float,
) -> Software:
    """From runs of a narrow model.

    Args:
        one, several: its run in one process, and over workers.
        before_one, before_several: the machine before each: with all threads, and with a process's share.
        choice_s: of a token from as many logits as the real model has.
    """
    plain = Layout.of(model, 0, *before_one)
    shape = plain.work.shape
    attention = {run.num_workers: attention_rates(run, shape) for run in (one, several) if run is not None}
    plain = plain.with_software(Overheads(), None, attention[0])
    layers, moe_layers = shape.num_hidden_layers, shape.num_moe_layers
    first, more = one.passes[0], _of_rows(one, MOST_ROWS)
    pass_s = first.parts_s.get("other", 0.0)
    layer_s = _above(first.median_s - pass_s - plain.pass_s(first)) / layers
    prompt_s = _above(min(one.prefill_s) - pass_s - layers * layer_s - plain.prefill_s(one))
    row_s = prompt_s / layers / one.prefill_tokens
    batch_s = (more.median_s - pass_s - plain.pass_s(more)) / layers - layer_s - more.rows * row_s
    overheads = Overheads(
        layer_s=layer_s, batch_s=max(batch_s, -layer_s), row_s=row_s, pass_s=pass_s + choice_s
    )
    if several is None or before_several is None:
        return Software(overheads, LinkSpec(0.0, 1e18), attention)
    without_choice = replace(overheads, pass_s=pass_s)
    apart = Layout.of(model, several.num_workers, *before_several)
    apart = apart.with_software(without_choice, LinkSpec(0.0, 1e18), attention[several.num_workers])
    size = message_size(shape, plain.plan.wires)
    row_bytes = size.request_bytes_per_row + size.reply_bytes_per_row
    few_s = _above(several.passes[0].median_s - apart.pass_s(several.passes[0])) / moe_layers
    many_s = _above(min(several.prefill_s) - apart.prefill_s(several)) / moe_layers
    row_s = max(_LEAST_ROW_S, (many_s - few_s) / (several.prefill_tokens - 1))
    return Software(overheads, LinkSpec(max(0.0, few_s - row_s), row_bytes / row_s), attention)


def attention_rates(run: LayoutRun, shape: ModelShape) -> KernelRates | None:
    """FLOP/s by rows, from passes behind few and behind many tokens; None where nothing can be told."""
    rates: dict[int, float] = {}
    for far in run.passes:
        near = run.find(far.rows, 0)
        if near is None or near.context == far.context:
            continue
        more_s = far.parts_s.get("attention", 0.0) - near.parts_s.get("attention", 0.0)
        keys = [min(far.context, a.window) if a.is_sliding else far.context for a in shape.attention]
        width = [a.num_heads * a.head_dim for a in shape.attention]
        flops = 4 * far.rows * sum(map(mul, keys, width))
        if more_s > 0:
            rates[far.rows] = flops / more_s
    return KernelRates(ATTENTION, tuple(rates), tuple(rates.values())) if 1 in rates else None


def _trunk(shape: ModelShape) -> ModelShape:
    """Without MTP layers: drafts are chosen by lot here."""
    return replace(shape, attention=shape.attention[: shape.num_hidden_layers], num_mtp_layers=0)


def _of_rows(run: LayoutRun, rows: int) -> Passes:
    return next(passes for passes in run.passes if passes.rows == rows)


def _above(seconds: float) -> float:
    return max(0.0, seconds)


def memory_device(name: str, machine: Machine, memory_bytes: int = _ROOM_BYTES) -> DeviceSpec:
    """A box's RAM and CPU as they were probed."""
    return DeviceSpec(
        name,
        "ram",
        "cpu",
        memory_bytes,
        0,
        bandwidth_bytes_per_s=machine.read_bytes_per_s,
        ffn_flops_per_s=machine.prompt_flops_per_s,
        cores=float(machine.threads),
        kernels=machine.from_memory,
    )
