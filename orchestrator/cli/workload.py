"""The workload that `plan`, `simulate` and `whatif` are told about by the same options.

What is not said comes from the plan at hand, else from what most people have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import typer

from orchestrator.cli.inputs import HeadOfFiles
from placement.errors import InputError
from placement.kv_size import KvForm
from placement.model_shape import ModelShape
from placement.replay.steps import Acceptance
from placement.workload import DEFAULT_CONTEXT, DEFAULT_PROMPT_RATIO, Workload, usual_workload

Context = Annotated[
    int | None,
    typer.Option(
        min=0, help=f"Positions in each text's KV cache; default {DEFAULT_CONTEXT:,}, or a given plan's."
    ),
]
HeadBits = Annotated[
    float | None,
    typer.Option(
        min=1,
        max=64,
        help="Bits of each of the head's own weights; default as in published files, or a given plan's.",
    ),
]
TokensPerStep = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens of a pass: texts x (1 + drafts); default one text, or a given plan's."),
]
Accept = Annotated[
    str | None,
    typer.Option(
        help="MTP: chance of each draft to hold if those before it did, such as 0.8,0.6; "
        "default no drafts, or a given plan's."
    ),
]
PromptRatio = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Prompt tokens to read for each token written: how much prompts count when experts are placed; "
        f"default {DEFAULT_PROMPT_RATIO:g}.",
    ),
]


@dataclass(frozen=True, slots=True)
class WorkloadOptions:
    """What the options say; None where they say nothing."""

    tokens_per_step: int | None = None
    accept: str | None = None
    context: int | None = None
    head_bits: float | None = None
    prompt_ratio: float | None = None
    kv: KvForm | None = None


def workload_of(
    said: WorkloadOptions,
    shape: ModelShape,
    quant: str,
    plan: Workload | None = None,
    head: HeadOfFiles | None = None,
) -> Workload:
    """What is to be planned or simulated.

    Args:
        quant: the experts' form, which decides what the rest is in where nobody says.
        plan: of the plan at hand.
        head: what the model's files say.

    Raises:
        InputError: an option's value, or `tokens_per_step` is no multiple of a token and its drafts.
    """
    usual = plan or usual_workload(quant)
    if plan is None:
        usual = replace(usual, context=min(usual.context, shape.max_positions))
    if head is not None:
        usual = replace(
            usual, head_bits_per_weight=head.bits, head_forms=head.forms, head_bytes=head.num_bytes
        )
    if said.head_bits is not None:
        check_finite("--head-bits", said.head_bits)
        usual = replace(usual, head_bits_per_weight=said.head_bits, head_forms=None, head_bytes=None)
    chances = usual.acceptance if said.accept is None else _chances(said.accept)
    drafts = len(chances) if said.accept is not None else usual.drafts
    _check_drafts("--accept" if said.accept is not None else "the plan", drafts, shape)
    context = usual.context if said.context is None else said.context
    if context > shape.max_positions:
        where = "the plan" if said.context is None else "--context"
        raise InputError(
            f"{where}: expected a context of at most {shape.max_positions:,}, the longest text of "
            f"{shape.name}, found {context:,}"
        )
    ratio = usual.prompt_tokens_per_token if said.prompt_ratio is None else said.prompt_ratio
    check_finite("--prompt-ratio", ratio)
    accepted = usual.accepted_drafts if said.accept is None else Acceptance(chances).mean_accepted
    return replace(
        usual,
        num_sequences=_num_sequences(said.tokens_per_step, drafts, usual.num_sequences),
        drafts=drafts,
        accepted_drafts=accepted,
        acceptance=chances,
        context=context,
        kv_form=said.kv or usual.kv_form,
        prompt_tokens_per_token=ratio,
    )


def acceptance_of(workload: Workload, seed: int) -> Acceptance | None:
    """How a simulation draws the drafts' luck; None without drafts.

    Raises:
        InputError: how many hold is known on the mean alone.
    """
    if not workload.drafts:
        return None
    if not workload.acceptance and workload.accepted_drafts:
        raise InputError("--accept: expected a chance for each draft, since the plan says only their mean")
    return Acceptance(workload.acceptance or (0.0,) * workload.drafts, seed)


def check_finite(option: str, value: float) -> None:
    """Raise InputError for nan and the infinities, which ranges of numbers let pass."""
    if not math.isfinite(value):
        raise InputError(f"{option}: expected a finite number, found {value}")


def _chances(text: str) -> tuple[float, ...]:
    """`--accept 0.8,0.6`."""
    try:
        chances = tuple(float(part) for part in text.split(","))
    except ValueError:
        chances = ()
    if not chances or not all(0 <= chance <= 1 for chance in chances):
        raise InputError(f"--accept: expected numbers from 0 to 1 such as 0.8,0.6, found {text!r}")
    return chances


def _check_drafts(where: str, drafts: int, shape: ModelShape) -> None:
    if drafts > shape.num_mtp_layers:
        raise InputError(
            f"{where}: expected at most {shape.num_mtp_layers} drafts, as many as {shape.name} has MTP "
            f"layers; found {drafts}"
        )


def _num_sequences(tokens_per_step: int | None, drafts: int, usual: int) -> int:
    if tokens_per_step is None:
        return usual
    num_sequences, rest = divmod(tokens_per_step, 1 + drafts)
    if rest or not num_sequences:
        raise InputError(
            f"--tokens-per-step: expected a multiple of {1 + drafts} (a token and its {drafts} drafts), "
            f"found {tokens_per_step}"
        )
    return num_sequences
