"""One card: its memory, streams, events, kernels and graphs, through NVIDIA's driver.

Addresses are plain integers. A stream's operations happen in the order in which they were asked for, some
time after; a stream waits for another one by events. Nothing here waits for the whole card.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.units import size
from workers.gpu.compile import compiled
from workers.gpu.errors import DeviceFull, DeviceLost, DeviceUnavailable
from workers.gpu.modules import module_of

MOST_GRID_Y_OR_Z = 65_535
"""Thread blocks of a launch in y, and in z (CUDA C++ Programming Guide, 'Compute Capabilities')."""

_NON_BLOCKING_STREAM = 1
# A stricter one ends where memory is freed, as Python may do at any time with what is gone.
_CAPTURE_RELAXED = 2
_OUT_OF_MEMORY, _TAKEN = 2, 46
# What a card answers for ever after it faulted, fell off the bus or was reset.
_LOST = frozenset({4, 214, 215, 220, 46, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 999})


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a card is. `capability`: its generation, such as (8, 6)."""

    name: str
    model: str
    total_bytes: int
    capability: tuple[int, int]
    multiprocessors: int


class Device:
    """A card that this process uses. Any thread may."""

    def __init__(self, facts: DeviceFacts, driver: Any, index: int, cache: Path | None = None) -> None:
        """See `opening.open_device`."""
        self.facts = facts
        self.name = facts.name
        self._driver = driver
        self._cache = cache
        self._functions: dict[str, Any] = {}
        self._modules: dict[str, Any] = {}
        self._loading = threading.Lock()
        self._context = self.call("cuDevicePrimaryCtxRetain", index)

    @property
    def free_bytes(self) -> int:
        """Of its memory, now; other programs may take it the next moment."""
        free, _ = self.call("cuMemGetInfo")
        return int(free)

    def allocate(self, num_bytes: int) -> Memory:
        """
        Raises:
            DeviceFull: it has less free.
        """
        memory = Memory(self, int(self.call("cuMemAlloc", max(1, num_bytes), what=num_bytes)), num_bytes)
        self.freed_with(memory, "cuMemFree", memory.address)
        return memory

    def pinned(self, num_bytes: int) -> NDArray[np.uint8]:
        """Page-locked memory of this box, which copies need to run beside anything else.

        Raises:
            DeviceFull: the system locks no more.
        """
        address = int(self.call("cuMemHostAlloc", max(1, num_bytes), 0, what=num_bytes))
        held: Any = (ctypes.c_uint8 * num_bytes).from_address(address)
        self.freed_with(held, "cuMemFreeHost", address)
        return np.ctypeslib.as_array(held)

    def stream(self) -> Stream:
        """A new one, which waits for no other unless told to."""
        stream = Stream(self, self.call("cuStreamCreate", _NON_BLOCKING_STREAM))
        self.freed_with(stream, "cuStreamDestroy", stream.handle)
        return stream

    def event(self) -> Event:
        """A new one, as if it had happened."""
        event = Event(self, self.call("cuEventCreate", 0))
        self.freed_with(event, "cuEventDestroy", event.handle)
        return event

    def function(self, kernel: str) -> Any:
        """The kernel's handle; compiles its module where that is not done yet.

        Raises:
            DeviceUnavailable: NVRTC is not installed, or does not know the card.
        """
        found = self._functions.get(kernel)
        if found is not None:
            return found
        module = module_of(kernel)
        with self._loading:
            if module.name not in self._modules:
                image = compiled(module, self.facts.capability, self._cache)
                self._modules[module.name] = self.call("cuModuleLoadData", image)
            function = self.call("cuModuleGetFunction", self._modules[module.name], kernel.encode())
        self._functions[kernel] = function
        return function

    def call(self, name: str, *arguments: Any, what: int = 0) -> Any:
        """One function of the driver; gives what it gives beside its status.

        Args:
            what: bytes that are asked for, for the error.
        """
        if name != "cuDevicePrimaryCtxRetain":
            # Each time, which takes less than a microsecond: a thread may use several cards in turn, and what
            # it made of one would else be the other's.
            self._checked("cuCtxSetCurrent", self._driver.cuCtxSetCurrent(self._context), 0)
        return self._checked(name, getattr(self._driver, name)(*arguments), what)

    def _checked(self, name: str, result: Sequence[Any], what: int) -> Any:
        status = int(result[0])
        if status == 0:
            return result[1] if len(result) == 2 else tuple(result[1:])
        if status == _OUT_OF_MEMORY:
            raise DeviceFull(
                f"{self.name}: {size(what) if what else 'a little'} asked for, {self._told_free()}: another "
                "program may have taken it; plan for less of its memory, or close what else uses it",
                what,
            )
        told = getattr(result[0], "name", status)
        if name == "cuDevicePrimaryCtxRetain" and status == _TAKEN:
            raise DeviceUnavailable(
                f"{self.name}: another program has the card for itself (exclusive mode, see nvidia-smi): end "
                "it, or use --device cpu"
            )
        if status in _LOST:
            raise DeviceLost(
                f"{self.name}: the card stopped working ({told} from {name}): start again; where it happens "
                "again, see its driver's log (dmesg), its power and heat",
                self.name,
            )
        raise RuntimeError(f"{self.name}: {name} says {told}")

    def _told_free(self) -> str:
        status, *rest = self._driver.cuMemGetInfo()
        return f"{size(int(rest[0]))} of {size(self.facts.total_bytes)} free" if int(status) == 0 else "full"

    def freed_with(self, of: object, name: str, handle: Any) -> None:
        """Call a function of the driver on a handle when an object is gone.

        Not at the end of the process, whose threads may still copy; the driver frees all then.
        """
        weakref.finalize(of, self._free, name, handle).atexit = False

    def _free(self, name: str, handle: Any) -> None:
        # Of a card that is lost nothing can be freed, and nothing needs to be.
        self._driver.cuCtxSetCurrent(self._context)
        getattr(self._driver, name)(handle)


class Memory:
    """A stretch of a card's memory, given back with this object."""

    __slots__ = ("__weakref__", "address", "device", "num_bytes")

    def __init__(self, device: Device, address: int, num_bytes: int) -> None:
        self.device = device
        self.address = address
        self.num_bytes = num_bytes


class Event:
    """A place in a stream."""

    __slots__ = ("__weakref__", "device", "handle")

    def __init__(self, device: Device, handle: Any) -> None:
        self.device = device
        self.handle = handle

    def synchronize(self) -> None:
        """Wait here until all before it is done.

        Raises:
            DeviceLost: it never will be.
        """
        self.device.call("cuEventSynchronize", self.handle)

    def seconds_since(self, earlier: Event) -> float:
        """On the card's clock; both have happened."""
        return float(self.device.call("cuEventElapsedTime", earlier.handle, self.handle)) / 1000


class Stream:
    """Operations of a card, one after another. One thread at a time uses it."""

    __slots__ = ("__weakref__", "device", "handle")

    def __init__(self, device: Device, handle: Any) -> None:
        self.device = device
        self.handle = handle

    def upload(self, to: int, source: NDArray[Any]) -> None:
        """To the card; returns at once where `source` is page-locked, and it must then stay as it is."""
        assert source.flags.c_contiguous
        self.device.call("cuMemcpyHtoDAsync", to, source.ctypes.data, source.nbytes, self.handle)

    def download(self, to: NDArray[Any], source: int) -> None:
        """From the card; `to` has it once the stream is at this place."""
        assert to.flags.c_contiguous
        self.device.call("cuMemcpyDtoHAsync", to.ctypes.data, source, to.nbytes, self.handle)

    def copy(self, to: int, source: int, num_bytes: int) -> None:
        """Within the card."""
        self.device.call("cuMemcpyDtoDAsync", to, source, num_bytes, self.handle)

    def clear(self, address: int, num_bytes: int) -> None:
        """To zeros."""
        self.device.call("cuMemsetD8Async", address, 0, num_bytes, self.handle)

    def launch(
        self, kernel: str, grid: tuple[int, int, int], threads: int, arguments: ctypes.Structure
    ) -> None:
        """Run a kernel. Nothing is done where the grid is empty.

        Args:
            grid: blocks in x, y and z.
            threads: of a block, whole warps.
            arguments: as the kernel's one parameter; copied at once.
        """
        if 0 in grid:
            return
        pointer = ctypes.c_void_p(ctypes.addressof(arguments))
        function = self.device.function(kernel)
        self.device.call(
            "cuLaunchKernel", function, *grid, threads, 1, 1, 0, self.handle, ctypes.addressof(pointer), 0
        )

    def record(self, event: Event | None = None) -> Event:
        """Mark this place; with a new event where none is given."""
        event = self.device.event() if event is None else event
        self.device.call("cuEventRecord", event.handle, self.handle)
        return event

    def wait(self, event: Event) -> None:
        """Go on when the event has happened; the caller does not wait."""
        self.device.call("cuStreamWaitEvent", self.handle, event.handle, 0)

    def synchronize(self) -> None:
        """Wait here until all of it is done.

        Raises:
            DeviceLost: it never will be.
        """
        self.device.call("cuStreamSynchronize", self.handle)

    @contextmanager
    def captured(self) -> Iterator[Graph]:
        """What is asked for inside is not done but kept as a graph, to be repeated with `replay`.

        Kernels must have been launched before, so that none is compiled meanwhile.
        """
        graph = Graph(self.device)
        self.device.call("cuStreamBeginCapture", self.handle, self._mode())
        ended = None
        try:
            yield graph
        finally:
            ended = self.device.call("cuStreamEndCapture", self.handle)
        graph.executable = self.device.call("cuGraphInstantiate", ended, 0)
        self.device.call("cuGraphDestroy", ended)
        self.device.freed_with(graph, "cuGraphExecDestroy", graph.executable)

    def replay(self, graph: Graph) -> None:
        """Do all of a graph, with the same addresses and arguments."""
        self.device.call("cuGraphLaunch", graph.executable, self.handle)

    def _mode(self) -> Any:
        return self.device._driver.CUstreamCaptureMode(_CAPTURE_RELAXED)


class Graph:
    """Operations that were captured."""

    __slots__ = ("__weakref__", "device", "executable")

    def __init__(self, device: Device) -> None:
        self.device = device
        self.executable: Any = None
