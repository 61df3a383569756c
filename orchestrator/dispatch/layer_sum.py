"""What one MoE layer is still owed: whom to ask, what is outstanding, when to ask again.

No sockets and no clock: messages and the time go in, asks come out. A worker is a box: it is asked once,
whatever devices it has, and it is lost as one. The experts of this process are one worker among others, the
only one where nothing lives elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.dispatch.debts import Ask, Attempt, Debt, Ints, OpenRequest, Rows
from orchestrator.dispatch.pass_lost import PassLost
from orchestrator.dispatch.running_sum import RunningSum
from orchestrator.dispatch.sharing import Share, chosen_workers, shares
from orchestrator.dispatch.signs import Sign, hangs, note_carried, read_sign
from orchestrator.dispatch.terms import ALL_WELL, Around, Choose, Terms
from orchestrator.membership.events import Event, GaveUp, Hedged, Refused, Retried
from placement.errors import NonFiniteError

_LEAST_CARRIED_BYTES = 16384


class Reopen(NamedTuple):
    """Messages to or from `worker` are lost though it lives: reach it over a new connection."""

    worker: int


Action = Ask | Reopen


class LayerSum:
    """The sum of one MoE layer's routed experts, collected from the workers that hold them.

    It works in rounds. In the first, every row is asked for on its own grid. If a worker finds a row too
    large for the grid, the next round asks everybody for that row again, on a coarser grid. Whether a row is
    too large depends on its experts and not on who computes them. So the result does not depend on that
    either.

    Within a round, what each worker is asked for is a debt. It is added to the sum exactly once, by the first
    attempt that is complete. Each time it is asked again, the requests have fresh numbers, so an answer can
    never be taken for another one's. A refusal, a broken answer or a lost message costs its attempt only.

    Args:
        layer: layer index, for messages.
        expert_ids: [num_tokens, top_k].
        scale_exponents: [num_tokens], grid unit 2^e of each token.
        hidden_size: elements of a row.
        choose: picks a worker for every (token, expert), some workers left out.
        terms: what all layers of a pass share.
        around: what is known of the workers at the beginning.
    """

    __slots__ = (
        "_complaints",
        "_expert_ids",
        "_given_up",
        "_later",
        "_open",
        "_round",
        "_sum",
        "_ticked_s",
        "_why_lost",
        "around",
        "choose",
        "coarsened_rows",
        "hidden_size",
        "layer",
        "scale_exponents",
        "terms",
    )

    def __init__(
        self,
        layer: int,
        expert_ids: Ints,
        scale_exponents: Ints,
        hidden_size: int,
        choose: Choose,
        terms: Terms,
        around: Around = ALL_WELL,
    ) -> None:
        self.layer = layer
        self.scale_exponents = scale_exponents
        self.hidden_size = hidden_size
        self.choose = choose
        self.terms = terms
        self.around = around
        self.coarsened_rows = 0
        self._expert_ids = expert_ids
        self._sum = RunningSum(len(expert_ids), hidden_size)
        self._open: dict[int, OpenRequest] = {}
        self._later: list[tuple[float, Debt]] = []
        self._given_up: set[int] = set()
        self._round = 0
        self._complaints: dict[int, str] = {}
        self._why_lost = ""
        self._ticked_s = -math.inf

    @property
    def finished(self) -> bool:
        return not self._open and not self._later

    def owing(self) -> set[int]:
        """Workers that owe an answer."""
        return {request.ask.worker for request in self._open.values()}

    def asked(self, worker: int, request_id: int) -> Ask | None:
        """What was asked of `worker` by this number, None where no answer to it is awaited."""
        request = self._open.get(request_id)
        return request.ask if request is not None and request.ask.worker == worker else None

    def result(self) -> tuple[Ints, Ints]:
        """The exact int32 sums [num_tokens, hidden_size] and the scale exponents [num_tokens] they are on."""
        return self._sum.values(), self.scale_exponents

    def begin(self, now_s: float) -> list[Action]:
        """The first requests.

        Raises:
            PassLost: an expert has no holder.
        """
        return self._share_out(np.arange(len(self._expert_ids)), self._expert_ids, now_s)

    def partial(
        self, worker: int, request_id: int, values: Ints, saturated: NDArray[np.bool_], now_s: float
    ) -> list[Action]:
        """Take one worker's partial sum: values [n, hidden_size], saturated [n].

        An answer nobody waits for (late, doubled, or to an earlier layer) is dropped. One of another shape
        than the asked one is a broken answer.

        Raises:
            NonFiniteError: a row does not fit any grid.
            PassLost: see `refused`.
        """
        request = self._open.get(request_id)
        if request is None or request.ask.worker != worker:
            return []
        ask, attempt = request.ask, request.attempt
        num_rows = len(ask.rows)
        if values.shape != (num_rows, self.hidden_size) or saturated.shape != (num_rows,):
            reason = (
                f"an answer of shape {values.shape} where {(num_rows, self.hidden_size)} was asked for; "
                "is it of the same version?"
            )
            return self.refused(worker, request_id, reason, now_s)
        if worker != self.terms.local:
            self.terms.pace.note(worker, ask.pairs, now_s - request.asked_s, now_s)
        del self._open[request_id]
        attempt.open_ids.remove(request_id)
        debt = attempt.debt
        if attempt.open_ids or attempt.values is not None:
            attempt.add_part(ask, values, saturated)
            if attempt.open_ids:
                return []
            values, saturated = attempt.parts()
        for other in debt.attempts:
            for open_id in other.open_ids:
                overtaken = self._open.pop(open_id)
                if now_s >= overtaken.late_s:
                    late = overtaken.ask
                    self.terms.pace.overtaken(late.worker, late.pairs, now_s - overtaken.asked_s, now_s)
        if self._later:
            self._later = [(at_s, owed) for at_s, owed in self._later if owed is not debt]
        self._sum.add(debt.rows, values, saturated)
        return [] if self._open or self._later else self._next_round(now_s)

    def busy(self, worker: int, request_id: int, now_s: float) -> list[Action]:
        """`worker` had no room for the request, which is asked again a little later, or of another now.

        Raises:
            PassLost: see `refused`.
        """
        request = self._open.get(request_id)
        if request is None or request.ask.worker != worker:
            return []
        return self._lose([request], now_s, pause_s=self.terms.patience.busy_retry_s)

    def refused(self, worker: int, request_id: int, reason: str, now_s: float) -> list[Action]:
        """`worker` will not or cannot compute a request, or its answer is broken.

        It is asked of others, or again. `request_id` is 0 if nobody could tell which request it was: then
        every one that it owes counts as refused. What nobody waits for any more is dropped.

        Raises:
            PassLost: the worker has refused several times, and nobody else holds those experts.
        """
        owed = [
            request
            for open_id, request in self._open.items()
            if request.ask.worker == worker and request_id in (open_id, 0)
        ]
        if not owed:
            return []
        where = f"layer {self.layer}: "
        reason = where + reason.removeprefix(where)
        self._complaints[worker] = f"refused {reason}"
        self._say(Refused(self.terms.names[worker], reason))
        for request in owed:
            refused = request.attempt.debt.refused
            refused[worker] = refused.get(worker, 0) + 1
        return self._lose(owed, now_s, pause_s=self.terms.patience.busy_retry_s)

    def tick(self, now_s: float, around: Around) -> list[Action]:
        """What is due at `now_s`, and what follows from the news of the workers.

        Call it when what has come was taken, for an answer that waits to be taken may look lost.

        Raises:
            PassLost: an expert has no holder left, or none but suspects while the newest view has others.
        """
        self.around = around
        self._ticked_s = now_s
        actions: list[Action] = []
        lost = [request for request in self._open.values() if self._is_lost(request, now_s)]
        if lost:
            for request in lost:
                worker = request.ask.worker
                if worker not in around.gone and worker not in self._given_up:
                    # Who loses much is slow: others are preferred.
                    self.terms.pace.overtaken(worker, request.ask.pairs, now_s - request.asked_s, now_s)
                    count = request.attempt.debt.lost
                    count[worker] = count.get(worker, 0) + 1
                    if count[worker] == 2:
                        actions.append(Reopen(worker))
            actions += self._lose(lost, now_s)
        if self._later:
            due = [debt for at_s, debt in self._later if at_s <= now_s]
            self._later = [(at_s, debt) for at_s, debt in self._later if at_s > now_s]
            for debt in due:
                actions += self._ask_again(debt, now_s)
        for debt in {request.attempt.debt: None for request in list(self._open.values())}:
            actions += self._ask_others(debt, now_s)
        return actions

    def doubted(self) -> set[int]:
        """Workers to or from whom something may be lost, or still on its way."""
        return {request.ask.worker for request in self._open.values() if request.doubted_s < math.inf}

    def carried(self, worker: int, num_bytes: int, now_s: float) -> None:
        """What the connection to `worker` has carried so far: what is in doubt may come over a slow link."""
        open_there = [request for request in self._open.values() if request.ask.worker == worker]
        # Twice their float32 rows and int32 answers: what was asked before may be on its way too.
        most_bytes = _LEAST_CARRIED_BYTES + sum(
            2 * (4 + 4) * self.hidden_size * len(request.ask.rows) for request in open_there
        )
        for request in open_there:
            if request.doubted_s < math.inf:
                note_carried(request, num_bytes, most_bytes, self._way_s(request), now_s)

    def wake_at_s(self) -> float:
        """The latest time by which `tick` must be called again; infinity when nothing is due."""
        wake_s = math.inf
        for at_s, _ in self._later:
            wake_s = min(wake_s, at_s)
        for request in self._open.values():
            if request.late_s > self._ticked_s and not request.attempt.debt.is_late:
                wake_s = min(wake_s, request.late_s)
            if request.doubted_s < math.inf:
                wake_s = min(wake_s, request.doubted_s + self._way_s(request))
        return wake_s

    def _is_lost(self, request: OpenRequest, now_s: float) -> bool:
        """Whether no answer will come to a request, as far as the worker's pulse tells."""
        worker = request.ask.worker
        if worker == self.terms.local:
            return False
        if worker in self.around.gone or worker in self._given_up:
            return True
        pong = self.around.pongs.get(worker)
        sign = read_sign(request, pong, self.terms, self._way_s(request), now_s)
        if sign is Sign.HANGS and pong is not None:
            self._give_up(worker, f"it has computed one request for {pong.computing_s:.0f} s")
        elif sign is Sign.IDLE:
            self._complaints[worker] = "has a request and does not compute it"
            refused = request.attempt.debt.refused
            refused[worker] = refused.get(worker, 0) + 1
        return sign is not Sign.WELL

    def _way_s(self, request: OpenRequest) -> float:
        """How long what is in doubt may still be on its way; twice as long after each loss."""
        ask = request.ask
        losses = request.attempt.debt.lost.get(ask.worker, 0)
        return self.terms.patience.transfer_s(4 * self.hidden_size * len(ask.rows)) * 2.0**losses

    def _give_up(self, worker: int, why: str) -> None:
        self._given_up.add(worker)
        self._why_lost = f"worker '{self.terms.names[worker]}' is given up: {why}"
        self._say(GaveUp(self.terms.names[worker], why))

    def _lose(self, requests: Sequence[OpenRequest], now_s: float, pause_s: float = 0.0) -> list[Action]:
        """Give up the attempts of some requests, and ask again for debts that have no other one."""
        actions: list[Action] = []
        for request in requests:
            attempt = request.attempt
            debt = attempt.debt
            if attempt not in debt.attempts:
                continue
            for open_id in attempt.open_ids:
                del self._open[open_id]
            debt.attempts.remove(attempt)
            # What was asked in a late one's place is lost: others may be asked again.
            debt.is_late = False
            if not debt.attempts:
                actions += self._ask_again(debt, now_s, request, pause_s)
        return actions

    def _ask_again(
        self, debt: Debt, now_s: float, lost: OpenRequest | None = None, pause_s: float = 0.0
    ) -> list[Action]:
        """A debt that nobody is asked for now: of others where they hold it all, else of the same again."""
        gone = self._gone()
        tried = frozenset(debt.refused) if lost is None else frozenset(debt.refused) | {lost.ask.worker}
        chosen = self._choose(debt.expert_ids, gone, tried | self.around.suspects)
        workers = chosen_workers(chosen, debt.expert_ids)
        for worker in workers:
            if why := self._why_hopeless(debt, worker):
                self._give_up(worker, why)
                return self._ask_again(debt, now_s, lost, pause_s)
        if workers and workers[0] < 0:
            raise self._pass_lost(debt.expert_ids, chosen, gone)
        if pause_s and tried.intersection(workers):
            self._later.append((now_s + pause_s, debt))
            return []
        if lost is not None and not pause_s:
            self._retried(lost.ask.worker, workers, gone)
        return self._attempt(debt, chosen, workers, now_s)

    def _why_hopeless(self, debt: Debt, worker: int) -> str:
        """Why it is no use to ask a worker for a debt again; empty where it may be."""
        if debt.refused.get(worker, 0) >= self.terms.patience.refusals:
            return f"it {self._complaints.get(worker, 'refuses')}"
        if debt.lost.get(worker, 0) >= self.terms.patience.losses:
            return "requests to it or its answers are lost again and again"
        pong = self.around.pongs.get(worker)
        if pong is not None and hangs(pong, self.terms):
            # One whose queue is full answers at once that it is, also when it hangs.
            return f"it has computed what was asked before for {pong.computing_s:.0f} s"
        return ""

    def _ask_others(self, debt: Debt, now_s: float) -> list[Action]:
        """One attempt more, of others, if all that were asked are suspect or late."""
        asked = set()
        late = suspect = False
        for attempt in debt.attempts:
            waits = False
            for open_id in attempt.open_ids:
                request = self._open[open_id]
                worker = request.ask.worker
                asked.add(worker)
                if worker == self.terms.local:
                    return []
                if worker in self.around.suspects:
                    suspect = waits = True
                elif now_s >= request.late_s:
                    late = waits = True
            if not waits:
                return []
        if not suspect:
            if debt.is_late or not late:
                return []
            # Once: who else is late is one of those that were asked in its place.
            debt.is_late = True
        gone = self._gone()
        chosen = self.choose(debt.expert_ids, gone | asked | self.around.suspects | frozenset(debt.refused))
        workers = chosen_workers(chosen, debt.expert_ids)
        if not workers or workers[0] < 0:
            if suspect and self.around.is_mended:
                silent = ", ".join(f"'{self.terms.names[worker]}'" for worker in sorted(asked))
                raise PassLost(self.layer, f"worker {silent} is silent, and others hold its experts by now")
            return []
        names = tuple(self.terms.names[worker] for worker in workers)
        slow = self.terms.names[min(asked)]
        if late:
            self._say(Hedged(slow, self.layer, names))
        else:
            self._say(Retried(slow, self.layer, f"worker {slow} is silent", names))
        return self._attempt(debt, chosen, workers, now_s)

    def _retried(self, worker: int, workers: Sequence[int], gone: frozenset[int]) -> None:
        name = self.terms.names[worker]
        why = f"worker {name} is lost" if worker in gone else f"a message to or from worker {name} was lost"
        self._say(Retried(name, self.layer, why, tuple(self.terms.names[index] for index in workers)))

    def _say(self, event: Event) -> None:
        if self.terms.tell is not None:
            self.terms.tell(event)

    def _gone(self) -> frozenset[int]:
        return self.around.gone | self._given_up if self._given_up else self.around.gone

    def _choose(self, expert_ids: Ints, gone: frozenset[int], shunned: frozenset[int]) -> NDArray[np.integer]:
        """A holder of each, one of `shunned` only where no other is left."""
        if not shunned <= gone:
            chosen = self.choose(expert_ids, gone | shunned)
            if not ((chosen < 0) & (expert_ids >= 0)).any():
                return chosen
            return np.where(chosen < 0, self.choose(expert_ids, gone), chosen)
        return self.choose(expert_ids, gone)

    def _pass_lost(self, expert_ids: Ints, chosen: NDArray[np.integer], gone: frozenset[int]) -> PassLost:
        missing = int(expert_ids[(chosen < 0) & (expert_ids >= 0)][0])
        if self._given_up:
            return PassLost(self.layer, self._why_lost, refused=True)
        names = ", ".join(f"'{self.terms.names[index]}'" for index in sorted(gone))
        held = f"lost worker {names} held it and no other worker does" if gone else "no worker holds it"
        return PassLost(self.layer, f"layer {self.layer} expert {missing}: {held}")

    def _share_out(self, rows: Rows, expert_ids: Ints, now_s: float) -> list[Action]:
        """New debts, one a worker and message, each asked for once."""
        gone = self._gone()
        chosen = self._choose(expert_ids, gone, self.around.suspects)
        workers = chosen_workers(chosen, expert_ids)
        if workers and workers[0] < 0:
            raise self._pass_lost(expert_ids, chosen, gone)
        return [
            self._send(Debt(share.rows, share.expert_ids).begin(), share, now_s)
            for share in shares(rows, expert_ids, chosen, workers, self.terms.max_rows)
        ]

    def _attempt(
        self, debt: Debt, chosen: NDArray[np.integer], workers: Sequence[int], now_s: float
    ) -> list[Action]:
        """One more attempt at a debt, in as many parts as workers were chosen."""
        attempt = debt.begin()
        parts = shares(debt.rows, debt.expert_ids, chosen, workers, self.terms.max_rows)
        return [self._send(attempt, share, now_s) for share in parts]

    def _send(self, attempt: Attempt, share: Share, now_s: float) -> Ask:
        worker, rows, expert_ids, pairs = share
        exponents = self.scale_exponents
        if len(rows) != len(exponents):
            exponents = exponents[rows]
        terms = self.terms
        ask = Ask(worker, next(terms.request_ids), rows, expert_ids, exponents, pairs)
        late_s = math.inf if worker == terms.local else now_s + terms.pace.late_after_s(worker, pairs)
        terms.pace.asks(ask.request_id, pairs)
        self._open[ask.request_id] = OpenRequest(ask, attempt, now_s, late_s)
        attempt.open_ids.append(ask.request_id)
        return ask

    def _next_round(self, now_s: float) -> list[Action]:
        rows = self._sum.take_saturated()
        if rows is None:
            return []
        self._round += 1
        if self._round > self.terms.max_coarsenings:
            chosen = sorted(self._expert_ids[rows[0]].tolist())
            ids = ", ".join(str(expert) for expert in chosen if expert >= 0)
            raise NonFiniteError(
                f"layer {self.layer}: one of its routed experts {ids} gives numbers that are not finite; "
                f"{NonFiniteError.REMEDY}"
            )
        self.coarsened_rows += len(rows)
        self.scale_exponents = self.scale_exponents.copy()
        self.scale_exponents[rows] = self.terms.coarser(self.scale_exponents[rows])
        return self._share_out(rows, self._expert_ids[rows], now_s)
