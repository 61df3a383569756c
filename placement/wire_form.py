"""What a layer's rows travel in between the head and its experts (docs/arithmetic.md, 'The wire')."""

from __future__ import annotations

from dataclasses import dataclass

from placement.weight_format import BFLOAT16, FLOAT32, ExpertFormat, planned_experts, run_dtype_of


@dataclass(frozen=True, slots=True)
class WireForm:
    """The form of a layer's rows in messages.

    Attributes:
        name: "float32", "bfloat16", or "int8" with the widths of its blocks.
        bytes_per_value: of a number, without scales.
        blocks: the rows are rounded to 8 bits once for each of these widths, with a float32 scale a block.
    """

    name: str
    bytes_per_value: int
    blocks: tuple[int, ...] = ()

    def row_bytes(self, hidden_size: int) -> int:
        """Of one row, scales included."""
        if not self.blocks:
            return hidden_size * self.bytes_per_value
        return sum(hidden_size + 4 * (hidden_size // block) for block in self.blocks)


FLOAT32_ROWS = WireForm("float32", 4)
BFLOAT16_ROWS = WireForm("bfloat16", 2)
_ROUNDED: dict[tuple[int, ...], WireForm] = {
    blocks: WireForm("int8/" + "+".join(map(str, blocks)), 1, blocks) for blocks in ((256,), (32,), (32, 256))
}
WIRE_FORMS = (FLOAT32_ROWS, BFLOAT16_ROWS, *_ROUNDED.values())


def wire_form(experts: ExpertFormat, dtype: str) -> WireForm:
    """The form of the rows of a layer whose experts are kept so.

    Quantised weights get rows rounded as they want them, so that the wire changes nothing. In a run in
    bfloat16 (`dtype`) all others get bfloat16 rows, except float32 weights. The rest gets float32.
    """
    blocks = {experts.gate.rounding_block, experts.up.rounding_block}
    if 0 not in blocks:
        return _ROUNDED[tuple(sorted(blocks))]
    narrow = dtype == BFLOAT16.name and FLOAT32 not in (experts.gate, experts.up)
    return BFLOAT16_ROWS if narrow else FLOAT32_ROWS


def usual_wire_form(form: str) -> WireForm:
    """Of a run whose experts are in a form that plans name; raises InputError for an unknown one."""
    experts = planned_experts(form)
    return wire_form(experts, run_dtype_of(experts.gate.name))
