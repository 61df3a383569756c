"""What of a plan lies where, in words for people."""

from __future__ import annotations

from dataclasses import dataclass, field

from placement.plan import LOCAL_WORKER, Plan, PlannedTier
from placement.residency import ResidencyRule
from placement.units import size
from workers.gpu.free import card_name, is_card
from workers.tiers import tiers_of


@dataclass(slots=True)
class _Memory:
    """Memory of one kind: of one device here, or of all other workers together."""

    workers: list[str] = field(default_factory=list)
    count: int = 0
    num_bytes: int = 0


def of_head_and_experts(plan: Plan, head_device: str, rule: ResidencyRule) -> str:
    """One line; see `of_experts`.

    Args:
        head_device: that the head computes on.
    """
    head = card_name(head_device) if is_card(head_device) else "the CPU"
    return f"{plan.model}: the head on {head}; {of_experts(plan, rule)}"


def of_experts(plan: Plan, rule: ResidencyRule) -> str:
    """How many experts are in which memory, every copy counted, and which memory is nothing but a cache.

    Args:
        rule: what this process's VRAM keeps beside its own experts. That of other workers is always a cache.
    """
    counts, sizes = plan.experts_per_tier().tolist(), plan.bytes_per_tier().tolist()
    used = {spec.name for worker in plan.workers for spec in tiers_of(plan, worker.name)}
    on_disk = {tier.worker for tier in plan.tiers if tier.kind == "disk" and tier.name in used}

    def is_cache(tier: PlannedTier) -> bool:
        if tier.kind == "vram":
            return tier.name in used and (tier.worker != LOCAL_WORKER or rule is not ResidencyRule.fixed)
        return tier.kind == "ram" and tier.worker in on_disk and tier.budget_bytes >= plan.expert_bytes.max()

    found: dict[tuple[bool, str, str], _Memory] = {}
    for tier, count, num_bytes in zip(plan.tiers, counts, sizes, strict=True):
        if count or is_cache(tier):
            own = card_name(tier.device) if tier.worker == LOCAL_WORKER else ""
            memory = found.setdefault((count == 0, tier.kind, own), _Memory())
            memory.workers.append(tier.worker)
            memory.count += count
            memory.num_bytes += num_bytes if count else tier.budget_bytes
    named = [_named(memory, kind, own, cache=cache) for (cache, kind, own), memory in found.items()]
    return f"experts: {', '.join(named)}"


def _named(memory: _Memory, kind: str, own: str, *, cache: bool) -> str:
    num_bytes = size(memory.num_bytes)
    what = f"a cache of {num_bytes}" if cache else f"{memory.count:,} ({num_bytes})"
    if not own:
        names = set(memory.workers)
        whose = f" of {memory.workers[0] if len(names) == 1 else f'{len(names)} workers'}"
    else:
        whose = f" of {own}" if kind == "vram" else ""
    return f"{what} {_WHERE[kind]}{whose}"


_WHERE = {"vram": "in VRAM", "ram": "in RAM", "disk": "on disk"}
