"""What a worker's pulse says of one request."""

from __future__ import annotations

from enum import Enum, auto

from orchestrator.membership.standing import PongSeen


class Sign(Enum):
    """Of what will come of it.

    WELL: it waits or is computed.
    LOST: it never came, or its answer has left.
    IDLE: it came, and the worker computes nothing.
    """

    WELL = auto()
    LOST = auto()
    IDLE = auto()


def sign_of(request_id: int, pong: PongSeen) -> Sign:
    """What a pong says of a request that was asked before its ping left."""
    never_came = pong.received_id < request_id
    # A worker takes the requests of one head in turn.
    was_answered = pong.open_ids == 0 or pong.computing_id > request_id
    if never_came or was_answered:
        return Sign.LOST
    return Sign.IDLE if pong.computing_s == 0.0 else Sign.WELL
