"""What a process holds at one moment: tiers of its plan and memory, and disks of orders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from placement.experts import Experts, minus
from workers.disk.tier import DiskTier
from workers.pool import side_by_side
from workers.store import ExpertStore
from workers.tiers import ExpertTier


@dataclass(frozen=True, slots=True, eq=False)
class HeldSet:
    """Never changed, but swapped for another between two requests.

    An expert that several hold is computed by the first of them: from memory where it is there.

    Attributes:
        tiers: the plan's first, in its order, then memory that orders added.
        disks: experts that are served from the model's files, by order.
        whole: all of them as one.
    """

    tiers: tuple[ExpertTier, ...]
    disks: Mapping[int, DiskTier] = field(default_factory=dict)
    whole: ExpertTier = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "whole", side_by_side((*self.tiers, *self.disks.values())))

    def in_memory(self) -> dict[int, set[int]]:
        """Absolute layer -> experts."""
        found: dict[int, set[int]] = {}
        for tier in self.tiers:
            if isinstance(tier, ExpertStore):
                for layer, ids in tier.experts.items():
                    found.setdefault(layer, set()).update(ids)
        return found

    def to_load(self, experts: Experts) -> dict[int, tuple[int, ...]]:
        """Those that are not where they should be: in memory, or on a disk where the plan has them."""
        left = minus(experts, self.in_memory())
        for tier in self.tiers:
            left = minus(left, tier.experts)
        return left

    def with_disk(self, order: int, disk: DiskTier) -> HeldSet:
        """Served from the files in addition."""
        return HeldSet(self.tiers, {**self.disks, order: disk})

    def with_loaded(self, added: ExpertStore) -> HeldSet:
        """Held in memory in addition."""
        tiers = list(self.tiers)
        for place, tier in enumerate(tiers):
            # One call of the kernels for all experts of a layer is faster than one a store.
            if isinstance(tier, ExpertStore) and tier.fits_beside(added):
                tiers[place] = tier.joined(added)
                break
        else:
            tiers.append(added)
        return HeldSet(tuple(tiers), self.disks)

    def without_idle_disks(self) -> HeldSet:
        """Disks are let go of whose experts are all in memory."""
        in_memory = self.in_memory()
        disks = {order: disk for order, disk in self.disks.items() if minus(disk.experts, in_memory)}
        return HeldSet(self.tiers, disks)

    def without(self, experts: Experts, disk_of: Callable[[Experts], DiskTier]) -> HeldSet:
        """Less these, except on a disk of the plan, where they take nothing, and on a card of the plan.

        A card's memory is the plan's, and none of it is anybody else's to use. `disk_of` serves the rest.
        """
        tiers = [
            tier.without(experts)
            if isinstance(tier, ExpertStore) and minus(tier.experts, experts) != tier.experts
            else tier
            for tier in self.tiers
        ]
        disks = {}
        for order, disk in self.disks.items():
            left = minus(disk.experts, experts)
            if left == disk.experts:
                disks[order] = disk
            elif left:
                disks[order] = disk_of(left)
        return HeldSet(tuple(tiers), disks)
