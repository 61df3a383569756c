"""What spot checks decide: which requests, whether two answers differ, and who is wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.even_plan import even_plan
from orchestrator.dispatch.connections import Connections
from orchestrator.dispatch.debts import Ask
from orchestrator.dispatch.dispatcher import Dispatcher
from orchestrator.dispatch.spot_check import (
    Answer,
    Arbiter,
    SpotCheck,
    arbiter_of,
    differing_row,
    wrong_answers,
)
from orchestrator.dispatch.view import ClusterView, WorkerAddress
from orchestrator.generate import GenerationParams, OnTokens, generate
from orchestrator.membership.events import Event, Liar, PassRepeated
from orchestrator.membership.standing import Standing
from orchestrator.model.step35 import Step35Model
from orchestrator.sampling_params import SamplingParams
from placement.errors import InputError, WorkerRefused
from placement.holders import HolderTable
from placement.patience import Patience
from tests.examples import examples
from tests.orchestrator.plain_experts import plain_model
from tests.orchestrator.random_plan import random_plan
from tests.tiny_checkpoint import write_random_checkpoint
from transport.client import WorkerClient
from transport.expert_rows import ExpertRows
from transport.messages import WireLimits
from workers.fixed_point import PartialSum
from workers.formats.open_model import OpenModel, open_model
from workers.pool import load_tiers
from workers.service import ExpertService
from workers.tiers import ExpertTier, tiers_of

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
    pairs = int(np.count_nonzero(rows.expert_ids >= 0))
    places = np.arange(rows.num_rows)
    return Answer(
        Ask(worker, worker, places, rows.expert_ids, rows.scale_exponents, pairs), values, saturated
    )


def no_arbiter(layer: int, rows: ExpertRows) -> PartialSum:
    raise AssertionError("nobody is to be asked")


@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.001, 0.02, 0.5]))
@examples(10)
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


class Lying:
    """Experts that are right until told to lie, and then wrong in one bit of every answer."""

    def __init__(self, experts: ExpertTier) -> None:
        self._experts = experts
        self.experts = experts.experts
        self.num_experts, self.held_bytes = experts.num_experts, experts.held_bytes
        self.lie: Callable[[PartialSum], PartialSum] | None = None

    def notices(self) -> tuple[str, ...]:
        return ()

    def forward(self, layer: int, rows: ExpertRows) -> PartialSum:
        found = self._experts.forward(layer, rows)
        return found if self.lie is None else self.lie(found)


def one_bit(found: PartialSum) -> PartialSum:
    values = found.values.copy()
    values[-1, 3] ^= 1
    return PartialSum(values, found.saturated)


def another_bit(found: PartialSum) -> PartialSum:
    values = found.values.copy()
    values[-1, 4] ^= 1
    return PartialSum(values, found.saturated)


def never_fits(found: PartialSum) -> PartialSum:
    return PartialSum(found.values, np.ones_like(found.saturated))


@contextmanager
def three_boxes(
    model: OpenModel, share: float, *, holders: tuple[int, ...] = (0, 1, 2)
) -> Iterator[tuple[Dispatcher, list[Lying], list[Event]]]:
    """A dispatcher, the experts of boxes "w0" to "w2", and what is told; `holders` have all experts.

    A liar is asked no more from the next view on, as the watch over the workers does it.
    """
    limits = WireLimits.for_shape(model.shape)
    plan = random_plan(model.shape, 3, seed=1, head_holds=False)
    masks = np.zeros((3, 2, 8), np.bool_)
    masks[list(holders)] = True
    plan = replace(plan, holder_table=HolderTable.from_masks(masks))
    told: list[Event] = []
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        boxes = []
        for worker in plan.workers:
            held = load_tiers(tiers_of(plan, worker.name), model.checkpoint, model.config, "float32")
            boxes.append(Lying(held))
            where = f"inproc://{worker.name}"
            service = ExpertService(worker.name, boxes[-1], limits, where, dtype="float32", context=context)
            stack.enter_context(service)

        def connect(name: str, address: WorkerAddress) -> WorkerClient:
            return WorkerClient(context, address.endpoint, limits, name=name)

        addresses = {i: WorkerAddress(f"inproc://{w.name}", "", None, 0) for i, w in enumerate(plan.workers)}
        names = [worker.name for worker in plan.workers]

        def standing() -> Standing:
            liars = frozenset(names.index(event.worker) for event in told if isinstance(event, Liar))
            if not liars:
                return first
            return Standing(ClusterView(replace(plan, epoch=plan.epoch + len(liars)), liars, addresses))

        first = Standing(ClusterView(plan, addresses=addresses))
        dispatcher = Dispatcher(
            standing,
            Connections(connect),
            local=None,
            max_rows=2048,
            patience=Patience(view_wait_s=0.05),
            tell=told.append,
            spot_check=SpotCheck(share, arbiter_of(model.checkpoint, model.config, plan)),
        )
        stack.callback(dispatcher.close)
        yield dispatcher, boxes, told


def said(head: Step35Model, dispatcher: Dispatcher, on_tokens: OnTokens | None = None) -> tuple[int, ...]:
    over = Step35Model(head.config, head.weights, head.dtype, dispatcher, dispatcher.timer)
    params = GenerationParams(max_tokens=12, sampling=SamplingParams(0.9, seed=5), ignore_eos=True)
    return generate(over, [5, 17, 300, 42], params, on_tokens).token_ids


def about_lies(told: list[Event]) -> list[type]:
    """What was told, but for what a busy machine makes of times."""
    return [type(event) for event in told if isinstance(event, Liar | PassRepeated)]


def test_boxes_that_are_right_are_checked_and_nothing_is_told(model: OpenModel) -> None:
    head = plain_model(model.path)
    with three_boxes(model, 1.0) as (dispatcher, _, told):
        expected = said(head, dispatcher)
        # At least one request a layer and step, each asked of others once more.
        assert 12 * 2 <= dispatcher.usage.checked <= dispatcher.usage.messages // 2
    assert about_lies(told) == []
    with three_boxes(model, 0.0) as (dispatcher, _, _told):
        assert said(head, dispatcher) == expected
        assert dispatcher.usage.checked == 0


@pytest.mark.parametrize("lie", [one_bit, never_fits])
def test_a_liar_is_named_and_asked_no_more_and_the_pass_runs_again(
    model: OpenModel, lie: Callable[[PartialSum], PartialSum]
) -> None:
    head = plain_model(model.path)
    with three_boxes(model, 1.0) as (dispatcher, _, _told):
        expected = said(head, dispatcher)
    with three_boxes(model, 1.0) as (dispatcher, boxes, told):
        steps = 0

        def begin_to_lie(token_ids: list[int]) -> None:
            nonlocal steps
            steps += 1
            if steps == 5:
                boxes[0].lie = lie

        assert said(head, dispatcher, begin_to_lie) == expected
        before = dispatcher.usage.activations[0]
        assert said(head, dispatcher) == expected
        assert dispatcher.usage.activations[0] == before
    assert [event.worker for event in told if isinstance(event, Liar)] == ["w0"]
    assert about_lies(told) == [Liar, PassRepeated]
    assert steps == 12


def test_where_those_who_check_lie_they_are_named(model: OpenModel) -> None:
    head = plain_model(model.path)
    with three_boxes(model, 1.0) as (dispatcher, boxes, told):
        expected = said(head, dispatcher)
        asked = int(np.argmax(dispatcher.usage.activations))
        for place, box in enumerate(boxes):
            box.lie = one_bit if place == 2 else None
        assert said(head, dispatcher) == expected
        assert asked != 2
    assert {event.worker for event in told if isinstance(event, Liar)} <= {"w2"}


def test_a_worker_that_hangs_does_not_keep_a_check_waiting(model: OpenModel) -> None:
    head = plain_model(model.path)
    released = threading.Event()

    def hang(found: PartialSum) -> PartialSum:
        released.wait()
        return found

    with three_boxes(model, 1.0, holders=(0, 1)) as (dispatcher, boxes, _):
        expected = said(head, dispatcher)
    with three_boxes(model, 1.0, holders=(0, 1)) as (dispatcher, boxes, told):
        tokens: list[int] = []

        def note(token_ids: list[int]) -> None:
            tokens.extend(token_ids)
            if len(tokens) == 10:
                boxes[1].lie = hang

        try:
            assert said(head, dispatcher, note) == expected
        finally:
            released.set()
    assert about_lies(told) == []


def test_what_nobody_else_holds_is_not_checked(model: OpenModel) -> None:
    head = plain_model(model.path)
    with three_boxes(model, 1.0, holders=(1,)) as (dispatcher, _, told):
        said(head, dispatcher)
        assert dispatcher.usage.checked == 0
    assert about_lies(told) == []


def test_a_liar_that_nobody_can_stand_in_for_ends_the_run(model: OpenModel) -> None:
    head = plain_model(model.path)
    with three_boxes(model, 1.0, holders=(0, 1)) as (dispatcher, boxes, told):
        boxes[0].lie, boxes[1].lie = one_bit, another_bit
        with pytest.raises(WorkerRefused, match="wrong numbers from w0, w1; no other worker holds"):
            said(head, dispatcher)
    assert {event.worker for event in told if isinstance(event, Liar)} == {"w0", "w1"}
