"""What spot checks decide: which requests, whether two answers differ, and who is wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.even_plan import even_plan
from orchestrator.dispatch.spot_check import (
    Answer,
    Arbiter,
    SpotCheck,
    arbiter_of,
    differing_row,
    replicated_share,
    wrong_answers,
)
from placement.errors import InputError
from placement.holders import HolderTable
from tests.tiny_checkpoint import write_random_checkpoint
from transport.expert_rows import ExpertRows
from workers.fixed_point import PartialSum
from workers.formats.open_model import OpenModel, open_model

LAYER, NUM_ROWS, TOP_K = 2, 5, 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OpenModel:
    path = write_random_checkpoint(
        tmp_path_factory.mktemp("spot") / "m", seed=4, num_layers=4, moe_layers=(2, 3), num_experts=8
    )
    return open_model(path)


@pytest.fixture(scope="module")
def arbiter(model: OpenModel) -> Arbiter:
    return arbiter_of(model.checkpoint, model.config, even_plan(model.shape, 0, "float32"))


@pytest.fixture(scope="module")
def rows(model: OpenModel) -> ExpertRows:
    rng = np.random.default_rng(0)
    return ExpertRows(
        hidden=rng.standard_normal((NUM_ROWS, model.config.hidden_size)).astype(np.float32),
        expert_ids=np.stack([rng.permutation(8)[:TOP_K] for _ in range(NUM_ROWS)]).astype(np.int32),
        weights=rng.random((NUM_ROWS, TOP_K)).astype(np.float32),
        scale_exponents=np.full(NUM_ROWS, -23, np.int32),
    )


def answer_of(worker: int, rows: ExpertRows, computed: PartialSum) -> Answer:
    """An answer to all rows."""
    values, saturated = computed.values.copy(), computed.saturated.copy()
    places = np.arange(rows.num_rows)
    return Answer(worker, worker, places, rows.expert_ids, rows.scale_exponents, values, saturated)


def no_arbiter(layer: int, rows: ExpertRows) -> PartialSum:
    raise AssertionError("nobody is to be asked")


@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.001, 0.02, 0.5]))
def test_the_share_of_requests_is_checked_and_always_the_same_ones(seed: int, share: float) -> None:
    checks = [SpotCheck(share, no_arbiter, seed=seed) for _ in range(2)]
    chosen = [[check.chooses(number) for number in range(1, 20_001)] for check in checks]
    assert chosen[0] == chosen[1]
    expected = 20_000 * share
    # Six standard deviations: one in a billion would miss it.
    assert abs(sum(chosen[0]) - expected) <= 6 * (expected * (1 - share)) ** 0.5 + 1


def test_none_or_all_can_be_asked_for_and_nothing_beyond() -> None:
    assert not any(SpotCheck(0, no_arbiter).chooses(number) for number in range(1000))
    assert all(SpotCheck(1, no_arbiter).chooses(number) for number in range(1000))
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="expected 0 to 1"):
            SpotCheck(share, no_arbiter)


def test_another_seed_draws_other_requests() -> None:
    first, second = ([SpotCheck(0.5, no_arbiter, seed=s).chooses(n) for n in range(200)] for s in (1, 2))
    assert first != second


@given(place=st.integers(0, NUM_ROWS - 1), element=st.integers(0, 63), bit=st.integers(0, 31))
def test_one_wrong_bit_is_seen_and_its_worker_named(
    rows: ExpertRows, arbiter: Arbiter, place: int, element: int, bit: int
) -> None:
    truth = arbiter(LAYER, rows)
    assert not truth.saturated.any()
    honest, liar = answer_of(0, rows, truth), answer_of(1, rows, truth)
    assert differing_row(honest, truth.values, rows.scale_exponents) is None
    liar.values.view(np.uint32)[place, element] ^= np.uint32(1 << bit)
    assert differing_row(liar, truth.values, rows.scale_exponents) == place
    assert differing_row(honest, liar.values, rows.scale_exponents) == place
    assert wrong_answers(arbiter, LAYER, rows, place, [honest, liar]) == [liar]


def test_of_several_that_share_a_request_the_wrong_one_is_named(rows: ExpertRows, arbiter: Arbiter) -> None:
    halves = []
    for worker, even in enumerate((True, False)):
        mine = np.where((rows.expert_ids % 2 == 0) == even, rows.expert_ids, np.int32(-1))
        part = rows._replace(expert_ids=mine)
        halves.append(answer_of(worker, part, arbiter(LAYER, part)))
    whole = answer_of(2, rows, arbiter(LAYER, rows))
    assert differing_row(whole, halves[0].values + halves[1].values, rows.scale_exponents) is None
    halves[1].values[3, 7] += 1
    place = differing_row(whole, halves[0].values + halves[1].values, rows.scale_exponents)
    assert place == 3
    assert wrong_answers(arbiter, LAYER, rows, place, [whole, *halves]) == [halves[1]]


def test_a_row_called_too_large_or_not_against_the_truth_is_a_wrong_answer(
    rows: ExpertRows, arbiter: Arbiter
) -> None:
    truth = arbiter(LAYER, rows)
    lie = answer_of(0, rows, truth)
    lie.saturated[2] = True
    assert differing_row(lie, truth.values, rows.scale_exponents) == 2
    assert wrong_answers(arbiter, LAYER, rows, 2, [lie]) == [lie]
    # On a grid too fine for its numbers, a row is honestly too large: others end on a coarser one.
    fine = rows._replace(scale_exponents=np.full(NUM_ROWS, -40, np.int32))
    found = arbiter(LAYER, fine)
    assert found.saturated.all()
    honest = answer_of(0, fine, found)
    assert differing_row(honest, truth.values, rows.scale_exponents) is None
    assert wrong_answers(arbiter, LAYER, fine, 0, [honest]) == []
    lie = replace(honest, saturated=np.zeros(NUM_ROWS, np.bool_))
    assert differing_row(lie, truth.values, rows.scale_exponents) == 0
    assert wrong_answers(arbiter, LAYER, fine, 0, [lie]) == [lie]


def test_only_experts_on_two_workers_can_be_checked(model: OpenModel) -> None:
    plan = even_plan(model.shape, 2, "float32")
    assert replicated_share(plan) == 0
    masks = np.stack([(plan.holder_table.table == tier).any(axis=2) for tier in (0, 1)])
    masks[:, 0] = True
    assert replicated_share(replace(plan, holder_table=HolderTable.from_masks(masks))) == pytest.approx(0.5)
