"""A card for tests: this machine's CPU plays it, behind NVIDIA's own bindings (tests/cuda_on_cpu)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cuda_on_cpu.card import Card, the_card


@pytest.fixture
def card() -> Iterator[Card]:
    """The card as it is at first: one, of 1 GiB, empty. Afterwards this process has none."""
    card = the_card()
    yield card
    card.reset()
    card.set("count", 0)
