"""Which sequences the next pass computes: decided from messages and times, without clock and socket.

docs/scheduler.md says how, and what is promised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.model.rows_behind import CONTEXT_ROWS
from orchestrator.scheduling.candidate import Candidate, Verified
from orchestrator.scheduling.client_shares import ClientShares
from orchestrator.scheduling.job import Job, Place, SequenceRequest
from orchestrator.scheduling.kv_budget import KvBudget
from orchestrator.scheduling.limits import Limits
from orchestrator.scheduling.line import Line
from orchestrator.scheduling.native import DraftDepth, MeasuredCosts, rows_taken_in
from orchestrator.scheduling.prompt_chunks import prompt_rows, share_out
from orchestrator.scheduling.step_plan import Decode, Dropped, Prefill, StepOutcome, StepPlan
from orchestrator.scheduling.waiting_room import too_much, too_much_at_once, who_waits
from orchestrator.scheduling.waiting_time import WaitingTime
from orchestrator.serving.answer import Refused


@dataclass(frozen=True, slots=True)
class _Lack:
    """Boxes that the cluster lacks: why, since when, and when it may be worth another try."""

    reason: str
    since_s: float
    retry_after_s: float


class Scheduler:
    """Requests and times in, steps out.

    Call `plan_step`, run what it says, and report it with `finished_step` or `failed_step`; requests may come
    and be cancelled at any time between. A plan without rows means that nothing is to be done until a message
    comes, or until `deadline_s`.
    """

    def __init__(self, limits: Limits, kv: KvBudget, costs: MeasuredCosts, most_drafts: int = 0) -> None:
        """
        Args:
            costs: of passes; it is corrected by the steps that are reported.
            most_drafts: of a sequence in a step, 0 without MTP layers.
        """
        self._limits = limits
        self._kv = kv
        self._costs = costs
        self._depth = DraftDepth(most_drafts, costs)
        self._behind_if_kept = (2 * CONTEXT_ROWS,) * most_drafts
        """About what waits where a try is due: rows that were kept before it, or those of a prompt."""
        self._shares = ClientShares()
        self._line = Line(self._shares)
        self._running: dict[int, Job] = {}
        """In the order in which they were let in."""
        self._jobs: dict[int, Job] = {}
        self._waiting_time = WaitingTime(costs, limits.pass_rows)
        self._arrivals = self._admissions = 0
        self._to_pause: set[int] = set()
        self._planned: StepPlan | None = None
        self._prompt_rows = 0
        self._drafted_last = False
        """In the last step."""
        self._lack: _Lack | None = None
        self._doubted: _Lack | None = None
        """What was lacked until it seemed to be back; no pass was run since."""

    @property
    def keeps_rows(self) -> bool:
        """Whether sequences that begin keep their rows for drafts."""
        return self._depth.keeps_rows

    @property
    def waiting(self) -> int:
        """Sequences that hold no keys and values now."""
        return len(self._line)

    @property
    def running(self) -> int:
        """Sequences that are computed."""
        return len(self._running)

    def place_of(self, sequence: int) -> Literal["waiting", "reading", "writing", "paused"]:
        """Where a sequence is that has not ended."""
        job = self._jobs[sequence]
        if job.place != "running":
            return job.place
        return "reading" if job.to_prefill else "writing"

    @property
    def deadline_s(self) -> float | None:
        """When `plan_step` has to be called though nothing happened; None where that is not needed."""
        if self._lack is None or not self._jobs:
            return None
        return self._lack.since_s + self._limits.patience_s

    def submit(self, requests: Sequence[SequenceRequest], now_s: float) -> tuple[int, ...]:
        """Take requests of one client, all of them or none; one that is refused leaves no trace.

        Args:
            requests: one at least, of different sequences.

        Returns:
            The most tokens that each answer may have: fewer than it asked for where context or memory have no
            room for them.

        Raises:
            Refused: "invalid" without a prompt or an answer, and for more answers than an idle server takes;
                "too_long" for a prompt that leaves no room in context or memory; "busy" while too much waits;
                "unavailable" while the cluster has lacked boxes for too long.
            ValueError: a sequence of that number has not ended.
        """
        for request in requests:
            if request.sequence in self._jobs:
                raise ValueError(f"sequence {request.sequence} has not ended")
        jobs = [
            Job(one.sequence, one.client, one.prompt_tokens, self._max_tokens(one), self._arrivals + place)
            for place, one in enumerate(requests)
        ]
        if self._lack is not None and now_s >= self._lack.since_s + self._limits.patience_s:
            raise Refused("unavailable", _lacks(self._lack), self._lack.retry_after_s)
        if busy := self._too_much(jobs):
            if never := too_much_at_once(jobs, self._limits, self._kv, self._has_room):
                raise Refused("invalid", f"too many at once, even for an idle server: {never}; ask for fewer")
            retry_after_s = self._waiting_time.until_one_ends(list(self._running.values()))
            raise Refused("busy", busy, retry_after_s)
        self._arrivals += len(jobs)
        for job in jobs:
            self._shares.enter(job.client)
            self._jobs[job.sequence] = job
            self._line.add(job)
        return tuple(job.max_tokens for job in jobs)

    def cancel(self, sequence: int) -> bool:
        """End a sequence wherever it is; what a step under way does to it no longer counts.

        Its cache must be gone before the next step is run. Returns whether it had not ended yet.
        """
        job = self._jobs.get(sequence)
        if job is not None:
            self._end(job)
        return job is not None

    def cluster_lacks(self, reason: str, now_s: float, back_in_s: float | None = None) -> None:
        """No pass can be run until `cluster_is_back`.

        Args:
            reason: for people: what is missing.
            back_in_s: when it may be back, if anybody knows.
        """
        earlier = self._lack or self._doubted
        since_s = now_s if earlier is None else earlier.since_s
        retry_after_s = self._limits.patience_s if back_in_s is None else back_in_s
        self._lack = _Lack(reason, since_s, retry_after_s)

    def is_out_of_patience(self, now_s: float) -> bool:
        """Whether requests have waited for boxes as long as they may: the next plan drops them."""
        if self._lack is None or not self._jobs:
            return False
        return now_s >= self._lack.since_s + self._limits.patience_s

    def cluster_is_back(self) -> None:
        """Passes can be run again, or it looks so: the time of waiting goes on until one was."""
        if self._jobs:
            self._doubted = self._lack or self._doubted
        self._lack = None

    def use_budget(self, kv: KvBudget) -> tuple[int, ...]:
        """There is other memory for keys and values from now on, and nothing in it.

        Returns:
            Sequences that it can never hold; they have ended.
        """
        self._kv = kv
        for job in list(self._running.values()):
            self._put_back(job, "paused")
        gone = [job for job in self._jobs.values() if not kv.fits([job.positions(job.remaining)])]
        for job in gone:
            self._end(job)
        return tuple(job.sequence for job in gone)

    def plan_step(self, now_s: float) -> StepPlan:
        """What the next pass computes.

        Raises:
            ValueError: a step is under way.
        """
        if self._planned is not None:
            raise ValueError("a step is under way: report it before the next one is planned")
        if self._lack is not None:
            return self._wait_for_boxes(self._lack, now_s)
        self._make_room()
        self._let_in()
        pause = tuple(sorted(self._to_pause))
        self._to_pause.clear()
        decoding = [job for job in self._running.values() if not job.to_prefill]
        reading = [job for job in self._running.values() if job.to_prefill]
        drafts = self._drafts(decoding, reading)
        decode = tuple(Decode(job.sequence, drafts.get(job.sequence, 0)) for job in decoding)
        decode_rows = len(decode) + sum(drafts.values())
        chunks = self._chunks(reading, decode_rows)
        plan = StepPlan(decode, chunks, pause, keeps_rows=self._depth.keeps_rows)
        self._planned = plan if plan.rows else None
        self._prompt_rows = plan.prefill_rows
        return plan

    def finished_step(self, plan: StepPlan, outcome: StepOutcome, took_s: float) -> None:
        """A step was run, in `took_s` seconds."""
        self._report(plan)
        drafts = [outcome.by_sequence[part.sequence] for part in plan.decode]
        drafted = sum(advance.drafted for advance in drafts)
        self._doubted = None
        depth = max((advance.drafted for advance in drafts), default=0)
        taken_in: Sequence[int] = ()
        if depth:
            behind = [(self._jobs.get(of.sequence), of.drafted) for of in drafts if of.drafted]
            taken_in = rows_taken_in((job.behind, drafted) for job, drafted in behind if job is not None)
        if not taken_in and (depth or outcome.prefill_rows or not self._drafted_last):
            # What was taken in has put the pass's weights out of caches, as have drafts of the step before.
            rows = len(plan.decode) + drafted + outcome.prefill_rows
            self._costs.learn_pass(rows, took_s - outcome.drafting_s)
        if depth:
            self._costs.learn_drafting(depth, len(behind), outcome.drafting_s, taken_in)
        self._drafted_last = depth > 0
        self._depth.learn(
            [Verified(of.sequence, of.drafted, of.accepted) for of in drafts if of.drafted] if depth else ()
        )
        for advance in outcome.advances:
            job = self._jobs.get(advance.sequence)
            if job is None:
                continue
            num_tokens = len(advance.tokens)
            job.generated += num_tokens
            job.turn += num_tokens
            job.computed = advance.held
            job.layers, job.may_draft = advance.layers, advance.may_draft
            paid = min(job.computed, job.prompt_tokens)
            self._shares.charge(job.client, num_tokens + max(0, paid - job.charged))
            job.charged = max(job.charged, paid)
            if advance.ended is not None:
                self._waiting_time.ended(job.generated)
                self._end(job)

    def failed_step(self, plan: StepPlan) -> None:
        """A step gave nothing: its sequences are computed again from their tokens."""
        self._report(plan)
        for sequence in plan.sequences:
            if sequence in self._running:
                self._put_back(self._running[sequence], "paused")

    def _drafts(self, decoding: list[Job], reading: list[Job]) -> Mapping[int, int]:
        """How many drafts to make for sequences; none for the others."""
        # How many rows prompts will have depends on the drafts; as many as in the step before, say.
        other_rows = min(self._prompt_rows, sum(job.to_prefill for job in reading))
        if self._depth.rests(len(decoding), other_rows):
            return {}
        candidates = [self._candidate(job) for job in decoding]
        free_rows = self._limits.pass_rows - len(decoding) - bool(reading)
        return self._depth.choose(candidates, other_rows, free_rows)

    def _candidate(self, job: Job) -> Candidate:
        """As if rows had been kept, where they are not: so it shows whether to keep them."""
        if not self._depth.keeps_rows:
            return Candidate(job.sequence, job.remaining - 1, self._behind_if_kept)
        if not job.may_draft:
            return Candidate(job.sequence, 0)
        return Candidate(job.sequence, job.remaining - 1, job.behind)

    def _chunks(self, reading: list[Job], decode_rows: int) -> tuple[Prefill, ...]:
        if not reading:
            return ()
        left = self._limits.pass_rows - decode_rows
        rows = prompt_rows(self._costs, decode_rows, left, self._limits.most_delay_s)
        by_turn = sorted(
            reading, key=lambda job: (self._shares.served(job.client), job.to_prefill, job.arrived)
        )
        return share_out(reading, rows, by_turn)

    def _report(self, plan: StepPlan) -> None:
        if plan is not self._planned:
            raise ValueError("this is not the step that is under way")
        self._planned = None

    def _max_tokens(self, request: SequenceRequest) -> int:
        """As many as were asked for, or as there is room for behind the prompt.

        Agents ask for more than many contexts have. They mean a bound, and few answers come near it.
        """
        prompt, wanted = request.prompt_tokens, request.max_tokens
        if prompt < 1:
            raise Refused("invalid", f"a prompt of {prompt} tokens: expected 1 or more")
        if wanted is not None and wanted < 1:
            raise Refused("invalid", f"{wanted} tokens to generate: expected 1 or more")
        context = self._limits.context
        if prompt >= context:
            raise Refused(
                "too_long",
                f"a prompt of {prompt:,} tokens leaves no room for an answer in this server's context of "
                f"{context:,} tokens; shorten the prompt",
            )
        if wanted is not None and prompt + wanted <= context and self._kv.fits([prompt + wanted]):
            return wanted
        most = self._kv.most_positions(context)
        if prompt >= most:
            raise Refused(
                "too_long",
                f"a prompt of {prompt:,} tokens leaves no room for an answer in this server's memory for "
                f"keys and values, which never holds more than {most:,} tokens of a text; shorten the prompt",
            )
        return most - prompt if wanted is None else min(wanted, most - prompt)

    def _too_much(self, jobs: Sequence[Job]) -> str | None:
        """Why the line has no place for them."""
        shares = self._shares.with_client(jobs[0].client)
        waiting = [*self._line, *jobs]
        # Nobody is let in without boxes, and of a step under way nobody knows what room it leaves.
        if self._lack is None and self._planned is None:
            waiting = who_waits(waiting, shares, self._running.values(), self._has_room)
        return too_much(jobs, waiting, len(shares.clients), self._limits, self._kv)

    def _wait_for_boxes(self, lack: _Lack, now_s: float) -> StepPlan:
        """Nothing is computed; when patience is at its end, nobody waits any longer."""
        if now_s < lack.since_s + self._limits.patience_s:
            return StepPlan()
        dropped = tuple(
            Dropped(
                job.sequence,
                "lost" if job.generated or job.place != "waiting" else "unavailable",
                _lacks(lack),
                lack.retry_after_s,
            )
            for job in self._jobs.values()
        )
        for job in list(self._jobs.values()):
            self._end(job)
        return StepPlan(dropped=dropped)

    def _make_room(self) -> None:
        """Put back who was let in last until the others can grow by a step."""
        while not self._kv.fits(job.positions(1 + self._depth.most) for job in self._running.values()):
            self._put_back(next(reversed(self._running.values())), "paused")

    def _let_in(self) -> None:
        """Let in who is next, while there is room; others give way who had their turn."""
        while (job := self._line.first()) is not None:
            if not self._has_room(job, self._running.values()):
                giving_way = self._who_gives_way(job)
                if not giving_way:
                    return
                for other in giving_way:
                    self._put_back(other, "waiting")
            self._line.remove(job)
            if job.place == "waiting":
                job.admitted = self._admissions
                self._admissions += 1
                job.turn = 0
            job.place = "running"
            others = [*self._running.values(), job]
            self._running = {other.sequence: other for other in sorted(others, key=lambda o: o.admitted)}

    def _has_room(self, job: Job, others: Iterable[Job]) -> bool:
        together = [*others, job]
        if len(together) > self._limits.sequences:
            return False
        spare_tokens = self._limits.spare_tokens + 1 + self._depth.most
        return self._kv.fits(one.positions(spare_tokens) for one in together)

    def _who_gives_way(self, job: Job) -> list[Job]:
        """The fewest sequences of clients that were served more, so that `job` has room; none if it has not.

        The client that was served most gives way first, and of its sequences the one that was let in last.
        A sequence gives way only after its turn, which is longer the more there is to compute again.
        """
        limits, own = self._limits, self._shares.served(job.client)
        willing = [
            other
            for other in self._running.values()
            if self._shares.served(other.client) >= own + limits.turn_tokens
            and other.turn >= max(limits.turn_tokens, other.tokens // 4)
        ]
        willing.sort(key=lambda other: (-self._shares.served(other.client), -other.admitted))
        for count in range(1, len(willing) + 1):
            leaving = willing[:count]
            if self._has_room(job, (other for other in self._running.values() if other not in leaving)):
                return leaving
        return []

    def _put_back(self, job: Job, place: Place) -> None:
        del self._running[job.sequence]
        job.place = place
        job.computed = 0
        job.layers = ()
        self._to_pause.add(job.sequence)
        self._line.add(job)
        self._depth.plan_anew()

    def _end(self, job: Job) -> None:
        del self._jobs[job.sequence]
        if job.place == "running":
            del self._running[job.sequence]
        else:
            self._line.remove(job)
        self._to_pause.discard(job.sequence)
        self._depth.forget(job.sequence)
        self._shares.leave(job.client)


def _lacks(lack: _Lack) -> str:
    return f"the cluster cannot compute now: {lack.reason}"
