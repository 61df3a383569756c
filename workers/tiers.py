"""The tiers of a box: what one device's experts must do, and what this release can hold them in.

Importing this module loads no torch: a spec can be made anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from placement.errors import PotluckError
from placement.experts import Experts
from placement.files.quote import quote
from placement.plan import Plan, PlannedTier
from transport.expert_rows import ExpertRows

if TYPE_CHECKING:
    from workers.fixed_point import PartialSum

LEAST_CACHED_EXPERTS = 16
"""Those of two layers of a token."""


class StillLoading(PotluckError):
    """Experts were asked for that are on their way into memory: ask again, or somebody else."""


def least_cache_bytes(num_experts: int, largest_bytes: int) -> int:
    """Of a disk with so many experts, in memory even where a plan leaves none free."""
    return min(LEAST_CACHED_EXPERTS, num_experts) * largest_bytes


class ExpertTier(Protocol):
    """Experts on one device; several of them on the devices of a box (`TieredExperts`) are one too."""

    @property
    def experts(self) -> Experts:
        """Absolute layer index -> the ids held."""
        ...

    @property
    def num_experts(self) -> int:
        """Of all layers together."""
        ...

    @property
    def held_bytes(self) -> int:
        """Memory that they take."""
        ...

    def notices(self) -> tuple[str, ...]:
        """What the owner should know, one line each, such as pages that the system evicts; or none."""
        ...

    def forward(self, layer: int, rows: ExpertRows) -> PartialSum:
        """The sum of the rows' experts, all held here, in arrays that are the caller's.

        One thread at a time calls it. While it computes it lets go of the interpreter, so that other tiers
        can work beside it.

        Args:
            rows: -1 for an expert that is computed elsewhere; hidden in float32 or the bits of bfloat16.

        Raises:
            ExpertNotHeld: an id that is not here.
            CheckpointError: a file was changed, or a disk does not give an expert; another request may work.
            StillLoading: an expert that will be here.
        """
        ...


@dataclass(frozen=True, slots=True)
class TierSpec:
    """What a tier is to be: `kind` and `device` as in a plan, `experts` absolute layer index -> ids.

    `forms`: layer -> the name of the `ExpertFormat` its experts are kept in, that of the rows where left out.
    `cache_bytes`: memory for experts of a disk; of a card, for those of RAM that it keeps beside its own.
    """

    name: str
    kind: str
    device: str
    experts: Experts
    forms: Mapping[int, str] = field(default_factory=dict)
    cache_bytes: int = 0

    @property
    def num_experts(self) -> int:
        return sum(map(len, self.experts.values()))


def tiers_of(plan: Plan, worker: str) -> tuple[TierSpec, ...]:
    """A worker's tiers in the plan's order, without those that hold nothing and never will.

    Disks share what the plan leaves free of the worker's memory for experts, as a cache. What it leaves free
    of a card's is one for the experts of the worker's RAM.

    Raises:
        PlanError: the plan has no such worker.
    """
    forms = {layer.index: layer.form for layer in plan.layers}
    held_bytes: list[int] = plan.bytes_per_tier().tolist()
    tiers = [(plan.tiers[i], plan.experts_of_tier(i), held_bytes[i]) for i in plan.worker(worker).tiers]
    disks = sum(1 for tier, experts, _ in tiers if tier.kind == "disk" and experts)
    unused = sum(tier.budget_bytes - held for tier, _, held in tiers if tier.kind == "ram")
    has_ram = any(tier.kind == "ram" and experts for tier, experts, _ in tiers)
    largest = int(plan.expert_bytes.max(initial=0))

    def cache_bytes(tier: PlannedTier, experts: Experts, held: int) -> int:
        if tier.kind == "disk":
            return max(least_cache_bytes(sum(map(len, experts.values())), largest), unused // disks)
        return tier.budget_bytes - held if tier.kind == "vram" and has_ram else 0

    def has_use(tier: PlannedTier, experts: Experts, held: int) -> bool:
        # A card may be all cache; what has no room for an expert is of no use to any.
        return bool(experts) or (tier.kind == "vram" and cache_bytes(tier, experts, held) >= largest > 0)

    return tuple(
        TierSpec(
            tier.name,
            tier.kind,
            tier.device,
            experts,
            forms,
            cache_bytes(tier, experts, held),
        )
        for tier, experts, held in tiers
        if has_use(tier, experts, held)
    )


def is_card_name(device: str) -> bool:
    """Whether this is how a card is named: "cuda", the first, or "cuda:N" without leading zeros."""
    return _CARD.fullmatch(device) is not None


def why_not_run(kind: str, device: str) -> str | None:
    """Why this release cannot hold experts there, and what to do; None if it can."""
    if kind == "vram":
        if is_card_name(device):
            return None
        return (
            f"its experts are in vram on device {quote(device)}, and this release computes those on NVIDIA "
            "cards: plan with torch_device cuda or cuda:N, or with devices of kind ram"
        )
    if device.partition(":")[0] != "cpu":
        return (
            f"its experts are in {kind} on device {quote(device)}, and this release computes those on CPUs: "
            "plan with devices of kind vram, or without a torch_device"
        )
    return None


_CARD = re.compile(r"cuda(:(0|[1-9][0-9]{0,2}))?")
