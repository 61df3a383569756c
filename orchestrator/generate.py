"""The decode loop: prefill, draft, verify, sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor

from orchestrator.model.attention import SequenceSlice
from orchestrator.model.mtp import DraftRequest, MtpDrafter, MtpState
from orchestrator.model.step35 import Step35Model
from orchestrator.prefix.cache import PrefixCache, Resumed
from orchestrator.prefix.stops import passes, stops
from orchestrator.sampling import Choice, Sampler, accepted
from orchestrator.sampling_params import GREEDY, SamplingParams
from placement.errors import InputError

OnTokens = Callable[[list[int]], None]
OnHidden = Callable[[Tensor], None]


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """What to generate.

    Attributes:
        max_tokens: stop after this many.
        sampling: how tokens are chosen.
        ignore_eos: give end tokens probability 0.
        mtp: drafts a step, 0 to the checkpoint's number of MTP layers.
        chunk_size: prompt tokens a prefill pass.
    """

    max_tokens: int = 128
    sampling: SamplingParams = GREEDY
    ignore_eos: bool = False
    mtp: int = 0
    chunk_size: int = 256

    def __post_init__(self) -> None:
        for name, value, least in (
            ("max_tokens", self.max_tokens, 1),
            ("chunk_size", self.chunk_size, 1),
            ("mtp", self.mtp, 0),
        ):
            if not least <= value < float("inf"):
                raise InputError(f"{name} is {value}; expected a number from {least} upwards")


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """What was generated and how.

    Attributes:
        token_ids: generated tokens, an end token included.
        finish_reason: "stop" after an end token, "length" at max_tokens.
        steps: decode passes of the trunk; the prefill, which gives the first token, is not one.
        drafted_by_position, accepted_by_position: drafts made and accepted as first, second, third of a step.
        prefill_s, decode_s: wall seconds up to the first token, and after it.
        time_s: decode seconds by part (see StepTimer).
    """

    token_ids: tuple[int, ...]
    finish_reason: str
    steps: int
    drafted_by_position: tuple[int, ...]
    accepted_by_position: tuple[int, ...]
    prefill_s: float
    decode_s: float
    time_s: dict[str, float] = field(default_factory=dict)

    @property
    def drafted(self) -> int:
        """Drafts made."""
        return sum(self.drafted_by_position)

    @property
    def accepted_drafts(self) -> int:
        """Drafts that became output."""
        return sum(self.accepted_by_position)

    @property
    def accepted_drafts_per_step(self) -> float:
        """Mean over the decode steps; 0 without any."""
        return self.accepted_drafts / self.steps if self.steps else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Decode speed: tokens after the first, over decode_s; 0 when there are none."""
        return (len(self.token_ids) - 1) / self.decode_s if self.decode_s > 0 else 0.0


class SequenceState:
    """One sequence on its way: tokens, caches, drafts and counts.

    Between steps the cache holds every token but the newest. `close` gives its pages back.
    """

    def __init__(
        self,
        model: Step35Model,
        drafter: MtpDrafter | None,
        prompt_ids: Sequence[int],
        params: GenerationParams,
        on_hidden: OnHidden | None = None,
        resumed: Resumed | None = None,
    ) -> None:
        """`resumed`: what was kept of the prompt, asked for with this drafter."""
        self.params = params
        self.tokens = list(prompt_ids)
        self.num_prompt = len(self.tokens)
        if resumed is None:
            resumed = Resumed(model.new_cache(), drafter.new_state() if drafter is not None else None, 0, 0)
        self.cache = resumed.cache
        self.mtp: MtpState | None = resumed.mtp
        self.end_ids = model.config.eos_token_ids
        banned = self.end_ids if params.ignore_eos else ()
        self.sampler = Sampler(params.sampling, self.tokens, banned=banned)
        self.drafts: list[int] = []
        self.finish_reason: str | None = None
        self.steps = 0
        num_drafts = drafter.num_layers if drafter is not None else 0
        self.drafted = [0] * num_drafts
        self.accepted = [0] * num_drafts
        self.on_hidden = on_hidden

    @property
    def generated(self) -> list[int]:
        """Tokens after the prompt."""
        return self.tokens[self.num_prompt :]

    def close(self) -> None:
        """Give the caches' pages back now, of a sequence that has ended or is not wanted any more."""
        self.cache.close()
        if self.mtp is not None:
            self.mtp.close()

    def extend(self, chosen: Sequence[int]) -> int:
        """Append tokens up to an end token or max_tokens; returns how many were kept."""
        for kept, token_id in enumerate(chosen, start=1):
            self.tokens.append(token_id)
            self.sampler.note([token_id])
            if token_id in self.end_ids:
                self.finish_reason = "stop"
            elif len(self.tokens) - self.num_prompt == self.params.max_tokens:
                self.finish_reason = "length"
            if self.finish_reason is not None:
                return kept
        return len(chosen)

    def choices(self) -> list[Choice]:
        """How the tokens behind the newest one and behind each draft are chosen."""
        return self.sampler.choices(len(self.tokens), self.drafts)

    def draft_request(self, hidden_states: Tensor, more_prompt: bool) -> DraftRequest:
        """Ask for no more drafts than can become output: a step yields accepted drafts and one token more."""
        if self.mtp is None:
            raise ValueError("this sequence was started without a drafter")
        remaining = self.params.max_tokens - (len(self.tokens) - self.num_prompt)
        num_drafts = 0 if more_prompt else min(len(self.drafted), remaining - 1)

        def choice(drafts: list[int]) -> Choice:
            return self.sampler.choice(len(self.tokens) + len(drafts), drafts)

        return DraftRequest(self.mtp, hidden_states, self.tokens, num_drafts, choice)


def generate(
    model: Step35Model,
    prompt_ids: Sequence[int],
    params: GenerationParams,
    on_tokens: OnTokens | None = None,
    on_hidden: OnHidden | None = None,
    prefix: PrefixCache | None = None,
    ends: Sequence[int] = (),
) -> GenerationResult:
    """Generate from one prompt.

    Args:
        on_tokens: called with each step's new tokens.
        on_hidden: called with the trunk's hidden states (before the final norm, float32 [n, hidden]) of
            every position that became part of the sequence, in order: the same rows whatever `mtp` and
            `chunk_size` are. Of a prompt that was kept, those that are computed.
        prefix: keeps the text for others that begin as it does, and has what was kept for this one.
        ends: lengths of the prompt at which other texts may part from it (`orchestrator.prefix.stops`).

    Raises:
        InputError: an empty prompt, a token outside the vocabulary, more positions than the model has, or
            more drafts than the checkpoint has MTP layers.
        KvDoesNotFit: the pool of keys and values has no room for so many positions.
    """
    check_prompt(model, prompt_ids, params.max_tokens)
    params.sampling.check_tokens(model.config.vocab_size)
    model.check_kv(len(prompt_ids) + params.max_tokens, max(params.chunk_size, 1 + params.mtp), params.mtp)
    drafter = MtpDrafter(model, params.mtp) if params.mtp else None
    timer = model.timer
    started = perf_counter()
    resumed = prefix.resume(prompt_ids, drafter) if prefix is not None else None
    sequence = SequenceState(model, drafter, prompt_ids, params, on_hidden, resumed)
    try:
        if prefix is not None and resumed is not None:
            kept_at = stops(resumed, len(prompt_ids), ends)
            prefill(model, drafter, sequence, kept_at, prefix)
        else:
            prefill(model, drafter, sequence)
        if on_tokens is not None:
            on_tokens(sequence.generated)
        timer.reset()
        first_token = perf_counter()
        with timer.part("other"):
            while sequence.finish_reason is None:
                before = len(sequence.tokens)
                step(model, drafter, [sequence])
                if on_tokens is not None:
                    on_tokens(sequence.tokens[before:])
        stopped = perf_counter()
        if prefix is not None:
            prefix.keep(sequence.tokens, sequence.cache, sequence.mtp)
    finally:
        sequence.close()
    return GenerationResult(
        token_ids=tuple(sequence.generated),
        finish_reason=sequence.finish_reason,
        steps=sequence.steps,
        drafted_by_position=tuple(sequence.drafted),
        accepted_by_position=tuple(sequence.accepted),
        prefill_s=first_token - started,
        decode_s=stopped - first_token,
        time_s=timer.seconds(),
    )


def check_prompt(model: Step35Model, prompt_ids: Sequence[int], max_tokens: int) -> None:
    """Raise InputError for a prompt the model cannot take."""
    if not prompt_ids:
        raise InputError("the prompt is empty; expected at least one token")
    model.check_token_ids(prompt_ids)
    check_length(len(prompt_ids), max_tokens, model.config.max_position_embeddings)


def check_length(prompt_tokens: int, max_tokens: int, max_positions: int) -> None:
    """Raise InputError for more tokens than the model has positions."""
    if prompt_tokens + max_tokens > max_positions:
        raise InputError(
            f"a prompt of {prompt_tokens:,} tokens and {max_tokens:,} to generate are more than the model's "
            f"{max_positions:,} positions; shorten the prompt or ask for fewer tokens"
        )


def prefill(
    model: Step35Model,
    drafter: MtpDrafter | None,
    sequence: SequenceState,
    kept_at: Sequence[int] = (),
    prefix: PrefixCache | None = None,
) -> None:
    """Run in chunks what is not in the caches yet of a prompt, choose the first token, draft what follows.

    Args:
        kept_at: lengths of the prompt at which `prefix` is to keep it.
    """
    prompt = list(sequence.tokens)
    for start, stop in passes(sequence.cache.length, len(prompt), sequence.params.chunk_size, kept_at):
        chunk = prompt[start:stop]
        hidden_states = model.forward(torch.tensor(chunk), [SequenceSlice(sequence.cache, len(chunk))])
        if sequence.on_hidden is not None:
            sequence.on_hidden(hidden_states)
        more_prompt = stop < len(prompt)
        if not more_prompt:
            logits = model.logits_to_choose_from(hidden_states[-1:])
            with model.timer.part("sampling"):
                sequence.extend(logits.choose([sequence.sampler.choice(len(prompt))]))
        _draft(drafter, [sequence], [hidden_states], more_prompt=more_prompt)
        if prefix is not None and stop in kept_at:
            prefix.keep(prompt, sequence.cache, sequence.mtp, stop)


def step(model: Step35Model, drafter: MtpDrafter | None, sequences: Sequence[SequenceState]) -> None:
    """One decode step of unfinished sequences: verify each's newest token and drafts, then draft again."""
    token_ids: list[int] = []
    batch: list[SequenceSlice] = []
    for sequence in sequences:
        token_ids.append(sequence.tokens[-1])
        token_ids += sequence.drafts
        batch.append(SequenceSlice(sequence.cache, 1 + len(sequence.drafts)))
    hidden_states = model.forward(torch.tensor(token_ids), batch)
    logits = model.logits_to_choose_from(hidden_states)

    verified = []
    start = 0
    with model.timer.part("sampling"):
        of_rows = logits.choose([choice for sequence in sequences for choice in sequence.choices()])
        for sequence, part in zip(sequences, batch, strict=True):
            stop = start + part.num_tokens
            chosen = accepted(of_rows[start:stop], sequence.drafts)
            kept = sequence.extend(chosen)
            sequence.cache.rollback(len(sequence.tokens) - 1)
            sequence.steps += 1
            for place in range(len(sequence.drafts)):
                sequence.drafted[place] += 1
                sequence.accepted[place] += place < min(kept, len(chosen) - 1)
            verified.append(hidden_states[start : start + kept])
            if sequence.on_hidden is not None:
                sequence.on_hidden(verified[-1])
            start = stop
    _draft(drafter, sequences, verified)


def _draft(
    drafter: MtpDrafter | None,
    sequences: Sequence[SequenceState],
    hidden_states: Sequence[Tensor],
    *,
    more_prompt: bool = False,
) -> None:
    if drafter is None:
        return
    going_on = [
        (sequence, rows)
        for sequence, rows in zip(sequences, hidden_states, strict=True)
        if sequence.finish_reason is None
    ]
    requests = [sequence.draft_request(rows, more_prompt) for sequence, rows in going_on]
    for (sequence, _), drafts in zip(going_on, drafter.draft(requests), strict=True):
        sequence.drafts = drafts
