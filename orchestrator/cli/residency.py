"""`--residency`: which experts stay in VRAM as text runs."""

from __future__ import annotations

from enum import StrEnum

from orchestrator.one_box import OneBox
from placement.errors import InputError
from placement.plan import LOCAL_WORKER, Plan
from placement.residency import CacheStart, ResidencyRule
from workers.tiers import tiers_of

RESIDENCY_HELP = (
    "Which experts stay in VRAM: fixed ones, or a cache of RAM's by last use (lru) or by use of late (lfu). "
    "auto: what is fastest on the text of --stats."
)


class Residency(StrEnum):
    """A `ResidencyRule`, or auto."""

    auto = "auto"
    fixed = "fixed"
    lru = "lru"
    lfu = "lfu"

    @property
    def rule(self) -> ResidencyRule | None:
        """None for auto."""
        return None if self is Residency.auto else ResidencyRule(self.value)


def check_residency(asked: Residency, plan: Plan) -> None:
    """Refuse a cache where this process has nothing in VRAM.

    Raises:
        InputError: what to do.
    """
    if asked.rule in (None, ResidencyRule.fixed):
        return
    specs = () if plan.local_worker is None else tiers_of(plan, LOCAL_WORKER)
    if all(spec.kind != "vram" for spec in specs):
        raise InputError(
            f"--residency {asked}: a cache in VRAM, and this run has no experts there; leave it out "
            "(--device cuda says why no card is used)"
        )


def why_no_cache(asked: Residency, plan: Plan) -> str:
    """Why VRAM keeps nothing though a cache was asked for: what the plan leaves free; "" where it does."""
    if asked.rule in (None, ResidencyRule.fixed):
        return ""
    largest = int(plan.expert_bytes.max(initial=0))
    if any(spec.cache_bytes >= largest for spec in tiers_of(plan, LOCAL_WORKER) if spec.kind == "vram"):
        return ""
    return (
        f"--residency {asked}: nothing is kept, since the plan leaves room for no expert of RAM in this "
        "process's VRAM; experts that it has there stay"
    )


def cache_start(asked: Residency, box: OneBox | None) -> CacheStart | None:
    """How this process's cards begin; None for what they do by themselves with what a plan leaves free.

    Args:
        box: what was decided without a plan.
    """
    if box is not None:
        return box.cache
    return None if asked.rule is None else CacheStart(asked.rule)
