"""What the boxes are asked to do: the mix a plan is made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from placement.kv_size import KvForm
from placement.weight_format import head_bits_of, planned_format, run_dtype_of

DEFAULT_CONTEXT = 4096
"""Of every command: an empty cache is nobody's everyday, and speeds are compared between commands."""

DEFAULT_PROMPT_RATIO = 8.0
"""Of every command: whoever talks to a model, or points an agent at it, has it read more than it writes."""


HeadPart = Literal["attention", "router", "ffn", "output"]


@dataclass(frozen=True, slots=True)
class HeadForm:
    """What a part of the head is kept in.

    `form`: as plans name it, that of most of its weights, by which kernels state their rates. `bits`: of each
    weight on average.
    """

    form: str
    bits: float

    @classmethod
    def of(cls, form: str) -> HeadForm:
        """All of it in one form; raises InputError for an unknown one."""
        return cls(form, planned_format(form).bits)


@dataclass(frozen=True, slots=True)
class HeadForms:
    """What the head's own weights are kept in, by part.

    Attributes:
        attention: its projections.
        router: of MoE layers.
        ffn: dense layers' and shared experts' matrices, and the MTP layers' input projections.
        output: lm_head and the MTP layers' own heads.
    """

    attention: HeadForm
    router: HeadForm
    ffn: HeadForm
    output: HeadForm


@dataclass(frozen=True, slots=True)
class HeadBytes:
    """What the head's own weights take in memory: of the trunk, embedding included, and of the MTP layers."""

    trunk: int
    mtp: int


@dataclass(frozen=True, slots=True)
class Workload:
    """One decode step.

    Attributes:
        num_sequences: sequences decoded together.
        drafts: MTP drafts verified in the same pass, for each sequence.
        accepted_drafts: mean number of them that hold; a step gives 1 + accepted_drafts tokens a sequence.
        context: positions in the KV cache, each sequence.
        head_bits_per_weight: of the head's own weights (attention, shared experts, lm_head, MTP layers).
        kv_form: of keys and values.
        prompt_tokens_per_token: tokens of prompts to read for each token of the answers.
        prefill_tokens: tokens of one prefill pass.
        acceptance: chance of each draft to hold if those before it did, where that is known by position;
            `accepted_drafts` is their mean.
        head_forms: of the head's own weights, in place of `head_bits_per_weight` in times; None where nobody
            says.
        head_bytes: of the head's own weights, in its place in memory; None where nobody says.
    """

    num_sequences: int = 1
    drafts: int = 0
    accepted_drafts: float = 0.0
    context: int = 0
    head_bits_per_weight: float = 16.0
    kv_form: KvForm = KvForm.bfloat16
    prompt_tokens_per_token: float = 0.0
    prefill_tokens: int = 512
    acceptance: tuple[float, ...] = ()
    head_forms: HeadForms | None = None
    head_bytes: HeadBytes | None = None

    @property
    def tokens_per_step(self) -> int:
        """Rows of one pass."""
        return self.num_sequences * (1 + self.drafts)

    def head_form(self, part: HeadPart) -> str | None:
        """The form of a part of the head; None where only its bits are known."""
        kept = self._kept(part)
        return None if kept is None else kept.form

    def head_bits(self, part: HeadPart) -> float:
        """Of each weight of a part of the head."""
        kept = self._kept(part)
        return self.head_bits_per_weight if kept is None else kept.bits

    def _kept(self, part: HeadPart) -> HeadForm | None:
        kept: HeadForm | None = None if self.head_forms is None else getattr(self.head_forms, part)
        return kept

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
        kv_form=KvForm.of(run_dtype_of(quant)),
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
    return (
        f"{texts}{drafts}, {workload.context:,} positions of keys and values in {workload.kv_form}, "
        f"the head's weights in {workload.head_bits_per_weight:.4g} bits, "
        f"{workload.prompt_tokens_per_token:g} prompt tokens for each one written"
    )
