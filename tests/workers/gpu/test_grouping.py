"""Rows grouped by expert, and outputs added on a grid: against plain numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cuda_on_cpu.card import Card
from workers.gpu.device import Device, Stream
from workers.gpu.expert_kernels import AddOnGridArgs, GroupArgs, largest_steps, set_slots


class OnCard:
    """Arrays put on a card and read back."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.stream: Stream = device.stream()
        self.held = []

    def put(self, array: NDArray) -> int:
        memory = self.device.allocate(array.nbytes)
        self.held.append(memory)
        here = self.device.pinned(array.nbytes).view(array.dtype).reshape(array.shape)
        here[:] = array
        self.held.append(here)
        self.stream.upload(memory.address, here)
        return memory.address

    def get(self, address: int, shape: Sequence[int] | int, dtype: type) -> NDArray:
        found = np.empty(shape, dtype)
        self.stream.download(found, address)
        self.stream.synchronize()
        return found


def grouped(card: Card, ids: NDArray, slots: NDArray) -> tuple[NDArray, ...]:
    on = OnCard(card.device())
    T, k = ids.shape
    E = len(slots)
    starts, of_group, num, rows, places, flags = (
        on.put(np.full(count, -7, np.int32)) for count in (E + 1, E, 2, T * k, T * k, T)
    )
    arguments = GroupArgs(on.put(ids), on.put(slots), starts, of_group, num, rows, places, flags, T, k, E)
    on.stream.launch("group_entries", (1, 1, 1), -(-E // 32) * 32, arguments)
    groups, entries = on.get(num, 2, np.int32).tolist()
    found = on.get(starts, groups + 1, np.int32)
    assert entries == found[-1]
    return (
        found,
        on.get(of_group, groups, np.int32),
        on.get(rows, int(found[-1]), np.int32),
        on.get(places, (T, k), np.int32),
        on.get(flags, T, np.uint8),
    )


@pytest.mark.parametrize(("T", "k", "E"), [(1, 1, 1), (3, 8, 288), (700, 8, 288), (5, 4, 33), (2, 8, 1024)])
def test_pairs_are_grouped_by_expert_in_their_order(card: Card, T: int, k: int, E: int) -> None:
    rng = np.random.default_rng(T)
    ids = np.stack([rng.permutation(E)[:k] if k <= E else np.zeros(k, int) for _ in range(T)])
    ids = np.where(rng.random((T, k)) < 0.2, -1, ids).astype(np.int32)
    here = rng.random(E) < 0.7
    slots = np.where(here, rng.permutation(E), -1).astype(np.int32)
    starts, of_group, rows, places, flags = grouped(card, ids, slots)
    expected = [
        (expert, [i for i, one in enumerate(ids.ravel()) if one == expert])
        for expert in range(E)
        if slots[expert] >= 0 and (ids == expert).any()
    ]
    np.testing.assert_array_equal(of_group, [slots[expert] for expert, _ in expected])
    np.testing.assert_array_equal(np.diff(starts), [len(pairs) for _, pairs in expected])
    np.testing.assert_array_equal(rows, [pair // k for _, pairs in expected for pair in pairs])
    in_order = [pair for _, pairs in expected for pair in pairs]
    of_pair = np.full(T * k, -1)
    of_pair[in_order] = np.arange(len(in_order))
    np.testing.assert_array_equal(places, of_pair.reshape(T, k))
    assert not flags.any()


def test_slots_are_changed_where_said(card: Card) -> None:
    on = OnCard(card.device())
    table = on.put(np.full(100, -1, np.int32))
    set_slots(on.stream, table, {expert: 2 * expert for expert in range(3, 90)})
    expected = np.full(100, -1)
    expected[3:90] = 2 * np.arange(3, 90)
    np.testing.assert_array_equal(on.get(table, 100, np.int32), expected)


@pytest.mark.parametrize("adds", [False, True])
def test_shares_are_those_of_float64_for_every_exponent_and_size(card: Card, adds: bool) -> None:
    rng = np.random.default_rng(int(adds))
    T, H, k = 300, 96, 4
    entries = T * k
    exponents = rng.integers(-512, 513, T).astype(np.int32)
    exponents[:100] = rng.integers(-127, 128, 100)
    exponents[:8] = [-512, -253, -252, -126, 126, 251, 253, 512]
    # Outputs about as large as their grid allows, some far from it, some not numbers, some subnormal.
    size = np.clip(exponents[:, None] + rng.integers(-4, 30, (T, H)), -148, 127).astype(np.float64)
    with np.errstate(over="ignore"):
        y = (rng.standard_normal((k, T, H)) * 2.0**size).astype(np.float32).reshape(entries, H)
    y[rng.random(y.shape) < 0.002] = np.inf
    y[rng.random(y.shape) < 0.002] = np.nan
    y[rng.random(y.shape) < 0.002] = np.float32(1e-45)
    # Ties between two steps.
    y[:, :4] = (rng.integers(-9, 9, (k, T, 4)) + 0.5).reshape(-1, 4) * 2.0 ** np.tile(
        np.clip(exponents, -120, 100).astype(float), k
    )[:, None]
    weights = rng.standard_normal((T, k)).astype(np.float32)
    weights[::2] = 1
    places = np.arange(entries, dtype=np.int32).reshape(k, T).T.copy()
    places[rng.random(places.shape) < 0.3] = -1
    before = rng.integers(-1000, 1000, (T, H)).astype(np.int32)
    most = (2**31 - 1) // k
    on = OnCard(card.device())
    out, flags = on.put(before), on.put(np.zeros(T, np.uint8))
    arguments = AddOnGridArgs(
        on.put(y),
        on.put(places),
        on.put(weights),
        on.put(exponents),
        out,
        flags,
        T,
        H,
        k,
        largest_steps(most),
        int(adds),
    )
    on.stream.launch("add_on_grid", (-(-H // 64), T, 1), 64, arguments)
    found, flagged = on.get(out, (T, H), np.int32), on.get(flags, T, np.uint8)

    expected = before.astype(np.int64) if adds else np.zeros((T, H), np.int64)
    off = np.zeros((T, H), np.bool_)
    with np.errstate(all="ignore"):
        for j in range(k):
            product = weights[:, j, None] * y[np.maximum(places[:, j], 0)]
            steps = np.ldexp(product.astype(np.float64), -exponents[:, None])
            fits = np.abs(steps) < most + 0.5
            here = places[:, j, None] >= 0
            expected += np.where(here & fits, np.rint(np.where(fits, steps, 0)), 0).astype(np.int64)
            off |= here & ~fits
    np.testing.assert_array_equal(flagged != 0, off.any(axis=1))
    assert flagged.any()
    assert not flagged.all()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("most", [(2**31 - 1) // k for k in range(1, 33)])
def test_the_largest_number_of_steps_is_the_last_that_float64_lets_pass(most: int) -> None:
    largest = np.float32(largest_steps(most))
    assert float(largest) < most + 0.5
    assert float(np.nextafter(largest, np.float32(np.inf))) >= most + 0.5
