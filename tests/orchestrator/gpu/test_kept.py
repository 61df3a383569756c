"""Launches kept as graphs."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.gpu.kept import KeptLaunches
from tests.cuda_on_cpu.card import Card


def test_a_card_without_room_for_a_graph_launches_plainly(card: Card) -> None:
    device = card.device()
    stream = device.stream()
    memory = device.allocate(64)
    source, found = device.pinned(64), device.pinned(64)
    kept = KeptLaunches(stream)

    def ask() -> None:
        stream.upload(memory.address, source)
        stream.download(found, memory.address)

    source[:] = 1
    kept.launch("copy", ask)
    for value, others, graphs in ((2, 1 << 30, 0), (3, 0, 1), (4, 1 << 30, 1)):
        card.set("others", others)
        source[:] = value
        before = card.count("graphs")
        kept.launch("copy", ask)
        stream.synchronize()
        np.testing.assert_array_equal(found, value)
        assert card.count("graphs") == before + graphs


def test_what_was_used_least_recently_makes_room(card: Card) -> None:
    stream = card.device().stream()
    kept = KeptLaunches(stream, most=2)
    asked: list[str] = []

    def launch(*keys: str) -> list[str]:
        asked.clear()
        for key in keys:
            assert kept.launch(key, lambda key=key: asked.append(key) or key) == key
        return list(asked)

    # Asked for plainly, captured, then replayed.
    assert launch(*"ab", *"ab", *"ab") == [*"ab", *"ab"]
    assert launch("c", "b") == ["c"]
    # The third took the place of the first, which now takes that of the third itself.
    assert launch("a", "b", "c") == ["a", "c"]
    stream.synchronize()


def test_launches_that_failed_while_they_were_captured_are_asked_for_again(card: Card) -> None:
    stream = card.device().stream()
    kept = KeptLaunches(stream)
    fails = False

    def ask() -> int:
        if fails:
            raise KeyboardInterrupt
        return 7

    assert kept.launch("seven", ask) == 7
    fails = True
    with pytest.raises(KeyboardInterrupt):
        kept.launch("seven", ask)
    fails = False
    assert kept.launch("seven", ask) == 7
    stream.synchronize()
