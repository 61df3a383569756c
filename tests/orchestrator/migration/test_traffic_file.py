"""What runs chose lately is kept between them, for the plan that it was recorded under."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from orchestrator.migration.online_routing import NOTHING, Lately
from orchestrator.migration.traffic_file import TRAFFIC, TrafficError, read_traffic, write_traffic
from tests.orchestrator.random_plan import random_plan
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=3, num_experts=12)
PLAN = random_plan(SHAPE, 3, 0)
DRAWS = np.random.default_rng(0)


def piece(num_tokens: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    return DRAWS.integers(0, 12, (num_tokens, 3, 2)).astype(np.uint16)


LATELY = Lately((piece(4), piece(6)), (piece(5),), (piece(1), piece(1)), step_s=0.5)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_traffic(tmp_path, PLAN, SHAPE) == NOTHING
    for lately in (LATELY, NOTHING):
        write_traffic(lately, PLAN, tmp_path)
        found = read_traffic(tmp_path, PLAN, SHAPE)
        for name in ("before", "since", "rest"):
            wrote = [each.tolist() for each in getattr(lately, name)]
            assert [each.tolist() for each in getattr(found, name)] == wrote
        # How fast steps are, a run sees for itself.
        assert found.step_s == 0


def test_another_plan_begins_anew(tmp_path: Path) -> None:
    write_traffic(LATELY, PLAN, tmp_path)
    assert read_traffic(tmp_path, random_plan(SHAPE, 3, 1), SHAPE) is NOTHING


def without_an_array(path: Path) -> None:
    np.savez(path, plan=np.array("x"))


def experts_that_are_not(path: Path) -> None:
    arrays = dict(np.load(path))
    arrays["since"][0, 0, 0] = 12
    np.savez(path, **arrays)


def other_lengths(path: Path) -> None:
    arrays = dict(np.load(path))
    arrays["rest_tokens"][0] = 2
    np.savez(path, **arrays)


def negative_lengths(path: Path) -> None:
    arrays = dict(np.load(path))
    arrays["before_tokens"][:] = -1, 11
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda path: path.write_bytes(b"PK"), "what runs chose lately"),
        (without_an_array, "expected arrays before, before_tokens"),
        (experts_that_are_not, "since: expected experts up to 11"),
        (other_lengths, r"rest: expected uint16 \[3, 3, 2\]"),
        (negative_lengths, "before: expected uint16"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, damage: Callable[[Path], None], what: str) -> None:
    write_traffic(LATELY, PLAN, tmp_path)
    damage(tmp_path / TRAFFIC)
    with pytest.raises(TrafficError, match=what) as refused:
        read_traffic(tmp_path, PLAN, SHAPE)
    assert TRAFFIC in str(refused.value)
    assert "\n" not in str(refused.value)
