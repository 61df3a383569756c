"""The messages between head and workers, the limits both ends hold them to, and the error for all else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from placement.errors import PotluckError
from placement.message_size import MAX_MESSAGE_ROWS
from placement.model_shape import ModelShape
from transport.expert_rows import ExpertRows

MAX_TEXT_CHARS = 512


class ErrorCode(StrEnum):
    """Why a request was refused; travels as its value."""

    BAD_VERSION = "bad_version"
    BAD_SHAPE = "bad_shape"
    BAD_DTYPE = "bad_dtype"
    WRONG_EPOCH = "wrong_epoch"
    UNKNOWN_LAYER = "unknown_layer"
    EXPERT_NOT_HELD = "expert_not_held"
    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    BUSY = "busy"
    MODEL_FILES = "model_files"
    INTERNAL = "internal"


class WireError(PotluckError):
    """Bytes that are not a message this end accepts.

    `request_id` is 0 where the header was too broken to tell whose request it was.
    """

    def __init__(self, code: ErrorCode, message: str, request_id: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.request_id = request_id


@dataclass(frozen=True)
class WireLimits:
    """What a message may ask for; everything else is refused before memory is allocated for it.

    `max_rows` bounds the tokens of one message: a longer prefill chunk is several messages.
    """

    epoch: int
    fingerprint: str
    moe_layers: frozenset[int]
    hidden_size: int
    num_experts: int
    top_k: int
    max_rows: int = MAX_MESSAGE_ROWS

    @classmethod
    def for_shape(cls, shape: ModelShape, epoch: int, max_rows: int = MAX_MESSAGE_ROWS) -> WireLimits:
        return cls(
            epoch=epoch,
            fingerprint=shape.fingerprint,
            moe_layers=frozenset(shape.moe_layers),
            hidden_size=shape.hidden_size,
            num_experts=shape.num_experts,
            top_k=shape.top_k,
            max_rows=max_rows,
        )

    @cached_property
    def routing_bytes_per_row(self) -> int:
        """Of expert_ids int32[k], weights float32[k] and one scale exponent, int32."""
        return 8 * self.top_k + 4

    @cached_property
    def max_header_bytes(self) -> int:
        """Routing of `max_rows` rows, the other fields, the longest text (4 bytes a character)."""
        return self.max_rows * self.routing_bytes_per_row + 4 * MAX_TEXT_CHARS + 256

    @cached_property
    def max_frame_bytes(self) -> int:
        """The largest frame either end may send; libzmq drops a peer that announces more."""
        return max(self.max_rows * self.hidden_size * 4, self.max_header_bytes)


@dataclass(frozen=True, slots=True)
class Hello:
    """The head's first message: it asks a worker who it is, and checks the answer itself."""

    request_id: int


@dataclass(frozen=True, slots=True)
class HelloReply:
    """What a worker serves: `dtype` of rows ("float32", "bfloat16"), `num_experts` that it holds."""

    request_id: int
    name: str
    epoch: int
    fingerprint: str
    dtype: str
    num_experts: int


@dataclass(frozen=True, slots=True)
class Ping:
    request_id: int


@dataclass(frozen=True, slots=True)
class Pong:
    """`queue_depth` counts requests accepted and not yet answered, the one being computed included."""

    request_id: int
    queue_depth: int


class ForwardRequest(NamedTuple):
    """Rows of one MoE layer for one worker; in `rows`, -1 stands where an expert is another worker's."""

    request_id: int
    epoch: int
    layer: int
    rows: ExpertRows


class ForwardReply(NamedTuple):
    """Partial sums int32[T, H] in units of 2 ** scale_exponent, `saturated` bool[T].

    `compute_s` is what the worker spent in its experts: the rest of a round trip is queueing and wire.
    The rows are at most the limits' `max_rows`: that they are the rows asked for is for the asker to check.
    """

    request_id: int
    values: NDArray[np.int32]
    saturated: NDArray[np.bool_]
    compute_s: float


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """The worker's refusal or failure. `message` is one line for a person and carries no stack trace."""

    request_id: int
    code: ErrorCode
    message: str


Request = Hello | Ping | ForwardRequest
Reply = HelloReply | Pong | ForwardReply | ErrorReply
