"""The planner's whole search, whose results are judged here."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def brief_search() -> None:
    """Instead of the one of tests/conftest.py."""
