"""What a worker's pulse says of a request that is waited for."""

from __future__ import annotations

import math
from enum import Enum, auto

from orchestrator.dispatch.debts import Ask, OpenRequest
from orchestrator.dispatch.terms import Terms
from orchestrator.membership.standing import PongSeen

MOVED_BYTES = 1024
"""A connection that carries fewer in a moment carries heartbeats only."""


class Sign(Enum):
    """Of what will come of a request.

    WELL: its answer will come, as far as anybody can tell.
    LOST: it never came, or its answer has left and is not here.
    IDLE: the worker has it and computes nothing.
    HANGS: the worker computes it, or what was asked before, for too long.
    """

    WELL = auto()
    LOST = auto()
    IDLE = auto()
    HANGS = auto()


def read_sign(request: OpenRequest, pong: PongSeen | None, terms: Terms, way_s: float, now_s: float) -> Sign:
    """What the worker's newest pong says of a request; notes since when it is in doubt.

    Args:
        way_s: how long what is in doubt may still be on its way.
    """
    if pong is None or pong.sent_s <= request.asked_s:
        return Sign.WELL
    if hangs(pong, terms, request.ask):
        return Sign.HANGS
    sign = _of_pong(request.ask.request_id, pong)
    if sign is Sign.WELL:
        request.doubted_s, request.doubted_bytes = math.inf, None
        return sign
    if request.doubted_s == math.inf:
        request.doubted_s = now_s
    return sign if now_s >= request.doubted_s + way_s else Sign.WELL


def note_carried(
    request: OpenRequest, carried_bytes: int, most_bytes: int, way_s: float, now_s: float
) -> None:
    """A request in doubt is on its way while its connection carries bytes, up to `most_bytes` of them.

    Args:
        carried_bytes: by the connection so far, both ways.
        way_s: as of `read_sign`. After that its answer is late, though it may still come.
    """
    began_bytes = request.doubted_bytes
    if began_bytes is None or carried_bytes < request.moved_bytes:
        request.doubted_bytes = request.moved_bytes = carried_bytes
    elif request.moved_bytes + MOVED_BYTES <= carried_bytes <= began_bytes + most_bytes:
        request.late_s = min(request.late_s, request.doubted_s + way_s)
        request.doubted_s, request.moved_bytes = now_s, carried_bytes


def hangs(pong: PongSeen, terms: Terms, ask: Ask | None = None) -> bool:
    """Whether a worker has computed one request for too long: `ask`, or what others have answered."""
    if not pong.computing_id:
        return False
    patience, pace = terms.patience, terms.pace
    if ask is not None and pong.computing_id == ask.request_id:
        stuck_s = patience.stuck_s(ask.pairs, pace.known_late_s(ask.worker, ask.pairs))
    else:
        stuck_s = patience.stuck_s(pace.pairs_at_most(pong.computing_id))
    return pong.computing_s > stuck_s


def _of_pong(request_id: int, pong: PongSeen) -> Sign:
    """Of a request that was asked before its ping left."""
    never_came = pong.received_id < request_id
    # A worker takes the requests of one head in turn.
    was_answered = pong.open_ids == 0 or pong.computing_id > request_id
    if never_came or was_answered:
        return Sign.LOST
    return Sign.IDLE if pong.computing_s == 0.0 else Sign.WELL
