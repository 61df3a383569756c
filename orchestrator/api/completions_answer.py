"""OpenAI's older completions, streamed and whole, from the engine's events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.api.chat_answer import FINISH_REASONS, usage_of
from orchestrator.api.errors import ApiError, body_of
from orchestrator.api.writer import COMMENT, Json, data_frame, finite, summed
from orchestrator.serving.answer import AnswerEvent, Finished, Reasoning, Text, TokenLogprob, Usage

# A text that is continued has neither reasoning nor calls of its own: what the model writes is the answer.


@dataclass(slots=True)
class _Choice:
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    length: int = 0
    finished: Finished | None = None


class CompletionWriter:
    """Fulfils `Writer`."""

    def __init__(
        self,
        answer_id: str,
        created_s: int,
        model: str,
        num_choices: int,
        n: int,
        *,
        with_logprobs: bool,
        usage_at_end: bool,
    ) -> None:
        """`n`: so many choices one after another have the same prompt."""
        self._head: Json = {
            "id": f"cmpl-{answer_id}",
            "object": "text_completion",
            "created": created_s,
            "model": model,
        }
        self._choices = [_Choice() for _ in range(num_choices)]
        self._n = n
        self._with_logprobs = with_logprobs
        self._usage_at_end = usage_at_end

    def take(self, choice: int, event: AnswerEvent) -> list[Json]:
        said = self._choices[choice]
        if isinstance(event, Text | Reasoning):
            logprobs = event.logprobs if isinstance(event, Text) else ()
            shown = self._logprobs(logprobs, said.length)
            said.text.append(event.text)
            said.logprobs += logprobs
            said.length += len(event.text)
            return [self._chunk([self._piece(choice, event.text, shown)])]
        if isinstance(event, Finished):
            said.finished = event
            return [self._chunk([{**self._piece(choice, "", None), **_ending(event)}])]
        return []

    def end(self) -> list[Json]:
        return [{**self._chunk([]), "usage": usage_of(self._usage())}] if self._usage_at_end else []

    def failed(self, error: ApiError) -> list[Json]:
        return [body_of(error, "openai")]

    def whole(self) -> Json:
        choices = []
        for index, choice in enumerate(self._choices):
            assert choice.finished is not None, "an answer is shown before its end"
            shown = self._logprobs(choice.logprobs, 0)
            text = "".join(choice.text)
            choices.append({**self._piece(index, text, shown), **_ending(choice.finished)})
        return {**self._head, "choices": choices, "usage": usage_of(self._usage())}

    def frame(self, chunk: Json) -> bytes:
        return data_frame(chunk)

    def waiting(self) -> bytes:
        return COMMENT

    def last(self) -> bytes:
        return b"data: [DONE]\n\n"

    def _usage(self) -> Usage:
        usages = [choice.finished.usage for choice in self._choices if choice.finished is not None]
        per_prompt = [summed(usages[start : start + self._n]) for start in range(0, len(usages), self._n)]
        total = summed(per_prompt)
        return Usage(
            sum(usage.prompt_tokens for usage in per_prompt),
            sum(usage.cached_tokens for usage in per_prompt),
            total.completion_tokens,
            total.reasoning_tokens,
            total.drafted,
            total.accepted,
        )

    def _piece(self, index: int, text: str, logprobs: Json | None) -> Json:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}

    def _chunk(self, choices: list[Json]) -> Json:
        chunk = {**self._head, "choices": choices}
        return {**chunk, "usage": None} if self._usage_at_end else chunk

    def _logprobs(self, tokens: Sequence[TokenLogprob], offset: int) -> Json | None:
        """`offset`: where in the text the first of them begins."""
        if not self._with_logprobs:
            return None
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [finite(token.logprob) for token in tokens],
            "top_logprobs": [{text: finite(logprob) for text, _, logprob in token.top} for token in tokens],
            "text_offset": offsets,
        }


def _ending(finished: Finished) -> Json:
    return {
        "finish_reason": FINISH_REASONS[finished.reason],
        "finish_detail": finished.reason,
        "stop_reason": finished.stop_text,
    }
