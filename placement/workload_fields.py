"""A workload as a plan file keeps it: in bits, where the code counts bytes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from placement.errors import InputError, PlanError
from placement.files.quote import quote
from placement.kv_size import KvForm
from placement.plan_fields import count, number, object_of, text
from placement.weight_format import planned_format
from placement.workload import HeadBytes, HeadForm, HeadForms, Workload

_REQUIRED = (
    "sequences",
    "drafts",
    "accepted_drafts",
    "context",
    "head_bits",
    "kv_bits",
    "prompt_ratio",
    "prefill_tokens",
)
# Plans of before had `activation_bits`. The layers' forms say more, so it is not used.
_OPTIONAL = ("acceptance", "head_forms", "head_bytes", "activation_bits")
_HEAD_PARTS = ("attention", "router", "ffn", "output")
_KV_FORMS = {8 * form.value_bytes: form for form in KvForm}
_MOST_HEAD_BYTES = 2**50
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
        "kv_bits": 8 * workload.kv_form.value_bytes,
        "prompt_ratio": workload.prompt_tokens_per_token,
        "prefill_tokens": workload.prefill_tokens,
    }
    if workload.acceptance:
        fields["acceptance"] = list(workload.acceptance)
    if workload.head_forms is not None:
        fields["head_forms"] = asdict(workload.head_forms)
    if workload.head_bytes is not None:
        fields["head_bytes"] = asdict(workload.head_bytes)
    return fields


def workload_of_fields(value: object, where: str) -> Workload:
    """The workload of such an object; raises PlanError, which names the field below `where`."""
    fields = object_of(value, where, _REQUIRED, optional=_OPTIONAL)
    if "activation_bits" in fields:
        count(fields["activation_bits"], f"{where}.activation_bits", least=1, most=64)
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
        kv_form=_kv_form(fields["kv_bits"], f"{where}.kv_bits"),
        prompt_tokens_per_token=number(fields["prompt_ratio"], f"{where}.prompt_ratio", most=_MOST),
        prefill_tokens=count(fields["prefill_tokens"], f"{where}.prefill_tokens", least=1, most=_MOST),
        head_forms=_head_forms(fields.get("head_forms"), f"{where}.head_forms"),
        head_bytes=_head_bytes(fields.get("head_bytes"), f"{where}.head_bytes"),
    )


def _kv_form(value: object, where: str) -> KvForm:
    bits = count(value, where, least=8, most=64)
    if bits not in _KV_FORMS:
        raise PlanError(f"{where}: expected one of {', '.join(map(str, sorted(_KV_FORMS)))}, found {bits}")
    return _KV_FORMS[bits]


def _head_forms(value: object, where: str) -> HeadForms | None:
    if value is None:
        return None
    parts = object_of(value, where, _HEAD_PARTS)
    return HeadForms(**{part: _head_form(parts[part], f"{where}.{part}") for part in _HEAD_PARTS})


def _head_form(value: object, where: str) -> HeadForm:
    fields = object_of(value, where, ("form", "bits"))
    form = text(fields["form"], f"{where}.form")
    try:
        planned_format(form)
    except InputError:
        raise PlanError(
            f"{where}.form: expected a form of weights such as q8_0, found {quote(form)}"
        ) from None
    return HeadForm(form, number(fields["bits"], f"{where}.bits", least=1.0, most=64.0))


def _head_bytes(value: object, where: str) -> HeadBytes | None:
    if value is None:
        return None
    fields = object_of(value, where, ("trunk", "mtp"))
    trunk = count(fields["trunk"], f"{where}.trunk", most=_MOST_HEAD_BYTES)
    return HeadBytes(trunk, count(fields["mtp"], f"{where}.mtp", most=_MOST_HEAD_BYTES))
