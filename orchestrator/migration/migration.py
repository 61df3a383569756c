"""When experts move while a run goes on, and how: what comes and the time go in, actions come out.

Nothing here waits, plans or sends, so the same code runs under a virtual clock. docs/survival.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator.migration.batches import Batch, next_batch
from orchestrator.migration.online_routing import Lately
from placement.experts import Experts
from placement.holders import HolderTable
from placement.plan import Plan
from placement.units import size


@dataclass(frozen=True, slots=True)
class MigrationLimits:
    """What a move may take.

    Attributes:
        check_s: between two looks at the traffic.
        payback_s: within which a move must have brought more tokens than it cost.
        rate_bytes_per_s: at which one worker loads meanwhile; low enough that decoding is at most 10% slower.
        patience_s: for one step of a move, beyond the time that its bytes take at that rate.
    """

    check_s: float = 30.0
    payback_s: float = 600.0
    rate_bytes_per_s: int = 200_000_000
    patience_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Proposal:
    """What the planner says of the traffic.

    Attributes:
        reason: why to move, or why not, for people.
        target: where experts should be, None to stay.
        p_value: chance of a change as large as was seen if nothing had changed; None where nobody looked.
        payback_s: when the move would have paid; None where it would not.
    """

    reason: str
    target: HolderTable | None = None
    p_value: float | None = None
    payback_s: float | None = None


@dataclass(frozen=True, slots=True)
class Propose:
    """Let the planner look at the traffic, in its own time, and answer by `Migration.proposed`."""

    plan: Plan
    lately: Lately


@dataclass(frozen=True, slots=True)
class Give:
    """Order a worker to hold or drop experts; `number` is for `Migration.ordered`."""

    number: int
    worker: str
    experts: Experts
    rate_bytes_per_s: int = 0
    is_drop: bool = False


@dataclass(frozen=True, slots=True)
class Use:
    """Passes that begin from now on run under this plan."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class Moved:
    """All that was to move has moved: what comes is compared with the newest text from now on."""

    num_experts: int
    num_bytes: int
    reason: str


MigrationAction = Propose | Give | Use | Moved


class MigrationPhase(StrEnum):
    """What is going on; the values are for people."""

    WATCHING = "watching"
    PLANNING = "planning"
    LOADING = "loading"
    LETTING_GO = "letting go"


@dataclass(frozen=True, slots=True)
class MigrationState:
    """The last decision, for `potluck status`.

    Attributes:
        decided_s: when, on the clock that `tick` is given.
        moved_experts, moved_bytes: of the move that goes on, or of the last.
    """

    phase: MigrationPhase
    reason: str
    decided_s: float
    p_value: float | None = None
    payback_s: float | None = None
    moved_experts: int = 0
    moved_bytes: int = 0


@dataclass(slots=True)
class _Move:
    """A move that goes on. `waiting`: numbers of its orders that are not done."""

    proposal: Proposal
    target: HolderTable
    batch: Batch
    until_s: float
    waiting: set[int] = field(default_factory=set)
    num_experts: int = 0
    num_bytes: int = 0


class Migration:
    """Watches the traffic of one run and moves experts after it, a step at a time.

    A step loads experts on their new boxes, then passes begin under the plan that has them there, and when
    no pass under an older one is in flight their old boxes let go of them.

    Args:
        limits: what a move may take.
        room: bytes that a worker may hold for a while beyond what its plan says, by name.
    """

    def __init__(self, limits: MigrationLimits, room: Mapping[str, int], now_s: float) -> None:
        self._limits = limits
        self._room = room
        self._check_at_s = now_s + limits.check_s
        self._move: _Move | None = None
        self._next_number = 1
        self._plan: Plan | None = None
        self.state = MigrationState(MigrationPhase.WATCHING, "too early to see a change", now_s)

    def tick(
        self,
        now_s: float,
        plan: Plan,
        oldest_epoch: int,
        look: Callable[[], Lately],
        *,
        is_whole: bool,
    ) -> list[MigrationAction]:
        """What is due.

        Args:
            plan: in use now.
            oldest_epoch: of the plans in flight.
            look: at the traffic; called where it is time for that.
            is_whole: no worker is lost. Else nothing begins, and what had begun is given up.
        """
        self._plan = plan
        move = self._move
        if move is not None:
            return self._go_on(move, now_s, plan, oldest_epoch, is_whole=is_whole)
        if self.state.phase is MigrationPhase.PLANNING or now_s < self._check_at_s or not is_whole:
            return []
        self._check_at_s = now_s + self._limits.check_s
        lately = look()
        if not len(lately.before) or not len(lately.since):
            self._decide(now_s, MigrationPhase.WATCHING, "too little text yet to see a change")
            return []
        self._decide(now_s, MigrationPhase.PLANNING, "looking at the newest text")
        return [Propose(plan, lately)]

    def proposed(self, proposal: Proposal, plan: Plan, now_s: float) -> list[MigrationAction]:
        """The planner's answer to `Propose`; `plan` is in use now."""
        if self.state.phase is not MigrationPhase.PLANNING:
            return []
        self._check_at_s = now_s + self._limits.check_s
        if proposal.target is None:
            self._decide(now_s, MigrationPhase.WATCHING, proposal.reason, proposal)
            return []
        if proposal.payback_s is None or proposal.payback_s > self._limits.payback_s:
            when = "never" if proposal.payback_s is None else f"after {proposal.payback_s:.0f} s"
            reason = f"{proposal.reason}; not worth a move: it would pay {when}, not within "
            self._decide(now_s, MigrationPhase.WATCHING, f"{reason}{self._limits.payback_s:.0f} s", proposal)
            return []
        batch = next_batch(plan, proposal.target, self._room)
        if batch is None:
            is_there = proposal.target == plan.holder_table
            why = "all are there already" if is_there else "no box has memory for a single expert on its way"
            self._decide(now_s, MigrationPhase.WATCHING, f"{proposal.reason}; {why}", proposal)
            return []
        self._move = _Move(proposal, proposal.target, batch, 0.0)
        return self._load(self._move, now_s)

    def ordered(
        self, number: int, *, missing_bytes: int, refusal: str, now_s: float
    ) -> list[MigrationAction]:
        """An order is done, perhaps without memory for all of it, or refused for good."""
        move = self._move
        if move is None or number not in move.waiting:
            return []
        move.waiting.discard(number)
        if refusal or missing_bytes:
            why = refusal or f"{size(missing_bytes)} of memory were missing"
            return self._give_up(move, now_s, why)
        return []

    def not_used(self, why: str, now_s: float) -> list[MigrationAction]:
        """The plan of the last `Use` is not used after all."""
        move = self._move
        if move is None or self.state.phase is not MigrationPhase.LETTING_GO:
            return []
        move.num_experts -= move.batch.num_experts
        move.num_bytes -= move.batch.num_bytes
        return self._give_up(move, now_s, why)

    def end(self, now_s: float) -> None:
        """The run ends. What was loaded for a step that is not used, the next run has dropped."""
        move = self._move
        if move is not None:
            reason = f"{move.proposal.reason}; the run ended on the way"
            self._decide(now_s, MigrationPhase.WATCHING, reason, move.proposal, move)
            self._move = None
        elif self.state.phase is MigrationPhase.PLANNING:
            self._decide(now_s, MigrationPhase.WATCHING, "the run ended before the planner had an answer")

    def _go_on(
        self, move: _Move, now_s: float, plan: Plan, oldest_epoch: int, *, is_whole: bool
    ) -> list[MigrationAction]:
        if self.state.phase is MigrationPhase.LOADING:
            if not is_whole or plan.epoch >= move.batch.plan.epoch:
                return self._give_up(move, now_s, "a worker was lost or came back on the way")
            if now_s > move.until_s:
                return self._give_up(move, now_s, "loading took too long")
            if move.waiting:
                return []
            move.num_experts += move.batch.num_experts
            move.num_bytes += move.batch.num_bytes
            self._decide(now_s, MigrationPhase.LETTING_GO, move.proposal.reason, move.proposal, move)
            return [Use(move.batch.plan)]
        if oldest_epoch < move.batch.plan.epoch:
            return []
        drops: list[MigrationAction] = [
            self._order(name, experts, is_drop=True) for name, experts in _unused(move.batch.drops, plan)
        ]
        batch = None
        # After a loss the plan is another one, and the rest of the way may be none.
        if is_whole and plan.epoch == move.batch.plan.epoch:
            batch = next_batch(plan, move.target, self._room)
        if batch is None:
            return [*drops, *self._finish(move, now_s)]
        move.batch = batch
        return [*drops, *self._load(move, now_s)]

    def _load(self, move: _Move, now_s: float) -> list[MigrationAction]:
        """Begin a step."""
        limits = self._limits
        orders = [
            self._order(name, experts, rate_bytes_per_s=limits.rate_bytes_per_s)
            for name, experts in move.batch.holds.items()
        ]
        move.waiting = {order.number for order in orders}
        move.until_s = now_s + limits.patience_s + move.batch.num_bytes / max(limits.rate_bytes_per_s, 1)
        self._decide(now_s, MigrationPhase.LOADING, move.proposal.reason, move.proposal, move)
        return list(orders)

    def _give_up(self, move: _Move, now_s: float, why: str) -> list[MigrationAction]:
        """What was loaded for a plan that is not used is let go of, but for what the plan in use needs."""
        self._decide(
            now_s, MigrationPhase.WATCHING, f"{move.proposal.reason}; given up: {why}", move.proposal, move
        )
        self._move = None
        self._check_at_s = now_s + self._limits.check_s
        assert self._plan is not None
        unused = _unused(move.batch.holds, self._plan)
        return [self._order(name, experts, is_drop=True) for name, experts in unused]

    def _finish(self, move: _Move, now_s: float) -> list[MigrationAction]:
        self._decide(now_s, MigrationPhase.WATCHING, move.proposal.reason, move.proposal, move)
        self._move = None
        self._check_at_s = now_s + self._limits.check_s
        return [Moved(move.num_experts, move.num_bytes, move.proposal.reason)]

    def _order(
        self, worker: str, experts: Experts, *, rate_bytes_per_s: int = 0, is_drop: bool = False
    ) -> Give:
        number = self._next_number
        self._next_number += 1
        return Give(number, worker, experts, rate_bytes_per_s, is_drop)

    def _decide(
        self,
        now_s: float,
        phase: MigrationPhase,
        reason: str,
        proposal: Proposal | None = None,
        move: _Move | None = None,
    ) -> None:
        self.state = MigrationState(
            phase,
            reason,
            now_s,
            None if proposal is None else proposal.p_value,
            None if proposal is None else proposal.payback_s,
            0 if move is None else move.num_experts,
            0 if move is None else move.num_bytes,
        )


def _unused(orders: Mapping[str, Experts], plan: Plan) -> Iterator[tuple[str, Experts]]:
    """What `plan` does not have a worker hold, of experts by worker name."""
    for name, experts in orders.items():
        used = plan.experts_of(name)
        left = {
            layer: tuple(expert for expert in some if expert not in used.get(layer, ()))
            for layer, some in experts.items()
        }
        left = {layer: some for layer, some in left.items() if some}
        if left:
            yield name, left
