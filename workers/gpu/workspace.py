"""What a layer of experts needs on a card between its launches: one allocation, cut once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from workers.gpu.alignment import ALIGNMENT, aligned
from workers.gpu.device import Device, Memory
from workers.gpu.linear import GpuRows
from workers.model_config import Step35Config


@dataclass(frozen=True, slots=True)
class WorkShape:
    """What the areas are as large as: sizes of the model, the largest of all its layers."""

    hidden: int
    inner: int
    num_experts: int
    top_k: int

    @classmethod
    def of(cls, config: Step35Config) -> WorkShape:
        """Of a model's routed experts."""
        return cls(config.hidden_size, config.moe_intermediate_size, config.moe_num_experts, config.moe_top_k)


@dataclass(frozen=True, slots=True)
class Areas:
    """Addresses on the card, for T rows with k experts each, N = T * k entries, of a layer of E experts.

    Attributes:
        received: a host's rows, as `workers.gpu.rows` lays them out.
        x: float32 [T, H].
        q_256, scales_256, sums_256: rows rounded in blocks of 256, as RoundRowsArgs has them; `_32` of 32.
        group_starts, group_slots, counts, entry_rows, places: int32, as GroupArgs has them.
        gate, up: float32 [N, I].
        between_q, between_scales, between_sums: the activations between, rounded.
        outputs: float32 [N, H].
        values: int32 [T, H], and right behind them flags, uint8 [T].
    """

    received: int
    x: int
    q_256: int
    scales_256: int
    sums_256: int
    q_32: int
    scales_32: int
    sums_32: int
    group_starts: int
    group_slots: int
    counts: int
    entry_rows: int
    places: int
    gate: int
    up: int
    between_q: int
    between_scales: int
    between_sums: int
    outputs: int
    values: int

    @property
    def num_entries(self) -> int:
        """Of int32, how many entries there are."""
        return self.counts + 4

    @property
    def between_rounded(self) -> GpuRows:
        """Where the activations between go, rounded."""
        return GpuRows(q=self.between_q, scales=self.between_scales, sums=self.between_sums)

    def rounded(self, block: int) -> GpuRows:
        """Where rows in blocks of 256 or 32 go."""
        if block == 256:
            return GpuRows(q=self.q_256, scales=self.scales_256, sums=self.sums_256)
        return GpuRows(q=self.q_32, scales=self.scales_32, sums=self.sums_32)


def received_bytes(shape: WorkShape, rows: int) -> int:
    """Of a host's rows in their largest form, rounded twice, with ids, weights and exponents."""
    H = shape.hidden
    of_row = max(4 * H, 2 * H + H // 64 + H // 8) + 8 * shape.top_k + 4
    return rows * of_row + 8 * ALIGNMENT


def _area_bytes(shape: WorkShape, rows: int) -> dict[str, int]:
    T, H, I, E = rows, shape.hidden, shape.inner, shape.num_experts  # noqa: E741
    N = T * shape.top_k
    return {
        "received": received_bytes(shape, rows),
        "x": 4 * T * H,
        "q_256": T * H,
        "scales_256": T * H // 64,
        "sums_256": T * H // 8,
        "q_32": T * H,
        "scales_32": T * H // 8,
        "sums_32": T * H // 8,
        "group_starts": 4 * (E + 1),
        "group_slots": 4 * E,
        "counts": 8,
        "entry_rows": 4 * N,
        "places": 4 * N,
        "gate": 4 * N * I,
        "up": 4 * N * I,
        "between_q": N * I,
        "between_scales": N * I // 8,
        "between_sums": N * I // 8,
        "outputs": 4 * N * H,
        "values": (4 * H + 1) * T,
    }


def work_bytes(shape: WorkShape, rows: int) -> int:
    """What a workspace takes of a card."""
    return sum(map(aligned, _area_bytes(shape, rows).values()))


class Workspace:
    """Areas for so many rows at a time. One stream uses it.

    Attributes:
        rows: the most at a time.
        at: where they lie.
    """

    def __init__(self, device: Device, shape: WorkShape, rows: int) -> None:
        """Raises DeviceFull."""
        sizes = {name: aligned(num_bytes) for name, num_bytes in _area_bytes(shape, rows).items()}
        self._memory: Memory = device.allocate(sum(sizes.values()))
        starts = accumulate(sizes.values(), initial=self._memory.address)
        self.rows = rows
        self.at = Areas(**dict(zip(sizes, starts, strict=False)))

    @property
    def num_bytes(self) -> int:
        return self._memory.num_bytes
