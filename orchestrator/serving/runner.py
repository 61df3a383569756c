"""Runs requests on a model, step after step, and tells each what became of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from orchestrator.answers.reasoning_budget import BudgetTokens
from orchestrator.logprobs import RowLogprob
from orchestrator.model.mtp import MtpDrafter
from orchestrator.model.step35 import Step35Model
from orchestrator.prefix.cache import PrefixCache
from orchestrator.sampling import Sampler
from orchestrator.scheduler import Scheduler
from orchestrator.scheduling.job import SequenceRequest
from orchestrator.scheduling.kv_budget import KvBudget
from orchestrator.scheduling.step_plan import Advance, Dropped, Ended, StepOutcome, StepPlan
from orchestrator.sequence import SequenceState
from orchestrator.serving.answer import (
    AnswerEvent,
    Finished,
    FinishReason,
    Prefilled,
    Refused,
    Started,
    Usage,
)
from orchestrator.serving.batch import keep_prompts, keep_text, run_step
from orchestrator.serving.counts import Counts
from orchestrator.serving.live_answer import LiveAnswer
from orchestrator.serving.prompts import Prompt
from orchestrator.serving.request import GenerationRequest
from orchestrator.tokenizer import Tokenizer
from placement.errors import KvDoesNotFit, PotluckError, WorkerLost, WorkerRefused
from placement.files.quote import first_line
from workers.gpu.errors import DeviceLost

_log = logging.getLogger(__name__)
Sink = Callable[[AnswerEvent | Refused], None]
_LOOK_AGAIN_S = 0.25
"""While the cluster lacks boxes: until somebody looks whether they are back."""
_MOST_FAILURES = 3
"""Steps that may fail one after another for want of memory."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that comes.

    Attributes:
        number: given to no other one before or after.
        sink: told its events.
    """

    number: int
    request: GenerationRequest
    prompt: Prompt
    sink: Sink


@dataclass(slots=True)
class Live:
    """A request that has not ended.

    Attributes:
        sink: told its events.
        arrived_s: when it came; `first_s`, when its first token was chosen; `last_s`, its last.
    """

    request: GenerationRequest
    sequence: SequenceState
    answer: LiveAnswer
    sink: Sink
    arrived_s: float
    is_started: bool = False
    ended: FinishReason | None = None
    first_s: float | None = None
    last_s: float = 0.0


class Runner:
    """One thread calls everything here."""

    def __init__(
        self,
        model: Step35Model,
        drafter: MtpDrafter | None,
        tokenizer: Tokenizer,
        budget_tokens: BudgetTokens,
        scheduler: Scheduler,
        clock: Callable[[], float],
        is_cluster_whole: Callable[[], bool],
    ) -> None:
        """
        Args:
            drafter: None for no drafts at all.
            is_cluster_whole: whether every expert has a holder now.
        """
        self.scheduler = scheduler
        self.counts = Counts()
        self.live: dict[int, Live] = {}
        self.lack = ""
        """Why the cluster cannot compute now; "" where it can."""
        self._model = model
        self._drafter = drafter
        self._tokenizer = tokenizer
        self._budget_tokens = budget_tokens
        self._clock = clock
        self._is_cluster_whole = is_cluster_whole
        self._failures = 0
        self.prefix = PrefixCache.of(model)

    def submit(self, asked: Sequence[Asked]) -> None:
        """Take requests of one client, all of them or none.

        Raises:
            Refused: see `Scheduler.submit`.
        """
        now_s = self._clock()
        wanted = [
            SequenceRequest(one.number, one.request.client, len(one.prompt.token_ids), one.request.max_tokens)
            for one in asked
        ]
        try:
            granted = self.scheduler.submit(wanted, now_s)
        except Refused as refusal:
            self.counts.refuse(refusal.kind, len(asked))
            raise
        try:
            made = [self._live_of(one, most, now_s) for one, most in zip(asked, granted, strict=True)]
        except Exception:
            for one in asked:
                self.scheduler.cancel(one.number)
            raise
        self.live.update(zip((one.number for one in asked), made, strict=True))

    def _live_of(self, asked: Asked, most: int, now_s: float) -> Live:
        """A request that was taken, and may have so many tokens. It holds no keys and values yet."""
        request, prompt, config = asked.request, asked.prompt, self._model.config
        banned = config.eos_token_ids if request.ignore_eos else ()
        sequence = SequenceState(
            self._model,
            self._drafter,
            prompt.token_ids,
            Sampler(request.sampling, prompt.token_ids, answer=request.choice, banned=banned),
            most,
            config.eos_token_ids,
            prefix=self.prefix,
            ends=(prompt.turn_begins,),
            keeps_rows=self.scheduler.keeps_rows,
        )
        sequence.top_logprobs = request.top_logprobs
        if prompt.is_bound:
            sequence.masks = prompt.allowed
        answer = LiveAnswer(request, prompt, self._tokenizer, self._budget_tokens)
        return Live(request, sequence, answer, asked.sink, now_s)

    def cancel(self, number: int) -> None:
        """Nobody wants a request any more; what was computed of it is kept while there is room."""
        live = self.live.pop(number, None)
        if live is not None:
            self.scheduler.cancel(number)
            self._close(live)
            self.counts.finish("cancelled")

    def end_all(self, reason: FinishReason, message: str = "") -> None:
        """End every request that has not ended."""
        for number in list(self.live):
            self.scheduler.cancel(number)
            self._finish(number, reason, message=message)

    def turn(self) -> float | None:
        """Run one step.

        Returns:
            0 where more is to be done, else seconds to wait; None until somebody wants something.

        Raises:
            DeviceLost: `forget_caches`, and go on.
        """
        now_s = self._clock()
        if self.lack and self._is_cluster_whole() and not self.scheduler.is_out_of_patience(now_s):
            self.lack = ""
            self.scheduler.cluster_is_back()
        plan = self.scheduler.plan_step(now_s)
        for dropped in plan.dropped:
            self._drop(dropped)
        if not plan.rows and not plan.pause:
            if self.lack and self.live:
                return _LOOK_AGAIN_S
            return None
        # Planning is longest in steps that try something, which would look dear.
        began_s = self._clock()
        try:
            with self._model.timer.part("other"):
                outcome = run_step(self._model, self._drafter, self._sequences(), plan, self._clock)
            took_s = self._clock() - began_s
            if not plan.rows:
                return 0.0
        except DeviceLost:
            self._take_back(plan)
            raise
        except Exception as error:
            if not isinstance(error, PotluckError):
                _log.exception("a step failed")
            self._failed(plan, error)
            return 0.0
        self._failures = 0
        advances = tuple(map(self._advanced, outcome.advances))
        if advances != outcome.advances:
            outcome = replace(outcome, advances=advances)
        self.scheduler.finished_step(plan, outcome, took_s)
        self.counts.step(took_s)
        try:
            # What is kept is of use later; that it is not harms nobody.
            with suppress(PotluckError):
                keep_prompts(self._sequences(), plan)
        finally:
            self._tell(plan, outcome)
        return 0.0

    def forget_caches(self, kv: KvBudget) -> None:
        """All keys and values are gone, as with the card that held them.

        Args:
            kv: what there is from now on.
        """
        for number in self.scheduler.use_budget(kv):
            self._finish(number, "lost", "its keys and values have no room without the card")
        for live in self.live.values():
            live.sequence.pause()
        self.prefix.close()
        self.prefix = PrefixCache.of(self._model)
        for live in self.live.values():
            live.sequence.prefix = self.prefix

    def _sequences(self) -> dict[int, SequenceState]:
        return {number: live.sequence for number, live in self.live.items()}

    def _advanced(self, advance: Advance) -> Advance:
        """Hand a sequence's tokens to its answer, which may leave some out and put others behind them."""
        live = self.live[advance.sequence]
        tokens: Sequence[int] = advance.tokens
        if tokens:
            try:
                tokens = self._take(live, tokens, advance.logprobs)
            except Exception:
                # Of this answer alone, and by no fault of its client.
                _log.exception("an answer cannot go on")
                live.ended = "lost"
            if live.ended in ("form", "lost"):
                live.sequence.may_be_kept = False
        ended: Ended | None = None if live.ended is None else "stop"
        found, held = tuple(tokens), live.sequence.cache.length
        if (found, ended, held) == (advance.tokens, advance.ended, advance.held):
            # As nearly always, and a copy takes a while.
            return advance
        return replace(advance, tokens=found, ended=ended, held=held)

    def _take(self, live: Live, tokens: Sequence[int], logprobs: Sequence[RowLogprob]) -> list[int]:
        """What became part of an answer: chosen tokens, and those that nobody chose."""
        sequence, answer = live.sequence, live.answer
        verdict = answer.take(tokens, sequence.finish_reason, logprobs)
        found = list(tokens[: verdict.kept])
        length = len(sequence.tokens) - len(tokens) + verdict.kept
        if length < len(sequence.tokens):
            sequence.put_behind(length, ())
        while verdict.forced and verdict.ended is None and sequence.remaining > 0:
            added = verdict.forced[: sequence.remaining]
            sequence.put_behind(len(sequence.tokens), added)
            found += added
            verdict = answer.take(added, sequence.finish_reason)
        if verdict.banned is not None:
            sequence.sampler.avoid(len(sequence.tokens), verdict.banned)
        live.ended = verdict.ended or sequence.finish_reason
        return found

    def _tell(self, plan: StepPlan, outcome: StepOutcome) -> None:
        """Tell requests what a step did to them, and end those that have ended."""
        now_s = self._clock()
        for chunk in plan.prefill:
            live = self.live[chunk.sequence]
            prompt_tokens = live.sequence.num_prompt
            if not live.is_started:
                live.is_started = True
                self.counts.start(prompt_tokens, live.sequence.matched)
                live.sink(Started(prompt_tokens, live.sequence.matched))
            if live.first_s is None:
                live.sink(Prefilled(min(live.sequence.cache.length, prompt_tokens)))
        for advance in outcome.advances:
            live = self.live[advance.sequence]
            self.counts.tokens(len(advance.tokens), advance.drafted, advance.accepted, now_s)
            if advance.tokens:
                if live.first_s is None:
                    live.first_s = now_s
                    self.counts.first_token.add(now_s - live.arrived_s)
                else:
                    self.counts.between_tokens.add(now_s - live.last_s)
                live.last_s = now_s
            for event in live.answer.events():
                live.sink(event)
            if live.ended is not None:
                self._finish(advance.sequence, live.ended)

    def _finish(self, number: int, reason: FinishReason, message: str = "") -> None:
        """Say the last of a request that the scheduler knows no more."""
        live = self.live.pop(number)
        answer, sequence = live.answer, live.sequence
        if not live.is_started:
            live.sink(Started(sequence.num_prompt, 0))
        for event in answer.finish(reason):
            live.sink(event)
        usage = Usage(
            sequence.num_prompt,
            sequence.matched,
            answer.num_tokens,
            answer.reasoning_tokens,
            sum(sequence.drafted),
            sum(sequence.accepted),
        )
        self.counts.finish(reason)
        self.counts.request.add(self._clock() - live.arrived_s)
        live.sink(Finished(reason, usage, answer.stop_text, message or answer.message))
        self._close(live)

    def _close(self, live: Live) -> None:
        """Keep a sequence's text for others, if it may be, and give its memory back."""
        upto = live.sequence.num_prompt + live.answer.worth_keeping
        try:
            keep_text(live.sequence, upto)
        except PotluckError:
            # It was to be of use later; that it is not harms nobody.
            pass
        except Exception:
            _log.exception("a text could not be kept")
        finally:
            live.sequence.close()

    def _drop(self, dropped: Dropped) -> None:
        """End a request for which the cluster has not come back in time."""
        live = self.live[dropped.sequence]
        if dropped.kind == "lost" or live.is_started:
            self._finish(dropped.sequence, "lost", dropped.message)
            return
        del self.live[dropped.sequence]
        live.sequence.close()
        self.counts.refuse("unavailable")
        live.sink(Refused("unavailable", dropped.message, dropped.retry_after_s))

    def _take_back(self, plan: StepPlan) -> None:
        """A step gave nothing. Caches may be ahead of their tokens until the sequences are paused."""
        self.scheduler.failed_step(plan)
        for number in plan.sequences:
            self.live[number].sequence.may_be_kept = False

    def _failed(self, plan: StepPlan, error: Exception) -> None:
        """A step gave nothing. Its sequences are computed again, unless that would end as it did."""
        self._take_back(plan)
        told = first_line(error)
        if isinstance(error, WorkerLost | WorkerRefused):
            self.lack = told
            self.scheduler.cluster_lacks(told, self._clock())
            return
        self._failures += 1
        if isinstance(error, KvDoesNotFit) and self._failures < _MOST_FAILURES:
            return
        self._failures = 0
        for number in plan.sequences:
            self.scheduler.cancel(number)
            self._finish(number, "lost", told)
