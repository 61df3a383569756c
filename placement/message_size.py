"""How large the messages of a layer are: what the wire format holds itself to and the cost model counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from placement.model_shape import ModelShape
from placement.wire_form import WireForm

# Rows of one message; a longer pass goes in several.
MAX_MESSAGE_ROWS = 2048


@dataclass(frozen=True, slots=True)
class MessageSize:
    """Bytes a row adds to a request and to its reply (`transport/wire.py`; headers left out).

    `hidden_bytes_per_row` are those of the request that its hidden state takes.
    """

    request_bytes_per_row: float
    reply_bytes_per_row: float
    hidden_bytes_per_row: float


def message_size(shape: ModelShape, wires: Sequence[WireForm]) -> MessageSize:
    """Request: hidden state, expert ids, weights and an exponent, 4 bytes each. Reply: int32 sums, a flag.

    Args:
        wires: of each layer, or one for all. Where they differ, sizes are means over the layers.
    """
    hidden_bytes = sum(wire.row_bytes(shape.hidden_size) for wire in wires) / len(wires)
    return MessageSize(
        request_bytes_per_row=hidden_bytes + 8 * shape.top_k + 4,
        reply_bytes_per_row=shape.hidden_size * 4 + 1,
        hidden_bytes_per_row=hidden_bytes,
    )
