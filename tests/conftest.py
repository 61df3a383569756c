"""How long the planner searches in tests."""

from __future__ import annotations

import pytest

from placement.policies.least_time import kicks


@pytest.fixture(autouse=True)
def brief_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten repetitions instead of eighty: what uses a plan need not have the best one.

    tests/placement/policies and tests/placement/bounds, which ask how good plans are, have the whole search.
    """
    monkeypatch.setattr(kicks, "_MOST_KICKS", kicks._FEWEST_KICKS)
