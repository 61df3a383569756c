"""One prompt, alone: its prefill, then steps until it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from orchestrator.model.mtp import MtpDrafter
from orchestrator.model.step35 import Step35Model
from orchestrator.prefix.cache import PrefixCache
from orchestrator.prefix.stops import passes
from orchestrator.sampling import Sampler
from orchestrator.sampling_params import GREEDY, SamplingParams
from orchestrator.scheduling.step_plan import Decode, Prefill, StepPlan
from orchestrator.sequence import OnHidden, SequenceState
from orchestrator.serving.batch import keep_prompts, keep_text, run_step
from placement.errors import InputError
from placement.kv_size import PASS_ROWS

OnTokens = Callable[[list[int]], None]


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


def new_sequence(
    model: Step35Model,
    drafter: MtpDrafter | None,
    prompt_ids: Sequence[int],
    params: GenerationParams,
    on_hidden: OnHidden | None = None,
    prefix: PrefixCache | None = None,
    ends: Sequence[int] = (),
) -> SequenceState:
    """A sequence that is generated as `params` say; drafts are the drafter's affair."""
    end_ids = model.config.eos_token_ids
    sampler = Sampler(params.sampling, prompt_ids, banned=end_ids if params.ignore_eos else ())
    return SequenceState(
        model, drafter, prompt_ids, sampler, params.max_tokens, end_ids, on_hidden, prefix, ends
    )


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
    pass_rows = max(params.chunk_size, 1 + params.mtp)
    model.check_kv(len(prompt_ids) + params.max_tokens, pass_rows, params.mtp)
    drafter = MtpDrafter(model, params.mtp, min(pass_rows, PASS_ROWS)) if params.mtp else None
    timer = model.timer
    started = perf_counter()
    sequence = new_sequence(model, drafter, prompt_ids, params, on_hidden, prefix, ends)
    try:
        prefill(model, drafter, sequence, params.chunk_size)
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
        keep_text(sequence)
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


def prefill(model: Step35Model, drafter: MtpDrafter | None, sequence: SequenceState, chunk_size: int) -> None:
    """Run in chunks what is not kept of the prompt, and choose the first token.

    Every step will draft, so MTP layers take in here what of the prompt drafts may hang on.
    """
    sequence.resume()
    length = sequence.cache.length
    for start, stop in passes(length, length + sequence.to_prefill, chunk_size, sequence.stops):
        plan = StepPlan(prefill=(Prefill(0, stop - start),))
        run_step(model, drafter, {0: sequence}, plan)
        keep_prompts({0: sequence}, plan)
    if drafter is not None:
        drafter.draft([sequence.draft_request(0)])


def step(model: Step35Model, drafter: MtpDrafter | None, sequences: Sequence[SequenceState]) -> None:
    """One decode step of unfinished sequences: draft as much as the drafter can, verify and choose."""
    num_drafts = 0 if drafter is None else drafter.num_layers
    plan = StepPlan(decode=tuple(Decode(number, num_drafts) for number in range(len(sequences))))
    run_step(model, drafter, dict(enumerate(sequences)), plan)
