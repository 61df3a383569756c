"""Experts of RAM that lie on a card too, for as long as they are used much: loaded in the background.

`placement/residency.py` decides which. Nobody waits for a load: until its copy is done, an expert is computed
where it lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from placement.residency import CacheStart, Residency, ResidencyRule, Swap
from workers.gpu.card_experts import CardExperts
from workers.gpu.counts import CardCounts
from workers.gpu.device import Device, Event, Memory, Stream
from workers.gpu.errors import DeviceFull
from workers.gpu.expert_layer import Slot
from workers.gpu.loading import Uploader
from workers.gpu.ram_copies import Copy, copies_of, sizes_of
from workers.kernels import ExpertWeights

LEAST_LOADING = 4
"""That many may be on their way after a step at least: enough to keep a link busy."""

MOST_AT_FIRST = 16
"""Of the hottest experts, on their way at a time: a process that ends waits for them."""


@dataclass(frozen=True, slots=True, eq=False)
class _Load:
    """One expert on its way.

    Attributes:
        weights, memory: whose memory is read, and written to; they stay meanwhile.
        after: when the place may be written to.
    """

    key: int
    place: int
    copies: Sequence[Copy]
    weights: ExpertWeights
    memory: Memory
    after: Event


class _Loader:
    """Copies experts to a card in a thread, one after another, on a stream of its own.

    The thread ends with this object. A process that ends waits for it: one that is stopped within the driver
    would take the process with it.

    `arrived`: what is on the card, or why it is not.
    """

    def __init__(self, device: Device) -> None:
        self.arrived: SimpleQueue[_Load | BaseException] = SimpleQueue()
        self._uploader = Uploader(device)
        self._thread = ThreadPoolExecutor(1, "vram-loader")

    def ask(self, load: _Load) -> None:
        self._thread.submit(_load, self._uploader, load, self.arrived)


def _load(uploader: Uploader, load: _Load, arrived: SimpleQueue[_Load | BaseException]) -> None:
    try:
        uploader.stream.wait(load.after)
        for copy in load.copies:
            uploader.copy(copy.source, copy.to, copy.num_bytes)
        uploader.stream.synchronize()
        arrived.put(load)
    except BaseException as error:
        arrived.put(error)


class Residents:
    """Places on a card, which of them has which expert, and what is on its way.

    One thread at a time calls it, between requests; copying is another one's.

    Attributes:
        memory: of the places, all alike.
    """

    def __init__(
        self,
        on_card: CardExperts,
        weights: Mapping[int, ExpertWeights],
        memory: Sequence[Memory],
        start: CacheStart,
        counts: CardCounts,
    ) -> None:
        """Begin with nothing in the places, which are the first of those that `on_card` was given.

        The hottest experts of statistics come at the first calls of `turn`.

        Args:
            weights: layer -> its experts in RAM, of those layers that `on_card` takes.
            counts: where loads are counted.
        """
        self.memory = list(memory)
        self._on_card = on_card
        self._weights = dict(weights)
        self._sizes = {layer: sizes_of(of_layer) for layer, of_layer in weights.items()}
        self._layers = sorted(weights)
        self._row_of = {layer: row for row, layer in enumerate(self._layers)}
        self._num_experts = on_card.shape.num_experts
        loadable = np.zeros((len(weights), self._num_experts), np.bool_)
        for layer, row in self._row_of.items():
            fixed = on_card.resident(layer)
            loadable[row] = (weights[layer].slots.numpy() >= 0) & ~fixed
        uses = np.zeros((len(weights), self._num_experts))
        for layer, row in self._row_of.items():
            uses[row] = start.frequencies.get(layer, 0.0)
        self._residency = Residency(
            start.rule,
            len(memory),
            len(weights),
            self._num_experts,
            frequencies=uses.reshape(-1),
            loadable=loadable.reshape(-1),
        )
        hottest = np.argsort(-uses, axis=None, kind="stable")
        self._first = hottest[loadable.flat[hottest] & (uses.flat[hottest] > 0)][: len(memory)].tolist()
        self._free = list(range(len(memory)))
        self._place_of: dict[int, int] = {}
        self._loader = _Loader(on_card.device)
        self._under_way = 0
        self._counts = counts
        self._most_loading = LEAST_LOADING
        self._arrived = 0
        self._row = -1
        self._step_ended = False

    @property
    def rule(self) -> ResidencyRule:
        """Which experts come; may be changed between requests."""
        return self._residency.rule

    @rule.setter
    def rule(self, rule: ResidencyRule) -> None:
        self._residency.rule = rule

    @property
    def is_loading(self) -> bool:
        """Whether anything has not arrived yet."""
        return self._loader.arrived.qsize() < self._under_way

    def note(self, layer: int, expert_ids: NDArray[np.int32]) -> None:
        """Count what a request asks for, wherever it is computed; -1 for none."""
        row = self._row_of.get(layer)
        asked = expert_ids[(expert_ids >= 0) & (expert_ids < self._num_experts)]
        if row is not None and len(asked):
            self._residency.note(row, asked)

    def turn(self, stream: Stream, layer: int) -> None:
        """Take in what has arrived; after a step begin to load what it missed, in place of what is used less.

        Args:
            stream: where places change.
            layer: that is asked for next; one before the last one begins a new step.
        """
        row = self._row_of.get(layer)
        if row is not None:
            self._step_ended = row < self._row or len(self._layers) == 1
            self._row = row
        moves: dict[int, dict[int, int | None]] = {}
        while not self._loader.arrived.empty():
            load = self._next_arrival()
            self._arrived += 1
            self._counts.kept_bytes += sum(copy.num_bytes for copy in load.copies)
            if self._residency.loaded(load.key):
                self._place_of[load.key] = load.place
                self._note_move(moves, load.key, load.place)
            else:
                self._free.append(load.place)
        wanted: list[tuple[int, int]] = []
        for swap in self._swaps():
            if swap.evict is None:
                place = self._free.pop()
            else:
                place = self._place_of.pop(swap.evict)
                self._note_move(moves, swap.evict, None)
            wanted.append((swap.load, place))
        for layer, places in moves.items():
            self._on_card.move(stream, layer, places)
        if wanted:
            after = stream.record()
            for key, place in wanted:
                self._load(key, place, after)

    def _swaps(self) -> tuple[Swap, ...]:
        """What to load now: at first what is hottest, then after each step what it missed."""
        if self._first:
            count = MOST_AT_FIRST - len(self._residency.loading)
            now, self._first = self._first[:count], self._first[count:]
            return self._residency.begin_with(now)
        if not self._step_ended:
            return ()
        self._step_ended = False
        # As many as the link brings in a step: a place that waits longer is of no use to anybody.
        loading = len(self._residency.loading)
        self._most_loading = max(LEAST_LOADING, self._arrived if loading else 2 * self._most_loading)
        self._most_loading = min(self._most_loading, len(self.memory))
        self._arrived = 0
        return self._residency.end_step(self._most_loading - loading)

    def give_back(self, stream: Stream) -> int:
        """Let go of all places' memory; what was in them is computed in RAM. Waits for what is under way.

        Returns:
            Bytes of the card that are free again.
        """
        moves: dict[int, dict[int, int | None]] = {}
        for key in self._residency.shrink(0):
            if self._place_of.pop(key, None) is not None:
                self._note_move(moves, key, None)
        for layer, places in moves.items():
            self._on_card.move(stream, layer, places)
        stream.synchronize()
        self.settle()
        num_bytes = sum(memory.num_bytes for memory in self.memory)
        self.memory.clear()
        self._free.clear()
        self._first.clear()
        return num_bytes

    def settle(self) -> None:
        """Wait until nothing is being copied; raises DeviceLost."""
        while self._under_way:
            self._next_arrival()

    def _load(self, key: int, place: int, after: Event) -> None:
        row, expert = divmod(key, self._num_experts)
        layer, memory = self._layers[row], self.memory[place]
        weights = self._weights[layer]
        copies = copies_of(weights, self._sizes[layer], expert, memory.address)
        self._loader.ask(_Load(key, place, copies, weights, memory, after))
        self._under_way += 1

    def _next_arrival(self) -> _Load:
        arrived = self._loader.arrived.get()
        self._under_way -= 1
        if isinstance(arrived, BaseException):
            raise arrived
        return arrived

    def _note_move(self, moves: dict[int, dict[int, int | None]], key: int, place: int | None) -> None:
        row, expert = divmod(key, self._num_experts)
        moves.setdefault(self._layers[row], {})[expert] = place


def places_for(device: Device, weights: Mapping[int, ExpertWeights], num_bytes: int) -> list[Memory]:
    """Places for any of these layers' experts: as many as fit `num_bytes`, and the card now."""
    each = largest_bytes(weights)
    places: list[Memory] = []
    try:
        while each and len(places) < min(num_bytes // each, sum(map(_num_experts, weights.values()))):
            places.append(device.allocate(each))
    except DeviceFull:
        pass
    return places


def largest_bytes(weights: Mapping[int, ExpertWeights]) -> int:
    """What any of these layers' experts needs on a card; 0 without layers."""
    return max((Slot.of(sizes_of(of_layer)).num_bytes for of_layer in weights.values()), default=0)


def _num_experts(weights: ExpertWeights) -> int:
    return int((weights.slots >= 0).sum())
