"""A workload as a plan file keeps it: in bits, where the code counts bytes."""

from __future__ import annotations

from typing import Any

from placement.errors import PlanError
from placement.plan_fields import count, number, object_of
from placement.workload import Workload

_REQUIRED = (
    "sequences",
    "drafts",
    "accepted_drafts",
    "context",
    "head_bits",
    "kv_bits",
    "activation_bits",
    "prompt_ratio",
    "prefill_tokens",
)
_MOST = 2**31 - 1
"""Of anything counted here: numbers beyond it would only overflow."""


def workload_fields(workload: Workload) -> dict[str, Any]:
    """The JSON object of a workload (docs/formats.md)."""
    fields: dict[str, Any] = {
        "sequences": workload.num_sequences,
        "drafts": workload.drafts,
        "accepted_drafts": workload.accepted_drafts,
        "context": workload.context,
        "head_bits": workload.head_bits_per_weight,
        "kv_bits": 8 * workload.bytes_per_kv_value,
        "activation_bits": 8 * workload.bytes_per_activation,
        "prompt_ratio": workload.prompt_tokens_per_token,
        "prefill_tokens": workload.prefill_tokens,
    }
    if workload.acceptance:
        fields["acceptance"] = list(workload.acceptance)
    return fields


def workload_of_fields(value: object, where: str) -> Workload:
    """The workload of such an object; raises PlanError, which names the field below `where`."""
    fields = object_of(value, where, _REQUIRED, optional=("acceptance",))
    drafts = count(fields["drafts"], f"{where}.drafts", most=_MOST)
    acceptance = fields.get("acceptance", [])
    if not isinstance(acceptance, list) or (acceptance and len(acceptance) != drafts):
        raise PlanError(f"{where}.acceptance: expected a chance for each of the {drafts} drafts")
    return Workload(
        num_sequences=count(fields["sequences"], f"{where}.sequences", least=1, most=_MOST),
        drafts=drafts,
        accepted_drafts=number(fields["accepted_drafts"], f"{where}.accepted_drafts", most=drafts),
        acceptance=tuple(number(chance, f"{where}.acceptance", most=1.0) for chance in acceptance),
        context=count(fields["context"], f"{where}.context", most=_MOST),
        head_bits_per_weight=number(fields["head_bits"], f"{where}.head_bits", least=1.0, most=64.0),
        bytes_per_kv_value=_bytes(fields["kv_bits"], f"{where}.kv_bits"),
        bytes_per_activation=_bytes(fields["activation_bits"], f"{where}.activation_bits"),
        prompt_tokens_per_token=number(fields["prompt_ratio"], f"{where}.prompt_ratio", most=_MOST),
        prefill_tokens=count(fields["prefill_tokens"], f"{where}.prefill_tokens", least=1, most=_MOST),
    )


def _bytes(value: object, where: str) -> int:
    bits = count(value, where, least=8, most=64)
    if bits % 8:
        raise PlanError(f"{where}: expected a multiple of 8, found {bits}")
    return bits // 8
