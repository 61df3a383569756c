"""The layer's state machine under a virtual clock: any order, any delay, any loss gives the same sum."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from orchestrator.dispatch.layer_sum import Ask, LayerSum, Probe
from placement.errors import NonFiniteError, WorkerLost, WorkerRefused
from placement.patience import Patience

HIDDEN, TOP_K, EXPERTS = 3, 4, 12
STEP, MAX_STEPS = 6, 20


def contribution(token: int, expert: int, exponent: int) -> NDArray[np.int32]:
    """A number that only this token, expert and grid give."""
    return np.full(HIDDEN, 1 + token * 1009 + expert * 31 + exponent * 7, np.int32)


def expected_sum(ids: NDArray[np.int32], exponents: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.stack(
        [sum(contribution(t, int(e), int(exponents[t])) for e in ids[t]) for t in range(len(ids))]
    )


@dataclass
class VirtualCluster:
    """Workers that answer after a drawn delay, or never; time moves only here."""

    rng: np.random.Generator
    holders: list[list[int]]
    saturating: frozenset[int] = frozenset()
    saturated_below: int = 0
    deaf: frozenset[int] = frozenset()
    busy_chance: float = 0.0
    now_s: float = 0.0
    asks: list[Ask] = field(default_factory=list)
    probes: list[tuple[float, int]] = field(default_factory=list)
    lost_at: dict[int, float] = field(default_factory=dict)

    def choose(self, ids: NDArray[np.int32], lost: frozenset[int]) -> NDArray[np.int32]:
        def pick(expert: int) -> int:
            living = [w for w in self.holders[expert] if w not in lost]
            return int(self.rng.choice(living)) if living else -1

        return np.vectorize(lambda e: pick(e) if e >= 0 else -1, otypes=[np.int32])(ids)

    def run(self, layer: LayerSum) -> None:
        inbox: list[tuple[float, int, Ask | Probe]] = []
        order = count()

        def deliver(actions: list[Ask | Probe]) -> None:
            for action in actions:
                if isinstance(action, Probe):
                    self.probes.append((self.now_s, action.worker))
                else:
                    self.asks.append(action)
                if action.worker not in self.deaf:
                    heapq.heappush(inbox, (self.now_s + float(self.rng.uniform(0, 2)), next(order), action))

        deliver(layer.begin(self.now_s))
        while not layer.finished:
            wake_s = layer.wake_at_s()
            if inbox and inbox[0][0] <= wake_s:
                self.now_s, _, message = heapq.heappop(inbox)
                deliver(self.answer(layer, message))
            else:
                self.now_s = wake_s
                before = set(layer.lost)
                deliver(layer.tick(self.now_s))
                self.lost_at.update(dict.fromkeys(layer.lost - before, self.now_s))

    def answer(self, layer: LayerSum, message: Ask | Probe) -> list[Ask | Probe]:
        if isinstance(message, Probe):
            layer.heard(message.worker, self.now_s)
            return []
        if self.rng.random() < self.busy_chance:
            layer.busy(message.worker, message.request_id, self.now_s)
            return []
        values = np.zeros((len(message.rows), HIDDEN), np.int32)
        saturated = np.zeros(len(message.rows), np.bool_)
        for i, row in enumerate(message.rows):
            exponent = int(message.scale_exponents[i])
            for expert in message.expert_ids[i][message.expert_ids[i] >= 0]:
                values[i] += contribution(int(row), int(expert), exponent)
                saturated[i] |= int(expert) in self.saturating and exponent < self.saturated_below
        return layer.partial(message.worker, message.request_id, values, saturated, self.now_s)


def make_layer(
    cluster: VirtualCluster,
    ids: NDArray[np.int32],
    num_workers: int,
    max_rows: int = 99,
    patience: Patience | None = None,
) -> LayerSum:
    return LayerSum(
        layer=3,
        expert_ids=ids,
        scale_exponents=np.zeros(len(ids), np.int32),
        hidden_size=HIDDEN,
        names=[f"w{i}" for i in range(num_workers)],
        choose=cluster.choose,
        request_ids=count(1),
        coarser=lambda exponents: exponents + STEP,
        max_coarsenings=MAX_STEPS,
        max_rows=max_rows,
        patience=patience or Patience(),
    )


def draw_ids(rng: np.random.Generator, num_tokens: int) -> NDArray[np.int32]:
    return np.stack([rng.permutation(EXPERTS)[:TOP_K] for _ in range(num_tokens)]).astype(np.int32)


@given(seed=st.integers(0, 2**32 - 1), num_tokens=st.integers(1, 6), num_workers=st.integers(1, 5))
def test_sum_is_the_same_for_any_placement_order_delay_and_busy_worker(
    seed: int, num_tokens: int, num_workers: int
) -> None:
    rng = np.random.default_rng(seed)
    ids = draw_ids(rng, num_tokens)
    holders = [list(rng.permutation(num_workers)[: rng.integers(1, num_workers + 1)]) for _ in range(EXPERTS)]
    cluster = VirtualCluster(rng, holders, saturating=frozenset({2, 5}), saturated_below=9, busy_chance=0.2)
    layer = make_layer(cluster, ids, num_workers)
    cluster.run(layer)
    values, exponents = layer.result()
    np.testing.assert_array_equal(exponents, np.where(np.isin(ids, [2, 5]).any(axis=1), 12, 0))
    np.testing.assert_array_equal(values, expected_sum(ids, exponents))


@given(seed=st.integers(0, 2**32 - 1))
def test_one_message_per_worker_with_only_the_rows_it_needs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = draw_ids(rng, 5)
    cluster = VirtualCluster(rng, [[e % 3] for e in range(EXPERTS)])
    cluster.run(make_layer(cluster, ids, 3))
    assert len({ask.worker for ask in cluster.asks}) == len(cluster.asks)
    for ask in cluster.asks:
        assert (ask.expert_ids >= 0).any(axis=1).all()
        np.testing.assert_array_equal(ask.rows, np.flatnonzero((ids % 3 == ask.worker).any(axis=1)))


def test_more_rows_than_a_message_takes_go_in_several() -> None:
    ids = draw_ids(np.random.default_rng(5), 7)
    cluster = VirtualCluster(np.random.default_rng(5), [[0] for _ in range(EXPERTS)])
    layer = make_layer(cluster, ids, 1, max_rows=3)
    cluster.run(layer)
    assert [len(ask.rows) for ask in cluster.asks] == [3, 3, 1]
    np.testing.assert_array_equal(layer.result()[0], expected_sum(ids, np.zeros(7, np.int32)))


@given(seed=st.integers(0, 2**32 - 1))
def test_a_lost_worker_costs_nothing_when_others_hold_its_experts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = draw_ids(rng, 4)
    cluster = VirtualCluster(rng, [[e % 3, (e + 1) % 3] for e in range(EXPERTS)], deaf=frozenset({1}))
    layer = make_layer(cluster, ids, 3)
    cluster.run(layer)
    values, exponents = layer.result()
    np.testing.assert_array_equal(values, expected_sum(ids, exponents))
    assert layer.lost <= {1}


def test_silence_is_probed_then_given_up_at_the_deadline() -> None:
    patience = Patience(probe_after_s=0.5, silent_s=3.0)
    cluster = VirtualCluster(
        np.random.default_rng(0), [[0, 1] for _ in range(EXPERTS)], deaf=frozenset({0, 1})
    )
    layer = make_layer(cluster, draw_ids(cluster.rng, 1), 2, patience=patience)
    with pytest.raises(WorkerLost, match=r"layer 3 expert \d+.*'w0', 'w1'.*plan with replicas"):
        cluster.run(layer)
    assert cluster.now_s == pytest.approx(3.0)
    assert [time for time, worker in cluster.probes if worker == 0][:3] == pytest.approx([0.5, 1.0, 1.5])


def test_a_worker_that_computes_for_long_but_answers_probes_is_not_lost() -> None:
    ids = draw_ids(np.random.default_rng(1), 1)
    cluster = VirtualCluster(np.random.default_rng(1), [[0] for _ in range(EXPERTS)])
    layer = make_layer(cluster, ids, 1)
    (ask,) = layer.begin(0.0)
    assert isinstance(ask, Ask)
    now_s = 0.0
    while now_s < 60.0:
        now_s = layer.wake_at_s()
        for action in layer.tick(now_s):
            assert isinstance(action, Probe)
            layer.heard(action.worker, now_s + 0.001)
    cluster.now_s = now_s
    cluster.answer(layer, ask)
    assert layer.finished
    assert not layer.lost


def test_answers_nobody_waits_for_are_dropped() -> None:
    ids = draw_ids(np.random.default_rng(2), 2)
    cluster = VirtualCluster(np.random.default_rng(2), [[0] for _ in range(EXPERTS)])
    layer = make_layer(cluster, ids, 1)
    (ask,) = layer.begin(0.0)
    assert isinstance(ask, Ask)
    nonsense = np.full((2, HIDDEN), 77, np.int32)
    assert layer.partial(0, ask.request_id + 1, nonsense, np.zeros(2, np.bool_), 0.1) == []
    cluster.answer(layer, ask)
    assert layer.partial(0, ask.request_id, nonsense, np.zeros(2, np.bool_), 0.2) == []
    np.testing.assert_array_equal(layer.result()[0], expected_sum(ids, np.zeros(2, np.int32)))


def test_an_answer_of_the_wrong_shape_is_refused() -> None:
    cluster = VirtualCluster(np.random.default_rng(3), [[0] for _ in range(EXPERTS)])
    layer = make_layer(cluster, draw_ids(cluster.rng, 2), 1)
    (ask,) = layer.begin(0.0)
    assert isinstance(ask, Ask)
    with pytest.raises(WorkerRefused, match=r"'w0' answered layer 3"):
        layer.partial(0, ask.request_id, np.zeros((1, HIDDEN), np.int32), np.zeros(1, np.bool_), 0.1)


def test_only_a_refusal_of_what_is_owed_ends_the_layer() -> None:
    cluster = VirtualCluster(np.random.default_rng(5), [[0] for _ in range(EXPERTS)])
    layer = make_layer(cluster, draw_ids(cluster.rng, 2), 1)
    (ask,) = layer.begin(0.0)
    assert isinstance(ask, Ask)
    layer.refused(0, ask.request_id + 1, "an earlier layer's", 0.1)
    layer.refused(1, 0, "of a worker that owes nothing", 0.1)
    layer.refused(1, ask.request_id, "another worker's", 0.1)
    for request_id in (ask.request_id, 0):
        with pytest.raises(WorkerRefused, match=r"'w0' refused layer 3: too hot"):
            layer.refused(0, request_id, "too hot", 0.1)
    cluster.answer(layer, ask)
    layer.refused(0, ask.request_id, "already answered", 0.2)
    assert layer.finished


def test_an_output_that_fits_no_grid_is_an_error_and_not_a_loop() -> None:
    cluster = VirtualCluster(
        np.random.default_rng(4),
        [[0] for _ in range(EXPERTS)],
        saturating=frozenset(range(EXPERTS)),
        saturated_below=10**6,
    )
    with pytest.raises(NonFiniteError, match="layer 3"):
        cluster.run(make_layer(cluster, draw_ids(cluster.rng, 2), 1))
    assert len(cluster.asks) == MAX_STEPS + 1


def test_a_worker_is_not_lost_because_nobody_listened_for_long() -> None:
    """This process computed its own experts for a minute: silence counts from when it listens again."""
    ids = draw_ids(np.random.default_rng(6), 1)
    cluster = VirtualCluster(np.random.default_rng(6), [[0] for _ in range(EXPERTS)])
    layer = make_layer(cluster, ids, 1)
    (ask,) = layer.begin(0.0)
    assert isinstance(ask, Ask)
    assert layer.tick(60.0) == [Probe(0)]
    assert 60.0 < layer.wake_at_s() <= 60.5
    assert layer.tick(62.9) == [Probe(0)]
    with pytest.raises(WorkerLost, match="'w0'"):
        layer.tick(63.0)
