"""The card that this machine's CPU plays, in this process, or a real one where that is asked for.

With POTLUCK_TEST_CARD=cuda tests run on this machine's card. Those that need another card, or one that fails,
are skipped.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache

import pytest

from tests.cuda_on_cpu.build import build
from workers.gpu.device import Device
from workers.gpu.opening import open_device

REAL = "POTLUCK_TEST_CARD"


@dataclass(frozen=True, slots=True)
class Card:
    """Changes what the card is and what goes wrong with it; see `Card` in driver.h."""

    library: ctypes.CDLL

    def set(self, name: str, value: int) -> None:
        self.library.cuda_on_cpu_set(name.encode(), ctypes.c_long(value))

    def count(self, name: str) -> int:
        """Of launches, graphs, waits, bytes copied or used, so far."""
        self.library.cuda_on_cpu_get.restype = ctypes.c_long
        found: int = self.library.cuda_on_cpu_get(name.encode())
        return found

    def reset(self) -> None:
        """As at the start."""
        for name, value in (
            ("count", 1),
            ("memory", 1 << 30),
            ("capability", 86),
            ("version", 13000),
            ("others", 0),
            ("fail_after", -1),
            ("init", 0),
            ("taken", 0),
        ):
            self.set(name, value)

    def device(self, name: str = "cuda") -> Device:
        return open_device(name)


class RealCard(Card):
    """One that nobody can change, and that counts nothing."""

    __slots__ = ()

    def set(self, name: str, value: int) -> None:
        pytest.skip(f"a real card's {name} stays as it is")

    def count(self, name: str) -> int:
        pytest.skip(f"a real card does not count its {name}")

    def reset(self) -> None:
        """There is nothing to reset."""

    def device(self, name: str = "") -> Device:
        return open_device(name or os.environ[REAL])


@cache
def _library() -> ctypes.CDLL:
    # Loaded under the driver's name before the bindings look for it, so that they find it loaded.
    return ctypes.CDLL(str(build() / "libcuda.so.1"), mode=os.RTLD_NOW)


def take_cards_away() -> None:
    """As on most machines, the driver shows none."""
    if _library.cache_info().currsize:
        card = Card(_library())
        card.reset()
        card.set("count", 0)


def the_card() -> Card:
    """Loads the driver where it is not yet; the card is as at first."""
    if os.environ.get(REAL):
        return RealCard(ctypes.CDLL(None))
    card = Card(_library())
    card.reset()
    return card
