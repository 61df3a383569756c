"""A box's tiers side by side: the same sums as one store, each tier given its own rows and no others."""

from __future__ import annotations

import gc
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from tests.tiny_checkpoint import write_random_checkpoint
from tests.workers.serving import DEADLINE_S, wait_until
from transport.expert_rows import ExpertRows
from workers.fixed_point import PartialSum
from workers.formats.safetensors import SafetensorsCheckpoint
from workers.model_config import Step35Config
from workers.pool import TieredExperts, load_tiers
from workers.store import ExpertNotHeld, ExpertStore, in_one_form
from workers.tiers import TierSpec

HIDDEN, EXPERTS, TOP_K = 64, 16, 4
LAYERS = (2, 5)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("model"), seed=3)


def store_of(model_dir: Path, experts: Mapping[int, tuple[int, ...]]) -> ExpertStore:
    checkpoint, config = SafetensorsCheckpoint.open(model_dir), Step35Config.load(model_dir)
    return ExpertStore.load(checkpoint, config, experts, formats=in_one_form(experts, torch.float32))


@pytest.fixture(scope="module")
def whole(model_dir: Path) -> ExpertStore:
    return store_of(model_dir, dict.fromkeys(LAYERS, tuple(range(EXPERTS))))


def rows_of(
    rng: np.random.Generator, num_rows: int, *, absent: float = 0.2, bfloat16: bool = False
) -> ExpertRows:
    hidden = rng.standard_normal((num_rows, HIDDEN), dtype=np.float32)
    ids = np.stack([rng.permutation(EXPERTS)[:TOP_K] for _ in range(num_rows)]).astype(np.int32)
    return ExpertRows(
        (hidden.view(np.uint32) >> 16).astype(np.uint16) if bfloat16 else hidden,
        np.where(rng.random(ids.shape) < absent, np.int32(-1), ids),
        rng.random(ids.shape, dtype=np.float32),
        # The finest grids are left by some outputs.
        rng.choice(np.array([-23, -40], np.int32), num_rows),
    )


@given(seed=st.integers(0, 2**32 - 1), num_tiers=st.integers(2, 4), num_rows=st.integers(1, 6))
@examples(25)
def test_sums_and_flags_are_those_of_one_store_for_any_split_and_any_replicas(
    model_dir: Path, whole: ExpertStore, seed: int, num_tiers: int, num_rows: int
) -> None:
    rng = np.random.default_rng(seed)
    held = {layer: rng.random((num_tiers, EXPERTS)) < 0.3 for layer in LAYERS}
    for masks in held.values():
        masks[rng.integers(num_tiers, size=EXPERTS), np.arange(EXPERTS)] = True
    tiers = [
        store_of(model_dir, {layer: tuple(np.flatnonzero(masks[tier])) for layer, masks in held.items()})
        for tier in range(num_tiers)
    ]
    box = TieredExperts(tiers)
    assert box.experts == whole.experts
    assert box.num_experts == sum(masks.sum() for masks in held.values())
    assert box.held_bytes == sum(tier.held_bytes for tier in tiers)
    for bfloat16 in (False, True):
        rows = rows_of(rng, num_rows, bfloat16=bfloat16)
        for layer in LAYERS:
            one, several = whole.forward(layer, rows), box.forward(layer, rows)
            np.testing.assert_array_equal(several.saturated, one.saturated)
            np.testing.assert_array_equal(several.values[~one.saturated], one.values[~one.saturated])


@dataclass
class Noting:
    """A tier that notes what it is given, and may wait for others or fail."""

    experts: dict[int, tuple[int, ...]]
    given: list[ExpertRows] = field(default_factory=list)
    threads: set[threading.Thread] = field(default_factory=set)
    barrier: threading.Barrier | None = None
    error: Exception | None = None
    num_experts: int = 1
    held_bytes: int = 1

    def notices(self) -> tuple[str, ...]:
        return ("noted",)

    def forward(self, layer: int, rows: ExpertRows) -> PartialSum:
        self.given.append(rows)
        self.threads.add(threading.current_thread())
        if self.barrier is not None:
            self.barrier.wait(DEADLINE_S)
        if self.error is not None:
            raise self.error
        return PartialSum(np.ones(rows.hidden.shape, np.int32), np.zeros(rows.num_rows, np.bool_))


def rows_for(ids: list[list[int]]) -> ExpertRows:
    num_rows = len(ids)
    return ExpertRows(
        np.arange(num_rows * 2, dtype=np.float32).reshape(num_rows, 2),
        np.array(ids, np.int32),
        np.ones((num_rows, len(ids[0])), np.float32),
        np.arange(num_rows, dtype=np.int32),
    )


def test_tiers_compute_at_the_same_time() -> None:
    """Each waits within its sum until all have come so far."""
    barrier = threading.Barrier(3)
    tiers = [Noting({0: (expert,)}, barrier=barrier) for expert in range(3)]
    box = TieredExperts(tiers)
    for _ in range(2):
        result = box.forward(0, rows_for([[0, 1, 2]]))
        np.testing.assert_array_equal(result.values, [[3, 3]])
    # The first in the caller's thread, each other one always in the same.
    assert tiers[0].threads == {threading.current_thread()}
    assert all(len(tier.threads) == 1 for tier in tiers)
    assert len(set.union(*(tier.threads for tier in tiers))) == 3


def test_a_tier_is_given_the_rows_it_has_a_part_in_and_the_first_holder_computes() -> None:
    first, second = Noting({0: (0, 1)}), Noting({0: (1, 2)})
    rows = rows_for([[0, -1], [2, 1], [-1, -1], [2, -1]])
    result = TieredExperts([first, second]).forward(0, rows)
    np.testing.assert_array_equal(result.values[:, 0], [1, 2, 0, 1])
    np.testing.assert_array_equal(first.given[0].expert_ids, [[0, -1], [-1, 1]])
    np.testing.assert_array_equal(first.given[0].scale_exponents, [0, 1])
    np.testing.assert_array_equal(second.given[0].expert_ids, [[2, -1], [2, -1]])
    np.testing.assert_array_equal(second.given[0].hidden, rows.hidden[[1, 3]])


def test_a_request_for_one_tier_is_handed_on_as_it_is() -> None:
    first, second = Noting({0: (0,)}), Noting({0: (1, 2)})
    rows = rows_for([[2, -1], [1, 2]])
    TieredExperts([first, second]).forward(0, rows)
    assert not first.given
    assert second.given[0] is rows
    assert second.threads == {threading.current_thread()}


@pytest.mark.parametrize("failing", [0, 1])
def test_what_one_tier_raises_is_raised_once_all_have_finished_and_the_box_goes_on(failing: int) -> None:
    tiers = [Noting({0: (0,)}), Noting({0: (1,)})]
    box = TieredExperts(tiers)
    tiers[failing].error = RuntimeError("too hot")
    with pytest.raises(RuntimeError, match="too hot"):
        box.forward(0, rows_for([[0, 1]]))
    assert [len(tier.given) for tier in tiers] == [1, 1]
    tiers[failing].error = None
    np.testing.assert_array_equal(box.forward(0, rows_for([[0, 1]])).values, [[2, 2]])


@pytest.mark.parametrize(("layer", "expert"), [(2, 9), (2, 15), (3, 0)])
def test_an_expert_that_no_tier_holds_is_told(model_dir: Path, layer: int, expert: int) -> None:
    box = TieredExperts([store_of(model_dir, {2: (0, 1)}), store_of(model_dir, {2: (2, 3)})])
    rows = rows_of(np.random.default_rng(0), 1, absent=1.0)
    np.testing.assert_array_equal(box.forward(layer, rows).values, 0)
    rows.expert_ids[0, :2] = 2 if layer == 2 else -1, expert
    with pytest.raises(ExpertNotHeld, match=f"layer {layer}: expert {expert}"):
        box.forward(layer, rows)


def test_a_boxs_threads_end_with_it() -> None:
    tiers = [Noting({0: (0,)}), Noting({0: (1,)})]
    box = TieredExperts(tiers)
    box.forward(0, rows_for([[0, 1]]))
    (thread,) = tiers[1].threads
    assert thread.is_alive()
    del box
    gc.collect()
    wait_until(lambda: not thread.is_alive())


def test_a_single_tier_stands_for_itself(model_dir: Path) -> None:
    config, checkpoint = Step35Config.load(model_dir), SafetensorsCheckpoint.open(model_dir)
    spec = TierSpec("w", "ram", "cpu", {2: (0, 1)})
    assert isinstance(load_tiers([spec], checkpoint, config, "float32"), ExpertStore)
    more = TierSpec("w-1", "ram", "cpu", {2: (2,)})
    both = load_tiers([spec, more], checkpoint, config, "float32")
    assert isinstance(both, TieredExperts)
    assert both.experts == {2: (0, 1, 2)}
