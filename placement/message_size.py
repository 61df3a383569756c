"""How large the messages of a layer are: what the wire format holds itself to and the cost model counts."""

from __future__ import annotations

from dataclasses import dataclass

from placement.model_shape import ModelShape

# Rows of one message; a longer pass goes in several.
MAX_MESSAGE_ROWS = 2048


@dataclass(frozen=True, slots=True)
class MessageSize:
    """Bytes a row adds to a request and to its reply (`transport/wire.py`; headers left out).

    `hidden_bytes_per_row` are those of the request that its hidden state takes.
    """

    request_bytes_per_row: int
    reply_bytes_per_row: int
    hidden_bytes_per_row: int


def message_size(shape: ModelShape, bytes_per_activation: int) -> MessageSize:
    """Request: hidden state, expert ids, weights and an exponent, 4 bytes each. Reply: int32 sums, a flag.

    Activations of one byte are rounded to 8 bits and have a float32 scale for 256 of them.
    """
    hidden_bytes = shape.hidden_size * bytes_per_activation
    if bytes_per_activation == 1:
        hidden_bytes += 4 * (shape.hidden_size // 256)
    return MessageSize(
        request_bytes_per_row=hidden_bytes + 8 * shape.top_k + 4,
        reply_bytes_per_row=shape.hidden_size * 4 + 1,
        hidden_bytes_per_row=hidden_bytes,
    )
