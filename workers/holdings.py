"""What a process holds now: its plan's tiers, and the experts that orders added since or took away."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import NoReturn

from placement.errors import ModelFilesFailed, PotluckError
from placement.files.quote import first_line
from placement.units import size
from placement.weight_format import ExpertFormat
from transport.expert_rows import ExpertRows
from transport.messages import MAX_TEXT_CHARS, Drop, Experts, Held, Hold
from workers.disk.direct_file import ALIGNMENT
from workers.disk.tier import DiskTier
from workers.fixed_point import PartialSum
from workers.formats.open_model import OpenModel, held_expert_bytes
from workers.held_experts import check_experts
from workers.kernels import ExpertNotHeld
from workers.pool import side_by_side
from workers.store import ExpertStore
from workers.tiers import LEAST_CACHED_EXPERTS, ExpertTier, StillLoading, least_cache_bytes

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
    order: int
    experts: Experts
    rate_bytes_per_s: int


@dataclass(slots=True)
class _Drop:
    order: int
    experts: Experts


@dataclass(frozen=True, slots=True, eq=False)
class _Set:
    """What is held at one moment, never changed: tiers of the plan and memory, and disks of orders.

    An expert that both hold is computed from memory.
    """

    tiers: tuple[ExpertTier, ...]
    disks: Mapping[int, DiskTier] = field(default_factory=dict)
    whole: ExpertTier = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "whole", side_by_side((*self.tiers, *self.disks.values())))

    def in_memory(self) -> dict[int, set[int]]:
        found: dict[int, set[int]] = {}
        for tier in self.tiers:
            if isinstance(tier, ExpertStore):
                for layer, ids in tier.experts.items():
                    found.setdefault(layer, set()).update(ids)
        return found


class Holdings:
    """An `ExpertTier` whose experts come and go while it serves.

    A set of tiers is swapped for another between two requests, never changed. Orders are carried out one
    after another by a thread of its own, behind what is served: first the experts are looked up in the
    model's files, and from then on they are served from there; then they are brought into memory, layer by
    layer. One thread at a time calls `forward`, any thread everything else.
    """

    def __init__(self) -> None:
        """Holds nothing, and asks whoever wants something to wait, until `begin`."""
        self._set: _Set | None = None
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
        self._set = _Set(tuple(tiers) or (nothing,))

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
        """See `ExpertTier.experts`; experts that orders drop from a disk of the plan stay."""
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

        Experts on a disk of the plan take none of their own, and stay.
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
        while (asked := self._waiting.get()) is not None and not self._closing.is_set():
            before = self._looked_up
            try:
                if isinstance(asked, _Hold):
                    self._hold(asked)
                else:
                    self._drop(asked)
                    self._note(OrderState(asked.order, True, 0))
            except Exception as error:
                # The head is told, and may ask another box; what was served before still is.
                if not isinstance(error, PotluckError):
                    log.exception("order %d failed", asked.order)
                reason = first_line(error) if isinstance(error, PotluckError) else type(error).__name__
                self._failures |= {(layer, i): reason for layer, ids in asked.experts.items() for i in ids}
                missing_bytes = self._missing_bytes(asked.experts)
                self._note(OrderState(asked.order, True, missing_bytes, reason, failed=True))
            finally:
                self._count_looked_up(before + 1)

    def _hold(self, asked: _Hold) -> None:
        served, new = self._set, self._to_load(asked.experts)
        assert served is not None
        unserved = _minus(new, served.whole.experts)
        if unserved:
            self._serve(_Set(served.tiers, {**served.disks, asked.order: self._disk(unserved)}))
        self._count_looked_up(self._looked_up + 1)
        missing, text = self._missing_bytes(asked.experts), ""
        started = time.monotonic()
        loaded_bytes = 0
        for layer, ids in new.items():
            needed = len(ids) * self._bytes[layer]
            room = self._room_bytes()
            if needed > room:
                text = (
                    f"{size(missing)} of experts that were added stay on disk: expected {size(needed)} of "
                    f"memory for those of a layer, found {size(room)} free"
                )
                break
            self._load(layer, ids, asked.rate_bytes_per_s, started, loaded_bytes)
            if self._closing.is_set():
                return
            loaded_bytes += needed
            missing = self._missing_bytes(asked.experts)
            self._note(OrderState(asked.order, False, missing))
        if new and not missing:
            served = self._set
            assert served is not None
            in_memory = served.in_memory()
            disks = {order: disk for order, disk in served.disks.items() if _minus(disk.experts, in_memory)}
            self._serve(_Set(served.tiers, disks))
        self._note(OrderState(asked.order, True, missing, text))

    def _load(
        self, layer: int, ids: tuple[int, ...], rate_bytes_per_s: int, started: float, before_bytes: int
    ) -> None:
        """Bring a layer's experts into memory, not sooner than the rate allows, and serve them from there."""
        assert self._model is not None
        config, checkpoint = self._model
        each = [(expert,) for expert in ids] if rate_bytes_per_s else [ids]
        added: ExpertStore | None = None
        for some in each:
            store = ExpertStore.load(checkpoint, config, {layer: some}, formats=self._formats)
            added = store if added is None else added.joined(store)
            before_bytes += len(some) * self._bytes[layer]
            if rate_bytes_per_s:
                due = started + before_bytes / rate_bytes_per_s
                if self._closing.wait(max(0.0, due - time.monotonic())):
                    return
        assert added is not None
        served = self._set
        assert served is not None
        tiers = list(served.tiers)
        for place, tier in enumerate(tiers):
            # One call of the kernels for all experts of a layer is faster than one a store.
            if isinstance(tier, ExpertStore) and tier.fits_beside(added):
                tiers[place] = tier.joined(added)
                break
        else:
            tiers.append(added)
        self._serve(_Set(tuple(tiers), served.disks))

    def _drop(self, asked: _Drop) -> None:
        served = self._set
        assert served is not None
        tiers = [
            tier.without(asked.experts)
            if isinstance(tier, ExpertStore) and _minus(tier.experts, asked.experts) != tier.experts
            else tier
            for tier in served.tiers
        ]
        disks = {}
        for order, disk in served.disks.items():
            left = _minus(disk.experts, asked.experts)
            if left == disk.experts:
                disks[order] = disk
            elif left:
                disks[order] = self._disk(left)
        self._serve(_Set(tuple(tiers), disks))

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

    def _serve(self, new: _Set) -> None:
        self._set = new
        if self._on_change is not None:
            self._on_change({layer: tuple(sorted(ids)) for layer, ids in new.in_memory().items()})

    def _note(self, state: OrderState) -> None:
        with self._lock:
            self._orders[state.order] = state
            self._changes += state.done

    def _count_looked_up(self, count: int) -> None:
        with self._lock:
            self._looked_up = count
            self._lock.notify_all()

    def _to_load(self, experts: Experts) -> dict[int, tuple[int, ...]]:
        """Those that are not where they should be: in memory, or on a disk where the plan has them."""
        assert self._set is not None
        left = _minus(experts, self._set.in_memory())
        for tier in self._set.tiers:
            left = _minus(left, tier.experts)
        return left

    def _missing_bytes(self, experts: Experts) -> int:
        if self._set is None:
            return 0
        return sum(len(ids) * self._bytes.get(layer, 0) for layer, ids in self._to_load(experts).items())


class OrderTaker:
    """Holdings as orders on the wire reach them."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings

    def hold(self, order: Hold) -> Held:
        """Errors as `Holdings.hold`."""
        return self._held(order, self._holdings.hold(order.order, order.experts, order.rate_bytes_per_s))

    def drop(self, order: Drop) -> Held:
        """Errors as `Holdings.drop`."""
        return self._held(order, self._holdings.drop(order.order, order.experts))

    @staticmethod
    def _held(order: Hold | Drop, state: OrderState) -> Held:
        text = state.text[:MAX_TEXT_CHARS]
        return Held(order.request_id, state.order, state.done, state.missing_bytes, text)


def _minus(experts: Experts, gone: Mapping[int, Collection[int]]) -> dict[int, tuple[int, ...]]:
    left = {}
    for layer, ids in experts.items():
        kept = tuple(sorted(set(ids).difference(gone.get(layer, ()))))
        if kept:
            left[layer] = kept
    return left


def _no_room() -> int:
    return 0
