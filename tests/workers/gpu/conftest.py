"""A card for tests: this machine's CPU plays it, behind NVIDIA's own bindings (tests/cuda_on_cpu)."""

from __future__ import annotations

import pytest

from tests.cuda_on_cpu.card import Card, the_card


@pytest.fixture
def card() -> Card:
    """The card as it is at first: one, of 1 GiB, empty."""
    return the_card()
