"""What a runner and its session tell of themselves."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from orchestrator.serving.heat import Heat
from orchestrator.serving.runner import Live, Runner
from orchestrator.serving.state import BoxState, Event, RequestState, ServerState

if TYPE_CHECKING:
    from orchestrator.dispatch.view import ClusterView
    from orchestrator.session import Session


_MOST_NOTES = 200


class Sources:
    """Of one server: what it tells of itself, and remembers for that."""

    def __init__(self, session: Session, name: str, began_s: float) -> None:
        """`began_s`: when it began, on the runner's clock."""
        self.session = session
        self.name = name
        self.began_s = began_s
        self.heat: Heat | None = None
        self._notes: deque[tuple[float, str]] = deque(maxlen=_MOST_NOTES)
        self._view: ClusterView | None = None
        self._places: list[list[int]] = []
        head = session.head
        self._recorder = head.recorder
        # The ids of a head on a card do not come to RAM but where somebody asks for them.
        if head.card is None:
            plan = session.dispatcher.view.plan
            layers = [layer.index for layer in plan.layers]
            self.heat = head.recorder = Heat(layers, plan.num_experts, head.recorder)

    def recent(self) -> NDArray[np.uint16]:
        """See `Heat.recent`; empty where nobody counts."""
        return np.zeros((0, 0, 0), np.uint16) if self.heat is None else self.heat.recent()

    def close(self) -> None:
        """Count no more."""
        if self.heat is not None:
            self.session.head.recorder = self._recorder

    def note(self, text: str, now_s: float) -> None:
        """Something happened; from any thread."""
        self._notes.append((now_s, text))

    def events(self, now_s: float) -> list[Event]:
        """The newest last."""
        return [Event(now_s - at_s, text) for at_s, text in list(self._notes)]

    def places(self, view: ClusterView) -> list[list[int]]:
        """Of each MoE layer and expert, the box that computes it."""
        if view is not self._view:
            workers = [worker.name for worker in view.plan.workers]
            of_tier = [workers.index(tier.worker) for tier in view.plan.tiers]
            first = view.plan.holder_table.table[:, :, 0]
            self._places = np.where(first >= 0, np.array([*of_tier, -1])[first], -1).tolist()
            self._view = view
        return self._places


def state_of(runner: Runner, sources: Sources, now_s: float) -> ServerState:
    """All of it now; called by the thread that runs the model, between steps."""
    session = sources.session
    plan = session.dispatcher.view.plan
    head = session.head
    pools = [head.kv_pool] if head.card is None else [head.kv_pool, head.card.pool]
    boxes = _boxes(session)
    return ServerState(
        model=sources.name,
        up_s=now_s - sources.began_s,
        tokens_per_s=runner.counts.tokens_per_s(now_s),
        waiting=runner.scheduler.waiting,
        running=runner.scheduler.running,
        requests=[_request(number, live, runner, now_s) for number, live in runner.live.items()],
        boxes=boxes,
        totals=runner.counts.totals(head.timer.seconds()),
        kv_used_bytes=sum(pool.used_bytes for pool in pools),
        kept_bytes=sum(pool.kept_bytes for pool in pools),
        kv_budget_bytes=sum(pool.budget_bytes for pool in pools),
        moe_layers=[layer.index for layer in plan.layers],
        places=sources.places(session.dispatcher.view),
        heat=[] if sources.heat is None else sources.heat.shares(),
        events=sources.events(now_s),
        lack=runner.lack,
    )


def _request(number: int, live: Live, runner: Runner, now_s: float) -> RequestState:
    sequence = live.sequence
    place = runner.scheduler.place_of(number)
    return RequestState(
        number,
        live.request.client,
        place,
        now_s - live.arrived_s,
        sequence.num_prompt,
        min(sequence.cache.length, sequence.num_prompt),
        sequence.matched,
        len(sequence.tokens) - sequence.num_prompt,
        sequence.max_tokens,
        tuple(sequence.drafted),
        tuple(sequence.accepted),
    )


def _boxes(session: Session) -> list[BoxState]:
    standing = session.standing()
    plan = standing.view.plan
    activations = session.dispatcher.usage.activations
    total = sum(activations) or 1
    counts, sizes = plan.experts_per_tier().tolist(), plan.bytes_per_tier().tolist()
    found = []
    for index, worker in enumerate(plan.workers):
        own = [place for place, tier in enumerate(plan.tiers) if tier.worker == worker.name]
        word = "lost" if index in standing.dead else "late" if index in standing.suspects else "serving"
        found.append(
            BoxState(
                worker.name,
                worker.node,
                word,
                sum(counts[place] for place in own),
                sum(sizes[place] for place in own),
                sum(plan.tiers[place].budget_bytes for place in own),
                (activations[index] if index < len(activations) else 0) / total,
            )
        )
    return found
