"""The workload that `plan` and `simulate` are told about by the same options."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from placement.errors import InputError
from placement.model_shape import ModelShape
from placement.simulation.steps import Acceptance
from placement.workload import Workload

Context = Annotated[int, typer.Option(min=0, help="Positions in each sequence's KV cache.")]
HeadBits = Annotated[
    float | None,
    typer.Option(min=1, max=64, help="Bits of each of the head's own weights; default the experts', or 16."),
]
TokensPerStep = Annotated[int | None, typer.Option(min=1, help="Tokens of a pass: sequences x (1 + drafts).")]
Accept = Annotated[
    str | None,
    typer.Option(help="MTP: chance of each draft to hold if those before it did, such as 0.8,0.6."),
]


def acceptance_of(text: str | None, seed: int = 0) -> Acceptance | None:
    """`--accept 0.8,0.6`; raises InputError for anything but numbers from 0 to 1."""
    if text is None:
        return None
    try:
        chances = tuple(float(part) for part in text.split(","))
    except ValueError:
        chances = ()
    if not chances or not all(0 <= chance <= 1 for chance in chances):
        raise InputError(f"--accept: expected numbers from 0 to 1 such as 0.8,0.6, found {text!r}")
    return Acceptance(chances, seed)


def check_drafts(acceptance: Acceptance | None, shape: ModelShape) -> None:
    """Raise InputError for more drafts than the model has MTP layers."""
    drafts = 0 if acceptance is None else len(acceptance.probabilities)
    if drafts > shape.num_mtp_layers:
        raise InputError(
            f"--accept: expected at most {shape.num_mtp_layers} drafts, as many as {shape.name} has MTP "
            f"layers; found {drafts}"
        )


def head_bits_of(given: float | None, expert_bits: float) -> float:
    """Bits of each of the head's own weights: as `given`, else those of the experts, but at least 16."""
    return max(expert_bits, 16.0) if given is None else given


def check_finite(option: str, value: float) -> None:
    """Raise InputError for nan and the infinities, which ranges of numbers let pass."""
    if not math.isfinite(value):
        raise InputError(f"{option}: expected a finite number, found {value}")


def workload_of(
    tokens_per_step: int | None,
    acceptance: Acceptance | None,
    *,
    context: int,
    head_bits: float,
    prompt_ratio: float = 0.0,
) -> Workload:
    """As many sequences as fill a pass, each with the drafts whose acceptance is given.

    Raises:
        InputError: `tokens_per_step` is not a multiple of a token and its drafts, or a number not finite.
    """
    check_finite("--prompt-ratio", prompt_ratio)
    drafts = len(acceptance.probabilities) if acceptance is not None else 0
    num_sequences, rest = divmod(tokens_per_step or 1 + drafts, 1 + drafts)
    if rest or not num_sequences:
        raise InputError(
            f"--tokens-per-step: expected a multiple of {1 + drafts} (a token and its {drafts} drafts), "
            f"found {tokens_per_step}"
        )
    accepted = acceptance.mean_accepted if acceptance is not None else 0.0
    return Workload(
        num_sequences=num_sequences,
        drafts=drafts,
        accepted_drafts=accepted,
        context=context,
        head_bits_per_weight=head_bits,
        prompt_tokens_per_token=prompt_ratio,
    )
