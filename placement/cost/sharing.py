"""Devices at work at once that share: cores and memory of a machine, the CPU of a box with a disk.

docs/cost-model.md has the formulas.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from placement.cost.roofline import (
    Counts,
    ExpertRates,
    arithmetic_seconds,
    device_seconds,
    messages_seconds,
    wire_seconds,
)

# Parts of a job so small count as done: what is left of it by rounding.
_DONE = 1e-9


def layer_seconds(
    rates: ExpertRates,
    rows: Counts,
    distinct: Counts,
    pairs: Counts,
) -> NDArray[np.float64]:
    """When each device's part of one layer is back: float64 [..., num_devices].

    `device_seconds`, slowed where devices of one machine work at once (`work_seconds`), behind the head's
    software for all requests of the layer. The layer takes the largest of them.
    """
    if shares(rates):
        seconds = wire_seconds(rates, rows) + work_seconds(rates, distinct, pairs)
    else:
        seconds = device_seconds(rates, rows, distinct, pairs)
    if has_message_costs(rates):
        seconds += messages_seconds(rates, rows)[..., None]
    return seconds


def has_message_costs(rates: ExpertRates) -> bool:
    """Whether the head's software counts for each message."""
    return bool(rates.message_s.any() or rates.message_row_s.any())


def shares(rates: ExpertRates) -> bool:
    """Whether two devices are on one machine, or compute on one CPU."""
    machines = rates.machine[rates.machine >= 0]
    return bool(len(disks_computed_beside(rates))) or len(np.unique(machines)) < len(machines)


def disks_computed_beside(rates: ExpertRates) -> NDArray[np.intp]:
    """Disks whose experts another device's CPU computes, ascending."""
    return np.flatnonzero(rates.cpu != np.arange(len(rates.cpu)))


def cpu_seconds(rates: ExpertRates, distinct: Counts, pairs: Counts) -> NDArray[np.float64]:
    """`arithmetic_seconds`, with what a device computes of a disk's experts: float64 [..., num_devices].

    A CPU at work has to compute what its own memory holds and what the disks beside it hold. The layer ends
    no sooner than both are done, in whatever order, so all of it is charged to the CPU's own device. The
    disk is charged with its own part, which is all where the CPU's device has nothing else to do.
    """
    seconds = arithmetic_seconds(rates, distinct, pairs)
    for disk in disks_computed_beside(rates):
        cpu = rates.cpu[disk]
        is_at_work = (pairs[..., cpu] > 0) | (rates.busy_s[cpu] > 0)
        seconds[..., cpu] += is_at_work * seconds[..., disk]
    return seconds


def work_seconds(rates: ExpertRates, distinct: Counts, pairs: Counts) -> NDArray[np.float64]:
    """From a layer's start until each device has done its part, busy_s included: float64 [..., num_devices].

    All begin together, and a disk's experts are computed by its box's CPU (`cpu_seconds`). While the devices
    A of a machine are at work, each takes cores = max(1, sum over A of its share of the cores) times as long
    for software and arithmetic, and max(cores, sum over A of its share of the memory bandwidth) times as
    long for reading; so the last ones go on faster when others are done (processor sharing; Kleinrock,
    Queueing Systems II, 1976, section 4.4).

    Args:
        distinct, pairs: int [..., num_devices], as `device_seconds` takes them.
    """
    software = (pairs > 0) * rates.request_s
    reading = distinct * rates.read_s
    computing = cpu_seconds(rates, distinct, pairs)
    busy_read = rates.busy_s * rates.busy_reads
    busy_compute = rates.busy_s - busy_read
    alone: NDArray[np.float64] = rates.busy_s + software + np.maximum(reading, computing)
    finished = alone.copy()
    for machine in np.unique(rates.machine[rates.machine >= 0]):
        here = np.flatnonzero(rates.machine == machine)
        if len(here) > 1:
            finished[..., here] = _together(
                software[..., here],
                np.broadcast_to(busy_read, alone.shape)[..., here],
                np.broadcast_to(busy_compute, alone.shape)[..., here],
                reading[..., here],
                computing[..., here],
                rates.cores[here],
                rates.bus[here],
            )
    return finished


def _together(
    software: NDArray[np.float64],
    busy_read: NDArray[np.float64],
    busy_compute: NDArray[np.float64],
    reading: NDArray[np.float64],
    computing: NDArray[np.float64],
    cores: NDArray[np.float64],
    bus: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Finishing times of one machine's devices, float64 [..., devices]; phases end when one is done."""
    alone = software + busy_read + busy_compute + np.maximum(reading, computing)
    # Parts of the time in which arithmetic or software rules leave the memory idle.
    wanted = bus * np.divide(busy_read + reading, alone, out=np.zeros_like(alone), where=alone > 0)
    left = np.where(alone > 0, 1.0, 0.0)
    finished = np.zeros_like(alone)
    now = np.zeros(alone.shape[:-1])

    def whole_job(slow_memory: NDArray[np.float64]) -> NDArray[np.float64]:
        longest = np.maximum(reading * slow_memory, computing * slow_cores)
        seconds: NDArray[np.float64] = (
            (software + busy_compute) * slow_cores + busy_read * slow_memory + longest
        )
        return seconds

    for _ in range(alone.shape[-1]):
        active = left > _DONE
        slow_cores = np.maximum(1.0, (active * cores).sum(axis=-1))[..., None]
        slow_memory = np.maximum(slow_cores, (active * wanted).sum(axis=-1)[..., None])
        whole = whole_job(slow_memory)
        # Who is not slowed so much takes more of the memory than that: once more, with what they take.
        taken = np.divide(
            active * bus * (busy_read + reading), whole, out=np.zeros_like(whole), where=whole > 0
        )
        whole = whole_job(slow_memory * np.maximum(1.0, taken.sum(axis=-1)[..., None]))
        phase = np.where(active, left * whole, np.inf).min(axis=-1)
        phase = np.where(np.isfinite(phase), phase, 0.0)
        now = now + phase
        finished = np.where(active, now[..., None], finished)
        left = left - np.divide(phase[..., None], whole, out=np.zeros_like(whole), where=active)
    return finished
