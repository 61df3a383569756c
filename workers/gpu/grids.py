"""The tables of magnitudes that IQ2 and IQ3 weights are rows of, in a card's memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.gpu.device import Device, Memory

_FORMS = ("iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s")


@dataclass(frozen=True, slots=True)
class Grids:
    """`addresses`: by the form's name, of those forms alone; they hold as long as `memory` is kept."""

    memory: Memory
    addresses: Mapping[str, int]

    @classmethod
    def upload(cls, device: Device) -> Grids:
        """`grids_bytes` of a card.

        Raises:
            DeviceFull: the card has no room for them.
        """
        tables = _tables()
        places = np.cumsum([0, *(len(table) for table in tables)])
        memory = device.allocate(int(places[-1]))
        stream = device.stream()
        stream.upload(memory.address, np.concatenate(tables))
        stream.synchronize()
        addresses = {
            form: memory.address + int(place) for form, place in zip(_FORMS, places[:-1], strict=True)
        }
        return cls(memory, addresses)

    def address(self, form_name: str) -> int:
        """0 for a form that wants none, as `GpuMatrix` has it."""
        return self.addresses.get(form_name, 0)


def grids_bytes() -> int:
    """What `Grids` takes of a card."""
    return sum(len(table) for table in _tables())


def _tables() -> list[NDArray[np.uint8]]:
    """In the order of `_FORMS`."""
    # Loads torch, and a command counts bytes before it does.
    from workers.kernels.tables import load_tables

    return [np.ascontiguousarray(table).view(np.uint8).reshape(-1) for table in load_tables()[2:7]]
