"""Tokens become the events of an answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.answers.parsed import AnswerPart, Parsed
from orchestrator.answers.parser import Parser
from orchestrator.answers.stop_texts import StopTexts
from orchestrator.serving.answer import (
    CallArguments,
    CallStarted,
    FinishReason,
    Reasoning,
    Text,
    TokenLogprob,
)
from orchestrator.tokenizer import StreamDecoder, Tokenizer

# A character has four bytes at most, so that no more tokens than these wait for each other.
_MOST_WAITING = 8


@dataclass(frozen=True, slots=True)
class _Written:
    """Characters of the model's text, from start to end, and the probabilities of their tokens."""

    start: int
    end: int
    logprobs: tuple[TokenLogprob, ...]


class AnswerStream:
    """One answer: its tokens are decoded, taken apart, and searched for stop texts.

    Stop texts count in the answer's text alone, not in reasoning and not in calls. The events are the same,
    put together, however many tokens come at once.

    Args:
        parser: of the model's chat template, see `choose_parser`.
        stop: texts that end the answer. Once one is found, `stop_text` says which and no events follow.
    """

    def __init__(self, tokenizer: Tokenizer, parser: Parser, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._parser = parser
        self._stop_texts = StopTexts(stop)
        self._decoder = StreamDecoder(tokenizer, skip_special=False)
        markers = (tokenizer.token_id(marker) for marker in parser.markers)
        self._markers = frozenset(token_id for token_id in markers if token_id is not None)
        self._hidden: dict[int, bool] = {}
        # Tokens that are no text yet.
        self._num_waiting = 0
        self._waiting: list[TokenLogprob] = []
        self._num_characters = 0
        # Text whose probabilities are not handed on yet, and text of the answer that is not.
        self._written: deque[_Written] = deque()
        self._pending: deque[Parsed] = deque()
        self.reasoning_tokens = 0
        """Tokens up to and with the one that ended reasoning."""
        self.num_calls = 0
        """Calls that began; an answer with calls that ends by itself ends for "tool_calls"."""

    @property
    def stop_text(self) -> str | None:
        """The stop text that was found."""
        return self._stop_texts.found

    @property
    def in_reasoning(self) -> bool:
        """Whether what comes next is reasoning, as far as the text so far tells."""
        return self._parser.in_reasoning

    def push(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob] | None = None
    ) -> list[AnswerPart]:
        """The events that are certain with these tokens.

        Args:
            logprobs: one for each token; None where nobody asked for them.
        """
        events: list[AnswerPart] = []
        for number, token_id in enumerate(token_ids):
            if self.stop_text is not None:
                break
            self.reasoning_tokens += self._parser.in_reasoning
            if self._is_hidden(token_id):
                continue
            if logprobs is not None:
                self._waiting.append(logprobs[number])
            self._num_waiting += 1
            text = self._decoder.push([token_id])
            if not text and self._num_waiting >= _MOST_WAITING:
                text = self._decoder.finish()
            if text:
                self._write(text)
                events += self._events(self._parser.push(text))
                self._forget()
        return _together(events)

    def finish(self, reason: FinishReason) -> list[AnswerPart]:
        """What was held back.

        Args:
            reason: why the answer ends. Where the model did not end it, a call that is not complete stays so.
        """
        if self.stop_text is not None:
            return []
        events: list[AnswerPart] = []
        if text := self._decoder.finish():
            self._write(text)
            events += self._events(self._parser.push(text))
        if self.stop_text is None:
            events += self._events(self._parser.finish(cut=reason not in ("stop", "tool_calls")))
        if self.stop_text is None:
            events += self._answered(len(self._stop_texts.finish()))
        return _together(events)

    def _is_hidden(self, token_id: int) -> bool:
        """Whether a token is a special one that nobody reads, such as the end of a turn."""
        if token_id not in self._hidden:
            shown = (self._tokenizer.decode([token_id], skip_special=skip) for skip in (True, False))
            self._hidden[token_id] = (
                tuple(map(bool, shown)) == (False, True) and token_id not in self._markers
            )
        return self._hidden[token_id]

    def _write(self, text: str) -> None:
        start, self._num_characters = self._num_characters, self._num_characters + len(text)
        self._num_waiting = 0
        if self._waiting:
            self._written.append(_Written(start, self._num_characters, tuple(self._waiting)))
            self._waiting = []

    def _events(self, parsed: Sequence[Parsed]) -> list[AnswerPart]:
        """Events up to a stop text, without what may become one."""
        events: list[AnswerPart] = []
        for one in parsed:
            if isinstance(one.event, Text):
                self._pending.append(one)
                events += self._answered(len(self._stop_texts.push(one.event.text)))
                if self.stop_text is not None:
                    break
            else:
                if isinstance(one.event, CallStarted):
                    # What was held back stands before the call.
                    events += self._answered(len(self._stop_texts.finish()))
                    self.num_calls += 1
                events.append(one.event)
        return events

    def _answered(self, length: int) -> list[AnswerPart]:
        """So many characters of the answer, with the probabilities of their tokens."""
        events: list[AnswerPart] = []
        while length:
            one = self._pending.popleft()
            assert isinstance(one.event, Text)
            text = one.event.text
            if len(text) > length:
                self._pending.appendleft(Parsed(Text(text[length:]), one.start + length, one.end))
                text = text[:length]
            length -= len(text)
            events.append(Text(text, self._logprobs(one.start, one.start + len(text))))
        return events

    def _logprobs(self, start: int, end: int) -> tuple[TokenLogprob, ...]:
        """Of the tokens that became the text from start to end, if they are not handed on yet."""
        found: list[TokenLogprob] = []
        while self._written and self._written[0].start < end:
            written = self._written.popleft()
            if written.end > start:
                found += written.logprobs
        return tuple(found)

    def _forget(self) -> None:
        """Drop probabilities of what cannot become text of the answer any more."""
        decided = self._pending[0].start if self._pending else self._parser.decided
        while self._written and self._written[0].end <= decided:
            self._written.popleft()


def _together(events: Sequence[AnswerPart]) -> list[AnswerPart]:
    """The same with neighbouring pieces of one kind put together."""
    merged: list[AnswerPart] = []
    for event in events:
        last = merged[-1] if merged else None
        if isinstance(event, Text) and isinstance(last, Text):
            merged[-1] = Text(last.text + event.text, last.logprobs + event.logprobs)
        elif isinstance(event, Reasoning) and isinstance(last, Reasoning):
            merged[-1] = Reasoning(last.text + event.text)
        elif (
            isinstance(event, CallArguments)
            and isinstance(last, CallArguments)
            and event.call_id == last.call_id
        ):
            merged[-1] = replace(last, text=last.text + event.text)
        else:
            merged.append(event)
    return merged
