"""The expert-level search: what it expects of a move is what the move does, and capacity holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from placement.assign.many_steps import assign_steps
from placement.cost.prefill import prefill_rates
from placement.cost.replica_costs import replica_costs
from placement.given.cluster_spec import NO_OVERHEADS, Overheads
from placement.given.problem import PlanningDevice, PlanningProblem
from placement.given.stats import RoutingStats
from placement.given.traces import CODING, SyntheticRouter
from placement.holders import HolderTable
from placement.policies.least_time.beside_copies import move_beside_copies
from placement.policies.least_time.copies import add_copies
from placement.policies.least_time.exchanges import best_moves
from placement.policies.least_time.kicks import kick, num_kicks
from placement.policies.least_time.layer_search import (
    LayerSample,
    LayerSearch,
    expected_rows,
    layer_searches,
    sample_layers,
)
from placement.policies.least_time.objective import objective_s, prefill_pass_s
from placement.policies.least_time.prefill_layer import PrefillLayer
from placement.policies.least_time.refine import refine
from placement.replay.evaluate import evaluate
from placement.workload import Workload
from tests.examples import examples
from tests.placement.boxes import device
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=3, num_experts=16, top_k=4)
SIZE = SHAPE.expert_bytes(16)
READ_GBYTES_PER_S = SIZE / 1e-4 / 1e9


def problem(room: tuple[int, ...] = (20, 20, 20), workload: Workload | None = None) -> PlanningProblem:
    devices: tuple[PlanningDevice, ...] = tuple(
        device(
            "head" if i == 0 else f"box{i}",
            size,
            SIZE,
            gbytes_per_s=READ_GBYTES_PER_S * (1 + i),
            round_trip_s=5e-5 * i,
        )
        for i, size in enumerate(room)
    )
    trace = SyntheticRouter(SHAPE).trace(CODING, 600)
    stats = RoutingStats.from_trace(SHAPE, trace, "synthetic")
    return PlanningProblem(SHAPE, devices, SIZE, stats, workload or Workload())


def sample(given_problem: PlanningProblem, most_reads: int = 10**6) -> list[LayerSample]:
    stats = given_problem.stats
    assert stats is not None
    assert stats.trace is not None
    return sample_layers(stats.trace, stats.frequencies(), given_problem.workload.tokens_per_step, most_reads)


def some_holders(given_problem: PlanningProblem, seed: int = 0) -> NDArray[np.int64]:
    slots = np.repeat(np.arange(len(given_problem.devices)), given_problem.capacities())
    drawn = np.random.default_rng(seed).permutation(slots)[: SHAPE.num_routed_experts]
    return drawn.reshape(SHAPE.num_moe_layers, SHAPE.num_experts)


MESSAGES = Overheads(message_s=4e-5, message_row_s=1e-5)


def with_messages(given_problem: PlanningProblem, overheads: Overheads = MESSAGES) -> PlanningProblem:
    head, *others = given_problem.devices
    return replace(given_problem, devices=(replace(head, overheads=overheads), *others))


@pytest.mark.parametrize("overheads", [NO_OVERHEADS, MESSAGES])
@pytest.mark.parametrize("workload", [Workload(), Workload(prompt_tokens_per_token=20, prefill_tokens=64)])
def test_a_move_changes_the_time_by_what_was_expected(workload: Workload, overheads: Overheads) -> None:
    for seed in range(3):
        given_problem = with_messages(problem(workload=workload), overheads)
        holder = some_holders(given_problem, seed)[0]
        search = layer_searches(given_problem, sample(given_problem), shrinkage=1e-12)[0]
        expected = search.moves(holder, np.arange(3))
        before_s = search.seconds(holder)
        for expert in range(SHAPE.num_experts):
            for target in range(3):
                moved = holder.copy()
                moved[expert] = target
                assert expected[expert, target] == pytest.approx(search.seconds(moved) - before_s, abs=1e-12)


def with_a_disk(given_problem: PlanningProblem) -> PlanningProblem:
    """The last device becomes a disk beside the first one's RAM, whose CPU is what prompts wait for."""
    cpu, gpu, disk = given_problem.devices
    cpu = replace(cpu, ffn_flops_per_s=2e8)
    gpu = replace(gpu, ffn_flops_per_s=2.5e8)
    worker = replace(disk.tier, node=cpu.tier.node, kind="disk")
    return replace(given_problem, devices=(cpu, gpu, replace(disk, tier=worker)))


def test_a_move_to_or_from_a_disk_changes_what_its_cpu_computes() -> None:
    workload = Workload(prompt_tokens_per_token=20, prefill_tokens=64)
    given_problem = with_a_disk(problem(workload=workload))
    assert given_problem.stats is not None
    tokens = given_problem.workload.prefill_tokens
    rates, frequencies = prefill_rates(given_problem, tokens), given_problem.stats.frequencies()
    for seed in range(3):
        holder = some_holders(given_problem, seed)[0]
        layer = PrefillLayer(rates, workload, frequencies[0])
        expected = layer.changes(holder)
        for expert, target in np.ndindex(expected.shape):
            moved = holder.copy()
            moved[expert] = target
            change = layer.seconds(moved) - layer.seconds(holder)
            assert expected[expert, target] == pytest.approx(change, abs=1e-12)


@pytest.mark.parametrize("disk", [False, True])
def test_a_first_copy_changes_prompts_by_what_was_expected(disk: bool) -> None:
    workload = Workload(prompt_tokens_per_token=20, prefill_tokens=64)
    given_problem = problem(workload=workload)
    given_problem = with_a_disk(given_problem) if disk else given_problem
    assert given_problem.stats is not None
    layer = PrefillLayer(
        prefill_rates(given_problem, workload.prefill_tokens), workload, given_problem.stats.frequencies()[0]
    )
    holder = some_holders(given_problem)[0]
    masks = np.stack([holder == worker for worker in range(3)])
    assert layer.seconds_held(masks) == pytest.approx(layer.seconds(holder))
    expected = layer.copies(masks)
    assert (expected > 1e-9).any()
    for expert, target in np.ndindex(expected.shape):
        copied = masks.copy()
        copied[target, expert] = True
        change = layer.seconds_held(copied) - layer.seconds_held(masks)
        assert expected[expert, target] == pytest.approx(change, abs=1e-12)


@pytest.mark.parametrize("overheads", [NO_OVERHEADS, MESSAGES])
def test_the_search_and_the_evaluation_agree_on_single_tokens(overheads: Overheads) -> None:
    given_problem = with_messages(problem(), overheads)
    assert given_problem.stats is not None
    assert given_problem.stats.trace is not None
    holders = some_holders(given_problem)
    searches = layer_searches(given_problem, sample(given_problem))
    seconds = sum(search.seconds(row) for search, row in zip(searches, holders, strict=True))
    measured = evaluate(given_problem, HolderTable.from_single(holders), given_problem.stats.trace).mean_s
    assert seconds == pytest.approx(measured, rel=1e-9)


def test_part_of_the_devices_sees_the_same_changes() -> None:
    given_problem = problem()
    holder = some_holders(given_problem)[0]
    search = layer_searches(given_problem, sample(given_problem))[0]
    whole = search.moves(holder, np.arange(3))
    some = search.moves(holder, np.array([0, 2]))
    inside = np.isin(holder, [0, 2])
    assert some[inside] == pytest.approx(whole[inside][:, [0, 2]])
    assert not some[~inside].any()


def test_seldom_seen_experts_are_judged_by_their_device() -> None:
    """Without a touch of its own an expert's expected change is the mean of its device."""
    given_problem = problem()
    holder = np.zeros(SHAPE.num_experts, dtype=np.int64)
    layer = sample(given_problem)[0]
    unseen = replace(layer, expected=np.full(SHAPE.num_experts, 0.25))
    keep = layer.expert != 3
    step, expert = layer.step[keep], layer.expert[keep]
    unseen = replace(unseen, step=step, expert=expert, seen=np.bincount(expert, minlength=SHAPE.num_experts))
    search = layer_searches(given_problem, [unseen])[0]
    changes = search.moves(holder, np.arange(3))
    assert unseen.seen[3] == 0
    others = np.delete(changes, 3, axis=0)[:, 1]
    assert others.min() < changes[3, 1] < others.max()


@examples(30)
@given(
    seed=st.integers(0, 10**6),
    devices=st.integers(2, 5),
    moves_a_layer=st.integers(1, 8),
    spare=st.integers(0, 5),
)
def test_moves_keep_to_the_room_and_add_up(seed: int, devices: int, moves_a_layer: int, spare: int) -> None:
    generator = np.random.default_rng(seed)
    holders = generator.integers(0, devices, (4, 12))
    gains = generator.normal(size=(4, 12, devices))
    np.put_along_axis(gains, holders[:, :, None], 0.0, axis=2)
    room = generator.multinomial(spare, np.full(devices, 1 / devices))
    moves, total = best_moves(gains, holders, room, moves_a_layer)
    after = holders.copy()
    for move in moves:
        assert after[move.row, move.expert] == move.source != move.target
        after[move.row, move.expert] = move.target
    assert len({(m.row, m.expert) for m in moves}) == len(moves)
    assert total == pytest.approx(sum(gains[m.row, m.expert, m.target] for m in moves))
    grown = np.bincount(after.ravel(), minlength=devices) - np.bincount(holders.ravel(), minlength=devices)
    assert (grown <= room).all()
    assert np.bincount([m.row for m in moves], minlength=4).max(initial=0) <= moves_a_layer + 2


def test_as_many_moves_as_asked_for() -> None:
    generator = np.random.default_rng(1)
    holders = generator.integers(0, 3, (4, 12))
    gains = generator.normal(size=(4, 12, 3))
    for most in range(6):
        assert len(best_moves(gains, holders, np.full(3, 4), 8, most)[0]) <= most


def test_refining_helps_on_other_text_and_keeps_to_the_room() -> None:
    given_problem = problem()
    begin = some_holders(given_problem)
    refined = refine(given_problem, begin, sample(given_problem))
    held_out = SyntheticRouter(SHAPE).trace(CODING, 600, stream_seed=1)
    before_s, after_s = (
        evaluate(given_problem, HolderTable.from_single(holders), held_out).mean_s
        for holders in (begin, refined)
    )
    assert after_s < 0.9 * before_s
    assert (np.bincount(refined.ravel(), minlength=3) <= given_problem.capacities()).all()


def test_dear_messages_are_spared() -> None:
    """Where the head pays for every box it asks, layers ask fewer."""
    dear = with_messages(problem(), Overheads(message_s=3e-4))
    begin = some_holders(dear)
    layers = sample(dear)
    assert dear.stats is not None
    assert dear.stats.trace is not None
    free, spared = (
        evaluate(dear, HolderTable.from_single(refine(searched, begin, layers)), dear.stats.trace)
        for searched in (problem(), dear)
    )
    assert spared.remote_layers.mean() < 0.95 * free.remote_layers.mean()
    assert spared.mean_s < 0.98 * free.mean_s


def test_single_experts_move_again_beside_copies() -> None:
    """From a start that nobody balanced; with four copies, which stay where they are."""
    given_problem = problem(room=(18, 18, 16))
    layers = sample(given_problem)
    copied = add_copies(given_problem, HolderTable.from_single(some_holders(given_problem)), layers)
    moved = move_beside_copies(given_problem, copied, layers)
    assert given_problem.stats is not None
    assert given_problem.stats.trace is not None
    before_s, after_s = (
        evaluate(given_problem, table, given_problem.stats.trace).mean_s for table in (copied, moved)
    )
    assert after_s < 0.95 * before_s
    before, after = copied.masks(3), moved.masks(3)
    single = before.sum(axis=0) == 1
    assert (after.sum(axis=0) == before.sum(axis=0)).all()
    assert (after[:, ~single] == before[:, ~single]).all()
    assert (after.sum(axis=(1, 2)) <= given_problem.capacities()).all()


def test_without_copies_nothing_moves_again() -> None:
    given_problem = problem()
    table = HolderTable.from_single(some_holders(given_problem))
    assert move_beside_copies(given_problem, table, sample(given_problem)) is table


@pytest.mark.parametrize("num_experts", [1, 2, 5])
def test_rows_of_a_device_are_what_independent_choices_give(num_experts: int) -> None:
    draws = np.random.default_rng(0)
    # Each of 3 tokens chooses each of 10 experts with a chance of 0.4: 1.2 pairs for every one.
    chosen = draws.random((20_000, 3, 10)) < 0.4
    rows = chosen[:, :, :num_experts].any(axis=2).sum(axis=1).mean()
    assert expected_rows(np.array(num_experts), 3, 1.2) == pytest.approx(rows, rel=0.01)


def test_few_moves_gain_less_than_many_and_are_few() -> None:
    given_problem = problem()
    begin = some_holders(given_problem)
    layers = sample(given_problem)
    searches = layer_searches(given_problem, layers)

    def seconds(holders: NDArray[np.int64]) -> float:
        return sum(search.seconds(row) for search, row in zip(searches, holders, strict=True))

    few, many = refine(given_problem, begin, layers, most_moves=6), refine(given_problem, begin, layers)
    assert 0 < (few != begin).sum() <= 6
    assert seconds(many) < seconds(few) < seconds(begin)


def test_many_devices_are_searched_in_parties() -> None:
    given_problem = problem(room=(4,) * 20)
    begin = some_holders(given_problem)
    refined = refine(given_problem, begin, sample(given_problem))
    searches = layer_searches(given_problem, sample(given_problem))
    before_s, after_s = (
        sum(search.seconds(row) for search, row in zip(searches, holders, strict=True))
        for holders in (begin, refined)
    )
    assert after_s < 0.9 * before_s
    assert (np.bincount(refined.ravel(), minlength=20) <= 4).all()


@pytest.mark.whole_search
def test_kicks_find_what_single_moves_do_not() -> None:
    given_problem = problem(room=(16, 16, 16))
    layers = sample(given_problem, most_reads=400)
    assert num_kicks(given_problem, layers) > 10
    searches = layer_searches(given_problem, layers)
    refined = refine(given_problem, some_holders(given_problem), layers)
    kicked = kick(given_problem, refined, layers)
    before_s, after_s = (
        sum(search.seconds(row) for search, row in zip(searches, holders, strict=True))
        for holders in (refined, kicked)
    )
    assert after_s < before_s
    assert np.bincount(kicked.ravel()).tolist() == [16, 16, 16]


def test_copies_fill_spare_room_and_make_steps_faster() -> None:
    given_problem = problem(room=(20, 20, 30))
    layers = sample(given_problem)
    single = HolderTable.from_single(refine(given_problem, some_holders(given_problem), layers))
    copied = add_copies(given_problem, single, layers)
    few = add_copies(given_problem, single, layers, most_copies=3)
    held_out = SyntheticRouter(SHAPE).trace(CODING, 600, stream_seed=1)
    seconds = [evaluate(given_problem, table, held_out).mean_s for table in (copied, few, single)]
    assert seconds[0] < seconds[1] < seconds[2]
    assert (copied.experts_per_worker(3) <= given_problem.capacities()).all()
    assert copied.experts_per_worker(3).sum() > SHAPE.num_routed_experts + 5
    assert few.experts_per_worker(3).sum() == SHAPE.num_routed_experts + 3
    for worker in range(3):
        assert (copied.mask(worker) >= single.mask(worker)).all()


def test_a_copy_is_worth_what_the_choice_of_the_dispatcher_gains() -> None:
    """For one more copy nothing but that expert's place can change, where its device is asked anyway."""
    given_problem = problem(room=(20, 20, 20))
    holders = some_holders(given_problem)
    layer = sample(given_problem)[0]
    search: LayerSearch = layer_searches(given_problem, [layer], shrinkage=1e-12)[0]
    held = np.stack([holders[0] == worker for worker in range(3)])
    gains = search.copies(search.held(holders[0]), holders[0], held)
    expert, target = np.unravel_index(int(gains.argmin()), gains.shape)
    masks = np.stack([holders[:1] == worker for worker in range(3)])
    masks[target, 0, expert] = True
    table = HolderTable.from_masks(masks)
    chosen = assign_steps(layer.chosen, table.layers[0], replica_costs(given_problem))[:, 0]
    device_of = np.zeros((layer.num_steps, SHAPE.num_experts), dtype=np.int64)
    np.put_along_axis(device_of, layer.chosen[:, 0].astype(np.int64), chosen.astype(np.int64), axis=1)
    gained = search.loads(device_of[layer.step, layer.expert]).mean_s - search.seconds(holders[0])
    # The dispatcher looks at when one device is done, not at the last one: it may gain less.
    assert gains[expert, target] - 1e-12 <= gained < 0.5 * gains[expert, target]


def test_prefill_of_a_layer_is_that_of_the_objective() -> None:
    workload = Workload(prompt_tokens_per_token=4, prefill_tokens=128)
    given_problem = problem(workload=workload)
    assert given_problem.stats is not None
    holders = some_holders(given_problem)
    rates = prefill_rates(given_problem, given_problem.workload.prefill_tokens)
    frequencies = given_problem.stats.frequencies()

    def layers_s(table: NDArray[np.int64]) -> float:
        return sum(
            PrefillLayer(rates, workload, frequencies[row]).seconds(table[row]) for row in range(len(table))
        )

    other = some_holders(given_problem, seed=5)
    passes = workload.prefill_passes_per_step
    assert passes == pytest.approx(4 / 128)
    difference = prefill_pass_s(given_problem, HolderTable.from_single(other)) - prefill_pass_s(
        given_problem, HolderTable.from_single(holders)
    )
    assert layers_s(other) - layers_s(holders) == pytest.approx(passes * difference, rel=1e-6)


def test_long_prompts_move_the_plan_towards_arithmetic() -> None:
    """A box that reads slowly but multiplies fast is worth more when prompts are long."""
    slow_reader = replace(
        device("box", 40, SIZE, gbytes_per_s=READ_GBYTES_PER_S / 2), ffn_flops_per_s=1e13, round_trip_s=1e-5
    )
    head = replace(device("head", 40, SIZE, gbytes_per_s=READ_GBYTES_PER_S * 2), ffn_flops_per_s=1.6e7)
    held = []
    for prompt in (0.0, 50.0):
        workload = Workload(prompt_tokens_per_token=prompt)
        given_problem = replace(problem(workload=workload), devices=(head, slow_reader))
        begin = some_holders(given_problem)
        table = HolderTable.from_single(refine(given_problem, begin, sample(given_problem)))
        held.append(int(table.experts_per_worker(2)[1]))
        assert given_problem.stats is not None
        assert given_problem.stats.trace is not None
        assert objective_s(given_problem, table, given_problem.stats.trace) < objective_s(
            given_problem, HolderTable.from_single(begin), given_problem.stats.trace
        )
    assert held[1] > held[0]
