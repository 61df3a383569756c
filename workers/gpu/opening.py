"""Which cards a box has, and which of them this release can use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from placement.errors import InputError
from workers.gpu.compile import INSTALL, supported, version
from workers.gpu.device import Device, DeviceFacts
from workers.gpu.errors import DeviceUnavailable
from workers.tiers import is_card_name

LEAST_CAPABILITY = (7, 5)
"""Turing: the first generation with products of 8-bit integers on tensor cores."""

_MULTIPROCESSORS, _MAJOR, _MINOR = 16, 75, 76
_NO_DEVICE = 100


def open_device(name: str, *, cache: Path | None = None) -> Device:
    """A card by name: "cuda" is the first.

    Args:
        cache: where compiled kernels are kept; the user's folder where left out.

    Raises:
        InputError: the name is none of a card.
        DeviceUnavailable: no driver or an old one, no such card, or one of a generation without our kernels.
    """
    if not is_card_name(name):
        raise InputError(f"device {name!r}: expected cpu, cuda, or cuda:N, such as cuda:1")
    index = int(name.partition(":")[2] or 0)
    driver, count = load_driver()
    if index >= count:
        have = "one card, cuda:0" if count == 1 else f"cards cuda:0 to cuda:{count - 1}"
        raise DeviceUnavailable(f"{name}: this box has {have}")
    facts = _facts(driver, index)
    if facts.capability < LEAST_CAPABILITY or not any(
        _runs(facts.capability, known) for known in supported()
    ):
        raise DeviceUnavailable(
            f"{facts.name}: {facts.model} has compute capability {_point(facts.capability)}; expected "
            f"{_point(LEAST_CAPABILITY)} (Turing) or newer, and one that the installed NVRTC knows: use "
            "--device cpu"
        )
    return Device(facts, driver, index, cache)


def cards() -> tuple[DeviceFacts, ...]:
    """All that the driver shows; none where there is no driver."""
    try:
        driver, count = load_driver()
    except DeviceUnavailable:
        return ()
    return tuple(_facts(driver, index) for index in range(count))


def load_driver() -> tuple[Any, int]:
    """The driver's bindings, ready, and how many cards it shows.

    Raises:
        DeviceUnavailable: the bindings are not installed, there is no driver, it is too old or shows no card.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise DeviceUnavailable(
            f"a GPU needs cuda-bindings, which is not installed here: {INSTALL}, or use --device cpu"
        ) from error
    try:
        (status,) = driver.cuInit(0)
    except RuntimeError as error:
        raise DeviceUnavailable(
            "no NVIDIA driver is installed here (libcuda.so.1 is missing): install it, or use --device cpu"
        ) from error
    _, told = driver.cuDriverGetVersion()
    ours = version()
    if told // 1000 < ours[0]:
        raise DeviceUnavailable(
            f"the NVIDIA driver is for CUDA {told // 1000}.{told % 1000 // 10}, and the installed NVRTC "
            f"makes code for CUDA {ours[0]}: update it, or install 'cuda-bindings<{told // 1000 + 1}' and "
            f"nvidia-cuda-nvrtc-cu{told // 1000} in place of nvidia-cuda-nvrtc"
        )
    count = 0 if int(status) == _NO_DEVICE else int(driver.cuDeviceGetCount()[1])
    if int(status) not in (0, _NO_DEVICE):
        raise DeviceUnavailable(
            f"the NVIDIA driver does not start ({getattr(status, 'name', status)}): see whether nvidia-smi "
            "works, or use --device cpu"
        )
    if count == 0:
        raise DeviceUnavailable("the NVIDIA driver shows no card here: use --device cpu")
    return driver, count


def _facts(driver: Any, index: int) -> DeviceFacts:
    attribute = driver.CUdevice_attribute
    _, device = driver.cuDeviceGet(index)
    _, name = driver.cuDeviceGetName(200, device)
    _, total = driver.cuDeviceTotalMem(device)
    major, minor, multiprocessors = (
        int(driver.cuDeviceGetAttribute(attribute(which), device)[1])
        for which in (_MAJOR, _MINOR, _MULTIPROCESSORS)
    )
    model = bytes(name).split(b"\0")[0].decode(errors="replace")
    return DeviceFacts(f"cuda:{index}", model, int(total), (major, minor), multiprocessors)


def _runs(capability: tuple[int, int], known: int) -> bool:
    """Whether code for generation `known` runs on a card: the same family, not newer."""
    return known // 10 == capability[0] and known % 10 <= capability[1]


def _point(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
