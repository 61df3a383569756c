"""`--device`: what a run computes on, and what its cards have free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from placement.errors import InputError
from workers.gpu.device import DeviceFacts
from workers.gpu.errors import DeviceUnavailable
from workers.gpu.free import FreeVram
from workers.gpu.opening import cards, load_driver, open_device

AUTO, CPU = "auto", "cpu"
DEVICE_HELP = "auto, cpu, cuda or cuda:N. auto: a card that can be used, else the CPU."


@dataclass(frozen=True, slots=True)
class Devices:
    """What a run may compute on.

    Attributes:
        cards: the head's first, then the others; empty for the CPU alone.
        why_cpu: why there are none, where nobody asked for that; "" else.
        asked: whether somebody asked for the first card by name.
    """

    cards: tuple[FreeVram, ...] = ()
    why_cpu: str = ""
    asked: bool = False

    @property
    def head(self) -> str:
        """What the head would compute on."""
        return self.cards[0].device if self.cards else CPU


def devices_for(asked: str) -> Devices:
    """The cards of a run, now.

    Args:
        asked: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        InputError: it is none of these.
        DeviceUnavailable: a card that was asked for is not there, or cannot be used.
    """
    if asked == CPU:
        return Devices()
    if asked == AUTO:
        try:
            load_driver()
        except DeviceUnavailable as error:
            return Devices(why_cpu=_without_advice(error))
        shown = cards()
        usable, problems = _usable(shown)
        if not usable:
            return Devices(why_cpu=problems[0])
        # The head is worth most, so it gets the card with most room.
        return Devices(tuple(sorted(usable, key=lambda card: -card.num_bytes)))
    if asked.partition(":")[0] != "cuda":
        raise InputError(f"--device {asked!r}: expected {AUTO}, {CPU}, cuda or cuda:N")
    first = FreeVram.of(open_device(asked))
    others, _ = _usable([facts for facts in cards() if facts.name != first.device])
    return Devices((first, *others), asked=True)


def _usable(shown: Sequence[DeviceFacts]) -> tuple[list[FreeVram], list[str]]:
    """Those that can be used, and why others cannot."""
    found, problems = [], []
    for facts in shown:
        try:
            found.append(FreeVram.of(open_device(facts.name)))
        except DeviceUnavailable as error:
            problems.append(_without_advice(error))
    return found, problems


def _without_advice(error: DeviceUnavailable) -> str:
    """What is the case; what to do about it stands behind the last colon."""
    return str(error).rpartition(": ")[0]
