"""The request of OpenAI's older completions, and what it asks of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from orchestrator.api.chat_models import StreamOptions
from orchestrator.api.errors import invalid
from orchestrator.api.sampling import sampling
from orchestrator.api.validated import Penalised, stops
from orchestrator.serving.request import GenerationRequest

MOST_ANSWERS = 16
_DEFAULT_TOKENS = 16
_MOST_TOKEN = 2**31

# A list of numbers is tried as one of texts first, and must not be judged a million times.
Prompt = (
    str
    | Annotated[list[int], Field(fail_fast=True)]
    | Annotated[list[str], Field(fail_fast=True)]
    | Annotated[list[Annotated[list[int], Field(fail_fast=True)]], Field(fail_fast=True)]
)


class CompletionBody(Penalised):
    model: str | None = None
    prompt: Prompt
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1, le=MOST_ANSWERS)
    max_tokens: int = Field(default=_DEFAULT_TOKENS, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=20)


@dataclass(frozen=True, slots=True)
class CompletionAsked:
    """`requests`: the `n` answers to the first prompt, then those to the next."""

    requests: tuple[GenerationRequest, ...]
    n: int
    usage_at_end: bool


def completion_asked(body: CompletionBody, client: str, seed: int) -> CompletionAsked:
    """What is asked of the engine.

    Args:
        seed: for a request that names none.

    Raises:
        ApiError: a field is at fault.
    """
    prompts = _prompts(body.prompt)
    if len(prompts) * body.n > MOST_ANSWERS:
        raise invalid("prompt", f"asks for {len(prompts) * body.n} answers, expected at most {MOST_ANSWERS}")
    requests = tuple(
        GenerationRequest(
            client=client,
            prompt=prompt,
            sampling=sampling(body, seed),
            choice=choice,
            max_tokens=body.max_tokens,
            stop=stops(body.stop, "stop"),
            ignore_eos=body.ignore_eos,
            top_logprobs=body.logprobs,
        )
        for prompt in prompts
        for choice in range(body.n)
    )
    options = body.stream_options
    return CompletionAsked(requests, body.n, options is not None and bool(options.include_usage))


def _prompts(given: Prompt) -> list[str | tuple[int, ...]]:
    if isinstance(given, str):
        return [_checked(given)]
    if not given:
        raise invalid("prompt", "is empty")
    if isinstance(given[0], int):
        return [_checked(given)]
    return [_checked(one) for one in given]


def _checked(prompt: str | Sequence[int]) -> str | tuple[int, ...]:
    if not prompt:
        raise invalid("prompt", "is empty")
    if isinstance(prompt, str):
        return prompt
    if any(not 0 <= token < _MOST_TOKEN for token in prompt):
        raise invalid("prompt", "has numbers that are no token ids")
    return tuple(prompt)
