"""A tier whose experts lie on a disk: an `ExpertTier` that reads what its cache lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from placement.errors import PlanDoesNotFit, PotluckError
from placement.experts import Experts
from placement.units import size
from placement.weight_format import ExpertFormat
from transport.expert_rows import ExpertRows
from workers.disk.direct_file import DirectFile
from workers.disk.expert_cache import ExpertCache
from workers.disk.layers import DiskLayer, look_up
from workers.disk.reader import Piece, PieceReader
from workers.disk.slots import Slots
from workers.disk.windows import Window, slot_bytes
from workers.fixed_point import PartialSum
from workers.formats.checkpoint import Checkpoint
from workers.held_experts import partial_sum
from workers.kernels import ExpertNotHeld
from workers.memory.file_check import FileCheck
from workers.model_config import Step35Config

READING_THREADS = 6
LARGEST_READ_BYTES = 4 * 1024 * 1024
"""Reads under way at once, and the bytes of one (docs/memory.md has the measurements)."""
HALF_LIFE_PASSES = 32
"""After so many passes through all layers a use of an expert counts half (docs/memory.md)."""
# Where many rows wait, adding up a sum for each expert that arrives would cost more than it hides.
_ROWS_AN_ARRIVAL = 32


@dataclass(slots=True)
class DiskCounts:
    """Since the start.

    Attributes:
        choices: (token, expert) pairs computed.
        asked: experts asked for, each once a request.
        hits: of those, what the cache had.
    """

    choices: int = 0
    asked: int = 0
    hits: int = 0
    read_bytes: int = 0


class DiskTier:
    """Experts on a disk, and a cache of them in memory.

    A layer's experts that the cache lacks are asked for all at once. Those that are there are computed
    meanwhile, the others as they arrive. Sums are exact, so the order does not matter.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: Step35Config,
        experts: Mapping[int, Sequence[int]],
        *,
        formats: Mapping[int, ExpertFormat],
        cache_bytes: int,
    ) -> None:
        """Look up where the experts lie; none is read yet.

        Args:
            experts: layer -> ids, at least one.
            formats: as for `ExpertStore.load`.
            cache_bytes: of memory for experts; at least one must fit.

        Raises:
            PlanError, CheckpointError: as `ExpertStore.load`.
            PlanDoesNotFit: not even one expert fits the cache.
        """
        self.counts = DiskCounts()
        self._file_check = FileCheck(checkpoint)
        self._layers = look_up(checkpoint, config, experts, formats)
        # Keys number the experts of all layers one after another.
        self._windows: list[tuple[Window, ...]] = []
        self._key_of: dict[int, NDArray[np.int64]] = {}
        self._named: list[tuple[DiskLayer, int]] = []
        for index, layer in self._layers.items():
            keys = self._key_of[index] = np.full(config.moe_num_experts, -1, np.int64)
            for expert, windows in layer.windows.items():
                keys[expert] = len(self._windows)
                self._windows.append(windows)
                self._named.append((layer, expert))
        self._slots = self._make_slots(cache_bytes)
        half_life = HALF_LIFE_PASSES * len(self._layers)
        self._cache = ExpertCache(len(self._windows), self._slots.num_slots, half_life)
        paths = {window.path for windows in self._windows for window in windows}
        self._files = {path: DirectFile(path) for path in sorted(paths)}
        self._reader = PieceReader(READING_THREADS)

    def _make_slots(self, cache_bytes: int) -> Slots:
        largest = max(map(slot_bytes, self._windows))
        num_slots = min(cache_bytes // largest, len(self._windows))
        if num_slots < 1:
            raise PlanDoesNotFit(
                f"a cache of {size(cache_bytes)} for experts on disk, which take up to {size(largest)} each: "
                "expected room for one at least; give the box a larger memory budget, or plan fewer experts "
                "in its memory"
            )
        return Slots(num_slots, largest)

    @property
    def experts(self) -> Experts:
        """Absolute layer index -> the ids held."""
        return {index: tuple(layer.windows) for index, layer in self._layers.items()}

    @property
    def num_experts(self) -> int:
        """Of all layers together."""
        return len(self._windows)

    @property
    def held_bytes(self) -> int:
        """Memory of the cache."""
        return self._slots.num_bytes

    def notices(self) -> tuple[str, ...]:
        """See `ExpertTier.notices`."""
        found = [
            f"{path}: its filesystem has no direct reads; experts are read through the page cache"
            for path, file in self._files.items()
            if not file.is_direct
        ]
        if self._slots.may_be_swapped:
            found.append(
                f"the cache of experts, {size(self.held_bytes)}, may be swapped out: expected that this user "
                "may lock so much memory (ulimit -l)"
            )
        return tuple(found)

    def forward(self, layer: int, rows: ExpertRows) -> PartialSum:
        """See `ExpertTier.forward`.

        Raises:
            CheckpointError: a file was changed or replaced, or the disk did not give an expert; the next
                request asks for it again.
        """
        self._file_check()
        chosen = rows.expert_ids[rows.expert_ids >= 0]
        self.counts.choices += len(chosen)
        keys = self._keys(layer, np.unique(chosen))
        if not len(keys):
            return partial_sum(next(iter(self._layers.values())).weights, layer, rows)
        here = self._cache.use(keys)
        self.counts.asked += len(keys)
        self.counts.hits += int(here.sum())
        ready, unread = keys[here], keys[~here]
        answer = _Answer(rows)
        reading = _Reading()
        try:
            while len(ready) or len(unread) or reading.pieces_left:
                unread = self._begin(unread, reading)
                if not len(ready):
                    ready = self._arrived(reading, 1 + rows.num_rows // _ROWS_AN_ARRIVAL)
                answer.add(self._layers[layer], [self._named[key][1] for key in ready])
                self._cache.unpin(ready)
                ready = ready[:0]
        except BaseException:
            self._cache.unpin(ready)
            self._abandon(reading)
            raise
        return answer.sum()

    def _keys(self, layer: int, experts: NDArray[np.int32]) -> NDArray[np.int64]:
        keys = self._key_of.get(layer)
        if keys is None:
            keys = np.full(0, -1, np.int64)
        found = np.array([keys[e] if e < len(keys) else -1 for e in experts.tolist()], np.int64)
        if (found < 0).any():
            raise ExpertNotHeld(
                f"layer {layer}: expert {experts[found < 0][0]} is not held here: the sender's plan differs "
                "from this tier's"
            )
        return found

    def _begin(self, unread: NDArray[np.int64], reading: _Reading) -> NDArray[np.int64]:
        """Ask for as many experts as there are slots for; gives those that must wait."""
        slots = self._cache.take(unread)
        for key, slot in zip(unread.tolist(), slots.tolist(), strict=False):
            pieces = [
                Piece(
                    self._files[window.path],
                    window.offset + start,
                    self._slots.buffer(slot, window.slot_offset + start, length),
                    min(length, window.least_bytes - start),
                    key,
                )
                for window in self._windows[key]
                for start, length in _cut(window.num_bytes)
            ]
            reading.pieces_left[key] = len(pieces)
            for piece in pieces:
                self._reader.ask(piece)
            self.counts.read_bytes += sum(len(piece.buffer) for piece in pieces)
        return unread[len(slots) :]

    def _arrived(self, reading: _Reading, least: int) -> NDArray[np.int64]:
        """Wait for so many experts, or all that are under way; gives all that are there by then."""
        arrived: list[int] = []
        try:
            while reading.pieces_left and (len(arrived) < least or self._reader.has_arrivals()):
                key = reading.take(self._reader)
                if key is None:
                    continue
                if reading.error is not None:
                    raise reading.error
                layer, expert = self._named[key]
                layer.arrive(expert, self._slots, int(self._cache.slot_of[key]))
                arrived.append(key)
        except BaseException:
            self._cache.drop(np.array(arrived, np.int64))
            raise
        return np.array(arrived, np.int64)

    def _abandon(self, reading: _Reading) -> None:
        """Wait for what is under way, into slots that nobody may use meanwhile; keep none of it."""
        keys = np.array([*reading.pieces_left, *reading.failed], np.int64)
        while reading.pieces_left:
            reading.take(self._reader)
        self._cache.drop(keys)


@dataclass(slots=True)
class _Reading:
    """Experts under way: the pieces that each still waits for, and the first error.

    `failed`: those whose pieces have all arrived, one of them with an error.
    """

    pieces_left: dict[int, int] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    error: PotluckError | None = None

    def take(self, reader: PieceReader) -> int | None:
        """Take one arrival; the expert whose last piece it was, if it was one."""
        arrival = reader.next_arrival()
        if arrival.error is not None:
            self.error = self.error or arrival.error
            self.failed.add(arrival.tag)
        self.pieces_left[arrival.tag] -= 1
        if self.pieces_left[arrival.tag]:
            return None
        del self.pieces_left[arrival.tag]
        if self.error is not None:
            self.failed.add(arrival.tag)
        return arrival.tag


class _Answer:
    """The sum over a request's experts, added as they are computed."""

    def __init__(self, rows: ExpertRows) -> None:
        self._rows = rows
        self._values = np.zeros(rows.hidden.shape, np.int32)
        self._saturated = np.zeros(rows.num_rows, np.bool_)

    def add(self, layer: DiskLayer, experts: Sequence[int]) -> None:
        """Compute these experts for the rows that want them."""
        ids = self._rows.expert_ids
        mine = np.isin(ids, experts)
        touched = mine.any(axis=1)
        masked = self._rows._replace(expert_ids=np.where(mine, ids, np.int32(-1)))
        places: slice | NDArray[np.intp] = slice(None)
        if not touched.all():
            places = np.flatnonzero(touched)
            masked = masked.at(places)
        part = partial_sum(layer.weights, layer.index, masked)
        self._values[places] += part.values
        self._saturated[places] |= part.saturated

    def sum(self) -> PartialSum:
        return PartialSum(self._values, self._saturated)


def _cut(num_bytes: int) -> list[tuple[int, int]]:
    """Starts and lengths of a window's reads."""
    return [
        (start, min(LARGEST_READ_BYTES, num_bytes - start))
        for start in range(0, num_bytes, LARGEST_READ_BYTES)
    ]
