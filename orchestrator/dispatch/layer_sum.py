"""What one MoE layer is still owed: whom to ask, what is outstanding, when to give up.

No sockets and no clock: messages and the time go in, asks and probes come out. A worker is a box: it is asked
once, whatever devices it has, and it is lost as one. The experts of this process are one worker among others,
the only one where nothing lives elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from placement.errors import NonFiniteError, WorkerLost, WorkerRefused
from placement.patience import Patience

Ints = NDArray[np.int32]
Rows = NDArray[np.intp]
Choose = Callable[[Ints, frozenset[int]], NDArray[np.integer]]
"""(expert_ids [n, top_k], lost workers) -> worker index [n, top_k], -1 where nobody is left."""


class Ask(NamedTuple):
    """Ask `worker` for the partial sum of `rows`: expert_ids [n, top_k], -1 where not its to compute."""

    worker: int
    request_id: int
    rows: Rows
    expert_ids: Ints
    scale_exponents: Ints


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask `worker` for a sign of life."""

    worker: int


Action = Ask | Probe


@dataclass(slots=True)
class _Watch:
    """One worker's silence: when it was last heard, and when it was last probed, if ever."""

    heard_s: float
    probed_s: float = -math.inf


@dataclass(slots=True)
class LayerSum:
    """The sum of one MoE layer's routed experts, collected from the workers that hold them.

    It works in rounds. In the first, every row is asked for on its own grid. If a worker finds a row too
    large for the grid, the next round asks everybody for that row again, on a coarser grid. Whether a row is
    too large depends on its experts and not on who computes them. So the result does not depend on that
    either.

    Args:
        layer: layer index, for messages.
        expert_ids: [num_tokens, top_k].
        scale_exponents: [num_tokens], grid unit 2^e of each token.
        hidden_size: elements of a row.
        names: worker names by index.
        choose: picks a worker for every (token, expert) among those not lost.
        request_ids: fresh request numbers.
        coarser: scale exponents of the next round, from those that saturated.
        max_coarsenings: rounds after the first, before a row counts as not finite.
        max_rows: of one message; more rows go in several.
        lost: workers already known to be gone; shared with the caller, which keeps it across layers.
    """

    layer: int
    expert_ids: Ints
    scale_exponents: Ints
    hidden_size: int
    names: Sequence[str]
    choose: Choose
    request_ids: Iterator[int]
    coarser: Callable[[Ints], Ints]
    max_coarsenings: int
    max_rows: int
    patience: Patience = field(default_factory=Patience)
    lost: set[int] = field(default_factory=set)
    coarsened_rows: int = field(init=False, default=0)
    _num_rows: int = field(init=False)
    _sum: Ints | None = field(init=False, default=None)
    _sum_is_ours: bool = field(init=False, default=False)
    _owed: dict[int, Ask] = field(init=False, default_factory=dict)
    _watched: dict[int, _Watch] = field(init=False, default_factory=dict)
    _later: list[tuple[float, Ask]] = field(init=False, default_factory=list)
    _saturated: NDArray[np.bool_] | None = field(init=False, default=None)
    _round: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._num_rows = len(self.expert_ids)

    @property
    def finished(self) -> bool:
        return not self._owed and not self._later

    def owing(self) -> set[int]:
        """Workers that owe an answer."""
        return {ask.worker for ask in self._owed.values()}

    def result(self) -> tuple[Ints, Ints]:
        """The exact int32 sums [num_tokens, hidden_size] and the scale exponents [num_tokens] they are on."""
        if self._sum is None:  # no row chose any expert
            self._sum = np.zeros((self._num_rows, self.hidden_size), np.int32)
        return self._sum, self.scale_exponents

    def begin(self, now_s: float) -> list[Action]:
        return self._ask(np.arange(self._num_rows), self.expert_ids, now_s)

    def partial(
        self, worker: int, request_id: int, values: Ints, saturated: NDArray[np.bool_], now_s: float
    ) -> list[Action]:
        """Take one worker's partial sum: values [n, hidden_size], saturated [n].

        An answer nobody waits for (late, or to an earlier layer) is dropped.

        Raises:
            WorkerRefused: the answer's shape is not the asked one.
            NonFiniteError: a row does not fit any grid.
        """
        self.heard(worker, now_s)
        ask = self._owed.get(request_id)
        if ask is None or ask.worker != worker:
            return []
        num_rows = len(ask.rows)
        if values.shape != (num_rows, self.hidden_size) or saturated.shape != (num_rows,):
            raise WorkerRefused(
                f"worker '{self.names[worker]}' answered layer {self.layer} with shape {values.shape}; "
                f"expected {(num_rows, self.hidden_size)}. Is it of the same version?"
            )
        del self._owed[request_id]
        self._add(ask.rows, values)
        if 1 in saturated.tobytes():  # several times as fast as any() for the few rows of a decode step
            if self._saturated is None:
                self._saturated = np.zeros(self._num_rows, np.bool_)
            self._saturated[ask.rows] |= saturated
        return [] if self._owed or self._later else self._next_round(now_s)

    def heard(self, worker: int, now_s: float) -> None:
        """Any message from `worker` shows that it lives."""
        watch = self._watched.get(worker)
        if watch is not None:
            watch.heard_s = now_s

    def busy(self, worker: int, request_id: int, now_s: float) -> None:
        """`worker` had no room for the request; it is sent again a little later."""
        self.heard(worker, now_s)
        ask = self._owed.pop(request_id, None)
        if ask is not None:
            self._later.append((now_s + self.patience.busy_retry_s, ask))

    def refused(self, worker: int, request_id: int, reason: str, now_s: float) -> None:
        """`worker` will not or cannot compute a request.

        `request_id` is 0 if the worker could not tell which request it was. A refusal of an earlier layer's
        request is dropped, because nobody waits for that any more.

        Raises:
            WorkerRefused: the request is owed.
        """
        self.heard(worker, now_s)
        owed = {ask.request_id for ask in self._owed.values() if ask.worker == worker}
        if request_id in owed or (owed and request_id == 0):
            raise WorkerRefused(f"worker '{self.names[worker]}' refused layer {self.layer}: {reason}")

    def gone(self, worker: int, now_s: float) -> list[Action]:
        """`worker` is lost: ask the other holders for what it owed.

        Raises:
            WorkerLost: an expert it owed has no other holder.
        """
        self.lost.add(worker)
        self._watched.pop(worker, None)
        orphans = [ask for ask in self._owed.values() if ask.worker == worker]
        orphans += [ask for _, ask in self._later if ask.worker == worker]
        self._later = [(at_s, ask) for at_s, ask in self._later if ask.worker != worker]
        actions: list[Action] = []
        for ask in orphans:
            self._owed.pop(ask.request_id, None)
            actions += self._ask(ask.rows, ask.expert_ids, now_s)
        return actions

    def tick(self, now_s: float) -> list[Action]:
        """What is due at `now_s`: requests put off by a busy worker, probes, and losses."""
        due = [ask for at_s, ask in self._later if at_s <= now_s]
        self._later = [(at_s, ask) for at_s, ask in self._later if at_s > now_s]
        actions: list[Action] = []
        for ask in due:
            self._owed[ask.request_id] = ask
            actions.append(ask)
        for worker, watch in self._owing():
            if now_s >= watch.heard_s + self.patience.silent_s:
                if watch.probed_s >= watch.heard_s:
                    actions += self.gone(worker, now_s)
                else:  # this process was busy and nobody has listened: silence counts from now
                    watch.heard_s = watch.probed_s = now_s
                    actions.append(Probe(worker))
            elif now_s >= max(watch.heard_s, watch.probed_s) + self.patience.probe_after_s:
                watch.probed_s = now_s
                actions.append(Probe(worker))
        return actions

    def wake_at_s(self) -> float:
        """The latest time by which `tick` must be called again; infinity when nothing is owed."""
        times = [at_s for at_s, _ in self._later]
        for _, watch in self._owing():
            times.append(watch.heard_s + self.patience.silent_s)
            times.append(max(watch.heard_s, watch.probed_s) + self.patience.probe_after_s)
        return min(times, default=float("inf"))

    def _owing(self) -> list[tuple[int, _Watch]]:
        owing = self.owing()
        return [(worker, watch) for worker, watch in self._watched.items() if worker in owing]

    def _add(self, rows: Rows, values: Ints) -> None:
        whole = len(rows) == self._num_rows
        if self._sum is None and whole:
            # Often the only answer. It may lie in a frame that came: it is read and not written to.
            self._sum = values
            return
        if self._sum is None:
            self._sum = np.zeros((self._num_rows, self.hidden_size), np.int32)
        elif not self._sum_is_ours:
            self._sum = self._sum.copy()
        self._sum_is_ours = True
        if whole:
            self._sum += values
        else:
            self._sum[rows] += values

    def _ask(self, rows: Rows, expert_ids: Ints, now_s: float) -> list[Action]:
        chosen = self.choose(expert_ids, frozenset(self.lost))
        # Plain numbers: for the few of a decode step a third of the time that arrays take.
        ids = expert_ids.ravel().tolist()
        pairs = zip(ids, chosen.ravel().tolist(), strict=True)
        workers = sorted({worker for expert, worker in pairs if expert >= 0})
        if len(workers) == 1 and workers[0] >= 0 and len(rows) <= self.max_rows and -1 not in ids:
            return [self._owe(workers[0], rows, expert_ids, now_s)]
        wanted = expert_ids >= 0
        actions: list[Action] = []
        for worker in workers:
            mine = wanted & (chosen == worker)
            if worker < 0:
                gone = ", ".join(f"'{self.names[index]}'" for index in sorted(self.lost))
                missing = int(expert_ids[mine][0])
                raise WorkerLost(
                    f"layer {self.layer} expert {missing}: lost worker {gone} held it and no other worker "
                    "does. Start that worker again, or plan with replicas."
                )
            touched = np.flatnonzero(mine.any(axis=1))
            for start in range(0, len(touched), self.max_rows):
                part = touched[start : start + self.max_rows]
                asked_ids = np.where(mine[part], expert_ids[part], np.int32(-1))
                actions.append(self._owe(worker, rows[part], asked_ids, now_s))
        return actions

    def _owe(self, worker: int, rows: Rows, expert_ids: Ints, now_s: float) -> Ask:
        whole = len(rows) == self._num_rows
        exponents = self.scale_exponents if whole else self.scale_exponents[rows]
        self._watch(worker, now_s)
        ask = Ask(worker, next(self.request_ids), rows, expert_ids, exponents)
        self._owed[ask.request_id] = ask
        return ask

    def _watch(self, worker: int, now_s: float) -> None:
        """Start the worker's clock with its first open ask: silence counts only while it owes an answer."""
        if not any(ask.worker == worker for ask in self._owed.values()):
            self._watched[worker] = _Watch(now_s)

    def _next_round(self, now_s: float) -> list[Action]:
        if self._saturated is None:
            return []
        self._round += 1
        rows = np.flatnonzero(self._saturated)
        if self._round > self.max_coarsenings:
            chosen = sorted(self.expert_ids[rows[0]].tolist())
            ids = ", ".join(str(expert) for expert in chosen if expert >= 0)
            raise NonFiniteError(
                f"layer {self.layer}: one of its routed experts {ids} gives numbers that are not finite; "
                f"{NonFiniteError.REMEDY}"
            )
        self.coarsened_rows += len(rows)
        self._clear(rows)
        self._saturated = None
        self.scale_exponents = self.scale_exponents.copy()
        self.scale_exponents[rows] = self.coarser(self.scale_exponents[rows])
        return self._ask(rows, self.expert_ids[rows], now_s)

    def _clear(self, rows: Rows) -> None:
        if len(rows) == self._num_rows:
            self._sum, self._sum_is_ours = None, False
        elif self._sum is not None:
            self._sum = self._sum if self._sum_is_ours else self._sum.copy()
            self._sum_is_ours = True
            self._sum[rows] = 0
