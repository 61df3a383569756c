"""Which bytes of RAM make up an expert in a card's slot."""

from __future__ import annotations

from dataclasses import dataclass

from placement.weight_format import ExpertFormat
from workers.gpu.expert_layer import ExpertSizes, Slot
from workers.kernels import ExpertWeights


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes of this box's memory and where on the card they go."""

    source: int
    to: int
    num_bytes: int


def copies_of(weights: ExpertWeights, sizes: ExpertSizes, expert: int, start: int) -> list[Copy]:
    """What makes up an expert that RAM holds, to a slot at `start`."""
    slot, place = Slot.of(sizes), int(weights.slots[expert])
    found = []
    for (form, rows, columns), matrices, data_at, scales_at in zip(
        sizes.matrices, (weights.gate, weights.up, weights.down), slot.data, slot.scales, strict=True
    ):
        num_bytes = rows * form.row_bytes(columns)
        found.append(Copy(int(matrices.addresses[place]), start + data_at, num_bytes))
        if matrices.scale_addresses is not None:
            beside = form.matrix_bytes(rows, columns) - num_bytes
            found.append(Copy(int(matrices.scale_addresses[place]), start + scales_at, beside))
    return found


def bytes_of(sizes: ExpertSizes) -> int:
    """Of all copies of an expert."""
    return sum(form.matrix_bytes(rows, columns) for form, rows, columns in sizes.matrices)


def sizes_of(weights: ExpertWeights) -> ExpertSizes:
    """Of experts in RAM."""
    forms = ExpertFormat(weights.gate.form, weights.up.form, weights.down.form)
    return ExpertSizes(weights.gate.columns, weights.gate.rows, forms)
