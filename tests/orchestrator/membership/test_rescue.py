"""Who takes on what lost workers held: nothing forgotten, nothing twice, spread by disk and memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from orchestrator.membership.rescue import (
    BoxRoom,
    Rescue,
    head_worker,
    loaded,
    next_plan,
    survive_again,
)
from placement.assign.one_step import assign_experts
from placement.experts import Experts
from placement.holders import HolderTable
from placement.plan import LOCAL_WORKER, Plan
from tests.orchestrator.random_plan import random_plan
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=3, num_experts=10)
EXPERT_BYTES = SHAPE.expert_bytes(32)
PLENTY = 10**9


def boxes_of(plan: Plan, without: frozenset[int] = frozenset()) -> NDArray[np.int64]:
    """Boxes that hold each expert, the lost ones left out; the head's counts as many."""
    masks = np.zeros((len(plan.workers), SHAPE.num_moe_layers, SHAPE.num_experts), dtype=np.bool_)
    for index, worker in enumerate(plan.worker_of_tier.tolist()):
        masks[worker] |= plan.holder_table.mask(index)
    masks[list(without)] = False
    counts: NDArray[np.int64] = masks.sum(axis=0)
    if plan.local_worker is not None:
        counts[masks[plan.local_worker]] += len(plan.workers)
    return counts


def pairs(experts: Experts) -> set[tuple[int, int]]:
    return {(layer, expert) for layer, some in experts.items() for expert in some}


def after(held: Mapping[int, set[tuple[int, int]]], rescue: Rescue) -> dict[int, set[tuple[int, int]]]:
    """What each worker holds once it has followed the orders."""
    workers = {*held, *rescue.holds, *rescue.drops}
    return {
        worker: held.get(worker, set()) - pairs(rescue.drops.get(worker, {}))
        | pairs(rescue.holds.get(worker, {}))
        for worker in workers
    }


def held_in(plan: Plan) -> dict[int, set[tuple[int, int]]]:
    return {index: pairs(plan.experts_of(worker.name)) for index, worker in enumerate(plan.workers)}


@st.composite
def clusters(draw: st.DrawFn) -> tuple[Plan, dict[int, BoxRoom]]:
    plan = random_plan(
        SHAPE,
        draw(st.integers(1, 4)),
        draw(st.integers(0, 999)),
        replicas=draw(st.sampled_from([0.0, 0.2, 0.8])),
        head_holds=draw(st.booleans()),
        devices=draw(st.integers(1, 2)),
    )
    plan = replace(plan, survive=draw(st.integers(0, 2)))
    disks = st.sampled_from([0.0, 1e8, 2e9])
    workers = {*range(len(plan.workers)), head_worker(plan)}
    room = {worker: BoxRoom(draw(disks), draw(st.integers(0, 20)) * EXPERT_BYTES) for worker in workers}
    return plan, room


def lost_of(plan: Plan, numbers: list[int]) -> frozenset[int]:
    """Workers by lot, never the head's."""
    return frozenset(number % len(plan.workers) for number in numbers) - {head_worker(plan)}


@settings(max_examples=150, deadline=None)
@given(clusters(), st.lists(st.lists(st.integers(0, 99), max_size=3), min_size=1, max_size=5))
def test_over_any_history_of_losses_orders_and_plans_agree(
    cluster: tuple[Plan, dict[int, BoxRoom]], history: list[list[int]]
) -> None:
    first, room = cluster
    plan, held = first, held_in(first)
    for numbers in history:
        lost = lost_of(first, numbers)
        rescue = next_plan(plan, lost, room)
        held = after(held, rescue)
        new = rescue.plan
        # The workers, their order and what the planner gave them stay.
        assert [w.name for w in new.workers][: len(plan.workers)] == [w.name for w in plan.workers]
        assert new.tiers[: len(first.tiers)] == first.tiers
        for index in range(len(first.tiers)):
            assert (new.holder_table.mask(index) == first.holder_table.mask(index)).all()
        # Who follows the orders holds what the plan says: nobody is asked for what it has not.
        for worker, experts in held_in(new).items():
            assert experts == held.get(worker, set())
        # Every expert has a holder that lives, or is named as missing.
        nobody = {
            (new.moe_layers[row], expert) for row, expert in np.argwhere(boxes_of(new, lost) == 0).tolist()
        }
        assert nobody == pairs(rescue.missing)
        assert rescue.missing_bytes == len(nobody) * EXPERT_BYTES
        able = [w for w, box in room.items() if box.disk_bytes_per_s > 0 and w not in lost]
        assert not nobody or not able
        # Orders go to boxes that live and have a disk, for experts that nobody left had.
        assert set(rescue.holds) <= set(able)
        assert new.epoch == plan.epoch + (new is not plan)
        assert (new is plan) == (not rescue.holds and not rescue.drops)
        new.check_fits()
        # Asked twice, there is nothing left to do.
        assert next_plan(new, lost, room).plan is new
        plan = new
    # All back: what was taken on is let go of, and every holder is the planner's.
    rescue = next_plan(plan, frozenset(), room)
    assert {w: e for w, e in after(held, rescue).items() if e} == {
        w: e for w, e in held_in(first).items() if e
    }


@settings(max_examples=150, deadline=None)
@given(clusters(), st.lists(st.integers(0, 99), max_size=3))
def test_loading_behind_restores_what_memory_allows_and_no_more(
    cluster: tuple[Plan, dict[int, BoxRoom]], numbers: list[int]
) -> None:
    first, room = cluster
    lost = lost_of(first, numbers)
    rescued = next_plan(first, lost, room).plan
    again = survive_again(rescued, lost, room)
    wanted = np.minimum(boxes_of(first), first.survive + 1)
    before, now = boxes_of(rescued, lost), boxes_of(again.plan, lost)
    assert (now >= before).all()
    added = {worker: pairs(experts) for worker, experts in again.holds.items()}
    for worker, experts in added.items():
        assert len(experts) * EXPERT_BYTES <= room[worker].free_bytes
        assert room[worker].disk_bytes_per_s > 0
        assert worker not in lost
        assert not experts & held_in(rescued).get(worker, set())
    # No copies for what has enough, and none missing where a box had room for one more.
    short = (now > 0) & (now < wanted)
    for worker, box in room.items():
        if worker in lost or not box.disk_bytes_per_s:
            continue
        left = box.free_bytes - len(added.get(worker, set())) * EXPERT_BYTES
        if left >= EXPERT_BYTES:
            have = held_in(again.plan).get(worker, set())
            places = [(first.moe_layers[row], expert) for row, expert in np.argwhere(short).tolist()]
            assert set(places) <= have
    assert again.drops == {}
    # It is let go of when the lost ones are back.
    back = next_plan(again.plan, frozenset(), room).plan
    assert (boxes_of(back) == boxes_of(first)).all()


def one_each(num_workers: int, *, survive: int = 0) -> Plan:
    """Expert e of every layer on worker e modulo their number, no head."""
    plan = random_plan(SHAPE, num_workers, 0, head_holds=False)
    table = np.tile(np.arange(SHAPE.num_experts) % num_workers, (SHAPE.num_moe_layers, 1))
    return replace(plan, holder_table=HolderTable.from_single(table), survive=survive)


def test_replicas_alone_need_no_new_plan() -> None:
    plan = one_each(2)
    plan = replace(plan, holder_table=HolderTable.from_masks(np.ones((2, 3, 10), np.bool_)))
    rescue = next_plan(plan, {0}, {1: BoxRoom(1e9)})
    assert rescue == Rescue(plan)


def test_a_layers_experts_are_shared_out_by_the_rates_of_disks() -> None:
    plan = one_each(3)
    room = {1: BoxRoom(3e9, PLENTY), 2: BoxRoom(1e9, PLENTY)}
    rescue = next_plan(plan, {0}, room)
    for layer in SHAPE.moe_layers:
        assert [len(rescue.holds[worker][layer]) for worker in (1, 2)] == [3, 1]
    assert [tier.name for tier in rescue.plan.tiers[3:]] == ["w1-rescue", "w2-rescue"]
    assert [tier.worker for tier in rescue.plan.tiers[3:]] == ["w1", "w2"]


def test_a_box_with_free_memory_is_preferred_to_one_as_fast_without() -> None:
    rescue = next_plan(one_each(3), {0}, {1: BoxRoom(1e9, 0), 2: BoxRoom(1e9, PLENTY)})
    counts = {worker: len(pairs(experts)) for worker, experts in rescue.holds.items()}
    assert counts[2] > 2 * counts.get(1, 0)


def test_a_head_without_experts_takes_them_on_as_a_new_last_worker() -> None:
    plan = one_each(2)
    assert head_worker(plan) == 2
    rescue = next_plan(plan, {0, 1}, {0: BoxRoom(1e9), 1: BoxRoom(1e9), 2: BoxRoom(1e9)})
    assert [worker.name for worker in rescue.plan.workers] == ["w0", "w1", LOCAL_WORKER]
    assert rescue.plan.local_worker == 2
    assert set(rescue.holds) == {2}
    assert len(pairs(rescue.holds[2])) == 30
    assert rescue.missing_bytes == 0


def test_what_nobody_can_read_is_said_with_its_bytes_and_holders() -> None:
    rescue = next_plan(one_each(3), {1}, {0: BoxRoom(0.0, PLENTY), 1: BoxRoom(1e9, PLENTY)})
    assert rescue.holds == {}
    assert rescue.missing_bytes == 9 * EXPERT_BYTES
    assert rescue.lacks().startswith(
        "13.8 kB of experts are missing: 9 experts, the first of them expert 1 of layer 1, were held by 'w1'"
    )


def test_an_expert_of_the_heads_needs_no_second_holder_again() -> None:
    plan = random_plan(SHAPE, 2, 0, head_holds=True)
    masks = np.zeros((3, 3, 10), np.bool_)
    masks[0, :, :5] = True
    masks[1:, :, 5:] = True
    plan = replace(plan, holder_table=HolderTable.from_masks(masks), survive=1)
    room = {worker: BoxRoom(1e9, PLENTY) for worker in range(3)}
    assert next_plan(plan, {1}, room).plan is plan
    again = survive_again(plan, {1}, room)
    assert pairs(again.holds[0]) == {(layer, expert) for layer in SHAPE.moe_layers for expert in range(5, 10)}
    assert set(again.holds) == {0}


def test_what_is_loaded_is_asked_for_as_the_boxs_own_memory_is() -> None:
    plan = one_each(2)
    tiers = tuple(replace(tier, ask_s=1e-3, expert_s=1e-4) for tier in plan.tiers)
    rescue = next_plan(replace(plan, tiers=tiers), {0}, {1: BoxRoom(1e6)})
    assert rescue.plan.tiers[2].expert_s == pytest.approx(EXPERT_BYTES / 1e6)
    assert rescue.plan.tiers[2].ask_s == 1e-3
    done = loaded(rescue.plan, {1})
    assert done.tiers[2].expert_s == 1e-4
    assert done.holder_table == rescue.plan.holder_table


def test_what_is_kept_on_a_disk_is_asked_for_only_where_nobody_has_it_in_memory() -> None:
    plan = one_each(2)
    room = {head_worker(plan): BoxRoom(1e9)}
    kept = next_plan(next_plan(plan, {0}, room).plan, frozenset(), room, {0}).plan
    assert len(kept.experts_of(LOCAL_WORKER)[1]) == 5
    costs, holders = kept.replica_costs, kept.holder_table.layers[0]
    ids = np.array([[0, 2, 1, 3]], np.int32)
    assert assign_experts(ids, holders, costs).tolist() == [[0, 0, 1, 1]]
    without = kept.without({0}).layers[0]
    assert assign_experts(ids, without, costs).tolist() == [[2, 2, 1, 1]]


def test_what_is_taken_on_later_is_not_loaded_yet() -> None:
    plan = one_each(3)
    tiers = tuple(replace(tier, ask_s=1e-3, expert_s=1e-4) for tier in plan.tiers)
    room = {1: BoxRoom(1e6)}
    first = next_plan(replace(plan, tiers=tiers), {0}, room).plan
    done = loaded(first, {1})
    more = next_plan(done, {0, 2}, room)
    assert more.holds
    assert more.plan.tiers[3].expert_s == pytest.approx(EXPERT_BYTES / 1e6)
    # Letting go loads nothing, and leaves the price as it is.
    less = next_plan(loaded(more.plan, {1}), {0}, room)
    assert less.drops
    assert less.plan.tiers[3].expert_s == 1e-4


def test_thousands_of_orphans_are_placed_within_a_moment() -> None:
    shape = small_shape(num_moe_layers=42, num_experts=288)
    plan = random_plan(shape, 8, 0, head_holds=False)
    room = {worker: BoxRoom(1e9, PLENTY) for worker in range(9)}
    rescue = next_plan(plan, {0, 1, 2}, room)
    assert rescue.missing_bytes == 0
    assert sum(len(pairs(experts)) for experts in rescue.holds.values()) > 2000
