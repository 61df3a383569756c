"""What can be wrong with a card."""

from __future__ import annotations

from placement.errors import PotluckError


class DeviceUnavailable(PotluckError):
    """No such card, no driver, or one that this release cannot use."""


class DeviceFull(PotluckError):
    """The card has less memory free than was asked for. `num_bytes`: what was."""

    def __init__(self, message: str, num_bytes: int) -> None:
        super().__init__(message)
        self.num_bytes = num_bytes


class DeviceLost(PotluckError):
    """The card stopped working; nothing that it held can be had any more, and nothing more runs on it.

    `device`: its name, such as "cuda:0".
    """

    exit_code = 1

    def __init__(self, message: str, device: str) -> None:
        super().__init__(message)
        self.device = device
