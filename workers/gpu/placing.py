"""Brings the experts of a plan's tier into a card's memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from placement.errors import PlanError
from placement.experts import Experts
from placement.units import size
from placement.weight_format import ExpertFormat
from workers.formats.checkpoint import Checkpoint, Expert
from workers.gpu.device import Device, Memory
from workers.gpu.errors import DeviceFull
from workers.gpu.expert_kernels import MOST_EXPERTS
from workers.gpu.expert_layer import ExpertSizes, Slot
from workers.gpu.loading import Piece, Uploader
from workers.held_experts import check_experts, kept_format
from workers.kernels.matrix import row_of
from workers.memory.mapped import OnProgress
from workers.memory.maps import MappedFiles
from workers.model_config import Step35Config


@dataclass(frozen=True, slots=True, eq=False)
class PlacedLayer:
    """Experts of one layer: `ids` in slots of that order, at `starts` on the card."""

    sizes: ExpertSizes
    ids: tuple[int, ...]
    starts: tuple[int, ...]
    _memory: Memory

    @property
    def num_bytes(self) -> int:
        """Of the card's memory."""
        return self._memory.num_bytes


def place_experts(
    checkpoint: Checkpoint,
    config: Step35Config,
    experts: Mapping[int, Sequence[int]],
    formats: Mapping[int, ExpertFormat],
    device: Device,
    *,
    beside_bytes: int = 0,
    on_progress: OnProgress | None = None,
) -> dict[int, PlacedLayer]:
    """Bring experts to a card, as the bytes of the files where those serve.

    Args:
        experts: layer -> ids.
        formats: as of `ExpertStore.load`.
        beside_bytes: what must be free beside them.
        on_progress: told how much is there.

    Raises:
        PlanError: as `ExpertStore.load`, or a model with more experts than the kernels group.
        CheckpointError: as `ExpertStore.load`.
        DeviceFull: says what they take and what is free.
        DeviceLost: the card stopped working.
    """
    held = {layer: tuple(ids) for layer, ids in experts.items() if len(ids) > 0}
    check_experts(config, held)
    if config.moe_num_experts > MOST_EXPERTS:
        raise PlanError(
            f"{checkpoint.path}: {config.moe_num_experts} experts in a layer; a card takes at most "
            f"{MOST_EXPERTS}: plan with devices of kind ram"
        )
    found: dict[int, tuple[ExpertSizes, list[Expert]]] = {}
    for layer, ids in held.items():
        parts = [checkpoint.expert(layer, expert, config) for expert in ids]
        kept = kept_format(parts, formats[layer], checkpoint.path)
        found[layer] = ExpertSizes(config.hidden_size, config.moe_intermediate_size, kept), parts
    checkpoint.release()
    num_bytes = sum(len(parts) * Slot.of(sizes).num_bytes for sizes, parts in found.values())
    _check_room(device, held, num_bytes, beside_bytes)
    placed = {layer: _room_for(device, held[layer], sizes) for layer, (sizes, _) in found.items()}
    mapped = MappedFiles.now()
    pieces = [
        piece
        for layer, (_, parts) in found.items()
        for start, expert in zip(placed[layer].starts, parts, strict=True)
        for piece in _pieces(placed[layer].sizes, expert, start, mapped)
    ]
    Uploader(device).copy_all(pieces, on_progress)
    return placed


def _check_room(device: Device, held: Experts, num_bytes: int, beside_bytes: int) -> None:
    free = device.free_bytes
    if num_bytes + beside_bytes > free:
        count = sum(map(len, held.values()))
        raise DeviceFull(
            f"{device.name}: {count:,} experts take {size(num_bytes)} and {size(beside_bytes)} beside them, "
            f"{size(free)} of {size(device.facts.total_bytes)} free: plan for less of its memory, or close "
            "what else uses it",
            num_bytes + beside_bytes,
        )


def _room_for(device: Device, ids: tuple[int, ...], sizes: ExpertSizes) -> PlacedLayer:
    each = Slot.of(sizes).num_bytes
    memory = device.allocate(len(ids) * each)
    return PlacedLayer(sizes, ids, tuple(memory.address + each * place for place in range(len(ids))), memory)


def _pieces(sizes: ExpertSizes, expert: Expert, start: int, mapped: MappedFiles) -> list[Piece]:
    slot, pieces = Slot.of(sizes), []
    for place, ((form, _, columns), part) in enumerate(zip(sizes.matrices, expert, strict=True)):
        dtype, _ = row_of(form, columns)
        sources = [(part.data, dtype, start + slot.data[place])]
        if part.scales is not None:
            sources.append((part.scales, part.scales.dtype, start + slot.scales[place]))
        for source, kept, to in sources:
            is_mapped = mapped.place_of(source.data_ptr(), source.nbytes) is not None
            pieces.append(Piece(source, kept, to, is_mapped))
    return pieces
