"""A card for tests: this machine's CPU plays it, behind NVIDIA's own bindings (tests/cuda_on_cpu)."""

from __future__ import annotations

import pytest

from tests.cuda_on_cpu.card import the_card
from tests.orchestrator.gpu.on_card import OnCard


@pytest.fixture
def on_card() -> OnCard:
    """A stream of a card that is empty, and arrays there."""
    return OnCard(the_card().device())
