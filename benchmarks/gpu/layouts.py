"""A random model on this machine: all on the CPU, with so much VRAM, or all there; planned as a run is."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.random_gguf import FileShape, FileTypes, file_config, file_tensors
from orchestrator.cli.here import Here
from orchestrator.cli.hybrid import plan_with_cards
from orchestrator.gpu.work_size import head_work_bytes
from orchestrator.one_box import OneBox
from orchestrator.run_memory import Demand, mapped_parts
from placement.errors import PlanDoesNotFit
from placement.kv_size import PASS_ROWS
from placement.streaming import BUFFERS
from placement.vram import LEAST_MARGIN_BYTES, MARGIN_SHARE, usable_vram_bytes
from workers.formats.open_model import OpenModel
from workers.gpu.device import Device
from workers.gpu.free import FreeVram
from workers.gpu.workspace import WorkShape, work_bytes
from workers.memory.reservations import free_memory

DTYPE = "bfloat16"
WHOLE = FileShape(dense_layers=3, moe_layers=42)
"""Step-3.5-Flash."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """`box`: what went where, and the prediction."""

    name: str
    box: OneBox

    @property
    def is_on_card(self) -> bool:
        """Whether any of it is."""
        return any(tier.kind == "vram" for tier in self.box.plan.tiers)

    @property
    def is_all_on_card(self) -> bool:
        """Whether all experts are, be there copies of some in RAM."""
        plan = self.box.plan
        counts = zip(plan.tiers, plan.experts_per_tier().tolist(), strict=True)
        on_card = sum(count for tier, count in counts if tier.kind == "vram")
        return bool(on_card == plan.holder_table.table.shape[0] * plan.holder_table.table.shape[1])


@dataclass(frozen=True, slots=True)
class Vram:
    """What of a card's memory does the same for this model as so much memory for the whole one.

    Layers here have the share of it that they are of all layers. What does not grow with layers (lm_head,
    the workspace) is taken whole.

    Attributes:
        whole_bytes: of a card, free.
        layer_share: bytes of the model's layers here / of the whole model's.
        usable_bytes: of the card here, for the model.
        expert_share: of the whole model's experts, those that fit beside its head.
    """

    whole_bytes: int
    layer_share: float
    usable_bytes: int
    expert_share: float

    @classmethod
    def of(cls, whole_bytes: int, here: FileShape, types: FileTypes, positions: int) -> Vram:
        """See `Vram`; `positions`: of the longest text."""
        layers, experts = _layer_bytes(here, types), _expert_bytes(WHOLE, types)
        of_whole = _layer_bytes(WHOLE, types)
        for_layers = max(0, usable_vram_bytes(whole_bytes) - _fixed_bytes(WHOLE, types, positions))
        share = layers / of_whole
        beside_head = max(0, for_layers - (of_whole - experts))
        usable = _fixed_bytes(here, types, positions) + round(share * for_layers)
        return cls(whole_bytes, share, usable, min(1.0, beside_head / experts))

    @property
    def free_bytes(self) -> int:
        """As a plan is told of it, its margin included."""
        return max(self.usable_bytes + LEAST_MARGIN_BYTES, round(self.usable_bytes / (1 - MARGIN_SHARE)))


def layout(name: str, model: OpenModel, here: Here, demand: Demand, card: FreeVram | None) -> Layout:
    """Raises PlanDoesNotFit: it does not fit this machine's memory."""
    free = free_memory(mapped_parts(model, DTYPE))
    box = plan_with_cards(model, here, demand, free, () if card is None else (card,))
    if any(tier.kind == "disk" for tier in box.plan.tiers):
        raise PlanDoesNotFit(f"{name}: {free.told}, too little for the model; take fewer --layers")
    return Layout(name, box)


def card_with(device: Device, free_bytes: int) -> FreeVram:
    """The card as if no more were free."""
    return replace(FreeVram.of(device), num_bytes=free_bytes)


def _fixed_bytes(shape: FileShape, types: FileTypes, positions: int) -> int:
    """What is in VRAM however many layers there are, as `plan_with_cards` counts it."""
    work = WorkShape(shape.hidden, shape.expert_width, shape.experts, shape.top_k)
    output = sum(t.num_bytes for t in file_tensors(shape, types) if t.name.startswith("output"))
    largest = _expert_bytes(shape, types) // (shape.experts * shape.moe_layers)
    of_head = head_work_bytes(file_config(shape), positions, PASS_ROWS)
    return output + of_head + 2 * work_bytes(work, PASS_ROWS) + BUFFERS * largest


def _layer_bytes(shape: FileShape, types: FileTypes) -> int:
    return sum(t.num_bytes for t in file_tensors(shape, types) if t.name.startswith("blk."))


def _expert_bytes(shape: FileShape, types: FileTypes) -> int:
    return sum(t.num_bytes for t in file_tensors(shape, types) if "_exps." in t.name)
