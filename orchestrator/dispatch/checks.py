"""Spot checks as a dispatcher makes them: answers are kept, computed by others as well, and compared.

Which requests are checked and who was wrong is `spot_check.py`'s to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from orchestrator.dispatch.asked import Asked, rows_of
from orchestrator.dispatch.debts import Ints
from orchestrator.dispatch.pass_lost import PassLost
from orchestrator.dispatch.spot_check import Answer, SpotCheck, differing_row, wrong_answers
from orchestrator.dispatch.usage import Usage
from orchestrator.dispatch.view import ClusterView
from orchestrator.membership.events import Liar, Tell
from placement.errors import ModelFilesFailed, NonFiniteError
from transport.expert_rows import ExpertRows
from transport.messages import ForwardReply

SumByOthers = Callable[[int, ExpertRows, int, list[Answer], float], tuple[Ints, Ints]]
"""(layer, rows, worker not to ask, answers so far, until when) -> sums and the scale exponents they are on.

It appends each answer as it comes, so that they are known where it raises: `PassLost` where nobody else holds
the experts or time is up, `NonFiniteError` where a row fits no grid.
"""

# What a check may keep a step waiting: this, and so much for each (row, expert) pair.
_CHECK_S = 0.5
_CHECK_PAIR_S = 0.005


class Checks:
    """Has others compute some requests, too.

    Args:
        spot_check: which requests, and who decides where answers differ.
        usage: counts the checks.
        tell: takes who lied.
    """

    def __init__(
        self,
        spot_check: SpotCheck,
        sum_by_others: SumByOthers,
        usage: Usage,
        tell: Tell | None,
        clock: Callable[[], float],
    ) -> None:
        self._spot_check = spot_check
        self._sum_by_others = sum_by_others
        self._usage = usage
        self._tell = tell
        self._clock = clock

    def note(self, asked: Asked, worker: int, reply: ForwardReply) -> None:
        """Keep an answer that is to be checked, or that checks another."""
        if asked.until_s is None and not self._spot_check.chooses(reply.request_id):
            return
        ask = asked.work.asked(worker, reply.request_id)
        if ask is not None and reply.values.shape == (len(ask.rows), asked.work.hidden_size):
            asked.noted.append(Answer(ask, reply.values, reply.saturated))

    def check(self, asked: Asked, view: ClusterView) -> None:
        """Have others compute what was noted; where nobody else holds its experts, let it be.

        Raises:
            PassLost: a worker was wrong; it is told who.
            ModelFilesFailed: this process was.
        """
        for answer in asked.noted:
            self._check(answer, asked, view)

    def _check(self, answer: Answer, asked: Asked, view: ClusterView) -> None:
        ask, layer = answer.ask, asked.layer
        rows = rows_of(ask, asked.rows, asked.rows.hidden)
        until_s = self._clock() + _CHECK_S + ask.pairs * _CHECK_PAIR_S
        others: list[Answer] = []
        try:
            place = differing_row(answer, *self._sum_by_others(layer, rows, ask.worker, others, until_s))
        except PassLost:
            return
        except NonFiniteError:
            # One of them said of a row that it is too large for any grid.
            place = next(int(o.ask.rows[o.saturated][0]) for o in others if o.saturated.any())
        self._usage.checked += 1
        if place is None:
            return
        # From here on a row is one of the checked request, also in the answer that began it.
        first = replace(answer, ask=ask._replace(rows=np.arange(len(ask.rows))))
        wrong = wrong_answers(self._spot_check.arbiter, layer, rows, place, [first, *others])
        # By worker, the first of its wrong answers: it may have flagged the row on one grid after another.
        liars = {found.ask.worker: found.ask.request_id for found in reversed(wrong)}
        if view.local_worker in liars:
            raise ModelFilesFailed(
                f"layer {layer}: this process computes something else than its model's files say; "
                "expected the same: check its memory, and the files by `potluck verify`"
            )
        if self._tell is not None:
            for worker in sorted(liars):
                self._tell(Liar(view.names[worker], liars[worker], f"layer {layer}"))
        if liars:
            names = ", ".join(view.names[worker] for worker in sorted(liars))
            raise PassLost(layer, f"layer {layer}: wrong numbers from {names}", refused=True)


def give_up_waiting(check: Asked, suspects: frozenset[int], now_s: float) -> None:
    """A check is not worth waiting for a worker that does not get on.

    Raises:
        PassLost: it would be waited for.
    """
    if check.work.owing() & suspects:
        raise PassLost(check.layer, "a check is not worth waiting for a silent worker")
    if check.until_s is not None and now_s >= check.until_s:
        raise PassLost(check.layer, "a check is not worth waiting for a slow worker")
