"""What is asked of a card's driver, counted from outside of the code that asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from workers.gpu.device import Device

LAUNCHES, GRAPHS = "cuLaunchKernel", "cuGraphLaunch"
WAITS = ("cuStreamSynchronize", "cuEventSynchronize", "cuCtxSynchronize")
COPIES = ("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemcpyDtoDAsync")


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Calls by the driver's own names, within the block, of all cards and threads of this process."""
    found: Counter[str] = Counter()
    plain = Device.call

    def call(self: Device, name: str, *arguments: Any, what: int = 0) -> Any:
        found[name] += 1
        return plain(self, name, *arguments, what=what)

    Device.call = call  # type: ignore[method-assign]
    try:
        yield found
    finally:
        Device.call = plain  # type: ignore[method-assign]
