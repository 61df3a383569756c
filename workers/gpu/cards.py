"""The cards that this process uses, each opened once: the head and all tiers on one share it."""

from __future__ import annotations

from functools import cache

from workers.gpu.device import Device
from workers.gpu.free import card_name
from workers.gpu.opening import open_device


def shared_device(name: str) -> Device:
    """A card by name; arguments and errors as `open_device`.

    A `Device` of its own each would work too, but each would compile and load the kernels again.
    """
    return _opened(card_name(name))


_opened = cache(open_device)
