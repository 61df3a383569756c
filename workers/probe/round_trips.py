"""Requests to an echo, as a head makes them: what one row takes, and what each row more."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import zmq

from placement.errors import WorkerLost
from transport.client import WorkerClient
from transport.expert_rows import ExpertRows
from transport.keys import HeadKeys
from transport.messages import ForwardReply, ForwardRequest
from workers.probe.clocks import ASLEEP_S, mean
from workers.probe.echo import DTYPE, HIDDEN_SIZE, LAYER, LIMITS, NAME, TOP_K

MANY_ROWS, SOME_ROWS = 128, 16
"""Of a request whose time tells what a row costs: on a link too slow for many, some."""
_DEADLINE_S = 10.0
_BETWEEN_BYTES = 8 << 20
"""What is read between two requests: as in a step, caches turn cold. Then both ends fall asleep."""
_LEAST_TURNS, _LEAST_MANY = 8, 4
_EXPONENT = -24
# Bytes of a row beside its numbers: ids, weights and an exponent there, a flag back.
_ROUTING_BYTES, _FLAG_BYTES = 8 * TOP_K + 4, 1


@dataclass(frozen=True, slots=True)
class Trips:
    """Seconds of requests, without what either process computes.

    Attributes:
        one_row_s: of each request of one row.
        float32_row_s, bfloat16_row_s: of one row more, whose numbers go there in that form and come back in
            four bytes each.
    """

    one_row_s: tuple[float, ...]
    float32_row_s: float
    bfloat16_row_s: float

    @property
    def round_trip_s(self) -> float:
        """Mean of a request of one row, without its bytes' time."""
        return max(0.0, mean(self.one_row_s) - self.float32_row_s)

    def quantile_s(self, share: float) -> float:
        """`share` of the requests of one row take no longer."""
        return float(np.quantile(self.one_row_s, share))

    @property
    def there_bytes_per_s(self) -> float:
        """From the difference between the two forms, which differ on the way there alone."""
        more_s = self.float32_row_s - self.bfloat16_row_s
        # The way there takes at least a tenth of its share, or noise would make it infinite.
        return 2 * HIDDEN_SIZE / max(more_s, 0.1 * self.float32_row_s * 2 / 8)

    @property
    def back_bytes_per_s(self) -> float:
        there_s = (4 * HIDDEN_SIZE + _ROUTING_BYTES) / self.there_bytes_per_s
        return (4 * HIDDEN_SIZE + _FLAG_BYTES) / max(
            self.float32_row_s - there_s, 0.1 * self.float32_row_s / 2
        )

    @property
    def bytes_per_s(self) -> float:
        """Both ways together."""
        return (8 * HIDDEN_SIZE + _ROUTING_BYTES + _FLAG_BYTES) / self.float32_row_s


@contextmanager
def echo_client(endpoint: str, keys: HeadKeys | None) -> Iterator[WorkerClient]:
    """A greeted client of its own context.

    Raises:
        WorkerStartError: no answer.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    client = WorkerClient(context, endpoint, LIMITS, name=NAME, keys=keys)
    try:
        client.hello(_DEADLINE_S, dtype=DTYPE)
        yield client
    finally:
        client.close()
        context.term()


def measure_trips(client: WorkerClient, seconds: float) -> Trips:
    """For about so long; on a slow link the few turns that there must be take longer.

    Raises:
        WorkerLost: an answer does not come.
    """
    between = np.ones(4 * _BETWEEN_BYTES // 8)
    turn = 0

    def waits(rows: ExpertRows, until: float, least: int) -> Sequence[float]:
        nonlocal turn
        found: list[float] = []
        while len(found) < least or time.perf_counter() < until:
            turn += 1
            part = len(between) // 4 * (turn % 4)
            between[part : part + len(between) // 4].sum()
            time.sleep(ASLEEP_S)
            found.append(_wait_s(client, turn, rows))
        return found[1:]

    began = time.perf_counter()
    one = waits(_rows(1, bfloat16=False), began + seconds / 2, _LEAST_TURNS)
    some_s = waits(_rows(SOME_ROWS, bfloat16=False), began, 2)[0]
    is_quick = some_s * MANY_ROWS / SOME_ROWS * _LEAST_MANY < seconds / 4
    number = MANY_ROWS if is_quick else SOME_ROWS
    many = [
        waits(_rows(number, bfloat16=bfloat16), began + seconds * share, _LEAST_MANY)
        for bfloat16, share in ((False, 0.75), (True, 1.0))
    ]
    float32_s, bfloat16_s = (max(1e-9, (mean(found) - mean(one)) / (number - 1)) for found in many)
    return Trips(tuple(one), float32_s, min(bfloat16_s, float32_s))


def _wait_s(client: WorkerClient, request_id: int, rows: ExpertRows) -> float:
    """From one request to its answer, without this thread's and the other end's computing."""
    started, started_cpu = time.perf_counter(), time.thread_time()
    client.send(ForwardRequest(request_id, client.session, 0, LAYER, rows))
    reply = client.wait(_DEADLINE_S)
    wall_s, own_s = time.perf_counter() - started, time.thread_time() - started_cpu
    if not isinstance(reply, ForwardReply):
        raise WorkerLost(f"{client.endpoint}: no answer in {_DEADLINE_S:g} s: the link is down or blocked")
    return max(0.0, wall_s - reply.compute_s - own_s)


def _rows(count: int, *, bfloat16: bool) -> ExpertRows:
    hidden = np.random.default_rng(0).standard_normal((count, HIDDEN_SIZE), np.float32)
    ids = np.tile(np.arange(TOP_K, dtype=np.int32), (count, 1))
    weights = np.full(ids.shape, 0.125, np.float32)
    numbers = (hidden.view(np.uint32) >> 16).astype(np.uint16) if bfloat16 else hidden
    return ExpertRows(numbers, ids, weights, np.full(count, _EXPONENT, np.int32))
