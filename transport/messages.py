"""The messages between head and workers, the limits both ends hold them to, and the error for all else."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from placement.errors import PotluckError
from placement.experts import Experts
from placement.message_size import MAX_MESSAGE_ROWS
from placement.model_shape import ModelShape
from placement.wire_form import WIRE_FORMS
from transport.expert_rows import ExpertRows

WIRE_VERSION = 3
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
    LOADING = "loading"
    NO_MEMORY = "no_memory"
    REFUSED = "refused"
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


class WorkerState(StrEnum):
    """How far a worker is; `FAILED` experts did not load, and the worker ends soon."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


def random_id() -> int:
    """A fresh unsigned 64-bit number, for a head's session or a worker's instance; never 0."""
    return secrets.randbits(64) or 1


@dataclass(frozen=True)
class WireLimits:
    """What a message may ask for; everything else is refused before memory is allocated for it.

    `max_rows` bounds the tokens of one message: a longer prefill chunk is several messages.
    """

    fingerprint: str
    moe_layers: frozenset[int]
    hidden_size: int
    num_experts: int
    top_k: int
    max_rows: int = MAX_MESSAGE_ROWS

    @classmethod
    def for_shape(cls, shape: ModelShape, max_rows: int = MAX_MESSAGE_ROWS) -> WireLimits:
        return cls(
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
    def of_forward(self) -> tuple[int, int, int, int, int]:
        """As the compiled checks of forward messages take them."""
        return WIRE_VERSION, self.hidden_size, self.top_k, self.num_experts, self.max_rows

    @cached_property
    def row_bytes(self) -> tuple[int, ...]:
        """Of a row in each of `WIRE_FORMS`, 0 where such rows cannot have it."""
        width = self.hidden_size
        return tuple(
            0 if any(width % block for block in form.blocks) else form.row_bytes(width) for form in WIRE_FORMS
        )

    @cached_property
    def max_plain_bytes(self) -> int:
        """The largest message without a tensor: all experts of a model, or the longest texts."""
        experts_bytes = len(self.moe_layers) * (8 + 4 * self.num_experts)
        return experts_bytes + 8 * 4 * MAX_TEXT_CHARS + 256

    @cached_property
    def max_header_bytes(self) -> int:
        """Routing of `max_rows` rows, the other fields; or a message without a tensor."""
        return max(self.max_rows * self.routing_bytes_per_row + 256, self.max_plain_bytes)

    @cached_property
    def max_frame_bytes(self) -> int:
        """The largest frame either end may send; libzmq drops a peer that announces more."""
        return max(self.max_rows * self.hidden_size * 4, self.max_header_bytes)


@dataclass(frozen=True, slots=True)
class Hello:
    """A head's first message: it asks a worker who it is, and checks the answer itself.

    `session` is one random number for all of a head process's messages to all workers.
    """

    request_id: int
    session: int


@dataclass(frozen=True, slots=True)
class HelloReply:
    """Who a worker is and what it serves.

    Attributes:
        instance: a random number of this worker process: another one means that it was started again.
        fingerprint, identity: of the model; "" for an identity that is not known yet. A hash of the whole
            files follows it after a colon, where that is known.
        dtype: of rows, "float32" or "bfloat16".
        num_experts: that it serves now.
        text: how far loading is, or why it failed; "" when there is nothing to say.
    """

    request_id: int
    name: str
    instance: int
    state: WorkerState
    fingerprint: str
    identity: str
    dtype: str
    num_experts: int
    text: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a sign of life. `oldest_epoch`: of this head's plans, the oldest that is still in flight."""

    request_id: int
    session: int
    oldest_epoch: int


@dataclass(frozen=True, slots=True)
class Pong:
    """What a worker has of the asking session, and what it does now.

    Attributes:
        queue_depth: requests of all sessions, accepted and not yet answered, the one being computed included.
        received_id: the highest id of this session's forward requests that came, 0 for none.
        open_ids: how many of this session's forward requests are not answered.
        computing_id: the request that is computed now, if it is this session's; else 0.
        computing_s: for how long whatever is computed now has been computing; 0.0 for nothing.
        changes: `Hold` and `Drop` orders finished since the start.
    """

    request_id: int
    instance: int
    state: WorkerState
    queue_depth: int
    received_id: int
    open_ids: int
    computing_id: int
    computing_s: float
    changes: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Serve these experts in addition: at once from the disk, from memory when they are loaded.

    `order` names the order: the same one again changes nothing. Loading reads at most `rate_bytes_per_s`,
    0 for as fast as it can.
    """

    request_id: int
    order: int
    experts: Experts
    rate_bytes_per_s: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Let go of experts, which no plan in flight asks for here any more."""

    request_id: int
    order: int
    experts: Experts


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End the worker; the answer is a `Held` that is done."""

    request_id: int


@dataclass(frozen=True, slots=True)
class Held:
    """How far an order is: done, or not and why. `missing_bytes`: of memory, for what stays on the disk."""

    request_id: int
    order: int
    done: bool
    missing_bytes: int
    text: str


class ForwardRequest(NamedTuple):
    """Rows of one MoE layer for one worker; in `rows`, -1 stands where an expert is another worker's."""

    request_id: int
    session: int
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


Order = Hold | Drop
Request = Hello | Ping | Hold | Drop | Shutdown | ForwardRequest
Reply = HelloReply | Pong | Held | ForwardReply | ErrorReply
