"""One answer on its way: what becomes of each token that is certain, and what is to come behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.answers.loops import IN_ANSWER, IN_REASONING, LoopDetector
from orchestrator.answers.parsed import AnswerPart
from orchestrator.answers.reasoning_budget import BudgetTokens, ReasoningBudget
from orchestrator.answers.stream import AnswerStream
from orchestrator.logprobs import RowLogprob
from orchestrator.serving.answer import CallEnded, FinishReason, TokenLogprob
from orchestrator.serving.prompts import Prompt
from orchestrator.serving.request import Conversation, GenerationRequest
from orchestrator.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done with the tokens of a step.

    Attributes:
        kept: so many of them count; the others were never said.
        forced: come behind those.
        banned: a token that may not come next; None for any.
        ended: why the answer ends with the kept ones, None while it goes on.
    """

    kept: int
    forced: tuple[int, ...] = ()
    banned: int | None = None
    ended: FinishReason | None = None


class LiveAnswer:
    """Takes an answer's tokens one after another, so that nothing depends on how many came at once."""

    def __init__(
        self, request: GenerationRequest, prompt: Prompt, tokenizer: Tokenizer, budget_tokens: BudgetTokens
    ) -> None:
        self._tokenizer = tokenizer
        self._stream = AnswerStream(tokenizer, prompt.parser, request.stop)
        self._loops = LoopDetector()
        self._form = prompt.form
        self._held = prompt.held
        self._to_force = prompt.forced
        self._one_call = isinstance(request.prompt, Conversation) and not request.prompt.parallel_tool_calls
        self._budget: ReasoningBudget | None = None
        self._end_reasoning = budget_tokens.end
        if request.reasoning_tokens and prompt.parser.in_reasoning:
            self._budget = ReasoningBudget(request.reasoning_tokens, budget_tokens)
        self._waiting: list[int] = []
        """Forced tokens that were not taken yet."""
        self._events: list[AnswerPart] = []
        self._turns = False
        """Whether other tokens may come behind the last one than the model was told."""
        self._loop_began: int | None = None
        self.message = ""
        """What is wrong, where the answer ended for that."""
        self.num_tokens = 0
        """Of the answer, so far; its beginning in the prompt does not count."""
        self._events += self._stream.push(prompt.begun)
        self._begun_reasoning = self._stream.reasoning_tokens
        if self._form is not None:
            self._form.note(prompt.begun)
        if self._held is not None:
            self._held.take(prompt.begun)

    @property
    def stop_text(self) -> str | None:
        """The request's text that was found."""
        return self._stream.stop_text

    @property
    def reasoning_tokens(self) -> int:
        """Tokens up to and with the one that ended reasoning."""
        return self._stream.reasoning_tokens - self._begun_reasoning

    @property
    def worth_keeping(self) -> int:
        """Tokens of the answer that later turns may go on from: those before a loop began."""
        return self.num_tokens if self._loop_began is None else self._loop_began

    def take(
        self, token_ids: Sequence[int], ended: FinishReason | None, logprobs: Sequence[RowLogprob] = ()
    ) -> Verdict:
        """The next tokens, of which the model is certain.

        Args:
            ended: why the last of them is the last of all.
            logprobs: one for each token; none where nobody asked for them.
        """
        for place, token_id in enumerate(token_ids):
            if any(bound is not None and bound.is_broken for bound in (self._form, self._held)):
                # This one was chosen without it.
                self.message = (
                    "the form of the answer takes too much work to be followed: ask for a simpler one"
                )
                return Verdict(place, ended="form")
            is_last = place == len(token_ids) - 1
            if self._held is not None and self._held.may_not_end(token_id):
                # The model is through with a text, but not with the call.
                return Verdict(place, self._forcing(self._held.end_of_text))
            verdict = self._take_one(token_id, [self._named(logprobs[place])] if logprobs else None)
            if self.stop_text is not None:
                return Verdict(place + 1, ended="stop_text")
            if is_last and ended is not None:
                break
            if verdict.forced or verdict.banned is not None or verdict.ended is not None or self._turns:
                return Verdict(place + 1, verdict.forced, verdict.banned, verdict.ended)
        if ended == "stop" and self._stream.num_calls:
            ended = "tool_calls"
        return Verdict(len(token_ids), ended=ended)

    def events(self) -> list[AnswerPart]:
        """What became certain since the last call."""
        found, self._events = self._events, []
        return found

    def finish(self, reason: FinishReason) -> list[AnswerPart]:
        """What is left to say when the answer ends."""
        return [*self.events(), *self._stream.finish(reason)]

    def _take_one(self, token_id: int, logprobs: list[TokenLogprob] | None) -> Verdict:
        was_reasoning = self._stream.in_reasoning
        self.num_tokens += 1
        events = self._stream.push([token_id], logprobs)
        self._events += events
        if self._one_call and any(isinstance(event, CallEnded) for event in events):
            return Verdict(1, ended="tool_calls")
        if self._form is not None:
            self._form.note([token_id])
        if self._held is not None:
            # What was forced stands, whatever came to be held in it.
            self._turns = self._held.take([token_id]) and not self._waiting
        order = self._budget.push(token_id) if self._budget is not None else None
        loop = self._loops.push(token_id, IN_REASONING if was_reasoning else IN_ANSWER)
        if self._waiting:
            # What was ordered is written to its end before anything else is.
            self._waiting.pop(0)
            if self._waiting:
                return Verdict(1)
        if order is not None and order.token_ids:
            return Verdict(1, self._forcing(order.token_ids))
        if loop.kind != "fine":
            self._loop_began = loop.began
        if loop.kind == "stop":
            return Verdict(1, ended="loop")
        if loop.kind == "break":
            if was_reasoning:
                self._budget = None
                return Verdict(1, self._forcing(self._end_reasoning))
            return Verdict(1, banned=loop.token_id)
        return Verdict(1, self._forcing(self._call()))

    def _call(self) -> tuple[int, ...]:
        """The beginning of a call that was asked for, where reasoning has ended."""
        if not self._to_force or self._stream.in_reasoning or self._stream.num_calls:
            return ()
        forced, self._to_force = self._to_force, ()
        return forced

    def _forcing(self, token_ids: tuple[int, ...]) -> tuple[int, ...]:
        self._waiting = list(token_ids)
        return token_ids

    def _named(self, row: RowLogprob) -> TokenLogprob:
        text, data = self._written(row.token_id)
        top = tuple((*self._written(token_id), logprob) for token_id, logprob in row.top)
        return TokenLogprob(row.token_id, text, data, row.logprob, top)

    def _written(self, token_id: int) -> tuple[str, bytes]:
        text = self._tokenizer.decode([token_id], skip_special=False)
        return text, text.encode()
