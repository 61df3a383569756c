"""A run's figures as tables and as JSON: speed, where the time went, who did the work."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group

from orchestrator.cli.output import share, table
from orchestrator.computed import Copied
from orchestrator.membership.events import KINDS
from orchestrator.report import RunReport
from placement.units import size

_PART_NAMES = {
    "card": "asking the card",
    "card_wait": "waiting for the card",
    "shared_expert": "shared expert",
    "local_experts": "local experts",
    "dispatch": "sharing out, adding up",
    "wire": "messages",
    "remote_wait": "waiting for workers",
    "dense_ffn": "dense FFN",
    "mtp": "MTP layers",
    "lm_head": "output head",
}

_EVENT_NAMES = {
    "suspected": "silent for a moment",
    "died": "lost",
    "gone": "away for long",
    "returned": "came back",
    "joined": "joined",
    "refused": "refused",
    "retried": "requests asked again",
    "slowed": "slower than they should be",
    "gave_up": "given up",
    "pass_repeated": "steps that ran again",
    "liar": "gave wrong numbers",
    "rescued": "took on experts of lost ones",
    "migrated": "moves of experts",
}
# What a healthy run has too.
_EVERYDAY = ("cleared", "hedged")


_PLACES = {
    "vram": "VRAM, fixed",
    "vram_cache": "VRAM, cache",
    "vram_passing": "VRAM, passing",
    "ram": "RAM",
    "disk": "disk",
    "elsewhere": "other boxes",
}


def report_document(report: RunReport, step_s: float | None = None) -> dict[str, Any]:
    """The same figures as JSON."""
    return {
        "tokens_per_s": report.tokens_per_s,
        "predicted_tokens_per_s": predicted_tokens_per_s(report, step_s),
        "prefill_s": report.prefill_s,
        "decode_s": report.decode_s,
        "steps": report.steps,
        "accepted_drafts_per_step": report.accepted_drafts_per_step,
        "drafted_by_position": list(report.drafted_by_position),
        "accepted_by_position": list(report.accepted_by_position),
        "remote_layers_per_step": report.remote_layers_per_step,
        "remote_layers_per_token": report.remote_layers_per_token,
        "coarsened_rows": report.coarsened_rows,
        "time_s": report.time_s,
        "workers": [
            {
                "name": worker.name,
                "experts": worker.experts,
                "bytes": worker.num_bytes,
                "share_of_activations": worker.share,
            }
            for worker in report.workers
        ],
        "events": {kind: report.events.get(kind, 0) for kind in KINDS},
        "spot_checks": report.spot_checks,
        "liars": list(report.liars),
        "computed": {
            place: getattr(report.computed, place) / max(report.computed.total, 1) for place in _PLACES
        },
        "copied": asdict(report.copied),
    }


def predicted_tokens_per_s(report: RunReport, step_s: float | None) -> float | None:
    """With as many drafts held as in the run; None without a prediction or a decode step.

    Args:
        step_s: predicted for a decode step.
    """
    if step_s is None or not report.steps:
        return None
    return (1 + report.accepted_drafts_per_step) / step_s


def run_tables(report: RunReport, step_s: float | None = None) -> list[Group]:
    """Speed and acceptance, time by part, work by worker.

    Args:
        step_s: predicted for a decode step, None where nothing was.
    """
    predicted = predicted_tokens_per_s(report, step_s)
    positions = zip(report.drafted_by_position, report.accepted_by_position, strict=True)
    speed = [
        ("decode tokens/s", f"{report.tokens_per_s:.1f}"),
        *([("  predicted", f"{predicted:.1f}")] if predicted is not None else []),
        ("tokens", str(report.num_tokens)),
        ("decode steps", str(report.steps)),
        ("prefill", f"{1000 * report.prefill_s:.0f} ms"),
        ("accepted drafts a step", f"{report.accepted_drafts_per_step:.2f}"),
        *(
            (f"  draft {place} accepted", share(accepted / drafted) if drafted else "-")
            for place, (drafted, accepted) in enumerate(positions, start=1)
        ),
        ("remote layers a step", f"{report.remote_layers_per_step:.2f}"),
        ("remote layers a token", f"{report.remote_layers_per_token:.2f}"),
    ]
    total_s = sum(report.time_s.values())
    steps = max(report.steps, 1)
    time = [
        (_PART_NAMES.get(name, name), f"{1000 * seconds / steps:.3f}", share(seconds / total_s))
        for name, seconds in report.time_s.items()
    ]
    time.append(("all", f"{1000 * total_s / steps:.3f}", share(1.0)))
    counted = any(worker.share for worker in report.workers)
    work = [
        (
            worker.name,
            str(worker.experts),
            size(worker.num_bytes),
            *([share(worker.share)] if counted else []),
        )
        for worker in report.workers
    ]
    happened = [
        (_EVENT_NAMES.get(kind, kind), str(times))
        for kind, times in report.events.items()
        if times and kind not in _EVERYDAY
    ]
    places = [
        (name, share(getattr(report.computed, place) / report.computed.total))
        for place, name in _PLACES.items()
        if getattr(report.computed, place)
    ]
    return [
        table("Speed", ("", ""), speed),
        table("Where a decode step's time went", ("part", "ms a step", "share"), time if total_s else []),
        *([table("What happened to workers", ("", ""), happened)] if happened else []),
        table("Who computed", ("worker", "experts", "bytes", *(["of choices"] if counted else [])), work),
        # One place is no news.
        *(
            [table("Where a decode step's experts were", ("", "of choices"), places)]
            if len(places) > 1
            else []
        ),
        *_copied(report.copied),
    ]


def _copied(copied: Copied) -> list[Group]:
    """What came to cards while text ran."""
    rows = []
    if copied.background_bytes:
        rows.append(("kept there, in the background", size(copied.background_bytes)))
    if copied.prompt_experts:
        rows.append(("for prompts", size(copied.prompt_bytes)))
        rows.append(("  experts", f"{copied.prompt_experts:,}"))
    if copied.crossover_rows is not None:
        rows.append(("a copy pays from", f"{copied.crossover_rows:,} rows"))
    return [table("Copied from RAM to cards", ("", ""), rows)] if rows else []
