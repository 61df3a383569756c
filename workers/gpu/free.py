"""How much memory a card has left for a run."""

from __future__ import annotations

from dataclasses import dataclass

from placement.units import size
from placement.vram import usable_vram_bytes
from workers.gpu.device import Device
from workers.gpu.opening import open_device


@dataclass(frozen=True, slots=True)
class FreeVram:
    """`num_bytes` of the card `device` before any margin; `model` is what it is sold as."""

    device: str
    model: str
    num_bytes: int

    @classmethod
    def of(cls, device: Device) -> FreeVram:
        """Now; other programs may take some the next moment."""
        return cls(device.name, device.facts.model, device.free_bytes)

    @property
    def usable_bytes(self) -> int:
        """Less what stays free, at least 0."""
        return usable_vram_bytes(self.num_bytes)

    @property
    def told(self) -> str:
        """For people, as `FreeMemory.told`."""
        margin = size(self.num_bytes - self.usable_bytes)
        return f"{self.device} ({self.model}) leaves {size(self.num_bytes)}, of which {margin} stay free"


def is_card(device: str) -> bool:
    """Whether a device of a plan is a card, as "cuda:0" is."""
    return device.partition(":")[0] == "cuda"


def card_name(device: str) -> str:
    """With its number: "cuda" is the first; what is no card stays as it is."""
    return f"{device}:0" if device == "cuda" else device


def free_vram(device: str) -> FreeVram:
    """Of a card by name.

    Raises:
        DeviceUnavailable: as `open_device`.
    """
    return FreeVram.of(open_device(device))
