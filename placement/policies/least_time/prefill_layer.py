"""The prefill time of one MoE layer as a function of who holds what, for the planner's search."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from placement.cost.roofline import ExpertRates, arithmetic_seconds
from placement.cost.sharing import disks_computed_beside
from placement.workload import Workload


class PrefillLayer:
    """One layer. Every expert is read, so the time at the mean routing is the mean time.

    This is `prefill_layer_seconds` again, in a form that computes only what a move changes; a test holds the
    two together. Each device counts as a box of its own, and nothing is streamed into a GPU.
    """

    def __init__(self, rates: ExpertRates, workload: Workload, frequencies: NDArray[np.float64]) -> None:
        """`frequencies`: float64 [num_experts], share of tokens that choose the expert."""
        self._rates = rates
        self._tokens = workload.prefill_tokens
        self._passes = workload.prefill_passes_per_step
        self._pairs = frequencies * workload.prefill_tokens
        self._disks = disks_computed_beside(rates)

    def seconds(self, holder: NDArray[np.integer]) -> float:
        """Prefill seconds of the layer that fall to one decode step, `holder`: int [num_experts]."""
        return self._layer_s(*self._load(holder))

    def seconds_held(self, masks: NDArray[np.bool_]) -> float:
        """The same where `masks`, bool [num_devices, num_experts], are held; holders share evenly."""
        return self._layer_s(*self._load_held(masks))

    def changes(
        self, holder: NDArray[np.integer], devices: NDArray[np.integer] | None = None
    ) -> NDArray[np.float64]:
        """Change of `seconds` if one expert moves, to one of `devices` (all): [num_experts, len(devices)]."""
        devices = np.arange(len(self._rates.cpu)) if devices is None else devices
        pairs, held = self._load(holder)
        change = self._changes(pairs, held, holder, devices, gone=1, lost=self._pairs, gained=self._pairs)
        change[holder[:, None] == devices] = 0.0
        return change

    def copies(self, masks: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Change of `seconds_held` by one more copy, float64 [num_experts, num_devices].

        The copy relieves the expert's first holder; what others are spared is left out. 0 where it is held.
        """
        pairs, held = self._load_held(masks)
        num_holders = masks.sum(axis=0)
        gained = self._pairs / (num_holders + 1)
        lost = self._pairs / np.maximum(num_holders, 1) - gained
        devices = np.arange(len(pairs))
        change = self._changes(pairs, held, masks.argmax(axis=0), devices, gone=0, lost=lost, gained=gained)
        change[masks.T] = 0.0
        return change

    def _load(self, holder: NDArray[np.integer]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Pairs and experts of each device."""
        num_devices = len(self._rates.read_s)
        pairs = np.bincount(holder, weights=self._pairs, minlength=num_devices)
        held = np.bincount(holder, minlength=num_devices).astype(np.int64)
        return pairs.astype(np.float64), held

    def _load_held(self, masks: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        pairs: NDArray[np.float64] = masks @ (self._pairs / np.maximum(masks.sum(axis=0), 1))
        return pairs, masks.sum(axis=1)

    def _layer_s(self, pairs: NDArray[np.float64], held: NDArray[np.int64]) -> float:
        devices = np.arange(len(pairs))
        return float(self._seconds(devices, pairs, held, self._of_disks(pairs, held)).max()) * self._passes

    def _changes(
        self,
        pairs: NDArray[np.float64],
        held: NDArray[np.int64],
        source: NDArray[np.integer],
        targets: NDArray[np.integer],
        *,
        gone: int,
        lost: NDArray[np.float64],
        gained: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Change of the layer's seconds if `source` loses, and some device gains, pairs of one expert.

        Args:
            pairs, held: [num_devices], before.
            source: int [num_experts].
            targets: int, devices that may gain.
            gone: experts that `source` holds no more.
            lost, gained: float64 [num_experts], pairs.

        Returns:
            float64 [num_experts, len(targets)].
        """
        of_disks = self._of_disks(pairs, held)
        times = self._seconds(np.arange(len(pairs)), pairs, held, of_disks)
        fewer_pairs, fewer = pairs[source] - lost, held[source] - gone
        more_pairs, more = pairs[targets] + gained[:, None], held[targets] + 1
        others = _largest_without(times, self._rates.cpu)[source[:, None], targets]
        if len(self._disks):
            fewer_s, more_s = self._beside_disks(
                pairs, held, source, targets, fewer_pairs, fewer, more_pairs, more, of_disks
            )
        else:
            fewer_s = self._seconds(source, fewer_pairs, fewer, 0.0)[:, None]
            more_s = self._seconds(targets, more_pairs, more, 0.0)
        change: NDArray[np.float64] = np.maximum(np.maximum(others, fewer_s), more_s)
        change -= times.max()
        change *= self._passes
        return change

    def _beside_disks(
        self,
        pairs: NDArray[np.float64],
        held: NDArray[np.int64],
        source: NDArray[np.integer],
        targets: NDArray[np.integer],
        fewer_pairs: NDArray[np.float64],
        fewer: NDArray[np.integer],
        more_pairs: NDArray[np.float64],
        more: NDArray[np.integer],
        of_disks: NDArray[np.float64],
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Seconds of source and target after a move, where a CPU computes a disk's experts too.

        What a disk loses or gains its CPU has to compute less or more of; that CPU counts with the target.

        Args:
            fewer_pairs, fewer: [num_experts], what each expert's source is left with.
            more_pairs, more: [num_experts, len(targets)] and [len(targets)], what the targets come to.

        Returns:
            Both float64 [num_experts, len(targets)].
        """
        cpus = self._rates.cpu
        here = np.broadcast_to(source[:, None], more_pairs.shape)
        there = np.broadcast_to(targets, more_pairs.shape)
        less_s = self._own_arithmetic_s(source, fewer_pairs, fewer)
        less_s -= self._own_arithmetic_s(source, pairs[source], held[source])
        added_s = self._own_arithmetic_s(targets, more_pairs, more)
        added_s -= self._own_arithmetic_s(targets, pairs[targets], held[targets])

        def of_disks_then(device: NDArray[np.intp]) -> NDArray[np.float64]:
            computes_here = (cpus[here] == device) & (here != device)
            computes_there = (cpus[there] == device) & (there != device)
            changed: NDArray[np.float64] = (
                of_disks[device] + computes_here * less_s[:, None] + computes_there * added_s
            )
            return changed

        fewer_s = self._seconds(here, fewer_pairs[:, None], fewer[:, None], of_disks_then(here))
        more_s = self._seconds(there, more_pairs, more, of_disks_then(there))
        for cpu in (cpus[here], cpus[there]):
            cpu_s = self._seconds(cpu, pairs[cpu], held[cpu], of_disks_then(cpu))
            np.maximum(more_s, np.where((cpu == here) | (cpu == there), 0.0, cpu_s), out=more_s)
        return fewer_s, more_s

    def _of_disks(self, pairs: NDArray[np.float64], held: NDArray[np.int64]) -> NDArray[np.float64]:
        """What each device computes of disks' experts, float64 [num_devices]."""
        of_disks = np.zeros(len(pairs))
        if len(self._disks):
            disks = self._disks
            own_s = self._own_arithmetic_s(disks, pairs[disks], held[disks])
            np.add.at(of_disks, self._rates.cpu[disks], own_s)
        return of_disks

    def _own_arithmetic_s(
        self, device: NDArray[np.integer], pairs: NDArray[np.float64], held: NDArray[np.integer]
    ) -> NDArray[np.float64]:
        """Arithmetic of one device's own experts."""
        return arithmetic_seconds(self._rates, np.minimum(pairs, held), np.maximum(pairs, 0.0), device)

    def _seconds(
        self,
        device: NDArray[np.integer],
        pairs: NDArray[np.float64],
        held: NDArray[np.integer],
        of_disks: NDArray[np.float64] | float,
    ) -> NDArray[np.float64]:
        """As `prefill_seconds` has it, for any devices; all arguments broadcast."""
        rates = self._rates
        pairs, distinct = np.maximum(pairs, 0.0), np.minimum(pairs, held)
        asked = pairs > 0
        computing = self._own_arithmetic_s(device, pairs, held)
        if len(self._disks):
            computing = computing + of_disks * (asked | (rates.busy_s[device] > 0))
        seconds: NDArray[np.float64] = np.maximum(computing, distinct * rates.read_s[device])
        seconds += rates.busy_s[device] + np.minimum(pairs, self._tokens) * rates.row_wire_s[device]
        seconds += asked * (rates.round_trip_s + rates.request_s)[device]
        return seconds


def _largest_without(times: NDArray[np.float64], cpu: NDArray[np.intp]) -> NDArray[np.float64]:
    """[source, target]: the largest of `times` but for these two and the devices that compute for them.

    0 where there is none.
    """
    devices = np.arange(len(times))
    # Four at most are left out, so the five longest are enough.
    longest = np.argsort(-times, kind="stable")[:5, None]
    concerned = (longest == devices) | (longest == cpu)
    left_out = concerned[:, :, None] | concerned[:, None, :]
    largest: NDArray[np.float64] = np.where(left_out, 0.0, times[longest, None]).max(axis=0)
    return largest
