"""Graphics cards, measured with the code that runs on them. Nothing of this has run on a card yet."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import numpy as np
from numpy.typing import NDArray

from placement.given.probe_figures import Gpu
from placement.units import size
from placement.vram import usable_vram_bytes
from placement.weight_format import WeightFormat
from workers.gpu.device import Device, DeviceFacts, Stream
from workers.gpu.errors import DeviceFull, DeviceUnavailable
from workers.gpu.opening import open_device
from workers.probe.clocks import usual_s
from workers.probe.experts import Width
from workers.probe.gpu_clock import card_s
from workers.probe.gpu_kernels import card_rates, small_kernel
from workers.probe.time_left import TimeLeft

_COPY_BYTES = 256 << 20
"""Of a copy within a card: several times what its caches hold (50 MB on an H100)."""
_LINK_BYTES = 64 << 20
"""Of a copy between RAM and a card. It takes milliseconds, beside which starting it counts for nothing."""
_LEAST_BYTES = 4 << 20


def opened(facts: Sequence[DeviceFacts]) -> tuple[Device, ...]:
    """Those that this release runs on."""
    found = []
    for card in facts:
        with suppress(DeviceUnavailable):
            found.append(open_device(card.name))
    return tuple(found)


def gpus(
    devices: Sequence[Device], forms: Sequence[WeightFormat], width: Width, seconds: float
) -> tuple[Gpu, ...]:
    """Each one that has memory free for it, in turn.

    Args:
        forms: of weights whose kernels are timed.
        width: of experts, where it suits the form.
        seconds: for all together.
    """
    left = TimeLeft(seconds, {device.name: 1.0 for device in devices})
    found = []
    for device in devices:
        share_s = left.next(device.name)
        try:
            found.append(_measured(device, forms, width, share_s))
        except (DeviceFull, DeviceUnavailable):
            # Another program took its memory meanwhile, or there is nothing to compile kernels with.
            continue
    return tuple(found)


def busy_share() -> float | None:
    """Of the busiest card now; None without one, or where its driver does not tell."""
    try:
        from cuda.bindings import nvml
    except ImportError:
        return None
    try:
        nvml.init_v2()
        handles = [nvml.device_get_handle_by_index_v2(i) for i in range(nvml.device_get_count_v2())]
        return max((nvml.device_get_utilization_rates(handle).gpu / 100 for handle in handles), default=None)
    except (RuntimeError, nvml.NvmlError):
        return None


def _measured(device: Device, forms: Sequence[WeightFormat], width: Width, seconds: float) -> Gpu:
    free_bytes = device.free_bytes
    room = usable_vram_bytes(free_bytes)
    if room < _LEAST_BYTES:
        raise DeviceFull(f"{device.name}: {size(room)} are too little to measure with", _LEAST_BYTES)
    names = ("within", "there", "back", "pageable there", "pageable back", "round trip")
    left = TimeLeft(seconds, dict.fromkeys(names, 0.5) | {form.name: 2.0 for form in forms})
    stream = device.stream()
    copy_bytes = min(_COPY_BYTES, room // 4)
    bandwidth = 2 * copy_bytes / _copy_s(device, stream, copy_bytes, left.next("within"))
    link_bytes = min(_LINK_BYTES, copy_bytes)
    pinned, pageable = device.pinned(link_bytes), np.zeros(link_bytes, np.uint8)
    there = device.allocate(link_bytes)
    address = there.address

    def link_rate(name: str, here: NDArray[np.uint8]) -> float:
        up = partial(stream.upload, address, here)
        down = partial(stream.download, here, address)
        return link_bytes / card_s(stream, down if name.endswith("back") else up, left.next(name))

    copy, back = link_rate("there", pinned), link_rate("back", pinned)
    pageable_copy = link_rate("pageable there", pageable)
    pageable_back = link_rate("pageable back", pageable)
    del there
    trip_s = _round_trip_s(device, stream, left.next("round trip"))
    kernels = tuple(card_rates(device, stream, form, width, room, left.next(form.name)) for form in forms)
    return Gpu(
        name=device.facts.model[:200],
        memory_bytes=device.facts.total_bytes,
        free_bytes=free_bytes,
        bandwidth_bytes_per_s=bandwidth,
        copy_bytes_per_s=copy,
        flops_per_s=max(rate.flops_per_s[-1] for rate in kernels),
        device=device.name,
        back_bytes_per_s=back,
        pageable_bytes_per_s=pageable_copy,
        pageable_back_bytes_per_s=pageable_back,
        round_trip_s=trip_s,
        kernels=kernels,
    )


def _copy_s(device: Device, stream: Stream, num_bytes: int, seconds: float) -> float:
    """Of a copy within the card."""
    one, other = device.allocate(num_bytes), device.allocate(num_bytes)
    return card_s(stream, partial(stream.copy, one.address, other.address, num_bytes), seconds)


def _round_trip_s(device: Device, stream: Stream, seconds: float) -> float:
    """Of a row of the usual width: to the card, through a small kernel, back, and until it is known here."""
    kernel = small_kernel(device, stream)
    up, down = device.pinned(kernel.num_bytes), device.pinned(kernel.num_bytes)
    up[:] = 0

    def trip() -> None:
        stream.upload(kernel.address, up)
        kernel.launch()
        stream.download(down, kernel.address)
        stream.synchronize()

    return usual_s(trip, seconds)
