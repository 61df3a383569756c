"""The plan of `--workers N --survive M`: every expert on M + 1 workers, a lost one's share on all others."""

from __future__ import annotations

import pytest

from orchestrator.cli.even_plan import even_plan
from placement.errors import InputError
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=3, num_experts=24)


@pytest.mark.parametrize(("num_workers", "survive"), [(2, 1), (3, 1), (3, 2), (5, 2)])
def test_every_expert_has_a_worker_more_than_may_be_lost(num_workers: int, survive: int) -> None:
    plan = even_plan(SHAPE, num_workers, "float32", survive=survive)
    assert plan.survive == survive
    plan.check_fits()
    held = plan.holder_table.masks(num_workers)
    assert (held.sum(axis=0) == survive + 1).all()
    share = held.sum(axis=(1, 2))
    assert share.max() - share.min() <= 3 * survive
    # What one worker held alone before is with all others in near equal parts.
    with_first = held[1:, held[0]].sum(axis=1)
    assert with_first.max() - with_first.min() <= 3 * survive + 2


def test_without_losses_nothing_is_held_twice() -> None:
    plan = even_plan(SHAPE, 3, "float32")
    assert plan.survive == 0
    assert not plan.holder_table.has_replicas


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_too_few_workers_for_the_losses_are_refused(num_workers: int) -> None:
    with pytest.raises(
        InputError, match=f"--survive 2: expected --workers 3 or more, found .* {num_workers}"
    ):
        even_plan(SHAPE, num_workers, "float32", survive=2)
