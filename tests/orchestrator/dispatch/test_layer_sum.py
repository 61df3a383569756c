"""The layer's state machine under a virtual clock: any order, any delay, any loss gives the same sum."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from orchestrator.dispatch.debts import Ask
from orchestrator.dispatch.layer_sum import Action, LayerSum, Reopen
from orchestrator.dispatch.pace import Pace
from orchestrator.dispatch.pass_lost import PassLost
from orchestrator.dispatch.terms import ALL_WELL, Around, Terms
from orchestrator.membership.events import Event, GaveUp, Hedged, Refused, Retried
from orchestrator.membership.standing import PongSeen
from placement.errors import NonFiniteError
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
    """Workers that answer after a drawn delay; time moves only here."""

    rng: np.random.Generator
    holders: list[list[int]]
    saturating: frozenset[int] = frozenset()
    saturated_below: int = 0
    deaf: frozenset[int] = frozenset()
    busy_chance: float = 0.0
    now_s: float = 0.0
    asks: list[Ask] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def choose(self, ids: NDArray[np.int32], left_out: frozenset[int]) -> NDArray[np.int32]:
        def pick(expert: int) -> int:
            living = [w for w in self.holders[expert] if w not in left_out]
            return int(self.rng.choice(living)) if living else -1

        return np.vectorize(lambda e: pick(e) if e >= 0 else -1, otypes=[np.int32])(ids)

    def run(self, layer: LayerSum, around: Around = ALL_WELL) -> None:
        """To the end, with these news from the first tick on."""
        inbox: list[tuple[float, int, Ask]] = []
        order = count()

        def deliver(actions: list[Action]) -> None:
            for action in actions:
                assert isinstance(action, Ask)
                self.asks.append(action)
                if action.worker not in self.deaf:
                    heapq.heappush(inbox, (self.now_s + float(self.rng.uniform(0, 2)), next(order), action))

        deliver(layer.begin(self.now_s))
        deliver(layer.tick(self.now_s, around))
        while not layer.finished:
            wake_s = layer.wake_at_s()
            if inbox and inbox[0][0] <= wake_s:
                self.now_s, _, ask = heapq.heappop(inbox)
                deliver(self.answer(layer, ask))
            else:
                assert wake_s < np.inf, "nothing will ever happen"
                self.now_s = wake_s
                deliver(layer.tick(self.now_s, around))

    def answer(self, layer: LayerSum, ask: Ask) -> list[Action]:
        if self.rng.random() < self.busy_chance:
            return layer.busy(ask.worker, ask.request_id, self.now_s)
        values = np.zeros((len(ask.rows), HIDDEN), np.int32)
        saturated = np.zeros(len(ask.rows), np.bool_)
        for i, row in enumerate(ask.rows):
            exponent = int(ask.scale_exponents[i])
            for expert in ask.expert_ids[i][ask.expert_ids[i] >= 0]:
                values[i] += contribution(int(row), int(expert), exponent)
                saturated[i] |= int(expert) in self.saturating and exponent < self.saturated_below
        return layer.partial(ask.worker, ask.request_id, values, saturated, self.now_s)


def make_layer(
    cluster: VirtualCluster,
    ids: NDArray[np.int32],
    num_workers: int,
    max_rows: int = 99,
    patience: Patience | None = None,
) -> LayerSum:
    patience = patience or Patience()
    terms = Terms(
        names=[f"w{i}" for i in range(num_workers)],
        request_ids=count(1),
        coarser=lambda exponents: exponents + STEP,
        max_coarsenings=MAX_STEPS,
        max_rows=max_rows,
        patience=patience,
        pace=Pace([(1.0, 1.0)] * num_workers, patience),
        tell=cluster.events.append,
    )
    return LayerSum(
        layer=3,
        expert_ids=ids,
        scale_exponents=np.zeros(len(ids), np.int32),
        hidden_size=HIDDEN,
        choose=cluster.choose,
        terms=terms,
    )


def pong(sent_s: float, **changes: Any) -> PongSeen:
    """Of a worker that has everything up to request 1000 and works on request 1."""
    seen = PongSeen(
        sent_s=sent_s,
        received_id=1000,
        open_ids=1,
        computing_id=1,
        computing_s=0.5,
    )
    return replace(seen, **changes)


def only(actions: list[Action]) -> Ask:
    (ask,) = actions
    assert isinstance(ask, Ask)
    return ask


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
    cluster.run(layer, Around(gone=frozenset({1})))
    values, exponents = layer.result()
    np.testing.assert_array_equal(values, expected_sum(ids, exponents))


@given(seed=st.integers(0, 2**32 - 1))
def test_a_suspect_is_asked_and_others_too_and_each_expert_counts_once(seed: int) -> None:
    """Whoever answers first: what one worker owes may come from two others, whose parts make it up."""
    rng = np.random.default_rng(seed)
    ids = draw_ids(rng, 4)
    cluster = VirtualCluster(rng, [[e % 3, (e + 1) % 3] for e in range(EXPERTS)])
    layer = make_layer(cluster, ids, 3)
    cluster.run(layer, Around(suspects=frozenset({int(rng.integers(3))})))
    values, exponents = layer.result()
    np.testing.assert_array_equal(values, expected_sum(ids, exponents))


def test_an_expert_without_a_holder_left_ends_the_pass() -> None:
    cluster = VirtualCluster(np.random.default_rng(0), [[0, 1] for _ in range(EXPERTS)])
    layer = make_layer(cluster, draw_ids(cluster.rng, 1), 2)
    layer.begin(0.0)
    with pytest.raises(PassLost, match=r"layer 3 expert \d+: lost worker 'w0', 'w1' held it"):
        layer.tick(0.1, Around(gone=frozenset({0, 1})))


def test_a_worker_that_computes_is_waited_for() -> None:
    ids = draw_ids(np.random.default_rng(1), 1)
    cluster = VirtualCluster(np.random.default_rng(1), [[0] for _ in range(EXPERTS)])
    layer = make_layer(cluster, ids, 1)
    ask = only(layer.begin(0.0))
    for tenths in range(1, 100):
        now_s = tenths / 10
        assert layer.tick(now_s, Around(pongs={0: pong(now_s, computing_s=now_s)})) == []
    cluster.answer(layer, ask)
    assert layer.finished
    assert not cluster.events


def test_a_worker_that_computes_for_ever_is_given_up() -> None:
    cluster = VirtualCluster(np.random.default_rng(1), [[0] for _ in range(EXPERTS)])
    layer = make_layer(cluster, draw_ids(cluster.rng, 1), 1)
    layer.begin(0.0)
    stuck_s = Patience().stuck_s(TOP_K) + 0.1
    with pytest.raises(PassLost, match="'w0' is given up: it has computed one request for") as lost:
        layer.tick(stuck_s, Around(pongs={0: pong(stuck_s, computing_s=stuck_s)}))
    assert lost.value.refused
    assert [type(event) for event in cluster.events] == [GaveUp]


def test_it_is_given_up_sooner_where_it_is_known_how_long_such_requests_take() -> None:
    cluster = VirtualCluster(np.random.default_rng(1), [[0] for _ in range(EXPERTS)])
    layer = make_layer(cluster, draw_ids(cluster.rng, 1), 1)
    for _ in range(16):
        layer.terms.pace.note(0, TOP_K, 0.001, 0.0)
    layer.begin(0.0)
    stuck_s = Patience().stuck_known_s
    assert layer.tick(stuck_s, Around(pongs={0: pong(stuck_s, computing_s=stuck_s)})) == []
    with pytest.raises(PassLost, match="it has computed one request for 2 s"):
        layer.tick(stuck_s + 0.1, Around(pongs={0: pong(stuck_s, computing_s=stuck_s + 0.1)}))


def test_a_worker_that_hangs_in_what_others_have_answered_is_given_up_too() -> None:
    cluster = VirtualCluster(np.random.default_rng(1), [[0] for _ in range(EXPERTS)])
    layer = make_layer(cluster, draw_ids(cluster.rng, 1), 1)
    for _ in range(16):
        layer.terms.pace.note(0, TOP_K, 0.001, 0.0)
    older, large = 1_000, 2_000
    layer.terms.pace.asks(large, 4096)
    layer.begin(0.0)
    stuck_s = Patience().stuck_s(64) + 0.1
    busy = Around(pongs={0: pong(stuck_s, computing_id=large, computing_s=stuck_s)})
    layer.tick(stuck_s, busy)
    assert not any(isinstance(event, GaveUp) for event in cluster.events)
    with pytest.raises(PassLost, match="'w0' is given up"):
        layer.tick(stuck_s, Around(pongs={0: pong(stuck_s, computing_id=older, computing_s=stuck_s)}))


def test_a_worker_that_hangs_with_a_full_queue_is_given_up() -> None:
    cluster = VirtualCluster(np.random.default_rng(1), [[0] for _ in range(EXPERTS)])
    layer = make_layer(cluster, draw_ids(cluster.rng, 1), 1)
    ask = only(layer.begin(0.0))
    now_s = 0.0

    def refuse_and_ask_again() -> None:
        nonlocal ask
        layer.busy(0, ask.request_id, now_s)
        hanging = Around(pongs={0: pong(now_s, computing_id=1_000, computing_s=now_s)})
        ask = only(layer.tick(now_s + 0.011, hanging))

    stuck_s = Patience().stuck_s(64)
    while now_s < stuck_s:
        refuse_and_ask_again()
        now_s += 0.1
    with pytest.raises(PassLost, match="'w0' is given up: it has computed what was asked before for"):
        refuse_and_ask_again()


def test_a_pass_ends_where_only_a_silent_worker_holds_what_others_hold_by_now() -> None:
    cluster = VirtualCluster(np.random.default_rng(1), [[0] for _ in range(EXPERTS)])
    layer = make_layer(cluster, draw_ids(cluster.rng, 1), 1)
    layer.begin(0.0)
    assert layer.tick(0.3, Around(suspects=frozenset({0}))) == []
    with pytest.raises(PassLost, match="worker 'w0' is silent, and others hold its experts by now"):
        layer.tick(1.3, Around(suspects=frozenset({0}), is_mended=True))


@pytest.mark.parametrize(
    "lost",
    [
        {"received_id": 0, "open_ids": 0, "computing_id": 0},
        {"open_ids": 0, "computing_id": 0},
        {"computing_id": 2},
    ],
    ids=["never came", "was answered", "a later one is computed"],
)
def test_a_message_that_the_pulse_shows_to_be_lost_is_asked_again_under_a_fresh_number(
    lost: dict[str, int],
) -> None:
    ids = draw_ids(np.random.default_rng(1), 2)
    cluster = VirtualCluster(np.random.default_rng(1), [[0] for _ in range(EXPERTS)])
    layer = make_layer(cluster, ids, 1)
    first = only(layer.begin(0.0))
    grace_s = Patience().transfer_s(2 * HIDDEN * 4)
    # A pong that left before the request says nothing of it.
    assert layer.tick(0.1, Around(pongs={0: pong(-0.01, **lost)})) == []
    assert layer.tick(0.2, Around(pongs={0: pong(0.15, **lost)})) == []
    assert layer.wake_at_s() == pytest.approx(0.2 + grace_s)
    second = only(layer.tick(0.21 + grace_s, Around(pongs={0: pong(0.3, **lost)})))
    assert second.request_id > first.request_id
    cluster.answer(layer, first)  # the late answer to the attempt that was given up
    assert not layer.finished
    cluster.answer(layer, second)
    np.testing.assert_array_equal(layer.result()[0], expected_sum(ids, np.zeros(2, np.int32)))
    assert [type(event) for event in cluster.events] == [Retried]


def test_a_doubt_that_the_next_pong_clears_asks_nothing() -> None:
    cluster = VirtualCluster(np.random.default_rng(1), [[0] for _ in range(EXPERTS)])
    layer = make_layer(cluster, draw_ids(cluster.rng, 1), 1)
    only(layer.begin(0.0))
    for now_s, received in ((0.1, 0), (0.2, 1), (0.3, 1), (5.0, 1)):
        assert layer.tick(now_s, Around(pongs={0: pong(now_s, received_id=received)})) == []


def test_what_is_still_on_its_way_over_a_slow_link_is_not_asked_again() -> None:
    cluster = VirtualCluster(np.random.default_rng(1), [[0] for _ in range(EXPERTS)])
    layer = make_layer(cluster, draw_ids(cluster.rng, 1), 1)
    only(layer.begin(0.0))
    for tenths in range(1, 14):
        now_s = tenths / 10
        # What was carried before the doubt says nothing of it.
        layer.carried(0, 10**9 + 1100 * tenths, now_s)
        never_came = Around(pongs={0: pong(now_s, received_id=0, open_ids=0, computing_id=0)})
        assert layer.tick(now_s, never_came) == []
        assert layer.doubted() == {0}
    later = Around(pongs={0: pong(1.5, received_id=0, open_ids=0, computing_id=0)})
    only(layer.tick(1.5, later))


def test_bytes_that_are_more_than_what_was_asked_do_not_keep_it_waiting() -> None:
    cluster = VirtualCluster(np.random.default_rng(1), [[0] for _ in range(EXPERTS)])
    layer = make_layer(cluster, draw_ids(cluster.rng, 1), 1)
    only(layer.begin(0.0))
    for tenths in range(1, 50):
        now_s = tenths / 10
        layer.carried(0, 4000 * tenths, now_s)
        around = Around(pongs={0: pong(now_s, received_id=0, open_ids=0, computing_id=0)})
        if layer.tick(now_s, around):
            break
    assert 0.5 < now_s < 1.5


def test_what_comes_slowly_is_asked_of_others_too_where_they_hold_it() -> None:
    cluster = VirtualCluster(np.random.default_rng(1), [[0, 1] for _ in range(EXPERTS)])
    layer = make_layer(cluster, draw_ids(cluster.rng, 1), 2)
    layer.choose = lambda ids, left_out: np.full(ids.shape, 1 if 0 in left_out else 0)
    first = only(layer.begin(0.0))
    second: Ask | None = None
    for hundredths in range(10, 50, 5):
        now_s = hundredths / 100
        layer.carried(0, 1100 * hundredths // 5, now_s)
        actions = layer.tick(now_s, Around(pongs={0: pong(now_s, received_id=0, open_ids=0)}))
        if actions:
            second = only(actions)
            break
    assert second is not None
    assert second.worker == 1
    assert now_s < 0.4
    # Its own answer still counts.
    cluster.answer(layer, first)
    assert layer.finished


def test_messages_that_are_lost_again_and_again_go_over_a_new_connection() -> None:
    cluster = VirtualCluster(np.random.default_rng(1), [[0] for _ in range(EXPERTS)])
    layer = make_layer(cluster, draw_ids(cluster.rng, 1), 1)
    layer.begin(0.0)
    actions: list[Action] = []
    lost_s: list[float] = []

    def tick(now_s: float) -> None:
        around = Around(pongs={0: pong(now_s, received_id=0, open_ids=0, computing_id=0)})
        found = layer.tick(now_s, around)
        actions.extend(found)
        lost_s.extend([now_s] if found else [])

    for tenths in range(1, 20):
        tick(tenths / 10)
    assert [type(action) for action in actions] == [Ask, Reopen, Ask, Ask]
    # 0.15 s, then 0.3 and 0.6, each from the next tick on.
    assert lost_s == pytest.approx([0.3, 0.8, 1.6])
    tick(2.8)
    with pytest.raises(PassLost, match="'w0' is given up: requests to it or its answers are lost again"):
        tick(3.0)
    assert type(cluster.events[-1]) is GaveUp


def test_a_late_answer_is_asked_of_others_once_where_they_hold_it() -> None:
    ids = draw_ids(np.random.default_rng(1), 1)
    for holders, hedged in (([0], False), ([0, 1], True)):
        cluster = VirtualCluster(np.random.default_rng(1), [holders for _ in range(EXPERTS)])
        layer = make_layer(cluster, ids, 2)
        layer.choose = lambda ids, left_out, hold=tuple(holders): np.full(  # type: ignore[misc]
            ids.shape, next((w for w in hold if w not in left_out), -1)
        )
        for _ in range(20):
            layer.terms.pace.note(0, TOP_K, 0.05, 0.0)
        ask = only(layer.begin(0.0))
        assert layer.wake_at_s() == pytest.approx(0.1)
        assert layer.tick(0.09, ALL_WELL) == []
        more = layer.tick(0.1, ALL_WELL)
        assert [action.worker for action in more] == [1] * hedged
        assert layer.tick(5.0, ALL_WELL) == []
        assert [type(event) for event in cluster.events] == [Hedged] * hedged
        cluster.answer(layer, ask)
        assert layer.finished
        for late in more:
            assert isinstance(late, Ask)
            assert cluster.answer(layer, late) == []
        np.testing.assert_array_equal(layer.result()[0], expected_sum(ids, np.zeros(1, np.int32)))


def test_what_was_asked_in_a_late_ones_place_and_is_lost_is_asked_once_more() -> None:
    cluster = VirtualCluster(np.random.default_rng(1), [[0, 1] for _ in range(EXPERTS)])
    layer = make_layer(cluster, draw_ids(cluster.rng, 1), 2)
    cluster.holders = [[0] for _ in range(EXPERTS)]
    first = only(layer.begin(0.0))
    cluster.holders = [[0, 1] for _ in range(EXPERTS)]
    late_s = layer.wake_at_s()
    second = only(layer.tick(late_s, ALL_WELL))
    assert (first.worker, second.worker) == (0, 1)
    never_came = Around(pongs={1: pong(late_s + 0.1, received_id=0, open_ids=0, computing_id=0)})
    assert layer.tick(late_s + 0.2, never_came) == []
    third = only(layer.tick(late_s + 0.6, never_came))
    assert (third.worker, third.request_id) == (1, 3)
    # Who is overtaken counts as slow as far as it has come, though it never answers.
    cluster.now_s = late_s + 0.7
    cluster.answer(layer, third)
    assert layer.finished
    assert layer.terms.pace.known_late_s(0, TOP_K) is None


def test_a_refusal_is_asked_of_another_holder_at_once() -> None:
    ids = draw_ids(np.random.default_rng(1), 2)
    cluster = VirtualCluster(np.random.default_rng(1), [[0, 1] for _ in range(EXPERTS)])
    layer = make_layer(cluster, ids, 2)
    asks = layer.begin(0.0)
    for ask in list(asks):
        assert isinstance(ask, Ask)
        if ask.worker == 0:
            asks += layer.refused(0, ask.request_id, "out of memory", 0.1)
    for ask in asks:
        assert isinstance(ask, Ask)
        cluster.answer(layer, ask)
    np.testing.assert_array_equal(layer.result()[0], expected_sum(ids, np.zeros(2, np.int32)))
    assert [type(event) for event in cluster.events] == [Refused]


def test_a_refusal_of_the_only_holder_is_asked_again_and_then_the_worker_is_given_up() -> None:
    patience = Patience(refusals=3)
    cluster = VirtualCluster(np.random.default_rng(1), [[0] for _ in range(EXPERTS)])
    layer = make_layer(cluster, draw_ids(cluster.rng, 1), 1, patience=patience)
    ask, now_s = only(layer.begin(0.0)), 0.0
    for _ in range(2):
        assert layer.refused(0, ask.request_id, "too hot", now_s) == []
        now_s = layer.wake_at_s()
        ask = only(layer.tick(now_s, ALL_WELL))
    with pytest.raises(PassLost, match="'w0' is given up: it refused layer 3: too hot") as lost:
        layer.refused(0, ask.request_id, "layer 3: too hot", now_s)
    assert lost.value.refused
    assert [type(event) for event in cluster.events] == [Refused, Refused, Refused, GaveUp]


def test_a_worker_that_has_a_request_and_computes_nothing_is_given_up() -> None:
    cluster = VirtualCluster(np.random.default_rng(1), [[0] for _ in range(EXPERTS)])
    layer = make_layer(cluster, draw_ids(cluster.rng, 1), 1)
    layer.begin(0.0)

    def tick_until(stop_s: float) -> None:
        for tenths in range(1, round(10 * stop_s)):
            around = Around(pongs={0: pong(tenths / 10, computing_id=0, computing_s=0.0)})
            layer.tick(tenths / 10, around)

    with pytest.raises(PassLost, match="'w0' is given up: it has a request and does not compute it"):
        tick_until(2.0)


def test_answers_nobody_waits_for_are_dropped() -> None:
    ids = draw_ids(np.random.default_rng(2), 2)
    cluster = VirtualCluster(np.random.default_rng(2), [[0] for _ in range(EXPERTS)])
    layer = make_layer(cluster, ids, 1)
    ask = only(layer.begin(0.0))
    nonsense = np.full((2, HIDDEN), 77, np.int32)
    assert layer.partial(0, ask.request_id + 1, nonsense, np.zeros(2, np.bool_), 0.1) == []
    cluster.answer(layer, ask)
    assert layer.partial(0, ask.request_id, nonsense, np.zeros(2, np.bool_), 0.2) == []
    np.testing.assert_array_equal(layer.result()[0], expected_sum(ids, np.zeros(2, np.int32)))


def test_an_answer_of_the_wrong_shape_is_a_refusal() -> None:
    cluster = VirtualCluster(np.random.default_rng(3), [[0] for _ in range(EXPERTS)])
    layer = make_layer(cluster, draw_ids(cluster.rng, 2), 1)
    ask = only(layer.begin(0.0))
    assert layer.partial(0, ask.request_id, np.zeros((1, HIDDEN), np.int32), np.zeros(1, np.bool_), 0.1) == []
    (event,) = cluster.events
    assert "w0 refused: layer 3: an answer of shape (1, 3) where (2, 3) was asked for" in event.line
    cluster.now_s = layer.wake_at_s()
    cluster.answer(layer, only(layer.tick(cluster.now_s, ALL_WELL)))
    assert layer.finished


def test_only_a_refusal_of_what_is_owed_counts() -> None:
    cluster = VirtualCluster(np.random.default_rng(5), [[0] for _ in range(EXPERTS)])
    layer = make_layer(cluster, draw_ids(cluster.rng, 2), 1)
    ask = only(layer.begin(0.0))
    layer.refused(0, ask.request_id + 1, "an earlier layer's", 0.1)
    layer.refused(1, 0, "of a worker that owes nothing", 0.1)
    layer.refused(1, ask.request_id, "another worker's", 0.1)
    assert not cluster.events
    cluster.answer(layer, ask)
    layer.refused(0, ask.request_id, "already answered", 0.2)
    assert layer.finished
    assert not cluster.events


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
