"""Whether VRAM has fixed experts or is a cache: what a recorded text says, and how a cache begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.cli.here import Here
from placement.answers.vram_cache import VramCache, vram_cache
from placement.cost.head import head_seconds
from placement.plan import PlannedTier
from placement.policies.vram_residency import chances_in_step
from placement.residency import CacheStart, ResidencyRule

MOST_STEPS = 4096
"""Of the newest recorded text: each rule takes some milliseconds a step."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """The rules on the newest half of a recorded text.

    Attributes:
        step_s: of a decode step, by rule.
        chosen: the fastest; fixed experts where another is hardly faster.
    """

    step_s: dict[ResidencyRule, float]
    chosen: ResidencyRule

    @property
    def told(self) -> str:
        """For people."""
        fixed, *others = (f"{seconds * 1e3:.1f}" for seconds in self.step_s.values())
        names = list(self.step_s)[1:]
        caches = ", ".join(f"{ms} with {name}" for ms, name in zip(others, names, strict=True))
        return f"on the text of --stats a step takes {fixed} ms with fixed experts in VRAM, {caches}"


def simulated(here: Here, tiers: Sequence[PlannedTier]) -> Simulated | None:
    """What a recorded text says; None without one, or without a probe of this machine.

    Args:
        tiers: of VRAM and RAM, the fastest of which is the cache; the others have room for all experts.
    """
    trace = None if here.stats is None else here.stats.trace
    tokens = here.workload.tokens_per_step
    if trace is None or len(trace) < 2 * tokens or not here.knows(tiers):
        return None
    problem = here.problem(tiers)
    found: VramCache = vram_cache(problem, trace[-MOST_STEPS * tokens :])
    head_s = head_seconds(problem).total_s
    step_s = {result.rule: head_s + tokens * result.moe_s_per_token for result in found.results}
    return Simulated(step_s, found.chosen)


def cache_start(here: Here, rule: ResidencyRule) -> CacheStart:
    """With what statistics say is used; fixed experts are the plan's and no others."""
    if here.stats is None or rule is ResidencyRule.fixed:
        return CacheStart(rule)
    uses = chances_in_step(here.stats, here.workload.tokens_per_step)
    return CacheStart(rule, dict(zip(here.stats.moe_layers, uses, strict=True)))
