"""The way of a pass through layers on a card, and its meeting with experts that are elsewhere.

A layer's rows leave for the host as soon as its router has chosen. Meanwhile the card computes its own
experts and the shared one, the host its own, and the others are asked. What they give comes back as integers,
which the next layer's first launch adds to the card's. Nothing waits for the whole card.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.gpu.areas import FEW_ROWS
from orchestrator.gpu.kept import KeptLaunches
from orchestrator.gpu.passing import Passing
from orchestrator.gpu.step import LayerPlace, Pending, Step
from orchestrator.gpu.weights import CardFfn, CardLayer, CardMoe
from orchestrator.model.layer import who_broke
from orchestrator.model.moe import ExpertRunner
from orchestrator.model.routing_recorder import Recorder
from orchestrator.timing import StepTimer
from placement.wire_form import WireForm
from transport.expert_rows import ExpertRows
from workers.gpu.device import Event, Stream
from workers.gpu.rows import SumOnCard
from workers.gpu.tier import VramTier

T = TypeVar("T")

Layers = Sequence[tuple[CardLayer, LayerPlace]]
Chosen = list[tuple[int, NDArray[np.int32]]]
"""Of each layer with experts, by absolute index: int32 [num_rows, top_k]."""


class _Anew(Exception):
    """A row left its grid, or is not finite: all is computed again under the host's eyes, layer by layer."""


class CardLayers:
    """Runs layers on a stream, one pass at a time.

    Args:
        passing: what goes to the host and comes from it.
        tier: experts on the same card, which are computed without the host.
    """

    def __init__(self, stream: Stream, passing: Passing, tier: VramTier | None, timer: StepTimer) -> None:
        self._passing = passing
        self._tier = tier
        self._kept = KeptLaunches(stream)
        self._told: Event = stream.device.event()
        self._launching, self._waiting = timer.part("card"), timer.part("card_wait")

    def run(
        self,
        step: Step,
        name: str,
        layers: Layers,
        bring: Callable[[], None],
        experts: ExpertRunner,
        recorder: Recorder | None,
        check: Callable[[], None] | None = None,
    ) -> Tensor:
        """One pass: float32 [num_rows, hidden] in RAM.

        Args:
            name: of these layers.
            bring: begins to bring the pass's rows to the card.
            check: looks at them there, where the pass is computed anew.

        Raises:
            NonFiniteError, PassLost: as `decoder_layer`.
            DeviceLost: the card stopped working.
        """
        with self._launching:
            bring()
            try:
                chosen, found = self._through(step, name, layers, experts, wants_ids=recorder is not None)
            except _Anew:
                step.stream.synchronize()
                bring()
                if check is not None:
                    check()
                chosen, found = self._with_host(step, layers, experts)
        if recorder is not None:
            for layer, expert_ids in chosen:
                recorder.record(layer, expert_ids)
        return found

    def keep(self, step: Step, key: Hashable, ask: Callable[[], T]) -> T:
        """Launch, by a graph where few rows come so again and again."""
        return ask() if step.num_rows > FEW_ROWS else self._kept.launch(key, ask)

    def _through(
        self,
        step: Step,
        name: str,
        layers: Layers,
        experts: ExpertRunner,
        *,
        wants_ids: bool,
    ) -> tuple[Chosen, Tensor]:
        """The card's own experts on the card, without waiting for more than the router's choice."""
        noted = []
        pending = Pending((step.at["hidden"],))
        for number, (layer, place) in enumerate(layers):
            moe, wire = layer.ffn, place.wire
            key = (name, number, step.num_rows, pending)
            if isinstance(moe, CardFfn):
                pending = self._dense(step, key, layer, moe, place, pending)
                continue
            assert wire is not None
            self.keep(step, ("ask", *key), partial(self._ask, step, layer, moe, place, wire, pending))
            step.stream.record(self._told)
            resident = self._resident(layer.index, moe)
            sums = self._meanwhile(step, key, number, layer, moe, wire)
            # What is kept of RAM is counted, so that it stays.
            if wants_ids or self._tier is None or not self._tier.owns_all(layer.index):
                with self._waiting:
                    self._told.synchronize()
                if self._passing.broken(step.num_rows):
                    raise _Anew
                rows = self._passing.told(step.num_rows, wire)
                noted.append((layer.index, rows.expert_ids))
                sums += self._elsewhere(step, layer.index, rows, resident, experts)
            else:
                pairs = step.num_rows * moe.host.top_k
                experts.count_own(pairs)
                self._tier.counts.own += pairs
            pending = step.left(sums)
        self.keep(step, ("finish", name, step.num_rows, pending), partial(step.finish, pending))
        with self._waiting:
            found = self._passing.fetch_hidden(step.stream, step.at, step.num_rows)
        if self._passing.any_flags(step.num_rows) or self._passing.broken(step.num_rows):
            raise _Anew
        return noted, found

    def _with_host(self, step: Step, layers: Layers, experts: ExpertRunner) -> tuple[Chosen, Tensor]:
        """All experts by way of the host, which looks at every layer."""
        noted = []
        pending = Pending((step.at["hidden"],))
        for layer, place in layers:
            moe, wire = layer.ffn, place.wire
            step.attention(layer, place, pending)
            if isinstance(moe, CardMoe):
                assert wire is not None
                step.route(moe)
                self._passing.tell(step.stream, step.at, step.num_rows, wire)
            else:
                self._passing.tell_broken(step.stream, step.at, step.num_rows)
            step.stream.synchronize()
            if self._passing.broken(step.num_rows):
                raise who_broke(layer.index, self._passing.fetch_hidden(step.stream, step.at, step.num_rows))
            if isinstance(moe, CardFfn):
                step.dense(moe)
                pending = step.left()
                continue
            assert wire is not None
            rows = self._passing.told(step.num_rows, wire)
            noted.append((layer.index, rows.expert_ids))
            asked = experts.ask(layer.index, rows)
            step.shared(moe, wire)
            self._passing.bring_sums(step.stream, step.at, *experts.collect_on_grid(asked))
            pending = step.left((step.at["host_sum"],))
        step.finish(pending)
        return noted, self._passing.fetch_hidden(step.stream, step.at, step.num_rows)

    def _ask(
        self, step: Step, layer: CardLayer, moe: CardMoe, place: LayerPlace, wire: WireForm, pending: Pending
    ) -> None:
        """Up to the router's choice, which leaves for the host."""
        step.attention(layer, place, pending)
        step.route(moe)
        self._passing.tell(step.stream, step.at, step.num_rows, wire)

    def _dense(
        self,
        step: Step,
        key: tuple[object, ...],
        layer: CardLayer,
        ffn: CardFfn,
        place: LayerPlace,
        pending: Pending,
    ) -> Pending:
        def launch() -> None:
            step.attention(layer, place, pending)
            step.dense(ffn)

        self.keep(step, ("dense", *key), launch)
        return step.left()

    def _meanwhile(
        self,
        step: Step,
        key: tuple[object, ...],
        number: int,
        layer: CardLayer,
        moe: CardMoe,
        wire: WireForm,
    ) -> tuple[int, ...]:
        """The card's own experts and the shared one; where the sums of the former are going to be."""
        tier = self._tier
        own = tier if tier is not None and tier.on_card.has_layer(layer.index) else None
        # Where experts of theirs have moved, what a graph knows of their places is wrong.
        generation = 0 if own is None else own.on_card.generation

        def launch() -> SumOnCard | None:
            found = None
            if own is not None:
                found = own.enqueue(layer.index, step.stream, step.rows_of(moe, wire))
                self._passing.note_flags(step.stream, number, found.flags, step.num_rows)
            step.shared(moe, wire)
            return found

        found = self.keep(step, ("meanwhile", generation, *key), launch)
        if found is None:
            return ()
        self._passing.flagged(number)
        return (found.values,)

    def _elsewhere(
        self,
        step: Step,
        layer: int,
        rows: ExpertRows,
        resident: NDArray[np.bool_],
        experts: ExpertRunner,
    ) -> tuple[int, ...]:
        """What experts give that the card does not have; where that is going to be."""
        if self._tier is not None:
            self._tier.note(layer, rows.expert_ids)
        on_card = resident[rows.expert_ids]
        count = int(np.count_nonzero(on_card))
        if count and self._tier is not None:
            experts.count_own(count)
            self._tier.count(layer, rows.expert_ids[on_card])
        if count == on_card.size:
            return ()
        if count:
            rows = rows._replace(expert_ids=np.where(on_card, np.int32(-1), rows.expert_ids))
        values, exponents = experts.collect_on_grid(experts.ask(layer, rows))
        if not np.array_equal(exponents, rows.scale_exponents):
            raise _Anew
        self._passing.bring_sums(step.stream, step.at, values, None)
        return (step.at["host_sum"],)

    def _resident(self, layer: int, moe: CardMoe) -> NDArray[np.bool_]:
        return np.zeros(moe.router.rows, np.bool_) if self._tier is None else self._tier.resident(layer)
