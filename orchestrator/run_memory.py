"""What a run takes of this machine's memory, known before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.gpu.work_size import head_work_bytes
from placement.head_split import HeadParts, HeadSplit, SplitPart, split_head
from placement.kv_size import PASS_ROWS, KvForm, SequenceSize, WaitingSize
from placement.model_shape import ModelShape
from placement.plan import LOCAL_WORKER, Plan
from placement.weight_format import BFLOAT16, FLOAT32
from placement.workload import HeadBytes
from workers.formats.contents import ListedTensor, ModelContents, Part
from workers.formats.open_model import OpenModel, held_expert_bytes, kept_forms, kept_of_stored, model_name
from workers.gpu.free import card_name, is_card
from workers.memory.budget import PROCESS_BYTES, Need, SharedPart, file_key
from workers.memory.reservations import Reservation, reserve
from workers.tiers import tiers_of

_ADVICE = (
    "plan more experts on other boxes or on a disk, take a smaller context or a file in fewer bits, or end "
    "other programs"
)
_VRAM_ADVICE = (
    "plan fewer experts there, end other programs that use the card, take a smaller context, or run without "
    "--plan and with --device cpu"
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
        num_bytes = _kept(tensor, contents, dtype)
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


@dataclass(frozen=True, slots=True)
class HeadNeeds:
    """What the head takes of this box's RAM, and of cards by name."""

    ram: tuple[Need, ...]
    vram: Mapping[str, tuple[Need, ...]] = field(default_factory=dict)


def needs_of_head(
    contents: ModelContents,
    shape: ModelShape,
    dtype: str,
    demand: Demand,
    device: str,
    split: HeadSplit | None = None,
    path: Path | None = None,
) -> HeadNeeds:
    """Where the head's weights, KV cache and activations lie.

    Args:
        device: that it computes on.
        split: what of it stays on the CPU all the same; None for nothing but the embedding.
        path: as of `head_needs`.
    """
    if not is_card(device):
        return HeadNeeds(tuple(head_needs(contents, shape, dtype, demand, path)))
    parts = head_parts(contents, shape, dtype, demand)
    split = split or split_head(parts, parts.num_bytes, 0.0)
    work_bytes = head_work_bytes(contents.config, demand.positions, demand.pass_rows)
    there = (
        Need("the head's weights", split.weight_bytes),
        Need(f"a KV cache of {demand.positions:,} positions", split.kv_bytes),
        Need("activations", work_bytes),
    )
    # A token reads one row of the embedding, so it stays here.
    embedding = sum(_kept(t, contents, dtype) for t in contents.tensors if t.part is Part.EMBEDDING)
    weights = sum(part.weight_bytes for part in parts.all) - split.weight_bytes + embedding
    trunk = shape.num_hidden_layers
    waiting = WaitingSize.of(shape.attention[trunk : trunk + demand.num_drafts], shape.hidden_size)
    kv_bytes = sum(part.kv_bytes for part in parts.all) - split.kv_bytes
    kv_bytes += waiting.num_bytes(demand.positions, demand.pass_rows)
    here = (
        Need("the head's weights on the CPU", weights),
        Need("keys and values on the CPU", kv_bytes),
        Need("activations", shape.activation_bytes(demand.pass_rows)),
    )
    return HeadNeeds(here, {card_name(device): there})


def head_parts(contents: ModelContents, shape: ModelShape, dtype: str, demand: Demand) -> HeadParts:
    """The head's parts with the bytes that a run in `dtype` gives them, without times; no embedding."""
    of_layer: dict[int, int] = {}
    output = embedding = 0
    for tensor in contents.tensors:
        num_bytes = _kept(tensor, contents, dtype)
        if tensor.part is Part.EMBEDDING:
            embedding += num_bytes
        elif tensor.part is Part.EXPERTS:
            continue
        elif tensor.layer is None:
            output += num_bytes
        else:
            of_layer[tensor.layer] = of_layer.get(tensor.layer, 0) + num_bytes
    if not any(tensor.part is Part.OUTPUT for tensor in contents.tensors):
        output += embedding

    def part(layer: int) -> SplitPart:
        size = SequenceSize([shape.attention[layer]], demand.kv_form or KvForm.of(dtype))
        return SplitPart(of_layer.get(layer, 0), size.num_bytes(demand.positions, demand.pass_rows), 0.0, 0.0)

    trunk = shape.num_hidden_layers
    return HeadParts(
        layers=tuple(part(layer) for layer in range(trunk)),
        lm_head=SplitPart(output, 0, 0.0, 0.0),
        mtp=tuple(part(trunk + number) for number in range(demand.num_drafts)),
    )


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


def _kept(tensor: ListedTensor, contents: ModelContents, dtype: str) -> int:
    return _kept_bytes(tensor, dtype) if contents.in_directory else tensor.num_bytes


def _kept_bytes(tensor: ListedTensor, dtype: str) -> int:
    if tensor.form != FLOAT32.name or dtype != BFLOAT16.name:
        return tensor.num_bytes
    return tensor.num_bytes * BFLOAT16.block_bytes // FLOAT32.block_bytes


def reserve_run(
    plan: Plan, head: HeadNeeds, model: OpenModel, *, workers_here: bool
) -> tuple[Reservation, list[Need]]:
    """Set aside what a plan takes of this machine's RAM, or refuse it; its cards must have room too.

    Nothing is set aside in VRAM: who takes it there has it. Of experts in VRAM only buffers lie in RAM, since
    the pages that they are read through are given up.

    Args:
        head: as `needs_of_head` gives them.
        workers_here: all of the plan's workers start on this machine; else each checks its own.

    Returns:
        The reservation, which covers those workers, and the needs that are this process's own.

    Raises:
        PlanDoesNotFit: names what takes how much, the bytes that are missing, and what would help.
        DeviceUnavailable: a card of the plan is not here, or cannot be used.
    """
    # Loads torch, which `potluck inspect` does without.
    from workers.gpu.needs import check_cards, vram_needs
    from workers.pool import tier_needs

    config, checkpoint = model

    def needs_of(worker: str) -> list[Need]:
        return tier_needs(tiers_of(plan, worker), checkpoint, config, plan.dtype)

    started = [worker.name for worker in plan.asked_workers] if workers_here else []
    local = [LOCAL_WORKER] if plan.local_worker is not None else []
    on_cards = {name: list(needs) for name, needs in head.vram.items()}
    for worker in (*local, *started):
        for device, needs in vram_needs(tiers_of(plan, worker), checkpoint, config, plan.dtype).items():
            on_cards.setdefault(device, []).extend(needs)
    check_cards(on_cards, _VRAM_ADVICE)
    own = [*head.ram, *(need for worker in local for need in needs_of(worker))]
    needs = list(own)
    if started:
        processes = "one worker process" if len(started) == 1 else f"{len(started)} worker processes"
        needs.append(Need(processes, len(started) * PROCESS_BYTES))
        needs += [need for worker in started for need in needs_of(worker)]
    what = f"a run of {model_name(model.path)}"
    reservation = reserve(needs, what=what, where="this machine", advice=_ADVICE, covers=workers_here)
    return reservation, own
