"""Experts of RAM on their way through a card: copied into one of two places while the other is computed from.

For requests of many rows. Link, card and CPU work at once, and their integer sums meet in one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from placement.streaming import BUFFERS
from workers.gpu.card_experts import CardExperts
from workers.gpu.device import Event, Memory, Stream
from workers.gpu.expert_kernels import set_slots
from workers.gpu.loading import Uploader
from workers.gpu.ram_copies import copies_of, sizes_of
from workers.gpu.rows import RowsOnCard
from workers.kernels import ExpertWeights


class Streamer:
    """Two places, and who may write to them when."""

    def __init__(self, on_card: CardExperts, memory: Sequence[Memory], first_place: int) -> None:
        """
        Args:
            memory: of the places, `BUFFERS` of them.
            first_place: their number among those that `on_card` was given.

        Raises:
            DeviceFull: no room for the tables, or for page-locked buffers.
        """
        assert len(memory) == BUFFERS
        device = on_card.device
        self._on_card = on_card
        self._memory = list(memory)
        self._first_place = first_place
        self._uploader = Uploader(device)
        self._copied: list[Event] = [device.event() for _ in memory]
        self._computed: list[Event] = [device.event() for _ in memory]
        nobody: NDArray[np.int32] = np.full(on_card.shape.num_experts, -1, np.int32)
        self._tables = [device.allocate(nobody.nbytes) for _ in memory]
        self._in_table: list[int | None] = [None] * BUFFERS
        for table in self._tables:
            self._uploader.stream.upload(table.address, nobody)
        self._uploader.stream.synchronize()

    def add(
        self, stream: Stream, layer: int, rows: RowsOnCard, weights: ExpertWeights, experts: Sequence[int]
    ) -> None:
        """Add these experts of RAM to the sum that the stream was asked for last.

        Returns when all has been copied from RAM; the stream has the rest to do.
        """
        link = self._uploader.stream
        for number, expert in enumerate(experts):
            place = number % BUFFERS
            link.wait(self._computed[place])
            self._copy(weights, expert, place)
            link.record(self._copied[place])
            stream.wait(self._copied[place])
            self._compute(stream, layer, rows, expert, place)
            stream.record(self._computed[place])

    def copy(self, weights: ExpertWeights, expert: int) -> None:
        """Copy an expert to the first place and wait until it is there, to see how long that takes."""
        self._copy(weights, expert, 0)
        self._uploader.stream.synchronize()

    def compute(self, stream: Stream, layer: int, rows: RowsOnCard, expert: int) -> None:
        """Compute what `copy` brought, for rows that all ask for it, and wait."""
        self._compute(stream, layer, rows, expert, 0)
        stream.synchronize()

    def _copy(self, weights: ExpertWeights, expert: int, place: int) -> None:
        for copy in copies_of(weights, sizes_of(weights), expert, self._memory[place].address):
            self._uploader.copy(copy.source, copy.to, copy.num_bytes)

    def _compute(self, stream: Stream, layer: int, rows: RowsOnCard, expert: int, place: int) -> None:
        table, before = self._tables[place].address, self._in_table[place]
        changes = {} if before is None else {before: -1}
        changes[expert] = self._on_card.slot_of_place(layer, self._first_place + place)
        set_slots(stream, table, changes)
        self._in_table[place] = expert
        self._on_card.enqueue_more(layer, stream, rows, table)
