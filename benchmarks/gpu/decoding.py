"""Decode steps with random tokens: their time, what they ask of the card, and what they must read."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from benchmarks.gpu.calls import counted
from benchmarks.gpu.layouts import DTYPE, Layout
from orchestrator.cli.here import Figures
from orchestrator.model.attention import SequenceSlice
from orchestrator.model.kv_cache import KVCache
from orchestrator.model.routing_recorder import RoutingRecorder
from orchestrator.model.step35 import Step35Model
from orchestrator.run_memory import Demand, head_parts
from orchestrator.sampling import Sampler
from orchestrator.sampling_params import GREEDY
from orchestrator.session import Session, open_session
from placement.given.probe_figures import Gpu
from placement.head_split import HeadParts
from placement.kv_size import KvForm, SequenceSize
from workers.formats.open_model import OpenModel

_WARM_STEPS = 3
"""Kernels are compiled in the first, graphs made in the second."""
_COUNTED_STEPS = 4


@dataclass(frozen=True, slots=True)
class Decoded:
    """A layout's decode steps.

    Attributes:
        step_s: the median.
        predicted_s: by the cost model; None where it had no figures.
        floor_s: max(bytes in VRAM / its rate, bytes in RAM / its rate + transfer).
        calls: of a step.
    """

    name: str
    step_s: float
    predicted_s: float | None
    floor_s: float
    vram_bytes: float
    ram_bytes: float
    calls: Counter[str]


@dataclass(frozen=True, slots=True)
class StepBytes:
    """What a step reads of each memory, and of how many layers it asks RAM while the head is in VRAM."""

    vram: float
    ram: float
    crossed_layers: float

    def floor_s(self, gpu: Gpu, figures: Figures) -> float:
        """Each memory reads all the time, and rows wait for each other once a layer."""
        transfer_s = self.crossed_layers * gpu.round_trip_s
        in_ram_s = self.ram / figures.node.read_bytes_per_s + transfer_s
        return max(self.vram / gpu.bandwidth_bytes_per_s, in_ram_s)


def decoded(
    layout: Layout,
    model: OpenModel,
    figures: Figures,
    gpu: Gpu,
    *,
    context: int,
    steps: int,
    demand: Demand,
) -> Decoded:
    """Open the layout's session, run steps behind a context of random tokens, and close it."""
    with opened(layout, model, demand) as session:
        head = session.head
        cache = context_of(head, context)
        tokens = random_tokens(head, context + 1000)
        timed(head, cache, tokens, _WARM_STEPS)
        times = timed(head, cache, tokens, steps)
        with counted() as calls:
            timed(head, cache, tokens, _COUNTED_STEPS)
        recorder = RoutingRecorder(model.shape.moe_layers, model.shape.num_experts, model.shape.top_k)
        head.recorder = recorder
        timed(head, cache, tokens, _COUNTED_STEPS)
        head.recorder = None
    read = _bytes_of(layout, model, demand, recorder, cache.length)
    of_step = Counter({name: round(count / _COUNTED_STEPS) for name, count in calls.items()})
    return Decoded(
        layout.name,
        median(times),
        layout.box.step_s,
        read.floor_s(gpu, figures),
        read.vram,
        read.ram,
        of_step,
    )


def opened(layout: Layout, model: OpenModel, demand: Demand) -> AbstractContextManager[Session]:
    """The session of a layout."""
    plan, split = layout.box.plan, layout.box.split
    return open_session(model, plan, positions=demand.positions, device=plan.head_device, split=split)


def context_of(head: Step35Model, positions: int) -> KVCache:
    """A cache behind so many random tokens, read in passes as prompts are."""
    cache, rng = head.new_cache(), np.random.default_rng(7)
    for start in range(0, positions, 256):
        ids = rng.integers(head.config.vocab_size, size=min(256, positions - start))
        head.forward(torch.from_numpy(ids), [SequenceSlice(cache, len(ids))])
    return cache


def random_tokens(head: Step35Model, seed: int) -> Iterator[int]:
    """One after another: a model of random weights would soon repeat itself, and its experts with it."""
    rng = np.random.default_rng(seed)
    while True:
        yield int(rng.integers(head.config.vocab_size))


def timed(head: Step35Model, cache: KVCache, tokens: Iterator[int], steps: int) -> list[float]:
    """Seconds of each step, its choice of a token included; the token itself is random."""
    choice = Sampler(GREEDY).choice(0)
    times = []
    for _ in range(steps):
        ids = torch.tensor([next(tokens)])
        started = time.perf_counter()
        hidden_states = head.forward(ids, [SequenceSlice(cache, 1)])
        head.logits_to_choose_from(hidden_states).choose([choice])
        times.append(time.perf_counter() - started)
    return times


def _bytes_of(
    layout: Layout, model: OpenModel, demand: Demand, recorder: RoutingRecorder, positions: int
) -> StepBytes:
    """Of the experts that were chosen, by where they lie, and of the head."""
    plan, split = layout.box.plan, layout.box.split
    # Of several holders in a process the first computes.
    tier_of = plan.holder_table.table[:, :, 0]
    is_vram = np.array([tier.kind == "vram" for tier in plan.tiers])
    in_vram = in_ram = crossed = 0.0
    trace = recorder.trace()
    for row, layer in enumerate(plan.layers):
        on_card = is_vram[tier_of[row][trace[:, row]]]
        in_vram += layer.expert_bytes * float(on_card.sum(axis=1).mean())
        in_ram += layer.expert_bytes * float((~on_card).sum(axis=1).mean())
        crossed += float((~on_card).any(axis=1).mean())
    parts = head_parts(model.contents, model.shape, DTYPE, demand)
    head_vram, head_ram = head_bytes_of(parts, layout, model, positions)
    return StepBytes(in_vram + head_vram, in_ram + head_ram, crossed if split is not None else 0.0)


def head_bytes_of(parts: HeadParts, layout: Layout, model: OpenModel, positions: int) -> tuple[float, float]:
    """What the head reads in a step of VRAM and of RAM, keys and values of so many positions included."""
    split, form = layout.box.split, KvForm.of(DTYPE)
    in_vram = in_ram = 0
    for number, part in enumerate(parts.layers):
        kv_bytes = SequenceSize([model.shape.attention[number]], form).num_bytes(positions, 1)
        if split is not None and not split.is_layer_on_cpu(number):
            in_vram += part.weight_bytes + kv_bytes
        else:
            in_ram += part.weight_bytes + kv_bytes
    if split is not None and not split.is_lm_head_on_cpu:
        return in_vram + parts.lm_head.weight_bytes, in_ram
    return in_vram, in_ram + parts.lm_head.weight_bytes
