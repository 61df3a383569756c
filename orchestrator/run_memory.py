"""What a run takes of this machine's memory, known before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from placement.model_shape import ModelShape
from placement.plan import LOCAL_WORKER, Plan
from placement.weight_format import BFLOAT16, FLOAT16, FLOAT32
from workers.formats.checkpoint import Checkpoint
from workers.formats.contents import ListedTensor, ModelContents, Part
from workers.memory.budget import PROCESS_BYTES, Need, check_memory
from workers.memory.free import FreeMemory
from workers.model_config import Step35Config
from workers.pool import tier_needs
from workers.tiers import tiers_of

if TYPE_CHECKING:
    from orchestrator.kernels.attention import KvForm

RAY_BYTES = 350_000_000
"""What Ray's own processes take on this machine when a run starts it (docs/memory.md)."""

_ADVICE = (
    "plan more experts on other boxes or on a disk, take a smaller context or a file in fewer bits, or end "
    "other programs"
)
_FLOAT32_BYTES = 4
_KV_VALUE_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True, slots=True)
class Demand:
    """What a run is asked for: `positions` in the KV cache, rows of the largest pass, drafts a step.

    `kv_form` is None where keys and values are kept in the run's dtype.
    """

    positions: int
    pass_rows: int = 256
    num_drafts: int = 0
    kv_form: KvForm | None = None


def head_needs(
    contents: ModelContents, shape: ModelShape, dtype: str, demand: Demand, *, in_directory: bool
) -> list[Need]:
    """The head's weights, KV cache and activations.

    Args:
        dtype: what the head computes with and keeps its cache in.
        in_directory: the model is safetensors in a directory, whose wider numbers are rounded to the dtype.
    """
    left_out = {Part.EXPERTS} if demand.num_drafts else {Part.EXPERTS, Part.MTP}
    weights = sum(
        _kept_bytes(tensor, dtype) if in_directory else tensor.num_bytes
        for tensor in contents.tensors
        if tensor.part not in left_out
    )
    kv_cache = shape.kv_cache_bytes(
        demand.positions, _KV_VALUE_BYTES[demand.kv_form or dtype], with_mtp=demand.num_drafts > 0
    )
    if demand.kv_form == "int8":
        # A float32 scale for each head's key, and one for its value.
        kv_cache += kv_cache * _FLOAT32_BYTES // min(attention.head_dim for attention in shape.attention)
    return [
        Need("the head's weights", weights),
        Need(f"a KV cache of {demand.positions:,} positions", kv_cache),
        Need("activations", _activation_bytes(shape, demand.pass_rows)),
    ]


def _kept_bytes(tensor: ListedTensor, dtype: str) -> int:
    wider = {FLOAT32.name: FLOAT32, FLOAT16.name: FLOAT16}.get(tensor.form)
    if wider is None or dtype != BFLOAT16.name:
        return tensor.num_bytes
    return tensor.num_bytes * BFLOAT16.block_bytes // wider.block_bytes


def _activation_bytes(shape: ModelShape, rows: int) -> int:
    attention = max(a.num_heads * a.head_dim + a.kv_values_per_position() for a in shape.attention)
    widest = max(
        attention,
        2 * shape.dense_intermediate_size,
        2 * shape.top_k * shape.moe_intermediate_size + shape.hidden_size,
    )
    return _FLOAT32_BYTES * (rows * (4 * shape.hidden_size + widest) + 4 * shape.vocab_size)


def check_run(
    plan: Plan,
    head: Sequence[Need],
    checkpoint: Checkpoint,
    config: Step35Config,
    free: FreeMemory,
    *,
    workers_here: bool,
) -> None:
    """Refuse a plan that takes more of this machine than is free.

    Args:
        head: as `head_needs` gives them.
        workers_here: all of the plan's workers start on this machine; else each checks its own.

    Raises:
        PlanDoesNotFit: names what takes how much, the bytes that are missing, and what would help.
    """
    needs = list(head)
    here = [LOCAL_WORKER] if plan.local_worker is not None else []
    if workers_here and plan.asked_workers:
        here += [worker.name for worker in plan.asked_workers]
        count = len(plan.asked_workers)
        processes = "one worker process" if count == 1 else f"{count} worker processes"
        needs.append(Need(f"{processes} and Ray", count * PROCESS_BYTES + RAY_BYTES))
    for name in here:
        needs += tier_needs(tiers_of(plan, name), checkpoint, config, plan.dtype)
    check_memory(needs, free, where="this machine", advice=_ADVICE)
