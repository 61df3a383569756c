"""All experts that a card has now, and the launches that compute with them."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from workers.gpu.device import Device, Stream
from workers.gpu.expert_kernels import set_slots
from workers.gpu.expert_layer import ExpertSizes, LayerOnCard, enqueue_sum, rounded_for
from workers.gpu.grids import Grids
from workers.gpu.placing import PlacedLayer
from workers.gpu.rows import RowsOnCard, SumOnCard
from workers.gpu.workspace import WorkShape, Workspace
from workers.model_config import Step35Config

LEAST_ROWS = 8
"""A workspace is for so many rows at the least: those of a decode step with its drafts."""


class CardExperts:
    """Experts on a card, by layer: fixed ones, and places beside them whose experts come and go.

    Attributes:
        generation: grows when addresses change; graphs that were captured before must not be replayed.
    """

    def __init__(self, device: Device, config: Step35Config, placed: Mapping[int, PlacedLayer]) -> None:
        """`placed`: the fixed ones. Raises DeviceFull where the tables have no room."""
        self.device = device
        self.shape = WorkShape.of(config)
        self.generation = 0
        self._config = config
        self._placed = dict(placed)
        self._grids = Grids.upload(device)
        self._works: weakref.WeakKeyDictionary[Stream, Workspace] = weakref.WeakKeyDictionary()
        self._slots: dict[int, NDArray[np.int32]] = {}
        self._layers: dict[int, LayerOnCard] = {}
        self.give_places((), {})

    def has_layer(self, layer: int) -> bool:
        """Whether there are tables for it, with experts or without."""
        return layer in self._layers

    def resident(self, layer: int) -> NDArray[np.bool_]:
        """Which of a layer's experts the card computes now: bool [E]."""
        slots = self._slots.get(layer)
        return np.zeros(self.shape.num_experts, np.bool_) if slots is None else slots >= 0

    def enqueue(self, layer: int, stream: Stream, rows: RowsOnCard) -> SumOnCard:
        """Ask for the sum of those of the rows' experts that are `resident`. Nothing waits.

        Between two changes of `generation` it may be captured as a graph, once `reserve` was called.

        Args:
            layer: one that `has_layer`.
            rows: on the card when the stream comes to this.

        Raises:
            DeviceFull: no memory for so many rows, where it is not reserved yet.
            DeviceLost: the card stopped working.
            ValueError: rows that came rounded otherwise than experts want.
        """
        rows = self.prepared(layer, stream, rows)
        return enqueue_sum(stream, self._layers[layer], rows, self.reserve(stream, rows.num_rows).at)

    def prepared(self, layer: int, stream: Stream, rows: RowsOnCard) -> RowsOnCard:
        """The rows as the layer's experts take them, for several sums of them; errors as `enqueue`."""
        return rounded_for(stream, self._layers[layer], rows, self.reserve(stream, rows.num_rows).at)

    def enqueue_more(self, layer: int, stream: Stream, rows: RowsOnCard, slots: int) -> SumOnCard:
        """Add the experts of another table to the sum that was asked for last on this stream.

        Args:
            rows: the same, as `prepared` gives them.
            slots: address of int32 [E], with a single expert in a place beside the fixed ones.
        """
        at = self.reserve(stream, rows.num_rows).at
        of_layer = self._layers[layer]
        return enqueue_sum(stream, of_layer, rows, at, slots=slots, most_groups=1, adds=True)

    def reserve(self, stream: Stream, num_rows: int) -> Workspace:
        """Have memory for so many rows at a time on a stream; raises DeviceFull."""
        work = self._works.get(stream)
        if work is not None and work.rows >= num_rows:
            return work
        rows = max(LEAST_ROWS, 1 << (num_rows - 1).bit_length())
        work = Workspace(self.device, self.shape, rows)
        # What the stream has to do still uses the old one.
        stream.synchronize()
        if stream not in self._works:
            # What moved before may not have yet; from now on `move` knows this stream.
            for other in self._works:
                stream.wait(other.record())
        self.generation += 1
        self._works[stream] = work
        return work

    def reserved_rows(self, stream: Stream) -> int:
        """For how many rows there is memory."""
        work = self._works.get(stream)
        return 0 if work is None else work.rows

    def give_places(self, starts: Sequence[int], sizes: Mapping[int, ExpertSizes]) -> None:
        """Have these places beside the fixed experts, empty. What is under way must have ended (`settle`).

        Args:
            starts: addresses, each with room for any of the layers' experts.
            sizes: of the layers whose experts may be put there. A layer whose fixed ones are kept otherwise
                gets none.

        Raises:
            DeviceFull: no room for the tables.
        """
        layers, all_slots = {}, {}
        for layer in sorted(self._placed.keys() | sizes.keys()):
            placed = self._placed.get(layer)
            of_layer = sizes[layer] if placed is None else placed.sizes
            fixed = () if placed is None else placed.starts
            beside = starts if sizes.get(layer) == of_layer else ()
            slots = np.full(self.shape.num_experts, -1, np.int32)
            if placed is not None:
                slots[list(placed.ids)] = np.arange(len(placed.ids))
            all_slots[layer] = slots
            layers[layer] = LayerOnCard.of(
                self.device,
                of_layer,
                (*fixed, *beside),
                slots,
                self._grids,
                limit=self._config.layers[layer].swiglu_limit,
                top_k=self._config.moe_top_k,
            )
        self._layers, self._slots = layers, all_slots
        self.generation += 1

    def settle(self) -> None:
        """Wait until nobody computes; raises DeviceLost."""
        for stream in list(self._works):
            stream.synchronize()

    def takes(self, layer: int, sizes: ExpertSizes) -> bool:
        """Whether such experts may be put beside the layer's fixed ones."""
        placed = self._placed.get(layer)
        return placed is None or placed.sizes == sizes

    def slot_of_place(self, layer: int, place: int) -> int:
        """The slot, in the layer's tables, of a place beside the fixed experts."""
        placed = self._placed.get(layer)
        return place + (0 if placed is None else len(placed.ids))

    def move(self, stream: Stream, layer: int, places: Mapping[int, int | None]) -> None:
        """Experts are in other places or, with None, in none, from here on in the stream.

        So they are in other streams that compute: what was asked of these before is done with the old places.
        """
        slots = {
            expert: -1 if place is None else self.slot_of_place(layer, place)
            for expert, place in places.items()
        }
        for expert, slot in slots.items():
            self._slots[layer][expert] = slot
        others = [other for other in self._works if other is not stream]
        for other in others:
            stream.wait(other.record())
        set_slots(stream, self._layers[layer].slots, slots)
        for other in others:
            other.wait(stream.record())
