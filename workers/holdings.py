"""What a process holds now: its plan's tiers, and the experts that orders added since or took away."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import NoReturn, TypeVar

from placement.errors import ModelFilesFailed, PotluckError
from placement.experts import Experts, minus
from placement.files.quote import first_line
from placement.units import size
from placement.weight_format import ExpertFormat
from transport.expert_rows import ExpertRows
from workers.disk.direct_file import ALIGNMENT
from workers.disk.tier import DiskTier
from workers.fixed_point import PartialSum
from workers.formats.open_model import OpenModel, held_expert_bytes
from workers.held_experts import check_experts
from workers.held_set import HeldSet
from workers.kernels import ExpertNotHeld
from workers.store import ExpertStore
from workers.tiers import LEAST_CACHED_EXPERTS, ExpertTier, StillLoading, least_cache_bytes

T = TypeVar("T", "_Hold", "_Drop")

log = logging.getLogger(__name__)

# A request for experts whose order has just come waits so long for them to be looked up in the files.
LOOK_UP_TIMEOUT_S = 10.0
# Orders that are remembered; more than a cluster has boxes and experts to move at a time.
MOST_ORDERS = 4096


@dataclass(frozen=True, slots=True)
class OrderState:
    """How far an order is.

    Attributes:
        done: nothing more happens to it.
        missing_bytes: of experts that are served from the disk, not from memory.
        text: why, where something is missing; one line.
        failed: the experts are not served, from the disk either.
    """

    order: int
    done: bool
    missing_bytes: int
    text: str = ""
    failed: bool = False


@dataclass(slots=True)
class _Hold:
    """`left`: what is to be loaded still. `begun_s`: when loading began, `loaded_bytes` since then."""

    order: int
    experts: Experts
    rate_bytes_per_s: int
    left: Experts = field(default_factory=dict)
    begun_s: float = 0.0
    loaded_bytes: int = 0


@dataclass(slots=True)
class _Drop:
    order: int
    experts: Experts


class Holdings:
    """An `ExpertTier` whose experts come and go while it serves.

    A set of tiers is swapped for another between two requests, never changed. Orders are carried out by a
    thread of its own, behind what is served. As they come, their experts are looked up in the model's files,
    and from then on they are served from there, or they are let go of. Whenever no order waits for that, the
    next layer is brought into memory. One thread at a time calls `forward`, any thread everything else.
    """

    def __init__(self) -> None:
        """Holds nothing, and asks whoever wants something to wait, until `begin`."""
        self._set: HeldSet | None = None
        self._model: OpenModel | None = None
        self._formats: Mapping[int, ExpertFormat] = {}
        self._bytes: Mapping[int, int] = {}
        self._room_bytes: Callable[[], int] = _no_room
        self._on_change: Callable[[Experts], None] | None = None
        self._lock = threading.Condition()
        self._orders: dict[int, OrderState] = {}
        self._looked_up = 0
        self._asked = 0
        self._changes = 0
        # (layer, expert) -> why an order to hold it was not carried out.
        self._failures: dict[tuple[int, int], str] = {}
        self._waiting: SimpleQueue[_Hold | _Drop | None] = SimpleQueue()
        self._loading: deque[_Hold] = deque()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def begin(
        self,
        tiers: Sequence[ExpertTier],
        model: OpenModel,
        formats: Mapping[int, ExpertFormat],
        room_bytes: Callable[[], int],
        on_change: Callable[[Experts], None] | None = None,
    ) -> None:
        """Serve these tiers, and take orders.

        Args:
            tiers: the plan's, none where it put nothing here.
            formats: what each layer's experts are kept in, of all the model's MoE layers.
            room_bytes: memory that experts may still take, asked before each layer that is loaded.
            on_change: told which experts are in memory, when an order has changed that.
        """
        config, checkpoint = model
        stored = {layer: checkpoint.expert_format(layer, config) for layer in formats}
        self._bytes = held_expert_bytes(stored, formats, config)
        self._model, self._formats = model, dict(formats)
        self._room_bytes, self._on_change = room_bytes, on_change
        nothing = ExpertStore.load(checkpoint, config, {}, formats={})
        self._set = HeldSet(tuple(tiers) or (nothing,))

    @property
    def tiers(self) -> tuple[ExpertTier, ...]:
        """Held now: those of the plan first, in its order."""
        return () if self._set is None else (*self._set.tiers, *self._set.disks.values())

    @property
    def changes(self) -> int:
        """Orders that are done, since the start."""
        return self._changes

    @property
    def experts(self) -> Experts:
        """See `ExpertTier.experts`; experts that orders drop from a disk or a card of the plan stay."""
        return {} if self._set is None else self._set.whole.experts

    @property
    def num_experts(self) -> int:
        """Of all layers together, each once."""
        return sum(map(len, self.experts.values()))

    @property
    def held_bytes(self) -> int:
        """Memory that they take."""
        return 0 if self._set is None else self._set.whole.held_bytes

    def expert_bytes(self, layer: int) -> int:
        """What one expert of a layer takes in memory."""
        return self._bytes.get(layer, 0)

    def notices(self) -> tuple[str, ...]:
        """See `ExpertTier.notices`; and the orders that could not be carried out whole."""
        if self._set is None:
            return ()
        with self._lock:
            texts = [state.text for state in self._orders.values() if state.text]
        return (*self._set.whole.notices(), *texts)

    def forward(self, layer: int, rows: ExpertRows) -> PartialSum:
        """See `ExpertTier.forward`.

        Raises:
            StillLoading: nothing is served yet.
            ModelFilesFailed: an expert was to be held here and could not be; says why.
        """
        if self._set is None:
            raise StillLoading("experts are still being loaded: ask again")
        orders = self._asked
        try:
            return self._set.whole.forward(layer, rows)
        except ExpertNotHeld:
            # By now they may have been looked up, though not when this request was begun: it is tried again.
            with self._lock:
                self._lock.wait_for(lambda: self._looked_up >= orders, LOOK_UP_TIMEOUT_S)
        try:
            return self._set.whole.forward(layer, rows)
        except ExpertNotHeld as error:
            self._explain(layer, rows, error)

    def _explain(self, layer: int, rows: ExpertRows, error: ExpertNotHeld) -> NoReturn:
        """Raise why an expert is not held, as far as that is known."""
        for expert in rows.expert_ids.ravel().tolist():
            why = self._failures.get((layer, expert))
            if why is not None:
                raise ModelFilesFailed(f"layer {layer}: expert {expert} cannot be served: {why}") from error
        raise error

    def hold(self, order: int, experts: Experts, rate_bytes_per_s: int = 0) -> OrderState:
        """Hold these experts too. Returns at once; asked again, it tells how far the order is.

        From now on they are served: from the model's files, and from memory once they are there.

        Args:
            order: which names it; the first with a name counts.
            experts: those that are held already cost nothing.
            rate_bytes_per_s: at most so fast into memory, 0 for as fast as the disk gives.

        Raises:
            ModelFilesFailed: this order could not be carried out. It is forgotten: given again, it is tried
                again.
            StillLoading: before `begin`.
            PlanError: an id that the model does not have.
        """
        return self._take(_Hold(order, experts, rate_bytes_per_s), self._missing_bytes(experts))

    def drop(self, order: int, experts: Experts) -> OrderState:
        """Let go of these experts' memory. Returns at once; arguments and errors as `hold`.

        Experts on a disk of the plan take none of their own, and stay; so do those on a card.
        """
        return self._take(_Drop(order, experts), 0)

    def state(self, order: int) -> OrderState | None:
        """How far an order is, None for one that is not known."""
        with self._lock:
            return self._orders.get(order)

    def close(self) -> None:
        """Take no more orders, and leave off the one under way. What is held is still served."""
        self._closing.set()
        self._waiting.put(None)
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _take(self, asked: _Hold | _Drop, missing_bytes: int) -> OrderState:
        if self._model is None:
            raise StillLoading("experts are still being loaded: give the order again")
        check_experts(self._model.config, {layer: ids for layer, ids in asked.experts.items() if ids})
        with self._lock:
            known = self._orders.get(asked.order)
            if known is not None and known.failed:
                del self._orders[asked.order]
                raise ModelFilesFailed(known.text)
            if known is not None:
                return known
            while len(self._orders) >= MOST_ORDERS:
                del self._orders[next(iter(self._orders))]
            state = self._orders[asked.order] = OrderState(asked.order, False, missing_bytes)
            self._asked += 1
            self._waiting.put(asked)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="holdings", daemon=True)
                self._thread.start()
        return state

    def _work(self) -> None:
        while not self._closing.is_set():
            if self._loading and self._waiting.empty():
                self._try(self._load_next, self._loading[0])
            else:
                self._take_up(self._waiting.get())

    def _take_up(self, asked: _Hold | _Drop | None) -> None:
        """What of an order is done as it comes."""
        if isinstance(asked, _Hold):
            self._try(self._look_up, asked)
        elif isinstance(asked, _Drop):
            self._try(self._drop, asked)
        with self._lock:
            self._looked_up += 1
            self._lock.notify_all()

    def _try(self, step: Callable[[T], None], asked: T) -> None:
        try:
            step(asked)
        except Exception as error:
            # The head is told, and may ask another box; what was served before still is.
            if not isinstance(error, PotluckError):
                log.exception("order %d failed", asked.order)
            reason = first_line(error) if isinstance(error, PotluckError) else type(error).__name__
            self._failures |= {(layer, i): reason for layer, ids in asked.experts.items() for i in ids}
            missing_bytes = self._missing_bytes(asked.experts)
            self._loading = deque(hold for hold in self._loading if hold is not asked)
            self._note(OrderState(asked.order, True, missing_bytes, reason, failed=True))

    def _look_up(self, asked: _Hold) -> None:
        served = self._held
        unserved = minus(served.to_load(asked.experts), served.whole.experts)
        if unserved:
            self._serve(served.with_disk(asked.order, self._disk(unserved)))
        asked.left, asked.begun_s = asked.experts, time.monotonic()
        self._loading.append(asked)

    def _drop(self, asked: _Drop) -> None:
        for hold in self._loading:
            hold.left = minus(hold.left, asked.experts)
        self._serve(self._held.without(asked.experts, self._disk))
        self._note(OrderState(asked.order, True, 0))

    def _load_next(self, asked: _Hold) -> None:
        """Bring a layer of the order into memory; it ends with the last one, or where there is no room."""
        left = self._held.to_load(asked.left)
        text = ""
        if left:
            layer, ids = next(iter(left.items()))
            needed, room = len(ids) * self._bytes[layer], self._room_bytes()
            if needed <= room:
                self._load(asked, layer, ids)
                self._note(OrderState(asked.order, False, self._missing_bytes(asked.left)))
                return
            text = (
                f"{size(self._missing_bytes(asked.left))} of experts that were added stay on disk: expected "
                f"{size(needed)} of memory for those of a layer, found {size(room)} free"
            )
        elif asked.loaded_bytes:
            self._serve(self._held.without_idle_disks())
        self._loading.popleft()
        self._note(OrderState(asked.order, True, self._missing_bytes(asked.left), text))

    def _load(self, asked: _Hold, layer: int, ids: tuple[int, ...]) -> None:
        """Bring experts into memory, not sooner than the order's rate allows, and serve them from there."""
        assert self._model is not None
        config, checkpoint = self._model
        rate = asked.rate_bytes_per_s
        each = [(expert,) for expert in ids] if rate else [ids]
        parts: list[ExpertStore] = []
        for some in each:
            parts.append(ExpertStore.load(checkpoint, config, {layer: some}, formats=self._formats))
            # Copies are copied once more when they are joined: with equals only, so that none is too often.
            while len(parts) > 1 and parts[-2].num_experts <= parts[-1].num_experts:
                parts[-2:] = [parts[-2].joined(parts[-1])]
            asked.loaded_bytes += len(some) * self._bytes[layer]
            if rate:
                self._take_orders_until(asked.begun_s + asked.loaded_bytes / rate)
            if self._closing.is_set():
                return
        added = functools.reduce(lambda last, part: part.joined(last), reversed(parts))
        # Some may have been dropped while they were loaded.
        dropped = minus(added.experts, asked.left)
        self._serve(self._held.with_loaded(added.without(dropped) if dropped else added))

    def _take_orders_until(self, time_s: float) -> None:
        while not self._closing.is_set():
            try:
                self._take_up(self._waiting.get(timeout=max(0.0, time_s - time.monotonic())))
            except Empty:
                return

    def _disk(self, experts: Experts) -> DiskTier:
        """These experts where they lie in the files, with as much of a cache as memory allows."""
        assert self._model is not None
        config, checkpoint = self._model
        count = sum(map(len, experts.values()))
        all_bytes = sum(len(ids) * self._bytes[layer] for layer, ids in experts.items())
        cache = least_cache_bytes(count, max(self._bytes[layer] for layer in experts))
        room = self._room_bytes()
        if all_bytes > room:
            # They will not all be loaded, so the cache is what there will be.
            cache = max(cache, room)
        # A slot is a whole number of aligned blocks a matrix, somewhat more than the expert.
        cache += min(count, LEAST_CACHED_EXPERTS) * 3 * 2 * ALIGNMENT
        return DiskTier(checkpoint, config, experts, formats=self._formats, cache_bytes=cache)

    @property
    def _held(self) -> HeldSet:
        assert self._set is not None
        return self._set

    def _serve(self, new: HeldSet) -> None:
        self._set = new
        if self._on_change is not None:
            self._on_change({layer: tuple(sorted(ids)) for layer, ids in new.in_memory().items()})

    def _note(self, state: OrderState) -> None:
        with self._lock:
            self._orders[state.order] = state
            self._changes += state.done

    def _missing_bytes(self, experts: Experts) -> int:
        if self._set is None:
            return 0
        return sum(len(ids) * self._bytes.get(layer, 0) for layer, ids in self._set.to_load(experts).items())


def _no_room() -> int:
    return 0
