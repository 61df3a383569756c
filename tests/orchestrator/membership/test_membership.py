"""The state machine of the workers, message by message and tick by tick."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from orchestrator.dispatch.view import WorkerAddress
from orchestrator.membership.changes import KEEP_S
from orchestrator.membership.events import Event, Refused
from orchestrator.membership.member import Expected
from orchestrator.membership.membership import Here, Membership, Send
from orchestrator.membership.rescue import BoxRoom
from placement.holders import HolderTable
from placement.plan import Plan, PlannedTier, like_layers
from transport.messages import (
    Drop,
    ErrorCode,
    ErrorReply,
    Held,
    Hello,
    HelloReply,
    Hold,
    Ping,
    Pong,
    WorkerState,
)


def make_plan(*, replicas: bool) -> Plan:
    """One layer of four experts on "a" and "b", all on both with `replicas`."""
    masks = np.array([[[1, 1, 0, 0]], [[0, 0, 1, 1]]], np.bool_) | replicas
    return Plan(
        model="m",
        fingerprint="f",
        layers=like_layers((3,), "float32", 1000),
        dtype="float32",
        tiers=tuple(PlannedTier(name, name, "cpu", "ram", 10**6, ask_s=0.1, expert_s=1e-5) for name in "ab"),
        holder_table=HolderTable.from_masks(masks),
        policy="by hand",
        epoch=5,
        survive=int(replicas),
    )


class Watched:
    """A membership of "a" (worker 0) and "b" (worker 1), ticked every 0.05 s; the silent answer nothing."""

    def __init__(
        self, *, replicas: bool = True, room: dict[str, BoxRoom] | None = None, alone: bool = True
    ) -> None:
        self.events: list[Event] = []
        self.now_s = 0.0
        self.silent: set[int] = set()
        self.instance = {0: 10, 1: 20}
        self.state = {0: WorkerState.READY, 1: WorkerState.READY}
        self.identity = "same"
        self.orders: list[tuple[int, Hold | Drop]] = []
        self.missing_bytes = 0
        self.refusing: set[int] = set()
        self.oldest_epoch: int | None = None
        self.of = Membership(
            make_plan(replicas=replicas),
            {name: WorkerAddress(f"data-{name}", f"pulse-{name}", None, 0) for name in "ab"},
            Expected("f", "float32", "same"),
            session=1,
            tell=self.events.append,
            now_s=0.0,
            room=room,
            alone=lambda: alone,
        )

    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.events]

    def run(self, for_s: float) -> None:
        for _ in range(round(for_s / 0.05)):
            self.now_s += 0.05
            self.do(self.of.tick(self.now_s, self.oldest_epoch))

    def do(self, actions: list[Send | Here]) -> None:
        for action in actions:
            message = action.message if isinstance(action, Send) else action.order
            if isinstance(message, Hold | Drop):
                self.orders.append((action.worker, message))
            if action.worker in self.silent:
                continue
            name, instance = "ab?"[action.worker], self.instance.get(action.worker, 0)
            state = self.state.get(action.worker, WorkerState.READY)
            reply: Pong | HelloReply | Held | ErrorReply
            if isinstance(message, Ping):
                reply = Pong(message.request_id, instance, state, 0, 0, 0, 0, 0.0, 0)
            elif isinstance(message, Hello):
                reply = HelloReply(
                    message.request_id, name, instance, state, "f", self.identity, "float32", 2, "half"
                )
            elif action.worker in self.refusing:
                reply = ErrorReply(message.request_id, ErrorCode.INTERNAL, "no memory")
            else:
                reply = Held(message.request_id, message.order, True, self.missing_bytes, "")
            self.do(self.of.received(action.worker, reply, self.now_s))


def test_workers_are_taken_in_when_they_are_greeted_and_ready() -> None:
    cluster = Watched(replicas=False)
    cluster.state[1] = WorkerState.LOADING
    cluster.run(0.5)
    standing = cluster.of.standing
    assert not standing.view.is_complete
    assert (standing.dead, standing.missing) == (frozenset({1}), "waiting for b")
    assert cluster.of.progress == {"b": "half"}
    cluster.state[1] = WorkerState.READY
    cluster.run(0.3)
    standing = cluster.of.standing
    assert standing.view.is_complete
    assert (standing.dead, standing.missing) == (frozenset(), "")
    assert {w: address.instance for w, address in standing.view.addresses.items()} == {0: 10, 1: 20}
    assert standing.view.epoch > 5
    assert cluster.events == []


def test_silence_makes_a_suspect_and_an_answer_clears_it() -> None:
    cluster = Watched()
    cluster.run(0.5)
    view = cluster.of.standing.view
    cluster.silent = {0}
    cluster.run(0.2)
    assert cluster.of.standing.suspects == frozenset()
    cluster.run(0.1)
    assert cluster.of.standing.suspects == {0}
    assert cluster.of.standing.dead == frozenset()
    cluster.silent = set()
    cluster.run(0.1)
    assert cluster.of.standing.suspects == frozenset()
    assert cluster.of.standing.view is view
    assert cluster.kinds() == ["Suspected", "Cleared"]


def test_long_silence_is_death_and_an_answer_a_return() -> None:
    cluster = Watched()
    cluster.run(0.5)
    before = cluster.of.standing.view
    cluster.silent = {0}
    cluster.run(3.1)
    standing = cluster.of.standing
    assert standing.dead == {0}
    assert standing.view.absent == {0}
    assert standing.view.epoch > before.epoch
    assert standing.view.is_complete
    cluster.silent = set()
    cluster.run(0.3)
    assert cluster.of.standing.view.absent == frozenset()
    assert cluster.kinds() == ["Suspected", "Died", "Returned"]
    assert cluster.events[-1].line == "worker a is back and takes part again"


@pytest.mark.parametrize(
    ("replicas", "room", "then"),
    [
        (True, {}, "the text goes on, others hold its experts too"),
        (False, {"b": BoxRoom(1e9)}, "the text goes on, others read its experts from their model files"),
        (False, {}, "the text waits, since no other box can serve its experts"),
    ],
)
def test_a_loss_says_what_becomes_of_the_text(replicas: bool, room: dict[str, BoxRoom], then: str) -> None:
    cluster = Watched(replicas=replicas, room=room)
    cluster.run(0.5)
    cluster.of.accused("a", "it hangs", cluster.now_s, for_good=False)
    assert cluster.events[0].line == f"worker a is lost: it hangs; {then}"


def test_a_closed_connection_is_death_unless_it_comes_back_at_once() -> None:
    cluster = Watched()
    cluster.run(0.5)
    cluster.of.closed(0, cluster.now_s)
    assert cluster.of.standing.suspects == {0}
    cluster.do(cluster.of.connected(0, cluster.now_s))
    cluster.run(0.5)
    assert cluster.kinds() == ["Suspected", "Cleared"]
    cluster.of.closed(0, cluster.now_s)
    cluster.silent = {0}
    cluster.run(0.3)
    assert cluster.of.standing.dead == {0}
    assert cluster.events[-1].line == (
        "worker a is lost: its connection was closed; the text goes on, others hold its experts too"
    )


def test_only_of_who_never_took_part_is_it_said_that_it_does_not_let_this_head_in() -> None:
    watched = Watched()
    watched.silent = {1}
    watched.run(0.5)
    watched.events.clear()
    for worker in (0, 1, 1):
        watched.of.closed(worker, watched.now_s)
        watched.of.turned_away(worker)
    assert [event.line for event in watched.events if isinstance(event, Refused)] == [
        "worker b refused: it does not know this head's key, or speaks otherwise"
    ]


def test_nobody_is_suspect_because_the_watch_itself_was_late() -> None:
    cluster = Watched()
    cluster.run(0.5)
    cluster.now_s += 5.0
    cluster.run(0.5)
    assert cluster.events == []


def test_who_falls_silent_while_the_watch_is_late_is_noticed_as_soon_as_ever() -> None:
    cluster = Watched()
    cluster.run(0.5)
    cluster.now_s += 20.0
    # Its last answer had come, and waited to be taken in.
    cluster.do(cluster.of.connected(0, cluster.now_s))
    cluster.silent = {0}
    cluster.run(3.2)
    assert cluster.of.standing.dead == {0}


def test_a_connection_that_closes_while_the_watch_is_late_is_death_as_soon_as_ever() -> None:
    cluster = Watched()
    cluster.run(0.5)
    cluster.silent = {0}
    cluster.now_s += 20.0
    cluster.of.closed(0, cluster.now_s)
    cluster.run(0.4)
    assert cluster.of.standing.dead == {0}


def test_a_worker_that_was_started_again_is_another_instance() -> None:
    cluster = Watched()
    cluster.run(0.5)
    cluster.instance[0] = 11
    cluster.run(0.5)
    assert cluster.kinds() == ["Died", "Returned"]
    assert cluster.events[-1].line == "worker a was started again and takes part again"
    assert cluster.of.standing.view.addresses[0].instance == 11


def test_a_worker_with_other_files_is_not_taken_in_and_said_once() -> None:
    cluster = Watched()
    cluster.identity = "other"
    cluster.run(2.0)
    assert cluster.of.standing.dead == {0, 1}
    assert cluster.kinds() == ["Refused", "Refused"]
    assert "serves model files other, expected same" in cluster.events[0].line


def test_a_ghost_is_gone_after_ten_seconds_and_may_still_return() -> None:
    cluster = Watched()
    cluster.run(0.5)
    cluster.silent = {0}
    cluster.run(14.0)
    assert cluster.kinds() == ["Suspected", "Died", "Gone"]
    cluster.silent = set()
    cluster.run(1.5)
    assert cluster.kinds()[-1] == "Returned"


def test_orphans_are_served_by_others_from_their_files_and_dropped_after_the_return() -> None:
    cluster = Watched(replicas=False, room={"b": BoxRoom(1e9)})
    cluster.run(0.5)
    cluster.orders.clear()
    cluster.silent = {0}
    cluster.run(3.1)
    standing = cluster.of.standing
    assert standing.view.is_complete
    assert [(worker, dict(order.experts)) for worker, order in cluster.orders] == [(1, {3: (0, 1)})]
    assert standing.view.plan.experts_of("b") == {3: (0, 1, 2, 3)}
    assert cluster.kinds()[-2:] == ["Rescued", "Died"]
    cluster.silent = set()
    cluster.oldest_epoch = standing.view.epoch
    cluster.run(KEEP_S)
    # It may be gone again soon.
    assert cluster.kinds()[-1] == "Returned"
    assert cluster.of.standing.view.plan.experts_of("b") == {3: (0, 1, 2, 3)}
    cluster.run(0.5)
    assert cluster.of.standing.view.plan.experts_of("b") == {3: (2, 3)}
    # Passes in flight may still ask for them.
    assert [worker for worker, _ in cluster.orders] == [1, 0]
    cluster.oldest_epoch = cluster.of.standing.view.epoch
    cluster.run(0.5)
    drops = [(worker, dict(order.experts)) for worker, order in cluster.orders if isinstance(order, Drop)]
    assert sorted(drops) == [(0, {3: (2, 3)}), (1, {3: (0, 1)})]


def test_others_take_on_what_a_silent_worker_holds_alone_before_it_counts_as_dead() -> None:
    cluster = Watched(replicas=False, room={"b": BoxRoom(1e9)})
    cluster.run(0.5)
    before = cluster.of.standing.view
    cluster.orders.clear()
    cluster.silent = {0}
    cluster.run(0.9)
    assert (cluster.orders, cluster.of.standing.view) == ([], before)
    cluster.run(0.25)
    standing = cluster.of.standing
    assert (standing.suspects, standing.dead) == (frozenset({0}), frozenset())
    assert [(worker, dict(order.experts)) for worker, order in cluster.orders] == [(1, {3: (0, 1)})]
    assert not standing.view.orphans(standing.suspects).any()
    assert set(standing.view.addresses) == {0, 1}
    # It was a false alarm: they let go again, after a while.
    cluster.silent = set()
    cluster.run(0.2)
    mended = standing.view
    standing = cluster.of.standing
    assert (standing.suspects, standing.dead) == (frozenset(), frozenset())
    assert standing.view is mended
    cluster.run(KEEP_S)
    standing = cluster.of.standing
    assert standing.view.plan.experts_of("b") == {3: (2, 3)}
    cluster.oldest_epoch = standing.view.epoch
    cluster.run(0.2)
    assert [(worker, type(order)) for worker, order in cluster.orders] == [(1, Hold), (1, Drop)]
    assert "Died" not in cluster.kinds()


def test_who_comes_and_goes_costs_one_rescue() -> None:
    cluster = Watched(replicas=False, room={"b": BoxRoom(1e9)})
    cluster.run(0.5)
    cluster.orders.clear()
    for _ in range(20):
        cluster.silent = {0}
        cluster.run(1.5)
        cluster.oldest_epoch = cluster.of.standing.view.epoch
        cluster.silent = set()
        cluster.run(0.5)
    assert cluster.kinds() == ["Suspected", "Rescued", "Cleared"] + 19 * ["Suspected", "Cleared"]
    assert [(worker, type(order)) for worker, order in cluster.orders] == [(1, Hold)]


def test_what_stays_on_a_disk_costs_what_a_disk_costs() -> None:
    for missing_bytes, expert_s in ((0, 1e-5), (1000, 1e-3)):
        cluster = Watched(replicas=False, room={"b": BoxRoom(1e6)})
        cluster.run(0.5)
        cluster.missing_bytes = missing_bytes
        cluster.silent = {0}
        cluster.run(1.5)
        assert cluster.of.standing.view.plan.experts_of("b") == {3: (0, 1, 2, 3)}
        cluster.run(1.0)
        tier = cluster.of.standing.view.plan.tiers[-1]
        assert (tier.name, tier.expert_s) == ("b-rescue", expert_s)


def test_a_rescue_goes_on_when_its_worker_is_back_before_it_is_done() -> None:
    cluster = Watched(replicas=False, room={"b": BoxRoom(1e9), "head": BoxRoom(1e9)})
    cluster.run(0.5)
    cluster.orders.clear()
    # The head does not get to its half before "a" is back.
    cluster.silent = {0, 2}
    cluster.run(1.3)
    cluster.silent = {2}
    cluster.run(0.5)
    assert "Rescued" not in cluster.kinds()
    cluster.silent = set()
    cluster.run(0.5)
    assert cluster.kinds() == ["Suspected", "Cleared", "Rescued", "Rescued"]
    assert not any(isinstance(order, Drop) for _, order in cluster.orders)


def test_copies_that_were_loaded_behind_when_the_worker_came_back_are_let_go_of() -> None:
    cluster = Watched(replicas=True, room={"head": BoxRoom(1e9, 10**6)})
    cluster.run(0.5)
    cluster.orders.clear()
    cluster.silent = {0, 2}
    cluster.run(5.0)
    assert {(worker, type(order)) for worker, order in cluster.orders} == {(2, Hold)}
    cluster.silent = set()
    cluster.run(0.3)
    cluster.oldest_epoch = cluster.of.standing.view.epoch
    cluster.run(0.5)
    everything = {3: (0, 1, 2, 3)}
    told = [(dict(order.experts), type(order)) for worker, order in cluster.orders if worker == 2]
    assert told[-1] == (everything, Drop)
    assert told[:-1] == [(everything, Hold)] * len(told[:-1])
    assert "head" not in {worker.name for worker in cluster.of.standing.view.plan.workers}


def test_where_nobody_can_take_it_on_a_silent_worker_is_waited_for() -> None:
    cluster = Watched(replicas=False)
    cluster.run(0.5)
    cluster.silent = {0}
    cluster.run(1.5)
    assert (cluster.of.standing.suspects, cluster.of.standing.missing) == (frozenset({0}), "")
    assert cluster.of.standing.view.is_complete
    cluster.silent = set()
    cluster.run(0.2)
    assert cluster.kinds() == ["Suspected", "Cleared"]


def test_what_nobody_can_serve_is_named_with_its_bytes() -> None:
    cluster = Watched(replicas=False)
    cluster.run(0.5)
    cluster.silent = {0}
    cluster.run(3.1)
    assert cluster.of.standing.missing.startswith("2.0 kB of experts are missing: 2 experts")
    cluster.silent = set()
    cluster.run(0.5)
    assert cluster.of.standing.missing == ""


def test_who_refused_an_order_is_asked_again_after_a_while() -> None:
    cluster = Watched(replicas=False, room={"a": BoxRoom(1e9, 10**6)})
    cluster.run(0.5)
    cluster.refusing, cluster.silent = {0}, {1}
    cluster.run(4.0)
    assert not cluster.of.standing.view.is_complete
    assert "no box left" in cluster.of.standing.missing
    cluster.run(56.0)
    # 2 s after the first time, then 4, 8, 16 and 32 s.
    of_a = [order.experts for worker, order in cluster.orders if worker == 0 and isinstance(order, Hold)]
    assert of_a.count({3: (2, 3)}) == 5
    assert not cluster.of.standing.view.is_complete
    cluster.refusing = set()
    cluster.run(5.0)
    assert cluster.of.standing.view.is_complete
    assert cluster.of.standing.missing == ""
    assert dict(cluster.orders[-1][1].experts) == {3: (2, 3)}


def test_who_refuses_to_catch_up_is_told_again_more_and_more_seldom() -> None:
    cluster = Watched(replicas=False)
    cluster.refusing = {0}
    cluster.run(60.0)
    assert not cluster.of.standing.view.is_complete
    assert sum(worker == 0 for worker, _ in cluster.orders) == 5
    cluster.refusing = set()
    cluster.run(5.0)
    assert cluster.of.standing.view.is_complete


def test_a_rescuer_that_is_started_again_is_told_again_what_it_holds_before_it_is_asked() -> None:
    cluster = Watched(replicas=False, room={"b": BoxRoom(1e9)})
    cluster.run(0.5)
    cluster.silent = {0}
    cluster.run(3.1)
    cluster.orders.clear()
    cluster.instance[1] = 21
    cluster.run(1.0)
    worker, order = cluster.orders[0]
    assert (worker, type(order), dict(order.experts)) == (1, Hold, {3: (0, 1, 2, 3)})
    assert not any(isinstance(order, Drop) for _, order in cluster.orders)
    assert cluster.of.standing.view.is_complete


def test_an_accused_worker_is_left_alone_for_a_while_and_a_liar_for_ever() -> None:
    cluster = Watched()
    cluster.run(0.5)
    cluster.of.accused("a", "it hangs", cluster.now_s, for_good=False)
    assert cluster.of.standing.dead == {0}
    cluster.run(9.0)
    assert cluster.of.standing.dead == {0}
    cluster.run(2.5)
    assert cluster.of.standing.dead == frozenset()
    cluster.of.accused("a", "it lies", cluster.now_s, for_good=True)
    cluster.run(100.0)
    assert cluster.of.standing.dead == {0}


def test_another_plan_is_used_from_the_next_view_on() -> None:
    cluster = Watched()
    cluster.run(0.5)
    before = cluster.of.standing.view
    moved = replace(make_plan(replicas=False), epoch=before.epoch + 1)
    assert cluster.of.change(moved, cluster.now_s)
    after = cluster.of.standing.view
    assert after.epoch > before.epoch
    assert after.holders == moved.holder_table
    assert after.addresses == before.addresses
    # Two plans never have one epoch: what was made from an older view is not used.
    assert not cluster.of.change(moved, cluster.now_s)
    cluster.silent = {0}
    cluster.run(3.1)
    late = replace(make_plan(replicas=True), epoch=after.epoch + 1)
    assert not cluster.of.change(late, cluster.now_s)
    assert cluster.of.standing.view.plan.holder_table == moved.holder_table


def test_who_was_started_from_an_older_plan_is_told_what_the_plan_in_use_gives_it() -> None:
    cluster = Watched(replicas=False)
    cluster.run(0.5)
    wanted = {0: {3: (0, 1)}, 1: {3: (2, 3)}}
    beyond = {0: {3: (2, 3)}, 1: {3: (0, 1)}}
    for kind, expected in ((Hold, wanted), (Drop, beyond)):
        given = {w: dict(order.experts) for w, order in cluster.orders if isinstance(order, kind)}
        assert given == expected
    holds = [index for index, (_, order) in enumerate(cluster.orders) if isinstance(order, Hold)]
    assert holds == [0, 1]
    moved = replace(make_plan(replicas=True), epoch=cluster.of.standing.view.epoch + 1)
    assert cluster.of.change(moved, cluster.now_s)
    cluster.orders.clear()
    cluster.instance[0] = 11
    cluster.run(1.0)
    assert [(w, type(order), dict(order.experts)) for w, order in cluster.orders] == [
        (0, Hold, {3: (0, 1, 2, 3)})
    ]


def test_beside_another_head_nobody_is_told_to_let_go() -> None:
    cluster = Watched(replicas=False, alone=False)
    cluster.run(0.5)
    assert {type(order) for _, order in cluster.orders} == {Hold}


def test_what_is_ordered_since_is_not_let_go_of() -> None:
    cluster = Watched(replicas=False)
    cluster.oldest_epoch = 0
    cluster.run(0.5)
    cluster.of.order("a", {3: (2,)})
    cluster.oldest_epoch = cluster.of.standing.view.epoch
    cluster.run(0.5)
    drops = {w: dict(order.experts) for w, order in cluster.orders if isinstance(order, Drop)}
    assert drops == {0: {3: (3,)}, 1: {3: (0, 1)}}
