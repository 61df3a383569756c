"""What a run takes of this machine's memory, known before anything is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from placement.kv_size import PASS_ROWS, KvForm, SequenceSize
from placement.model_shape import ModelShape
from placement.plan import LOCAL_WORKER, Plan
from placement.weight_format import BFLOAT16, FLOAT32
from placement.workload import HeadBytes
from workers.formats.contents import ListedTensor, ModelContents, Part
from workers.formats.open_model import OpenModel, held_expert_bytes, kept_forms, kept_of_stored, model_name
from workers.memory.budget import PROCESS_BYTES, Need, SharedPart, file_key
from workers.memory.reservations import Reservation, reserve
from workers.tiers import tiers_of

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


def head_needs(
    contents: ModelContents, shape: ModelShape, dtype: str, demand: Demand, path: Path | None = None
) -> list[Need]:
    """The head's weights, KV cache and activations.

    Args:
        dtype: what it computes with and keeps its cache in.
        path: of the model, to tell what of the weights is mapped and so shared with other processes.
    """
    in_memory = head_bytes(contents, dtype)
    weights = in_memory.trunk + (in_memory.mtp if demand.num_drafts else 0)
    sequence = SequenceSize.of(shape, demand.kv_form or KvForm.of(dtype), demand.num_drafts)
    kv_cache = sequence.num_bytes(demand.positions, demand.pass_rows)
    return [
        Need("the head's weights", weights, () if path is None else (_mapped_head(contents, dtype, path),)),
        Need(f"a KV cache of {demand.positions:,} positions", kv_cache),
        Need("activations", shape.activation_bytes(demand.pass_rows)),
    ]


def mapped_parts(model: OpenModel, dtype: str) -> list[SharedPart]:
    """All of a model that a process which runs it may map, and so share with others that do."""
    from workers.pool import need_of

    config, checkpoint = model
    everything = {layer: range(config.moe_num_experts) for layer in config.moe_layers}
    experts = need_of(everything, "experts", checkpoint, config, kept_forms(checkpoint, config, dtype))
    return [_mapped_head(model.contents, dtype, model.path), *experts.shared]


def _mapped_head(contents: ModelContents, dtype: str, path: Path) -> SharedPart:
    """The head's weights that are views of the files; the MTP layers' are left out."""
    tensors = (tensor for tensor in contents.tensors if tensor.part not in (Part.MTP, Part.EXPERTS))
    mapped = sum(
        tensor.num_bytes
        for tensor in tensors
        if not contents.in_directory or _kept_bytes(tensor, dtype) == tensor.num_bytes
    )
    return SharedPart(f"{file_key(path)} head", mapped)


def _kept_bytes(tensor: ListedTensor, dtype: str) -> int:
    if tensor.form != FLOAT32.name or dtype != BFLOAT16.name:
        return tensor.num_bytes
    return tensor.num_bytes * BFLOAT16.block_bytes // FLOAT32.block_bytes


def reserve_run(
    plan: Plan, head: Sequence[Need], model: OpenModel, *, workers_here: bool
) -> tuple[Reservation, list[Need]]:
    """Set aside what a plan takes of this machine, or refuse it.

    Args:
        head: as `head_needs` gives them.
        workers_here: all of the plan's workers start on this machine; else each checks its own.

    Returns:
        The reservation, which covers those workers, and the needs that are this process's own.

    Raises:
        PlanDoesNotFit: names what takes how much, the bytes that are missing, and what would help.
    """
    # Loads torch, which `potluck inspect` does without.
    from workers.pool import tier_needs

    config, checkpoint = model

    def needs_of(worker: str) -> list[Need]:
        return tier_needs(tiers_of(plan, worker), checkpoint, config, plan.dtype)

    own = [*head, *(needs_of(LOCAL_WORKER) if plan.local_worker is not None else ())]
    needs = list(own)
    if workers_here and plan.asked_workers:
        count = len(plan.asked_workers)
        processes = "one worker process" if count == 1 else f"{count} worker processes"
        needs.append(Need(processes, count * PROCESS_BYTES))
        for worker in plan.asked_workers:
            needs += needs_of(worker.name)
    what = f"a run of {model_name(model.path)}"
    reservation = reserve(needs, what=what, where="this machine", advice=_ADVICE, covers=workers_here)
    return reservation, own
