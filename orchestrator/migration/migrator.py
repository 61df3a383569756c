"""The thread around `Migration`: the clock, the watch over the workers, and the planner."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from types import TracebackType
from typing import Protocol, Self

from orchestrator.membership.events import Migrated, Tell
from orchestrator.membership.rescue import takes_on
from orchestrator.membership.standing import Standing
from orchestrator.migration.migration import (
    Give,
    Migration,
    MigrationAction,
    MigrationState,
    Proposal,
    Propose,
    Use,
)
from orchestrator.migration.online_routing import OnlineRouting
from placement.experts import Experts
from placement.files.quote import one_line
from placement.plan import Plan
from transport.messages import Held

_TICK_S = 0.1


class Watch(Protocol):
    """What of `ClusterWatch` a migration uses."""

    def standing(self) -> Standing: ...

    def order(
        self, name: str, experts: Experts, *, rate_bytes_per_s: int = 0, is_drop: bool = False
    ) -> int: ...

    def ordered(self, number: int) -> Held | None: ...

    def refusal(self, number: int) -> str: ...


class Migrator:
    """Moves experts after the traffic while the context lasts.

    Args:
        oldest_epoch: of the views that passes in flight have (`Dispatcher.epoch`).
        routing: the run's recorder.
        propose: the planner; it runs in `apart`, so that tokens do not wait for it.
        use: has passes run under another plan; gives why not, where they do not.
        note: told of every new decision.
    """

    def __init__(
        self,
        migration: Migration,
        watch: Watch,
        oldest_epoch: Callable[[], int],
        routing: OnlineRouting,
        propose: Callable[[Propose], Proposal],
        apart: Executor,
        *,
        use: Callable[[Plan], str],
        tell: Tell,
        note: Callable[[MigrationState], None],
    ) -> None:
        self._migration = migration
        self._watch = watch
        self._oldest_epoch = oldest_epoch
        self._routing = routing
        self._propose = propose
        self._apart = apart
        self._use = use
        self._tell = tell
        self._note = note
        self._noted: MigrationState | None = None
        self._asked: Future[Proposal] | None = None
        self._orders: dict[int, int] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="migration", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        self._migration.end(time.monotonic())
        self._tell_state()

    def _run(self) -> None:
        while not self._stopping.wait(_TICK_S):
            self.step(time.monotonic())

    def step(self, now_s: float) -> None:
        """Take in what has come, and do what is due."""
        standing = self._watch.standing()
        plan = standing.view.plan
        # A suspicion may be false, and is no reason to give up what was loaded.
        is_whole = not (standing.dead or takes_on(plan))
        for number, theirs in list(self._orders.items()):
            held, refusal = self._watch.ordered(theirs), self._watch.refusal(theirs)
            if refusal or (held is not None and held.done):
                del self._orders[number]
                missing_bytes = 0 if held is None else held.missing_bytes
                self._act(
                    self._migration.ordered(
                        number, missing_bytes=missing_bytes, refusal=refusal, now_s=now_s
                    ),
                    now_s,
                )
        if self._asked is not None and self._asked.done():
            asked, self._asked = self._asked, None
            self._act(self._migration.proposed(_answer(asked), plan, now_s), now_s)
        self._act(
            self._migration.tick(now_s, plan, self._oldest_epoch(), self._routing.lately, is_whole=is_whole),
            now_s,
        )
        self._tell_state()

    def _ask(self, action: Propose) -> Future[Proposal]:
        """Have the planner look. Where its process has ended, experts stay where they are."""
        try:
            return self._apart.submit(self._propose, action)
        except BrokenExecutor as error:
            failed: Future[Proposal] = Future()
            failed.set_exception(error)
            return failed

    def _tell_state(self) -> None:
        if self._migration.state is not self._noted:
            self._noted = self._migration.state
            self._note(self._noted)

    def _act(self, actions: list[MigrationAction], now_s: float) -> None:
        for action in actions:
            if isinstance(action, Propose):
                self._asked = self._ask(action)
            elif isinstance(action, Give):
                self._orders[action.number] = self._watch.order(
                    action.worker,
                    action.experts,
                    rate_bytes_per_s=action.rate_bytes_per_s,
                    is_drop=action.is_drop,
                )
            elif isinstance(action, Use):
                why_not = self._use(action.plan)
                if why_not:
                    self._act(self._migration.not_used(why_not, now_s), now_s)
            else:
                self._routing.planned()
                self._tell(Migrated(action.num_experts, action.num_bytes, action.reason))


def _answer(asked: Future[Proposal]) -> Proposal:
    """The planner's. That it fails, or is killed for memory, is a reason to stay and none to end."""
    try:
        return asked.result()
    except Exception as error:
        return Proposal(f"nobody knows where to move experts: the planner failed: {one_line(str(error))}")
