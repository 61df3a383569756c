"""Memory of a card for the rows of one pass, cut once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from orchestrator.gpu.matrices import CardRows
from orchestrator.gpu.sampling import CHOICE_BYTES, choosing_bytes
from workers.gpu.alignment import aligned
from workers.gpu.device import Device, Memory
from workers.gpu.linear import GpuRows

FEW_ROWS = 8
"""Of a decode step: their launches are kept as graphs, their attention is cut into parts."""
BANNED_SETS = 1 + FEW_ROWS
"""Of tokens that are left out: one for all rows that name it, then one of each row's own."""
MOST_SEQUENCES = 8
"""In a pass."""


@dataclass(frozen=True, slots=True)
class HeadShape:
    """What a pass needs room for: the largest of all layers that the card has.

    Attributes:
        hidden: of a row.
        heads_width: query heads times head_dim.
        projected: rows of q, k, v and gate together.
        inner: of a dense or shared feed-forward.
        num_experts, top_k: 1 where there are none.
        parts_bytes: for attention's parts of one row.
        rope_widths: head_dim of each kind of rotation.
        vocab: 0 where the card has no output matrix.
    """

    hidden: int
    heads_width: int
    projected: int
    inner: int
    num_experts: int
    top_k: int
    parts_bytes: int
    rope_widths: tuple[int, ...]
    vocab: int


class Areas:
    """Addresses by name, in one allocation, for at most `rows` rows.

    Names are those of what lies there in a `Step`.
    """

    def __init__(self, device: Device, shape: HeadShape, rows: int) -> None:
        """Raises DeviceFull."""
        sizes = {name: aligned(size) for name, size in _sizes(shape, rows).items()}
        self.memory: Memory = device.allocate(sum(sizes.values()))
        starts = accumulate(sizes.values(), initial=self.memory.address)
        self.rows = rows
        self._at: Mapping[str, int] = dict(zip(sizes, starts, strict=False))

    def __getitem__(self, name: str) -> int:
        return self._at[name]

    def rounded(self, name: str, block: int) -> GpuRows:
        """Where rows go that are rounded in such blocks."""
        return GpuRows(
            q=self[f"{name}_q{block}"], scales=self[f"{name}_scales{block}"], sums=self[f"{name}_sums{block}"]
        )

    def in_all_forms(self, name: str, x: int) -> CardRows:
        """Rows that lie at `x` in float32, and rounded in the areas of that name."""
        return CardRows(x, self.rounded(name, 256), self.rounded(name, 32))


def areas_bytes(shape: HeadShape, rows: int) -> int:
    """What `Areas` takes."""
    return sum(map(aligned, _sizes(shape, rows).values()))


def _sizes(shape: HeadShape, rows: int) -> dict[str, int]:
    T, H, E, k = rows, shape.hidden, shape.num_experts, shape.top_k
    inbox = {"positions": 4 * T, "sequences": 4 * T, "hidden": 4 * T * H}
    for place, width in enumerate(shape.rope_widths):
        inbox |= {f"cos{place}": 4 * T * width, f"sin{place}": 4 * T * width}
    told = {"exponents": 4 * T, "broken": 4 * T, "expert_ids": 4 * T * k, "expert_weights": 4 * T * k}
    return (
        inbox
        | told
        | {"host_sum": 4 * T * H, "residual": 4 * T * H, "attended": 4 * T * H, "ffn_out": 4 * T * H}
        | {"narrowed": 4 * T * H, "normed": 8 * T * H, "states": 4 * T * H}
        | _rounded("normed", T, 2 * H)
        | {"projected": 4 * T * shape.projected, "queries": 4 * T * shape.heads_width}
        | {"mixed": 4 * T * shape.heads_width, "parts": FEW_ROWS * shape.parts_bytes}
        | _rounded("mixed", T, shape.heads_width)
        | {"router_logits": 4 * T * E, "gate": 4 * T * shape.inner, "up": 4 * T * shape.inner}
        | _rounded("between", T, shape.inner)
        | {"logits": 4 * FEW_ROWS * shape.vocab, "choosing": choosing_bytes(FEW_ROWS, shape.vocab)}
        | {"token_ids": 4 * FEW_ROWS, "choices": CHOICE_BYTES * FEW_ROWS}
        | {"banned": BANNED_SETS * -(-shape.vocab // 32) * 4}
    )


def _rounded(name: str, rows: int, columns: int) -> dict[str, int]:
    count = rows * columns
    return {
        f"{name}_{part}{block}": num_bytes
        for block in (256, 32)
        for part, num_bytes in (("q", count), ("scales", 4 * count // block), ("sums", count // 8))
    }
