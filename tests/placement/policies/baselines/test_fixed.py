"""What each baseline is known for."""

from __future__ import annotations

import numpy as np
import pytest

from placement.errors import InputError
from placement.given.problem import PlanningProblem
from placement.given.stats import RoutingStats
from placement.policies.baselines import fixed
from tests.placement.boxes import device
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=4, num_experts=12, top_k=2)
SIZE = SHAPE.expert_bytes(16)


def stats() -> RoutingStats:
    """Expert e of layer l is chosen e + l + 1 times."""
    counts = np.arange(12)[None] + np.arange(4)[:, None] + 1
    counts[:, 0] += counts.sum(axis=1).max() - counts.sum(axis=1) + counts.sum() % 2
    counts[:, 0] += counts.sum(axis=1) % 2
    return RoutingStats.from_counts(SHAPE, counts, int(counts[0].sum()) // 2, "by hand")


def problem(*sizes: int, with_stats: bool = True) -> PlanningProblem:
    """A head of the first size, boxes of the others."""
    devices = tuple(
        device("head" if i == 0 else f"box{i}", size, SIZE, gbytes_per_s=50) for i, size in enumerate(sizes)
    )
    return PlanningProblem(SHAPE, devices, SIZE, stats() if with_stats else None)


def test_one_box_uses_no_other() -> None:
    table = fixed.one_box(problem(48, 48))
    assert table.experts_per_worker(2).tolist() == [48, 0]


def test_whole_layers_split_a_layer_only_where_a_device_ends() -> None:
    table = fixed.whole_layers(problem(30, 20, with_stats=False))
    in_layers = table.mask(0).sum(axis=1)
    assert in_layers.tolist() == [12, 12, 6, 0]


def test_random_puts_as_many_on_each_device_as_uniform_does() -> None:
    given = problem(40, 20, 10, with_stats=False)
    even, lot = fixed.uniform(given), fixed.random(given)
    assert even.experts_per_worker(3).tolist() == lot.experts_per_worker(3).tolist()
    assert even != lot
    assert fixed.random(given) == lot


def test_ties_are_spread_over_the_layers() -> None:
    """Experts 0 and 1 of each layer were chosen, 10 never: every layer leaves as many of these outside."""
    counts = np.zeros((4, 12), dtype=np.int64)
    counts[:, :2] = 50
    devices = problem(28, 20).devices
    given = PlanningProblem(SHAPE, devices, SIZE, RoutingStats.from_counts(SHAPE, counts, 50, "by hand"))
    in_order, spread = (
        policy(given).mask(0).sum(axis=1).tolist()
        for policy in (fixed.hottest_first, fixed.hottest_first_ties_spread)
    )
    assert in_order == [12, 12, 2, 2]
    assert spread == [7, 7, 7, 7]


def test_ties_aside_the_hottest_go_first() -> None:
    given = problem(22, 40)
    assert given.stats is not None
    at_home = fixed.hottest_first_ties_spread(given).mask(0)
    assert at_home.sum() == 22
    assert given.stats.counts[at_home].min() >= given.stats.counts[~at_home].max()


def test_hottest_per_layer_gives_every_layer_the_same_room() -> None:
    given = problem(22, 40)
    table = fixed.hottest_per_layer(given)
    assert table.mask(0).sum(axis=1).tolist() == [6, 6, 5, 5]
    assert given.stats is not None
    for row in range(4):
        counts, at_home = given.stats.counts[row], table.mask(0)[row]
        assert counts[at_home].min() >= counts[~at_home].max()


def test_hottest_per_layer_places_what_division_left_over() -> None:
    """17 + 16 + 15 = 48 experts exactly, in shares of 5 or 4, 4, and 4 or 3 a layer."""
    table = fixed.hottest_per_layer(problem(17, 16, 15))
    assert table.experts_per_worker(3).tolist() == [17, 16, 15]


def test_balanced_replicas_fill_the_memory_and_even_out_the_load() -> None:
    given = problem(32, 32, 32)
    table = fixed.balanced_replicas(given)
    assert table.has_replicas
    held = table.experts_per_worker(3)
    assert (held <= 32).all()
    assert held.sum() >= 90
    assert given.stats is not None
    held_mask = np.stack([table.mask(i) for i in range(3)])
    load = (held_mask * given.stats.counts / held_mask.sum(axis=0)).sum(axis=(1, 2))
    assert load.max() < 1.1 * load.mean()


def test_balanced_replicas_without_spare_room_are_none() -> None:
    table = fixed.balanced_replicas(problem(16, 16, 16))
    assert not table.has_replicas
    assert table.experts_per_worker(3).tolist() == [16, 16, 16]


@pytest.mark.parametrize("policy", [fixed.hottest_first, fixed.hottest_per_layer, fixed.balanced_replicas])
def test_policies_that_need_statistics_say_so(policy: object) -> None:
    assert callable(policy)
    with pytest.raises(InputError, match="needs routing statistics"):
        policy(problem(48, with_stats=False))
