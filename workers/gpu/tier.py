"""A tier whose experts lie in a card's memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from placement.experts import Experts
from placement.files.quote import first_line
from placement.weight_format import ExpertFormat
from transport.expert_rows import ExpertRows
from workers.fixed_point import PartialSum
from workers.formats.checkpoint import Checkpoint
from workers.gpu.beside import BesideRam
from workers.gpu.card_experts import LEAST_ROWS, CardExperts
from workers.gpu.check import check_rows
from workers.gpu.counts import CardCounts
from workers.gpu.device import Device, Event, Graph, Stream
from workers.gpu.errors import DeviceFull, DeviceLost
from workers.gpu.loading import BUFFER_BYTES
from workers.gpu.placing import PlacedLayer, place_experts
from workers.gpu.rows import RowsLayout, RowsOnCard, Staging, SumOnCard
from workers.gpu.workspace import WorkShape, received_bytes, work_bytes
from workers.memory.mapped import OnProgress
from workers.model_config import Step35Config
from workers.store import ExpertStore

MOST_ROWS = 256
"""Rows that a card computes at a time, those of a pass of a prompt: more would only take more memory."""


class VramTier:
    """Experts in a card's memory, an `ExpertTier`.

    What a card cannot compute, because it stopped working or has no room, is computed from the model's
    mapped files, where those have the experts as they are kept, with the same bits. Else the request fails.

    Beside its own experts it may compute some of those that a RAM tier of the box has: `claims` says which.

    Attributes:
        counts: what it computed.
    """

    def __init__(
        self,
        device: Device,
        config: Step35Config,
        placed: Mapping[int, PlacedLayer],
        files: ExpertStore | None,
        cache_bytes: int = 0,
    ) -> None:
        """See `load`.

        Args:
            files: the same experts, mapped and not read.
        """
        self.device = device
        self.on_card = CardExperts(device, config, placed)
        self._placed = dict(placed)
        self._files = files
        # Graphs are of this stream, and die with what they use.
        self._stream = device.stream()
        self._done: Event = device.event()
        self._staging = Staging(device, self.on_card.shape, LEAST_ROWS)
        self._graphs: dict[tuple[int, RowsLayout], Graph | None] = {}
        self._graphs_of = 0
        self._lost: DeviceLost | None = None
        self._notice = ""
        self._noted: int | None = None
        self.counts = CardCounts()
        self._own = {layer: self.on_card.resident(layer) for layer in self._placed}
        self._beside = BesideRam(self.on_card, cache_bytes, self.counts)
        self.reserve(self._stream, LEAST_ROWS)

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        config: Step35Config,
        experts: Mapping[int, Sequence[int]],
        *,
        formats: Mapping[int, ExpertFormat],
        device: Device,
        cache_bytes: int = 0,
        on_progress: OnProgress | None = None,
    ) -> VramTier:
        """Bring experts into a card's memory, as the bytes that the files have where those serve.

        Args:
            experts: layer -> ids.
            formats: as of `ExpertStore.load`.
            cache_bytes: of the card's memory beside them, for experts of RAM that are used much.
            on_progress: told how much is there.

        Raises:
            PlanError, CheckpointError: as `ExpertStore.load`.
            DeviceFull: says what they take and what is free.
            DeviceLost: the card stopped working.
        """
        placed = place_experts(
            checkpoint,
            config,
            experts,
            formats,
            device,
            beside_bytes=work_bytes(WorkShape.of(config), LEAST_ROWS),
            on_progress=on_progress,
        )
        files = ExpertStore.views(checkpoint, config, experts, formats=formats)
        return cls(device, config, placed, files, cache_bytes)

    @property
    def experts(self) -> Experts:
        """See `ExpertTier.experts`: its own, which never change."""
        return {layer: placed.ids for layer, placed in self._placed.items()}

    @property
    def num_experts(self) -> int:
        """Of all layers together."""
        return sum(len(placed.ids) for placed in self._placed.values())

    @property
    def held_bytes(self) -> int:
        """Of the card's memory, by its own experts."""
        return sum(placed.num_bytes for placed in self._placed.values())

    @property
    def beside(self) -> BesideRam:
        """What it does with experts of RAM."""
        return self._beside

    def notices(self) -> tuple[str, ...]:
        """See `ExpertTier.notices`."""
        return (self._notice,) if self._notice else ()

    def claims(self, layer: int, expert_ids: NDArray[np.int32]) -> NDArray[np.bool_] | None:
        """Which of a layer's experts it computes in the request that comes next, if they are asked of it.

        Args:
            expert_ids: int32 [T, k], all that the request asks of the box.

        Returns:
            bool [E]; None for its own experts alone.
        """
        if self._lost is not None:
            return None
        try:
            # First, because what is kept of RAM goes where the rows need its memory.
            self._have_room(len(expert_ids))
            if self._noted != layer:
                self._beside.note(self._stream, layer, expert_ids)
            self._noted = None
            return self._beside.claims(layer, expert_ids)
        except (DeviceLost, DeviceFull) as error:
            self._fail(error)
            return None

    def note(self, layer: int, expert_ids: NDArray[np.int32]) -> None:
        """Count what a layer asks for, of a head that asks the box only for what it did not `enqueue`.

        After that `resident` may tell other experts than those that the layer was computed with.

        Args:
            expert_ids: int32 [T, k], all of the layer's.
        """
        if self._lost is None:
            try:
                self._beside.note(self._stream, layer, expert_ids)
                self._noted = layer
            except (DeviceLost, DeviceFull) as error:
                self._fail(error)

    def owns_all(self, layer: int) -> bool:
        """Whether all of a layer's experts live on the card."""
        return layer in self._own and bool(self._own[layer].all())

    def count(
        self, layer: int, expert_ids: NDArray[np.int32], streamed: NDArray[np.bool_] | None = None
    ) -> None:
        """Count what the card computed.

        Args:
            expert_ids: of any shape, -1 for none.
            streamed: bool [E], what was brought for this request.
        """
        ids = expert_ids[expert_ids >= 0]
        own = self._own.get(layer)
        num_own = 0 if own is None else int(np.count_nonzero(own[ids]))
        passing = 0 if streamed is None else int(np.count_nonzero(streamed[ids]))
        self.counts.own += num_own
        self.counts.passing += passing
        self.counts.kept += len(ids) - num_own - passing

    def forward(self, layer: int, rows: ExpertRows) -> PartialSum:
        """See `ExpertTier.forward`.

        Raises:
            DeviceLost: the card stopped working, and the files do not have the experts as they are kept.
            DeviceFull: it has no room for the rows, and the same.
        """
        check_rows(self.on_card.shape, layer, rows, self._here(layer))
        if self._lost is None:
            try:
                found = self._compute(layer, rows)
                self.count(layer, rows.expert_ids, self._beside.is_streamed(layer))
                return found
            except (DeviceLost, DeviceFull) as error:
                self._fail(error)
                if self._files is None:
                    raise
        return self._from_ram(layer, rows)

    def enqueue(self, layer: int, stream: Stream, rows: RowsOnCard) -> SumOnCard:
        """See `CardExperts.enqueue`: the fast way, for rows that are on the card."""
        return self.on_card.enqueue(layer, stream, rows)

    def resident(self, layer: int) -> NDArray[np.bool_]:
        """See `CardExperts.resident`."""
        return self.on_card.resident(layer)

    def reserve(self, stream: Stream, num_rows: int) -> None:
        """See `CardExperts.reserve`; first gives back what is kept of RAM where there is no room else."""
        try:
            self.on_card.reserve(stream, num_rows)
        except DeviceFull:
            if not self._beside.give_back(stream):
                raise
            self.on_card.reserve(stream, num_rows)

    def _here(self, layer: int) -> NDArray[np.bool_]:
        return self.on_card.resident(layer) | self._beside.is_streamed(layer)

    def _fail(self, error: DeviceLost | DeviceFull) -> None:
        if isinstance(error, DeviceLost):
            self._lost = error
            self._notice = (
                f"{first_line(error)}; its {self.num_experts:,} experts are computed from the model's files "
                "until then"
            )
        else:
            self._notice = f"{first_line(error)}; computed from the model's files meanwhile"

    def _compute(self, layer: int, rows: ExpertRows) -> PartialSum:
        values = np.zeros(rows.hidden.shape, np.int32)
        saturated = np.zeros(rows.num_rows, np.bool_)
        if self.on_card.has_layer(layer):
            if not self._beside.num_places:
                self._have_room(rows.num_rows)
            at_once = min(MOST_ROWS, self.on_card.reserved_rows(self._stream), self._staging.rows)
            for start in range(0, rows.num_rows, at_once):
                places = np.arange(start, min(start + at_once, rows.num_rows))
                some = rows if len(places) == rows.num_rows else rows.at(places)
                values[places], saturated[places] = self._sum(layer, some)
        return PartialSum(values, saturated)

    def _have_room(self, num_rows: int) -> None:
        """Have memory for so many rows at a time, as far as it can be had."""
        try:
            self.reserve(self._stream, min(num_rows, MOST_ROWS))
            reserved = self.on_card.reserved_rows(self._stream)
            if self._staging.rows < reserved:
                self._staging = Staging(self.device, self.on_card.shape, reserved)
                self._graphs.clear()
            self._notice = ""
        except DeviceFull as error:
            self._notice = f"{first_line(error)}; fewer rows at a time meanwhile"

    def _sum(self, layer: int, rows: ExpertRows) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        stream, staging = self._stream, self._staging
        layout = staging.fill(rows)
        graph = self._graph(layer, layout)
        if graph is None:
            self._ask(layer, layout)
        else:
            stream.replay(graph)
        stream.record(self._done)
        self._done.synchronize()
        return staging.sums(layout)

    def _graph(self, layer: int, layout: RowsLayout) -> Graph | None:
        """All that is launched for such rows; None the first time, when kernels may have to be compiled.

        For few rows launching takes longer than computing. Many rows come in many numbers.
        """
        if layout.num_rows > LEAST_ROWS or self._beside.is_streaming:
            return None
        if self._graphs_of != self.on_card.generation:
            self._graphs.clear()
            self._graphs_of = self.on_card.generation
        key = layer, layout
        graph = self._graphs.get(key)
        if graph is None and key in self._graphs:
            try:
                with self._stream.captured() as graph:
                    self._ask(layer, layout)
            except DeviceFull:
                # Graphs take memory of the card, the launches none that they do not have.
                return None
        self._graphs[key] = graph
        return graph

    def _ask(self, layer: int, layout: RowsLayout) -> None:
        at = self.on_card.reserve(self._stream, layout.num_rows).at
        sent = self._staging.send(self._stream, layout, at)
        rows = self.on_card.prepared(layer, self._stream, sent)
        found = self.enqueue(layer, self._stream, rows)
        self._beside.add_streamed(self._stream, layer, rows)
        self._staging.fetch(self._stream, found, layout)

    def _from_ram(self, layer: int, rows: ExpertRows) -> PartialSum:
        """The same sum without the card: its own experts from the files, others where they lie."""
        if self._files is None:
            assert self._lost is not None
            raise DeviceLost(first_line(self._lost), self._lost.device) from self._lost
        own = np.isin(rows.expert_ids, self._files.experts.get(layer, ()))
        nobody = np.int32(-1)
        mine = self._files.forward(layer, rows._replace(expert_ids=np.where(own, rows.expert_ids, nobody)))
        others = np.where(own, nobody, rows.expert_ids)
        if (others < 0).all():
            return mine
        beside = self._beside.in_ram(layer, rows._replace(expert_ids=others))
        return PartialSum(mine.values + beside.values, mine.saturated | beside.saturated)


def host_bytes(config: Step35Config) -> int:
    """RAM that a tier on a card takes, page-locked: buffers for loading, and rows and sums on their way."""
    shape = WorkShape.of(config)
    return 2 * BUFFER_BYTES + received_bytes(shape, MOST_ROWS) + MOST_ROWS * (4 * shape.hidden + 1)
