"""The card that tables are about: what it is, and what its driver tells of it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from workers.gpu.cards import shared_device
from workers.gpu.device import Device
from workers.gpu.opening import load_driver

_L2_CACHE_SIZE, _CLOCK_RATE = 38, 13
# Of products of 8-bit integers on tensor cores, dense, a multiplication and an addition as two: operations of
# a multiprocessor in a clock (NVIDIA's white papers of TU102, GA100, GA102, AD102, GH100, GB202). Hopper's is
# that of wgmma, which our kernels do not use.
_TENSOR_OPERATIONS = {
    (7, 5): 2048,
    (8, 0): 4096,
    (8, 6): 2048,
    (8, 9): 2048,
    (9, 0): 8192,
    (12, 0): 2048,
}
_USUAL_CACHE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class CardUnderTest:
    """A card.

    Attributes:
        driver: its version and CUDA's, for people.
        cache_bytes: of the cache before its memory.
        tensor_ops_per_s: at the clock that the driver states; None where that or the generation is not known.
        is_played: this machine's CPU plays it, and no figure means anything.
    """

    device: Device
    driver: str
    cache_bytes: int
    tensor_ops_per_s: float | None
    is_played: bool = False

    @classmethod
    def real(cls, name: str) -> CardUnderTest:
        """Raises DeviceUnavailable, InputError: as `open_device`."""
        device = shared_device(name)
        index = int(device.name.partition(":")[2] or 0)
        clock_hz = 1000 * (_attribute(index, _CLOCK_RATE) or 0)
        each = _TENSOR_OPERATIONS.get(device.facts.capability)
        peak = clock_hz * each * device.facts.multiprocessors if clock_hz and each else None
        return cls(device, _driver(), _attribute(index, _L2_CACHE_SIZE) or _USUAL_CACHE_BYTES, peak)

    @classmethod
    def played(cls, memory_bytes: int) -> CardUnderTest:
        """A card that this machine's CPU plays (tests/cuda_on_cpu), the only one of this process."""
        from tests.cuda_on_cpu.card import the_card

        card = the_card()
        card.set("memory", memory_bytes)
        return cls(shared_device("cuda"), "tests/cuda_on_cpu", 1 << 16, None, is_played=True)

    def heading(self, command: str) -> str:
        """For a table: what it was measured on, when, and by what."""
        facts = self.device.facts
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        major, minor = facts.capability
        return (
            f"{now}, {facts.model} ({facts.total_bytes / 1e9:.0f} GB, compute capability {major}.{minor}, "
            f"{facts.multiprocessors} multiprocessors), driver {self.driver}: `{command}`"
        )


def _attribute(index: int, number: int) -> int | None:
    driver, _ = load_driver()
    _, device = driver.cuDeviceGet(index)
    status, value = driver.cuDeviceGetAttribute(driver.CUdevice_attribute(number), device)
    return int(value) if int(status) == 0 else None


def _driver() -> str:
    driver, _ = load_driver()
    _, cuda = driver.cuDriverGetVersion()
    version = "of unknown version"
    with suppress(OSError):
        told = Path("/proc/driver/nvidia/version").read_text().split("Kernel Module", 1)[-1].split()
        version = next((word for word in told if word[:1].isdigit()), version)
    return f"{version} (CUDA {cuda // 1000}.{cuda % 1000 // 10})"
