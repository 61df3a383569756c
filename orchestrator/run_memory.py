"""What a run takes of this machine's memory, known before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from placement.kv_size import PASS_ROWS, KvForm, SequenceSize
from placement.model_shape import ModelShape
from placement.plan import LOCAL_WORKER, Plan
from placement.weight_format import BFLOAT16, FLOAT32
from placement.workload import HeadBytes
from workers.formats.contents import ListedTensor, ModelContents, Part
from workers.formats.open_model import held_expert_bytes, kept_of_stored
from workers.memory.budget import PROCESS_BYTES, Need, check_memory
from workers.memory.free import FreeMemory
from workers.model_config import Step35Config
from workers.tiers import tiers_of

if TYPE_CHECKING:
    from workers.formats.checkpoint import Checkpoint

_ADVICE = (
    "plan more experts on other boxes or on a disk, take a smaller context or a file in fewer bits, or end "
    "other programs"
)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a run is asked for: `positions` in the KV cache, rows of the largest pass, drafts a step.

    `kv_form` is None where keys and values are kept in the run's dtype.
    """

    positions: int
    pass_rows: int = PASS_ROWS
    num_drafts: int = 0
    kv_form: KvForm | None = None


def head_bytes(contents: ModelContents, dtype: str) -> HeadBytes:
    """What the head's own weights take in a run in `dtype`.

    Those of a GGUF file lie as the file has them. A directory's float32 is rounded to the dtype.
    """
    trunk = mtp = 0
    for tensor in contents.tensors:
        num_bytes = _kept_bytes(tensor, dtype) if contents.in_directory else tensor.num_bytes
        if tensor.part is Part.MTP:
            mtp += num_bytes
        elif tensor.part is not Part.EXPERTS:
            trunk += num_bytes
    return HeadBytes(trunk, mtp)


def expert_bytes(contents: ModelContents, dtype: str) -> dict[int, int]:
    """What one routed expert of each MoE layer takes in memory in a run in `dtype`."""
    stored = contents.expert_formats
    kept = kept_of_stored(stored, dtype) if contents.in_directory else stored
    return held_expert_bytes(stored, kept, contents.config)


def head_needs(contents: ModelContents, shape: ModelShape, dtype: str, demand: Demand) -> list[Need]:
    """The head's weights, KV cache and activations; `dtype`: what it computes with and keeps its cache in."""
    in_memory = head_bytes(contents, dtype)
    weights = in_memory.trunk + (in_memory.mtp if demand.num_drafts else 0)
    sequence = SequenceSize.of(shape, demand.kv_form or KvForm.of(dtype), demand.num_drafts)
    kv_cache = sequence.num_bytes(demand.positions, demand.pass_rows)
    return [
        Need("the head's weights", weights),
        Need(f"a KV cache of {demand.positions:,} positions", kv_cache),
        Need("activations", shape.activation_bytes(demand.pass_rows)),
    ]


def _kept_bytes(tensor: ListedTensor, dtype: str) -> int:
    if tensor.form != FLOAT32.name or dtype != BFLOAT16.name:
        return tensor.num_bytes
    return tensor.num_bytes * BFLOAT16.block_bytes // FLOAT32.block_bytes


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
    # Loads torch, which `potluck inspect` does without.
    from workers.pool import tier_needs

    needs = list(head)
    here = [LOCAL_WORKER] if plan.local_worker is not None else []
    if workers_here and plan.asked_workers:
        here += [worker.name for worker in plan.asked_workers]
        count = len(plan.asked_workers)
        processes = "one worker process" if count == 1 else f"{count} worker processes"
        needs.append(Need(processes, count * PROCESS_BYTES))
    for name in here:
        needs += tier_needs(tiers_of(plan, name), checkpoint, config, plan.dtype)
    check_memory(needs, free, where="this machine", advice=_ADVICE)
