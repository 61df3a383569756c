"""Experts that come and go while they serve: the sums are always those of one store that holds them all."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.tiny.gguf_file import write_gguf
from placement.errors import ModelFilesFailed, PlanError
from placement.experts import Experts
from placement.weight_format import ExpertFormat
from tests.orchestrator.processes import wait_until
from tests.tiny_checkpoint import write_random_checkpoint
from transport.expert_rows import ExpertRows
from workers import fixed_point
from workers.disk.direct_file import ALIGNMENT
from workers.disk.tier import DiskTier
from workers.formats.open_model import OpenModel, kept_forms, open_model
from workers.holdings import LOOK_UP_TIMEOUT_S, Holdings
from workers.kernels import ExpertNotHeld
from workers.store import ExpertStore
from workers.tiers import StillLoading

LAYERS, NUM_EXPERTS, TOP_K = (2, 3, 4, 5), 16, 4
PLENTY = 10**9
DTYPES = {"a directory, copied": "bfloat16", "a directory, mapped": "float32", "a GGUF file": "float32"}


@pytest.fixture(scope="module", params=list(DTYPES))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(kind: str, tmp_path_factory: pytest.TempPathFactory) -> OpenModel:
    directory = write_random_checkpoint(tmp_path_factory.mktemp("model"), seed=3)
    if "GGUF" not in kind:
        return open_model(directory)
    write_gguf(directory, directory / "m.gguf", "q8_0")
    return open_model(directory / "m.gguf")


@pytest.fixture(scope="module")
def formats(kind: str, model: OpenModel) -> dict[int, ExpertFormat]:
    return kept_forms(model.checkpoint, model.config, DTYPES[kind])


@pytest.fixture(scope="module")
def whole(model: OpenModel, formats: dict[int, ExpertFormat]) -> ExpertStore:
    everything = {layer: tuple(range(NUM_EXPERTS)) for layer in LAYERS}
    return ExpertStore.load(model.checkpoint, model.config, everything, formats=formats)


def rows_of(ids: tuple[int, ...], num_rows: int = 3) -> ExpertRows:
    """Rows that want some of these experts each."""
    rng = np.random.default_rng([*ids, num_rows])
    hidden = rng.standard_normal((num_rows, 64), dtype=np.float32)
    expert_ids = np.full((num_rows, TOP_K), -1, np.int32)
    for row in expert_ids:
        some = rng.permutation(ids)[:TOP_K]
        row[: len(some)] = some
    weights = rng.random((num_rows, TOP_K), dtype=np.float32)
    return ExpertRows(hidden, expert_ids, weights, fixed_point.scale_exponents(torch.from_numpy(hidden)))


def check(holdings: Holdings, whole: ExpertStore, experts: Experts) -> None:
    """They are held, and sum as they should."""
    for layer, ids in experts.items():
        rows = rows_of(ids)
        np.testing.assert_array_equal(holdings.forward(layer, rows).values, whole.forward(layer, rows).values)


def check_without(holdings: Holdings, experts: Experts) -> None:
    for layer, ids in experts.items():
        for expert in ids:
            with pytest.raises(ExpertNotHeld):
                holdings.forward(layer, rows_of((expert,)))


@contextmanager
def holding(
    model: OpenModel, formats: dict[int, ExpertFormat], experts: Experts, room_bytes: int = PLENTY
) -> Iterator[Holdings]:
    holdings = Holdings()
    try:
        tiers = (
            [ExpertStore.load(model.checkpoint, model.config, experts, formats=formats)] if experts else []
        )
        holdings.begin(tiers, model, formats, lambda: room_bytes)
        yield holdings
    finally:
        holdings.close()


def done(holdings: Holdings, order: int) -> bool:
    state = holdings.state(order)
    return state is not None and state.done


def test_before_it_begins_nothing_is_served(model: OpenModel) -> None:
    holdings = Holdings()
    assert (holdings.num_experts, holdings.held_bytes, dict(holdings.experts)) == (0, 0, {})
    with pytest.raises(StillLoading):
        holdings.forward(2, rows_of((1,)))
    with pytest.raises(StillLoading):
        holdings.hold(1, {2: (1,)})
    holdings.close()


@pytest.mark.parametrize("rate", [0, 10**9])
def test_ordered_experts_are_served_at_once_and_loaded_behind(
    rate: int, model: OpenModel, formats: dict[int, ExpertFormat], whole: ExpertStore
) -> None:
    first, more = {2: (0, 3), 3: (1,)}, {2: (3, 5, 7), 4: (2, 9)}
    with holding(model, formats, first) as holdings:
        check_without(holdings, {2: (5,)})
        asked = holdings.hold(1, more, rate)
        assert (asked.done, asked.missing_bytes) == (False, 4 * holdings.expert_bytes(2))
        # No waiting in between.
        check(holdings, whole, more)
        wait_until(lambda: done(holdings, 1))
        state = holdings.hold(1, more, rate)
        assert (state.missing_bytes, state.text, holdings.changes) == (0, "", 1)
        check(holdings, whole, {**first, **more, 2: (0, 3, 5, 7)})
        assert holdings.num_experts == 7
        assert holdings.held_bytes == 7 * holdings.expert_bytes(2)
        assert holdings.notices() == ()
        check_without(holdings, {2: (1,), 5: (0,)})


def test_a_process_without_experts_of_its_own_takes_orders(
    model: OpenModel, formats: dict[int, ExpertFormat], whole: ExpertStore
) -> None:
    """As a head does, when nobody else is left."""
    with holding(model, formats, {}) as holdings:
        check_without(holdings, {2: (1,)})
        holdings.hold(9, {2: (1, 4)})
        check(holdings, whole, {2: (1, 4)})


def test_what_has_no_room_stays_on_the_disk_and_says_so(
    model: OpenModel, formats: dict[int, ExpertFormat], whole: ExpertStore
) -> None:
    more = {2: tuple(range(16)), 3: tuple(range(16)), 4: (1,)}
    with holding(model, formats, {5: (0,)}, room_bytes=100) as holdings:
        holdings.hold(1, more)
        wait_until(lambda: done(holdings, 1))
        state = holdings.state(1)
        assert state is not None
        assert state.missing_bytes == 33 * holdings.expert_bytes(2)
        assert "of experts that were added stay on disk" in state.text
        assert state.text in holdings.notices()
        check(holdings, whole, more)
        # A cache of a few, not all of them.
        assert holdings.held_bytes < 33 * 3 * (8192 + ALIGNMENT)
        holdings.drop(2, {layer: ids for layer, ids in more.items() if layer != 4})
        wait_until(lambda: done(holdings, 2))
        check(holdings, whole, {4: (1,), 5: (0,)})
        check_without(holdings, {2: (1,), 3: (7,)})


def test_dropped_experts_are_gone_and_their_memory_too(
    model: OpenModel, formats: dict[int, ExpertFormat], whole: ExpertStore
) -> None:
    with holding(model, formats, {2: (0, 3, 5), 3: (1,), 4: (2,)}) as holdings:
        before = holdings.held_bytes
        holdings.drop(1, {2: (3, 9), 3: (1,), 5: (4,)})
        wait_until(lambda: done(holdings, 1))
        check(holdings, whole, {2: (0, 5), 4: (2,)})
        check_without(holdings, {2: (3,), 3: (1,)})
        assert holdings.held_bytes == before // 5 * 3
        holdings.hold(2, {2: (3,), 3: (1,)})
        check(holdings, whole, {2: (0, 3, 5), 3: (1,)})


def test_an_order_counts_once(model: OpenModel, formats: dict[int, ExpertFormat]) -> None:
    with holding(model, formats, {}) as holdings:
        for _ in range(3):
            holdings.hold(5, {2: (1,)})
        wait_until(lambda: done(holdings, 5))
        assert (holdings.changes, holdings.num_experts) == (1, 1)
        # Another content under the same name is not carried out.
        assert holdings.hold(5, {2: (2,)}).done
        assert (holdings.changes, holdings.num_experts) == (1, 1)


def test_experts_that_the_model_does_not_have_are_refused(
    model: OpenModel, formats: dict[int, ExpertFormat]
) -> None:
    with holding(model, formats, {}) as holdings:
        for experts in ({0: (1,)}, {2: (99,)}, {2: (1, 1)}):
            with pytest.raises(PlanError):
                holdings.hold(1, experts)
        assert holdings.state(1) is None


def test_loading_takes_the_time_that_its_rate_gives(
    model: OpenModel, formats: dict[int, ExpertFormat]
) -> None:
    with holding(model, formats, {}) as holdings:
        experts = {2: (1, 2), 3: (4, 5)}
        started = time.monotonic()
        holdings.hold(1, experts, 4 * holdings.expert_bytes(2))
        wait_until(lambda: done(holdings, 1))
        assert time.monotonic() - started >= 1.0


def test_no_expert_is_copied_for_each_that_comes_after_it(
    model: OpenModel, formats: dict[int, ExpertFormat], monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []
    joined = ExpertStore.joined

    def counted(mine: ExpertStore, others: ExpertStore) -> ExpertStore:
        copied.append(mine.num_experts + others.num_experts)
        return joined(mine, others)

    monkeypatch.setattr(ExpertStore, "joined", counted)
    with holding(model, formats, {}) as holdings:
        holdings.hold(1, {3: tuple(range(NUM_EXPERTS))}, rate_bytes_per_s=PLENTY)
        wait_until(lambda: done(holdings, 1))
    # By twos, fours, eights, all 16, and once more beside what is held; one by one that were 151.
    assert sum(copied) == 5 * NUM_EXPERTS


def test_closing_does_not_wait_for_a_slow_order(model: OpenModel, formats: dict[int, ExpertFormat]) -> None:
    with holding(model, formats, {}) as holdings:
        holdings.hold(1, {2: (1, 2)}, 1)
        started = time.monotonic()
    assert time.monotonic() - started < 60.0


def test_orders_are_served_and_let_go_of_while_an_earlier_one_is_loaded(
    model: OpenModel, formats: dict[int, ExpertFormat], whole: ExpertStore
) -> None:
    with holding(model, formats, {2: (0,)}) as holdings:
        holdings.hold(1, {2: (1, 2), 4: (1,)}, 1)
        holdings.hold(2, {3: (4,)})
        started = time.monotonic()
        check(holdings, whole, {2: (1, 2), 3: (4,), 4: (1,)})
        assert time.monotonic() - started < LOOK_UP_TIMEOUT_S
        holdings.drop(3, {2: (1,)})
        wait_until(lambda: done(holdings, 3))
        check_without(holdings, {2: (1,)})
        check(holdings, whole, {2: (2,), 3: (4,)})
        assert not done(holdings, 1)


def test_what_is_dropped_while_it_is_loaded_is_not_held(
    model: OpenModel, formats: dict[int, ExpertFormat], whole: ExpertStore
) -> None:
    with holding(model, formats, {}) as holdings:
        # The first is in memory at once, and is waited for until the second may be.
        holdings.hold(1, {2: (1, 2), 3: (5,)}, 4 * holdings.expert_bytes(2))
        holdings.drop(2, {2: (1,), 3: (5,)})
        wait_until(lambda: done(holdings, 1))
        assert dict(holdings.experts) == {2: (2,)}
        assert holdings.held_bytes == holdings.expert_bytes(2)
        check(holdings, whole, {2: (2,)})
        check_without(holdings, {2: (1,), 3: (5,)})


def test_sums_are_right_while_orders_are_carried_out(
    model: OpenModel, formats: dict[int, ExpertFormat], whole: ExpertStore
) -> None:
    kept = {2: (0, 1), 3: (2,)}
    with holding(model, formats, kept) as holdings:
        ended = threading.Event()
        failures: list[BaseException] = []

        def serve() -> None:
            try:
                while not ended.is_set():
                    check(holdings, whole, kept)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=serve)
        thread.start()
        for order in range(1, 20, 2):
            holdings.hold(order, {2: (4, 5, 6), 5: (order % 16,)})
            holdings.drop(order + 1, {2: (4, 6), 5: (order % 16,)})
        wait_until(lambda: holdings.changes == 20)
        ended.set()
        thread.join()
        assert not failures


experts_drawn = st.dictionaries(
    st.sampled_from(LAYERS),
    st.sets(st.integers(0, NUM_EXPERTS - 1), min_size=1).map(lambda s: tuple(sorted(s))),
)


@given(
    first=experts_drawn,
    orders=st.lists(st.tuples(st.booleans(), experts_drawn), max_size=5),
    room=st.sampled_from([0, PLENTY]),
)
def test_any_orders_leave_what_they_say(
    first: Experts,
    orders: list[tuple[bool, Experts]],
    room: int,
    model: OpenModel,
    formats: dict[int, ExpertFormat],
    whole: ExpertStore,
) -> None:
    held = {(layer, expert) for layer, ids in first.items() for expert in ids}
    with holding(model, formats, first, room) as holdings:
        for number, (add, experts) in enumerate(orders, 1):
            (holdings.hold if add else holdings.drop)(number, experts)
            change = {(layer, expert) for layer, ids in experts.items() for expert in ids}
            held = held | change if add else held - change
        wait_until(lambda: holdings.changes == len(orders))
        found = {(layer, expert) for layer, ids in holdings.experts.items() for expert in ids}
        assert found == held
        check(holdings, whole, {layer: ids for layer, ids in holdings.experts.items() if ids})


def test_a_disk_of_the_plan_keeps_what_is_dropped(
    model: OpenModel, formats: dict[int, ExpertFormat], whole: ExpertStore
) -> None:
    holdings = Holdings()
    disk = DiskTier(model.checkpoint, model.config, {2: (1, 2)}, formats=formats, cache_bytes=10**6)
    holdings.begin([disk], model, formats, lambda: PLENTY)
    holdings.drop(1, {2: (1,)})
    wait_until(lambda: done(holdings, 1))
    check(holdings, whole, {2: (1, 2)})
    holdings.close()


def test_files_of_the_model_are_closed_when_an_order_is_dropped(
    model: OpenModel, formats: dict[int, ExpertFormat]
) -> None:
    with holding(model, formats, {}, room_bytes=0) as holdings:
        before = num_open(model.path)
        for number in range(1, 20, 2):
            holdings.hold(number, {2: (1,)})
            holdings.drop(number + 1, {2: (1,)})
        wait_until(lambda: done(holdings, 20))
        assert num_open(model.path) <= before + 1


def num_open(path: Path) -> int:
    """Descriptors of the model's files in this process."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            found += str(path.parent) in str(link.readlink())
        except OSError:
            continue
    return found


def test_experts_that_cannot_be_looked_up_are_refused_with_the_reason(tmp_path: Path) -> None:
    model = open_model(write_random_checkpoint(tmp_path / "m", seed=3))
    formats = kept_forms(model.checkpoint, model.config, "float32")
    with holding(model, formats, {2: (1,)}) as holdings:
        for file in (tmp_path / "m").glob("*.safetensors"):
            moved = file.rename(f"{file}.moved")
            file.write_bytes(moved.read_bytes())
        holdings.hold(7, {3: (1, 2)})
        wait_until(lambda: done(holdings, 7))
        with pytest.raises(ModelFilesFailed, match=r"layer 3: expert 2 cannot be served: .*safetensors"):
            holdings.forward(3, rows_of((2,)))
        with pytest.raises(ExpertNotHeld):
            holdings.forward(4, rows_of((2,)))


def test_an_order_that_failed_is_refused_once_and_then_tried_again(tmp_path: Path) -> None:
    model = open_model(write_random_checkpoint(tmp_path / "m", seed=3))
    formats = kept_forms(model.checkpoint, model.config, "float32")
    (file,) = (tmp_path / "m").glob("*.safetensors")
    with holding(model, formats, {2: (1,)}) as holdings:
        moved = file.rename(f"{file}.moved")
        file.write_bytes(b"another file")
        holdings.hold(7, {3: (1, 2)})
        wait_until(lambda: done(holdings, 7))
        moved.rename(file)
        with pytest.raises(ModelFilesFailed, match="safetensors"):
            holdings.hold(7, {3: (1, 2)})
        assert not holdings.hold(7, {3: (1, 2)}).done
        wait_until(lambda: done(holdings, 7))
        state = holdings.state(7)
        assert state is not None
        assert (state.missing_bytes, state.failed) == (0, False)
        holdings.forward(3, rows_of((2,)))


def test_a_request_whose_experts_are_looked_up_while_it_fails_is_tried_again(
    model: OpenModel, formats: dict[int, ExpertFormat], whole: ExpertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holding(model, formats, {2: (0,)}) as holdings:
        forward = ExpertStore.forward

        def overtaken(store: ExpertStore, layer: int, rows: ExpertRows) -> fixed_point.PartialSum:
            try:
                return forward(store, layer, rows)
            except ExpertNotHeld:
                holdings.hold(1, {2: (5,)})
                wait_until(lambda: done(holdings, 1))
                raise

        monkeypatch.setattr(ExpertStore, "forward", overtaken)
        check(holdings, whole, {2: (5,)})
