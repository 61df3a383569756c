"""What a card does with the experts of RAM: keeps those that are used much, takes some of a prompt's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.residency import CacheStart, ResidencyRule
from placement.streaming import BUFFERS, StreamingRates, choose_streamed, crossover_rows
from transport.expert_rows import ExpertRows
from workers.fixed_point import PartialSum
from workers.gpu.card_experts import LEAST_ROWS, CardExperts
from workers.gpu.counts import CardCounts
from workers.gpu.device import Stream
from workers.gpu.errors import DeviceFull
from workers.gpu.own_rates import measured_rates
from workers.gpu.ram_copies import bytes_of, sizes_of
from workers.gpu.residents import Residents, largest_bytes, places_for
from workers.gpu.rows import RowsOnCard
from workers.gpu.streaming import Streamer
from workers.held_experts import partial_sum
from workers.kernels import ExpertNotHeld, ExpertWeights
from workers.store import ExpertStore


@dataclass(frozen=True, slots=True)
class _Streamed:
    """Experts of a layer that a request brings to the card, in this order."""

    layer: int
    experts: tuple[int, ...]


class BesideRam:
    """Experts of RAM tiers on a card.

    Every one of them can be computed in RAM as well, with the same bits. So all of this may change between
    two requests.

    Attributes:
        rule: which experts stay on the card as text runs; may be changed at any time.
    """

    def __init__(self, on_card: CardExperts, cache_bytes: int, counts: CardCounts) -> None:
        """
        Args:
            cache_bytes: of the card's memory, for experts that stay.
            counts: where copies to the card are counted.
        """
        self.rule = ResidencyRule.lfu
        self._frequencies: Mapping[int, NDArray[np.float64]] = {}
        self._counts = counts
        self._rates: StreamingRates | None = None
        self._on_card = on_card
        self._cache_bytes = cache_bytes
        # What is to be paired at the next request, which may be told from another thread.
        self._next: tuple[ExpertStore, ...] | None = None
        self._weights: Mapping[int, ExpertWeights] = {}
        self._residents: Residents | None = None
        self._streamer: Streamer | None = None
        self._streamed: _Streamed | None = None
        self._has_places = False

    def pair(self, stores: Sequence[ExpertStore]) -> None:
        """From the next request on these are the RAM beside the card."""
        self._next = tuple(stores)

    def start(self, start: CacheStart) -> None:
        """Begin so, before the first request; later only the rule counts, until other RAM is paired."""
        self.rule, self._frequencies = start.rule, start.frequencies

    @property
    def rates(self) -> StreamingRates | None:
        """What a prompt's experts are chosen by, for the way through the card.

        They are measured at the first request of many rows, unless they were given before; None until then.
        """
        return self._rates

    @rates.setter
    def rates(self, rates: StreamingRates) -> None:
        self._rates = rates

    @property
    def crossover_rows(self) -> int | None:
        """From so many rows on a copy to the card pays; None where it never does, or nobody measured."""
        return None if self._rates is None else crossover_rows(self._rates)

    @property
    def num_places(self) -> int:
        """Experts that can stay."""
        return 0 if self._residents is None else len(self._residents.memory)

    @property
    def is_loading(self) -> bool:
        """Whether experts that are to stay are on their way."""
        return self._residents is not None and self._residents.is_loading

    @property
    def is_streaming(self) -> bool:
        """Whether the request under way brings experts to the card."""
        return self._streamed is not None

    def note(self, stream: Stream, layer: int, expert_ids: NDArray[np.int32]) -> None:
        """What has arrived is on the card, and what the last step missed comes; then count what is asked for.

        Args:
            stream: where places change.
            expert_ids: int32 [T, k], -1 for none.

        Raises:
            DeviceLost: the card stopped working.
            DeviceFull: it has no room for tables.
        """
        stores, self._next = self._next, None
        if stores is not None:
            self._begin(stream, stores)
        if self._residents is not None:
            self._residents.rule = self.rule
            self._residents.turn(stream, layer)
            self._residents.note(layer, expert_ids)
        weights = self._weights.get(layer)
        if weights is not None and len(expert_ids) > LEAST_ROWS:
            self._measure(stream, layer, weights)

    def claims(self, layer: int, expert_ids: NDArray[np.int32]) -> NDArray[np.bool_] | None:
        """See `VramTier.claims`."""
        self._streamed = None
        self._choose(layer, expert_ids)
        if self._residents is None and self._streamed is None:
            return None
        return self._on_card.resident(layer) | self.is_streamed(layer)

    def is_streamed(self, layer: int) -> NDArray[np.bool_]:
        """bool [E]: what the request under way brings to the card."""
        mask = np.zeros(self._on_card.shape.num_experts, np.bool_)
        if self._streamed is not None and self._streamed.layer == layer:
            mask[list(self._streamed.experts)] = True
        return mask

    def add_streamed(self, stream: Stream, layer: int, rows: RowsOnCard) -> None:
        """Add them to the sum that the stream was asked for last."""
        if self._streamed is not None and self._streamed.layer == layer:
            assert self._streamer is not None
            weights, experts = self._weights[layer], self._streamed.experts
            self._streamer.add(stream, layer, rows, weights, experts)
            self._counts.passed += len(experts)
            self._counts.passed_bytes += len(experts) * bytes_of(sizes_of(weights))

    def give_back(self, stream: Stream) -> int:
        """Free the memory of experts that stay, until other RAM is paired; gives its bytes, 0 for none."""
        return 0 if self._residents is None else self._residents.give_back(stream)

    def in_ram(self, layer: int, rows: ExpertRows) -> PartialSum:
        """The sum where the experts lie."""
        weights = self._weights.get(layer)
        if weights is None:
            raise ExpertNotHeld(f"layer {layer}: none of its experts is beside the card")
        return partial_sum(weights, layer, rows)

    def _begin(self, stream: Stream, stores: tuple[ExpertStore, ...]) -> None:
        """Pair, with empty places."""
        # The first store that holds a layer: several hold parts of one only where forms differ.
        weights: dict[int, ExpertWeights] = {}
        for store in reversed(stores):
            for layer in store.experts:
                found = store.weights_of(layer)
                if found is not None and self._on_card.takes(layer, sizes_of(found)):
                    weights[layer] = found
        if self._residents is not None:
            # Their places are gone even where there is no room for tables of others.
            self._residents.give_back(stream)
        # Also what a head on the card has asked for.
        self._on_card.settle()
        self._weights = weights
        self._residents = self._streamer = None
        device = self._on_card.device
        kept = places_for(device, weights, self._cache_bytes) if self._cache_bytes else []
        passing = places_for(device, weights, BUFFERS * largest_bytes(weights))
        if len(passing) < BUFFERS:
            passing = []
        starts = [memory.address for memory in (*kept, *passing)]
        if starts or self._has_places:
            sizes = {layer: sizes_of(found) for layer, found in weights.items()} if starts else {}
            self._on_card.give_places(starts, sizes)
            self._has_places = bool(starts)
        if kept:
            start = CacheStart(self.rule, self._frequencies)
            self._residents = Residents(self._on_card, weights, kept, start, self._counts)
        if passing:
            self._streamer = Streamer(self._on_card, passing, len(kept))

    def _measure(self, stream: Stream, layer: int, weights: ExpertWeights) -> None:
        if self._rates is None and self._streamer is not None:
            try:
                self._rates = measured_rates(self._on_card, self._streamer, stream, layer, weights)
            except DeviceFull:
                # A card without room for that has none to spare for what passes either.
                self._streamer = None

    def _choose(self, layer: int, expert_ids: NDArray[np.int32]) -> None:
        """Which experts of RAM to bring for this request: where there are many rows, as the rates say."""
        weights = self._weights.get(layer)
        if self._streamer is None or self._rates is None or weights is None or len(expert_ids) <= LEAST_ROWS:
            return
        E = self._on_card.shape.num_experts
        num_rows = np.bincount(expert_ids[(expert_ids >= 0) & (expert_ids < E)], minlength=E)
        resident = self._on_card.resident(layer)
        in_ram = (weights.slots.numpy() >= 0) & ~resident
        busy_s = float(self._rates.gpu.of(np.where(resident, num_rows, 0)).sum())
        choice = choose_streamed(np.where(in_ram, num_rows, 0), self._rates, gpu_busy_s=busy_s)
        if len(choice.order):
            self._streamed = _Streamed(layer, tuple(choice.order.tolist()))
