"""What the boxes are asked to do: the mix a plan is made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from placement.weight_format import activation_bytes_of, head_bits_of, planned_format, value_bytes_of

DEFAULT_CONTEXT = 4096
"""Of every command: an empty cache is nobody's everyday, and speeds are compared between commands."""

DEFAULT_PROMPT_RATIO = 8.0
"""Of every command: whoever talks to a model, or points an agent at it, has it read more than it writes."""


HeadPart = Literal["attention", "router", "ffn", "output"]


@dataclass(frozen=True, slots=True)
class HeadForms:
    """What the head's own weights are kept in, by part, as plans name forms.

    Attributes:
        attention: its projections.
        router: of MoE layers.
        ffn: dense layers' and shared experts' matrices, and the MTP layers' input projections.
        output: lm_head and the MTP layers' own heads.
    """

    attention: str
    router: str
    ffn: str
    output: str


@dataclass(frozen=True, slots=True)
class Workload:
    """One decode step.

    Attributes:
        num_sequences: sequences decoded together.
        drafts: MTP drafts verified in the same pass, for each sequence.
        accepted_drafts: mean number of them that hold; a step gives 1 + accepted_drafts tokens a sequence.
        context: positions in the KV cache, each sequence.
        head_bits_per_weight: of the head's own weights (attention, shared experts, lm_head, MTP layers).
        bytes_per_kv_value: 2 for bfloat16.
        bytes_per_activation: of a hidden state on its way to a worker, 4 for float32, 2 for bfloat16, 1 where
            quantised experts take it rounded.
        prompt_tokens_per_token: tokens of prompts to read for each token of the answers.
        prefill_tokens: tokens of one prefill pass.
        acceptance: chance of each draft to hold if those before it did, where that is known by position;
            `accepted_drafts` is their mean.
        head_forms: of the head's own weights, in place of `head_bits_per_weight` in times; None where nobody
            says.
    """

    num_sequences: int = 1
    drafts: int = 0
    accepted_drafts: float = 0.0
    context: int = 0
    head_bits_per_weight: float = 16.0
    bytes_per_kv_value: int = 2
    bytes_per_activation: int = 2
    prompt_tokens_per_token: float = 0.0
    prefill_tokens: int = 512
    acceptance: tuple[float, ...] = ()
    head_forms: HeadForms | None = None

    @property
    def tokens_per_step(self) -> int:
        """Rows of one pass."""
        return self.num_sequences * (1 + self.drafts)

    def head_form(self, part: HeadPart) -> str | None:
        """The form of a part of the head; None where only its bits are known."""
        if self.head_forms is None:
            return None
        form: str = getattr(self.head_forms, part)
        return form

    def head_bits(self, part: HeadPart) -> float:
        """Of each weight of a part of the head."""
        form = self.head_form(part)
        return self.head_bits_per_weight if form is None else planned_format(form).bits

    @property
    def tokens_out_per_step(self) -> float:
        """Tokens that a step adds to the text."""
        return self.num_sequences * (1 + self.accepted_drafts)

    @property
    def prefill_passes_per_step(self) -> float:
        """Prefill passes that fall to one decode step."""
        return self.prompt_tokens_per_token * self.tokens_out_per_step / self.prefill_tokens


def usual_workload(quant: str) -> Workload:
    """What most people have, where nobody says: one text, a prompt eight times as long as its answer.

    The head is kept as in published files whose experts are in `quant`; raises InputError for an unknown one.
    """
    return Workload(
        context=DEFAULT_CONTEXT,
        head_bits_per_weight=head_bits_of(quant),
        bytes_per_kv_value=value_bytes_of(quant),
        bytes_per_activation=activation_bytes_of(quant),
        prompt_tokens_per_token=DEFAULT_PROMPT_RATIO,
    )


# One sequence, one token a step, an empty context: what a figure means where nothing else is said.
SINGLE_TOKEN = Workload()


def describe(workload: Workload) -> str:
    """What a plan assumes, in one line for people."""
    texts = "1 text" if workload.num_sequences == 1 else f"{workload.num_sequences} texts at once"
    drafts = ""
    if workload.drafts:
        plural = "s" if workload.drafts > 1 else ""
        drafts = f" with {workload.drafts} draft{plural} a step ({workload.accepted_drafts:.2g} hold)"
    kv_bits = 8 * workload.bytes_per_kv_value
    return (
        f"{texts}{drafts}, {workload.context:,} positions in a {kv_bits}-bit KV cache, "
        f"the head's weights in {workload.head_bits_per_weight:.4g} bits, "
        f"{workload.prompt_tokens_per_token:g} prompt tokens for each one written"
    )
