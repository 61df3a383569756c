"""Stores, endpoints and clients for tests of the service."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import zmq

from transport.client import WorkerClient
from transport.expert_rows import ExpertRows
from transport.messages import ForwardRequest, Reply, WireLimits
from transport.sockets import Context
from workers.fixed_point import PartialSum
from workers.kernels import ExpertMatrices, ExpertWeights, moe_partial_sum
from workers.service import ExpertService

LAYERS = (2, 3)
HIDDEN_SIZE, INTERMEDIATE_SIZE, NUM_EXPERTS, TOP_K = 48, 16, 10, 3
HELD = 6
"""Experts 0 to HELD - 1 of every layer are held."""
LIMITS = WireLimits("fingerprint", frozenset(LAYERS), HIDDEN_SIZE, NUM_EXPERTS, TOP_K, max_rows=64)
SESSION, EPOCH = 11, 4
DEADLINE_S = 120.0

_numbers = itertools.count()


class SmallStore:
    """Random experts of two layers, computed by the real kernels."""

    experts: ClassVar[dict[int, tuple[int, ...]]] = dict.fromkeys(LAYERS, tuple(range(HELD)))
    num_experts = HELD * len(LAYERS)
    held_bytes = num_experts * 3 * HIDDEN_SIZE * INTERMEDIATE_SIZE * 4

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        slots = torch.full((NUM_EXPERTS,), -1, dtype=torch.int32)
        slots[:HELD] = torch.arange(HELD, dtype=torch.int32)
        wide, tall = (HELD, INTERMEDIATE_SIZE, HIDDEN_SIZE), (HELD, HIDDEN_SIZE, INTERMEDIATE_SIZE)
        self._layers = {}
        for layer in LAYERS:
            gate, up, down = (
                ExpertMatrices.of(torch.randn(shape, generator=generator)) for shape in (wide, wide, tall)
            )
            self._layers[layer] = ExpertWeights(slots, gate, up, down, limit=0.0, top_k=TOP_K)

    def notices(self) -> tuple[str, ...]:
        return ()

    def forward(self, layer: int, rows: ExpertRows) -> PartialSum:
        return PartialSum(*moe_partial_sum(self._layers[layer], rows))


class GatedStore(SmallStore):
    """Computes only while the gate is open, and says when it has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Semaphore(0)
        self.gate = threading.Event()

    def forward(self, layer: int, rows: ExpertRows) -> PartialSum:
        self.begun.release()
        assert self.gate.wait(DEADLINE_S)
        return super().forward(layer, rows)


def request(request_id: int, num_rows: int = 1, *, bfloat16: bool = False, seed: int = 0) -> ForwardRequest:
    rng = np.random.default_rng([request_id, seed])
    hidden = rng.standard_normal((num_rows, HIDDEN_SIZE), dtype=np.float32)
    layer = int(rng.choice(LAYERS))
    rows = ExpertRows(
        (hidden.view(np.uint32) >> 16).astype(np.uint16) if bfloat16 else hidden,
        rng.integers(-1, HELD, (num_rows, TOP_K), dtype=np.int32),
        rng.random((num_rows, TOP_K), dtype=np.float32),
        np.full(num_rows, -20, np.int32),
    )
    return ForwardRequest(request_id, SESSION, EPOCH, layer, rows)


def expected(store: SmallStore, asked: ForwardRequest) -> PartialSum:
    """What the store says when asked directly."""
    return store.forward(asked.layer, asked.rows)


def endpoint(wire: str, directory: Path) -> str:
    """A fresh one; the system chooses the port."""
    number = next(_numbers)
    return {
        "tcp": "tcp://127.0.0.1:*",
        "ipc": f"ipc://{directory}/{number}.sock",
        "inproc": f"inproc://service-{number}",
    }[wire]


@contextmanager
def serving(
    store: SmallStore, where: str = "tcp://127.0.0.1:*", context: Context | None = None
) -> Iterator[ExpertService]:
    with ExpertService("w", store, LIMITS, where, dtype="float32", context=context) as service:
        yield service


@contextmanager
def connected(service: ExpertService, context: Context | None = None) -> Iterator[WorkerClient]:
    """A client that has been greeted."""
    own = context or zmq.Context()
    client = WorkerClient(own, service.endpoint, LIMITS, name="w")
    try:
        client.hello(DEADLINE_S)
        yield client
    finally:
        client.close()
        if context is None:
            own.term()


def answer(client: WorkerClient) -> Reply:
    reply = client.wait(DEADLINE_S)
    assert reply is not None, "no answer"
    return reply


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)
