"""What lies between an expert's halves has the CPU kernels' bits on a card."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orchestrator.kernels import swiglu as on_cpu
from tests.cuda_on_cpu.card import Card
from tests.workers.gpu.linear_cases import same_bits
from workers.gpu.linear import GpuRows
from workers.gpu.swiglu import Halves, swiglu
from workers.kernels import round_rows

ROWS, COLUMNS, STRIDE = 7, 768, 1000


def _gate_and_up() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    gate, up = (rng.standard_normal((ROWS, STRIDE)).astype(np.float32) * 4 for _ in range(2))
    gate[1] *= np.float32(30)
    up[2] *= np.float32(1e-40)
    gate[3, ::3], up[3, 5] = -np.inf, np.inf
    gate[4, 7], up[5, 700] = np.nan, np.nan
    gate[6], up[6, ::2] = 0, -0.0
    return gate, up


@pytest.mark.parametrize("limit", [0.0, 2.5])
@pytest.mark.parametrize("block", [0, 32, 256])
def test_swiglu_and_its_rounding_have_the_cpu_kernels_bits(card: Card, block: int, limit: float) -> None:
    device = card.device()
    stream = device.stream()
    gate, up = _gate_and_up()
    memory = device.allocate(1 << 20)
    gate_at, up_at, count_at, x_at, q_at, scales_at, sums_at = (
        memory.address + place * (1 << 16) for place in range(7)
    )
    stream.upload(gate_at, gate)
    stream.upload(up_at, up)
    there = ROWS - 1
    stream.upload(count_at, np.array([there], np.int32))
    stream.clear(x_at, 1 << 16)
    halves = Halves(gate_at, up_at, ROWS, COLUMNS, STRIDE, num_rows=count_at)
    swiglu(stream, halves, limit, GpuRows(x_at, q_at, scales_at, sums_at), block)
    x = np.empty((ROWS, COLUMNS), np.float32)
    stream.download(x, x_at)
    wanted = on_cpu(*(torch.from_numpy(half[:, :COLUMNS].copy()) for half in (gate, up)), limit).numpy()
    assert same_bits(x[:there], wanted[:there])
    assert not x[there:].any(), "a row beyond the count was written"
    if not block:
        return
    (rounded,) = round_rows(wanted[:there], (block,)).parts
    q, scales = np.empty((there, COLUMNS), np.int8), np.empty((there, COLUMNS // block), np.float32)
    sums = np.empty((there, COLUMNS // 16), np.int16)
    for found, at in ((q, q_at), (scales, scales_at), (sums, sums_at)):
        stream.download(found, at)
    np.testing.assert_array_equal(q, rounded.q)
    assert same_bits(scales, rounded.scales)
    np.testing.assert_array_equal(sums, rounded.q.reshape(there, -1, 16).sum(axis=2, dtype=np.int16))
