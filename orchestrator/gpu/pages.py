"""Pages of keys and values in a card's memory, and the tables by which kernels find them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.model.kv_cache import KVCache
from orchestrator.model.kv_pool import Page
from workers.gpu.device import Device, Memory, Stream

_SLAB_PAGES = 16
"""Taken from the driver together: it gives memory in pieces of 2 MiB, and asking takes longer than a step."""


@dataclass(frozen=True, slots=True, eq=False)
class CardPage:
    """One page; its memory goes back with the last page of its slab."""

    slab: Memory
    address: int

    def data_ptr(self) -> int:
        """Its address on the card."""
        return self.address


class CardPages:
    """Makes pages for a `KvPool`, all zero once the stream comes to what follows."""

    def __init__(self, device: Device, stream: Stream) -> None:
        """`stream`: that which writes to the pages."""
        self._device = device
        self._stream = stream
        self._spare: dict[int, list[CardPage]] = {}

    def reserve(self, num_bytes: int, count: int) -> None:
        """Have so many pages of a size ready, which nobody else can take then; raises DeviceFull."""
        slab = self._device.allocate(count * num_bytes)
        self._stream.clear(slab.address, slab.num_bytes)
        spare = self._spare.setdefault(num_bytes, [])
        spare += [CardPage(slab, slab.address + place * num_bytes) for place in range(count)]

    def new_page(self, num_bytes: int) -> CardPage:
        """Raises DeviceFull, where more are wanted than were reserved."""
        if not self._spare.get(num_bytes):
            self.reserve(num_bytes, _SLAB_PAGES)
        return self._spare[num_bytes].pop()

    def copy_page(self, source: Page, target: Page, num_bytes: int) -> None:
        """Once the stream comes to it: after all that was asked for before, ahead of what follows."""
        self._stream.copy(target.data_ptr(), source.data_ptr(), num_bytes)


class PageTables:
    """The page tables of sequences on a card, brought there where they changed.

    A layer's tables lie side by side, one a sequence, each with an entry for every page that it may have:
    int64 [layers, sequences, most_pages]. So they never move, and graphs may know their addresses.
    """

    def __init__(
        self, device: Device, stream: Stream, num_layers: int, most_pages: int, sequences: int
    ) -> None:
        """
        Args:
            sequences: that a pass may have at most.

        Raises:
            DeviceFull.
        """
        self._stream = stream
        self._most_pages = most_pages
        self._sequences = sequences
        shape = (num_layers, sequences, most_pages)
        self._memory: Memory = device.allocate(8 * num_layers * sequences * most_pages)
        self._here = device.pinned(self._memory.num_bytes).view(np.int64).reshape(shape)
        self._here[:] = 0
        self._copied = device.event()
        # What the card has of each place: (cache, changes by layer).
        self._known: list[tuple[weakref.ref[KVCache], list[int]] | None] = [None] * sequences

    @property
    def stride(self) -> int:
        """Entries between the tables of two sequences."""
        return self._most_pages

    def of_layer(self, layer: int) -> int:
        """Where the tables of a layer lie."""
        return self._memory.address + layer * self._here.strides[0]

    def places(self, caches: Sequence[KVCache], layers: Sequence[int]) -> list[int]:
        """Which of the sequences each cache is; their tables are right once the stream comes to what follows.

        Args:
            caches: of a pass, each once.
            layers: place in the caches of each layer that has tables here.
        """
        found = [self._place(cache, caches) for cache in caches]
        for cache, place in zip(caches, found, strict=True):
            known = self._known[place]
            assert known is not None
            _, changes = known
            for layer, in_cache in enumerate(layers):
                of_layer = cache.layers[in_cache]
                if changes[layer] == of_layer.changes:
                    continue
                # The pass of the last copy has ended, but that is not for this function to know.
                self._copied.synchronize()
                stop = min(len(of_layer.table), self._most_pages)
                row = self._here[layer, place]
                row[:stop] = of_layer.table[:stop]
                changes[layer] = of_layer.changes
                self._stream.upload(self.of_layer(layer) + place * self._here.strides[1], row[:stop])
        self._stream.record(self._copied)
        return found

    def _place(self, cache: KVCache, used: Sequence[KVCache]) -> int:
        caches = [None if known is None else known[0]() for known in self._known]
        if cache in caches:
            return caches.index(cache)
        free = [place for place, known in enumerate(caches) if known is None or known not in used]
        if not free:
            raise ValueError(f"{len(used)} sequences in a pass: at most {self._sequences}")
        # One whose cache is gone rather than one that comes back.
        place = next((place for place in free if caches[place] is None), free[0])
        self._known[place] = (weakref.ref(cache), [-1] * len(self._here))
        return place
