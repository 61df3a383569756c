"""One layer's experts on a disk: where their matrices lie, and the tables that the kernels read them by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from placement.errors import CheckpointError
from placement.weight_format import ExpertFormat
from workers.disk.slots import Slots
from workers.disk.windows import Window, windows_of
from workers.formats.checkpoint import Checkpoint, Expert
from workers.held_experts import check_experts, kept_format, matrix_shapes, slot_table
from workers.kernels import ExpertMatrices, ExpertWeights
from workers.kernels.matrix import row_of
from workers.memory.maps import FilePlace, MappedFiles
from workers.model_config import Step35Config


@dataclass(frozen=True, slots=True, eq=False)
class DiskLayer:
    """One layer.

    Attributes:
        windows: expert -> where its gate, up and down lie.
        weights: slot e is expert e, at the address that `arrive` wrote last. Until then it leads nowhere.
    """

    index: int
    windows: Mapping[int, tuple[Window, ...]]
    weights: ExpertWeights
    _stored: Mapping[int, tuple[torch.dtype, ...]]

    def arrive(self, expert: int, slots: Slots, slot: int) -> None:
        """The expert's windows have been read into a slot: have the kernels find it there."""
        weights = self.weights
        for matrices, window, stored in zip(
            (weights.gate, weights.up, weights.down), self.windows[expert], self._stored[expert], strict=True
        ):
            num_bytes = window.least_bytes - window.shift
            data = slots.bytes_at(slot, window.slot_offset + window.shift, num_bytes)
            kept, _ = row_of(matrices.form, matrices.columns)
            if stored is not kept:
                # In place, by a copy: what is kept is never larger than what is stored.
                converted = data.view(stored).to(kept).view(torch.uint8)
                data = slots.bytes_at(slot, window.slot_offset, converted.numel())
                data.copy_(converted)
            matrices.addresses[expert] = data.data_ptr()


def look_up(
    checkpoint: Checkpoint,
    config: Step35Config,
    experts: Mapping[int, Sequence[int]],
    formats: Mapping[int, ExpertFormat],
) -> dict[int, DiskLayer]:
    """Find the experts in the files, without reading any.

    Raises:
        PlanError, CheckpointError: as `ExpertStore.load`.
    """
    wanted = {layer: tuple(ids) for layer, ids in experts.items() if len(ids) > 0}
    check_experts(config, wanted)
    places = _Places(checkpoint)
    layers = {}
    for layer, ids in wanted.items():
        parts = {expert: checkpoint.expert(layer, expert, config) for expert in ids}
        kept = kept_format(list(parts.values()), formats[layer], checkpoint.path)
        layers[layer] = DiskLayer(
            layer,
            {
                expert: windows_of([places.of(part.data, part.name) for part in own])
                for expert, own in parts.items()
            },
            _tables(config, layer, kept, parts),
            {expert: tuple(part.data.dtype for part in own) for expert, own in parts.items()},
        )
    checkpoint.release()
    return layers


def _tables(
    config: Step35Config, layer: int, kept: ExpertFormat, parts: Mapping[int, Expert]
) -> ExpertWeights:
    """Of all experts of the model, so that an expert's slot is its id; scales stay in memory."""
    matrices = []
    for place, (form, (rows, columns)) in enumerate(
        zip((kept.gate, kept.up, kept.down), matrix_shapes(config), strict=True)
    ):
        dtype, width = row_of(form, columns)
        nowhere = [torch.empty((rows, width), dtype=dtype)] * config.moe_num_experts
        scales: list[Tensor] | None = None
        if form.scale_tile:
            own = {expert: part[place].scales for expert, part in parts.items()}
            copies = {expert: found.clone() for expert, found in own.items() if found is not None}
            any_one = next(iter(copies.values()))
            scales = [copies.get(expert, any_one) for expert in range(config.moe_num_experts)]
        matrices.append(ExpertMatrices(form, rows, columns, nowhere, scales))
    return ExpertWeights(
        slots=slot_table(config, {expert: expert for expert in parts}),
        gate=matrices[0],
        up=matrices[1],
        down=matrices[2],
        limit=config.layers[layer].swiglu_limit,
        top_k=config.moe_top_k,
    )


class _Places:
    """Where mapped tensors lie in their files."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._mapped = MappedFiles.now()

    def of(self, data: Tensor, name: str) -> FilePlace:
        address, num_bytes = data.data_ptr(), data.nbytes
        place = self._mapped.place_of(address, num_bytes)
        if place is None:
            # Mapped since.
            self._mapped = MappedFiles.now()
            place = self._mapped.place_of(address, num_bytes)
        if place is None:
            raise CheckpointError(
                f"{self._checkpoint.path}: tensor {name} is not in a file that is mapped here: experts on "
                "a disk need one; plan without that disk"
            )
        return place
