"""How large the messages of a layer are: what the wire format holds itself to and the cost model counts."""

from __future__ import annotations

from dataclasses import dataclass

from placement.model_shape import ModelShape

# Rows of one message; a longer pass goes in several.
MAX_MESSAGE_ROWS = 2048


@dataclass(frozen=True, slots=True)
class MessageSize:
    """Bytes a row adds to a request and to its reply (`transport/wire.py`; headers left out)."""

    request_bytes_per_row: int
    reply_bytes_per_row: int


def message_size(shape: ModelShape, bytes_per_activation: int) -> MessageSize:
    """Request: hidden state, expert ids, weights and an exponent, 4 bytes each. Reply: int32 sums, a flag."""
    return MessageSize(
        request_bytes_per_row=shape.hidden_size * bytes_per_activation + 8 * shape.top_k + 4,
        reply_bytes_per_row=shape.hidden_size * 4 + 1,
    )
