"""Who serves the experts that lost workers held alone: the next plan, and what boxes take on for it.

Every box has the whole model file, so every box can serve any expert from its own disk. What a box takes on
stands in the plan as a tier of its own, "NAME-rescue" of worker NAME, so it is known later what the planner
had not asked for. Pure functions: the caller sends the orders. docs/survival.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from placement.experts import Experts
from placement.files.quote import quote
from placement.holders import HolderTable
from placement.plan import LOCAL_WORKER, Plan, PlannedTier
from placement.units import size

RESCUE_SUFFIX = "-rescue"

# What finds no room in memory is read again for every token that needs it; what does, once.
_READ_AGAIN = 4.0


@dataclass(frozen=True, slots=True)
class BoxRoom:
    """What a box can take on.

    Attributes:
        disk_bytes_per_s: at which it reads experts from its own model file; 0 for a box without the file.
        free_bytes: memory for experts beyond those that it holds or was told to hold.
    """

    disk_bytes_per_s: float
    free_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Rescue:
    """A plan that does without the lost workers, and the orders that make it true.

    Attributes:
        plan: the next plan, its epoch one higher; the given plan itself where nothing changes.
        holds: experts that a worker must serve in addition before `plan` is used, by worker index in `plan`.
        drops: experts that it may let go of once no plan before this one is in flight. A lost worker's are
            for the case that it comes back as it was.
        missing: experts that nobody can serve. `plan` still names their lost holders.
        missing_bytes: of those.
    """

    plan: Plan
    holds: Mapping[int, Experts] = field(default_factory=dict)
    drops: Mapping[int, Experts] = field(default_factory=dict)
    missing: Experts = field(default_factory=dict)
    missing_bytes: int = 0

    def lacks(self) -> str:
        """One sentence on what nobody can serve, and what to do. Only where something is missing."""
        layer, experts = next(iter(self.missing.items()))
        number = sum(len(each) for each in self.missing.values())
        table = self.plan.holder_table.table[self.plan.moe_layers.index(layer), experts[0]]
        holders = dict.fromkeys(self.plan.tiers[tier].worker for tier in table[table >= 0].tolist())
        return (
            f"{size(self.missing_bytes)} of experts are missing: {number} experts, the first of them expert "
            f"{experts[0]} of layer {layer}, were held by {', '.join(map(quote, holders))} and no box left "
            "can read them from a model file of its own: start that box again, or plan with --survive"
        )


def head_worker(plan: Plan) -> int:
    """Index of the worker inside the head's process: the one it would get where it holds no experts yet."""
    return len(plan.workers) if plan.local_worker is None else plan.local_worker


def next_plan(
    plan: Plan, lost: Collection[int], room: Mapping[int, BoxRoom], lately: Collection[int] = ()
) -> Rescue:
    """What to do when the lost workers are others than before, more of them or fewer.

    An expert that only lost workers hold goes to the box that would soonest have read its layer's share; one
    without room for it in memory counts as slower. An expert that was taken on is let go of once as many
    planned boxes hold it as should: `plan.survive` + 1, or all that the planner found room on.

    Args:
        plan: in use, with what earlier rescues appended.
        lost: indices into `plan.workers` of all workers that are lost now.
        room: of the workers that may take experts on, by index; `head_worker(plan)` for the head's process.
            Those that are lost, or without a disk rate, get nothing.
        lately: workers that were lost until lately: what was taken on for them is kept.
    """
    boxes = _Boxes(plan, lost)
    left = boxes.planned & boxes.alive
    steady = left.copy()
    steady[list(lately)] = False
    is_enough = (steady.sum(axis=0) >= boxes.wanted) | left[boxes.head]
    kept = boxes.taken & boxes.alive & ~is_enough
    orphans = ~(left | kept).any(axis=0)
    added, missing = _spread(orphans, boxes.held & boxes.alive, plan.expert_bytes, boxes.able(room))
    return boxes.rescue(kept, added, missing, room)


def survive_again(plan: Plan, lost: Collection[int], room: Mapping[int, BoxRoom]) -> Rescue:
    """More holders in free memory, until every expert survives as many more losses as the planner saw to.

    Nothing waits for these: they are loaded behind. What finds no room is left as it is.

    Args:
        plan, lost, room: as `next_plan` has them, after the plan that it gave is in use.
    """
    boxes = _Boxes(plan, lost)
    held = boxes.held & boxes.alive
    added = np.zeros_like(held)
    able = boxes.able(room)
    for _ in range(plan.survive):
        holding = held | added
        num_boxes = holding.sum(axis=0)
        short = (num_boxes > 0) & (num_boxes < boxes.wanted) & ~holding[boxes.head]
        more, _ = _spread(short, holding, plan.expert_bytes, able, only_in_memory=True)
        added |= more
        taken = {worker: int((more[worker].sum(axis=1) * plan.expert_bytes).sum()) for worker in able}
        able = {
            worker: replace(box, free_bytes=box.free_bytes - taken[worker]) for worker, box in able.items()
        }
    return boxes.rescue(boxes.taken & boxes.alive, added, np.zeros_like(held[0]), room)


def loaded(plan: Plan, workers: Collection[int]) -> Plan:
    """`plan` with what `workers` have taken on as cheap to ask for as their own memory: it is loaded now.

    The caller raises the epoch with whatever else changes: who holds what stays the same.
    """
    tiers = list(plan.tiers)
    for index, tier in enumerate(tiers):
        if _is_rescue(tier) and int(plan.worker_of_tier[index]) in workers:
            own = [other for other in tiers if other.worker == tier.worker and other.kind == "ram"]
            if own:
                tiers[index] = replace(tier, ask_s=own[0].ask_s, expert_s=own[0].expert_s)
    return replace(plan, tiers=tuple(tiers))


def takes_on(plan: Plan) -> bool:
    """Whether some box serves what the planner did not ask of it."""
    in_use = plan.experts_per_tier().tolist()
    return any(_is_rescue(tier) and number for tier, number in zip(plan.tiers, in_use, strict=True))


def as_planned(plan: Plan) -> Plan:
    """`plan` without the tiers of rescues that are over: as it was made, and as it may be kept."""
    count = len(plan.tiers)
    in_use = plan.experts_per_tier().tolist()
    while count and _is_rescue(plan.tiers[count - 1]) and not in_use[count - 1]:
        count -= 1
    return replace(plan, tiers=plan.tiers[:count])


class _Boxes:
    """Who holds what, box by box: all bool [num_workers, num_layers, num_experts], the head's last if new.

    `planned` is what the planner asked for, `taken` what was taken on, `held` both; `alive` broadcasts.
    `wanted`: int [num_layers, num_experts], boxes that should hold each expert.
    """

    def __init__(self, plan: Plan, lost: Collection[int]) -> None:
        self.plan = plan
        self.head = head_worker(plan)
        num_workers = max(len(plan.workers), self.head + 1)
        self.alive = np.ones((num_workers, 1, 1), dtype=np.bool_)
        self.alive[list(lost)] = False
        self.planned = np.zeros((num_workers, *plan.holder_table.table.shape[:2]), dtype=np.bool_)
        self.taken = np.zeros_like(self.planned)
        for index, (tier, worker) in enumerate(zip(plan.tiers, plan.worker_of_tier.tolist(), strict=True)):
            (self.taken if _is_rescue(tier) else self.planned)[worker] |= plan.holder_table.mask(index)
        self.held = self.planned | self.taken
        self.wanted = np.minimum(self.planned.sum(axis=0), plan.survive + 1)

    def able(self, room: Mapping[int, BoxRoom]) -> dict[int, BoxRoom]:
        """Those that can read experts, by index."""
        return {
            worker: box
            for worker, box in sorted(room.items())
            if box.disk_bytes_per_s > 0 and self.alive[worker].all()
        }

    def rescue(
        self,
        kept: NDArray[np.bool_],
        added: NDArray[np.bool_],
        missing: NDArray[np.bool_],
        room: Mapping[int, BoxRoom],
    ) -> Rescue:
        """The plan in which exactly `kept` and `added` are taken on."""
        plan, dropped = self.plan, self.taken & ~kept
        num_missing = missing.sum(axis=1)
        lacking = dict(self._listed(missing))
        missing_bytes = int((num_missing * plan.expert_bytes).sum())
        if not (added.any() or dropped.any()):
            return Rescue(plan, missing=lacking, missing_bytes=missing_bytes)
        tiers, masks = list(plan.tiers), list(plan.holder_table.masks(len(plan.tiers)))
        at = {tier.worker: index for index, tier in enumerate(tiers) if _is_rescue(tier)}
        names = [*(worker.name for worker in plan.workers), LOCAL_WORKER]
        for worker, mask in enumerate(kept | added):
            if names[worker] not in at:
                if not mask.any():
                    continue
                at[names[worker]] = len(tiers)
                tiers.append(self._new_tier(names[worker], room[worker]))
                masks.append(mask)
            index = at[names[worker]]
            masks[index] = mask
            if added[worker].any():
                # Read from the disk until it is loaded, though what was taken on before is.
                tiers[index] = self._new_tier(names[worker], room[worker])
            num_bytes = int((mask.sum(axis=1) * plan.expert_bytes).sum())
            tiers[index] = replace(tiers[index], budget_bytes=num_bytes)
        table = HolderTable.from_masks(np.stack(masks))
        return Rescue(
            replace(plan, tiers=tuple(tiers), holder_table=table, epoch=plan.epoch + 1),
            holds=dict(self._by_worker(added)),
            drops=dict(self._by_worker(dropped)),
            missing=lacking,
            missing_bytes=missing_bytes,
        )

    def _new_tier(self, worker: str, box: BoxRoom) -> PlannedTier:
        """A box's tier for what it takes on: asked like its other memory, read at its disk's rate."""
        own = [tier for tier in self.plan.tiers if tier.worker == worker]
        nodes = {tier.node for tier in self.plan.tiers}
        is_priced = any(tier.ask_s or tier.expert_s for tier in self.plan.tiers)
        return PlannedTier(
            name=worker + RESCUE_SUFFIX,
            # A head without experts is on no node of the plan, unless there is only one.
            node=own[0].node if own else next(iter(nodes)) if len(nodes) == 1 else worker,
            device="cpu",
            kind="disk",
            budget_bytes=0,
            ask_s=min((tier.ask_s for tier in own), default=0.0) if is_priced else 0.0,
            expert_s=self.plan.mean_expert_bytes / box.disk_bytes_per_s if is_priced else 0.0,
            worker=worker,
        )

    def _by_worker(self, masks: NDArray[np.bool_]) -> Iterator[tuple[int, Experts]]:
        return ((worker, dict(self._listed(mask))) for worker, mask in enumerate(masks) if mask.any())

    def _listed(self, mask: NDArray[np.bool_]) -> Iterator[tuple[int, tuple[int, ...]]]:
        return (
            (layer, tuple(np.flatnonzero(row).tolist()))
            for layer, row in zip(self.plan.moe_layers, mask, strict=True)
            if row.any()
        )


def _is_rescue(tier: PlannedTier) -> bool:
    return tier.kind == "disk" and tier.name == tier.worker + RESCUE_SUFFIX


def _spread(
    wanted: NDArray[np.bool_],
    held: NDArray[np.bool_],
    expert_bytes: NDArray[np.int64],
    able: Mapping[int, BoxRoom],
    *,
    only_in_memory: bool = False,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """A box more for each wanted expert, where its layer's share would soonest be read.

    Args:
        wanted: bool [num_layers, num_experts].
        held: bool [num_workers, num_layers, num_experts]: no expert goes to a box that has it.
        expert_bytes: int64 [num_layers].
        only_in_memory: nothing goes where no memory is free.

    Returns:
        Who takes what, in the shape of `held`, and what nobody takes, in that of `wanted`.
    """
    added, left_over = np.zeros_like(held), np.zeros_like(wanted)
    free = {worker: box.free_bytes for worker, box in able.items()}
    total_s = dict.fromkeys(able, 0.0)
    for row, num_bytes in enumerate(expert_bytes.tolist()):
        layer_s = dict.fromkeys(able, 0.0)
        for expert in np.flatnonzero(wanted[row]).tolist():
            choices: list[tuple[float, float, int]] = []
            for worker, box in able.items():
                fits = free[worker] >= num_bytes
                if held[worker, row, expert] or (only_in_memory and not fits):
                    continue
                read_s = num_bytes / box.disk_bytes_per_s * (1.0 if fits else _READ_AGAIN)
                choices.append((layer_s[worker] + read_s, total_s[worker], worker))
            if not choices:
                left_over[row, expert] = True
                continue
            done_s, _, chosen = min(choices)
            total_s[chosen] += done_s - layer_s[chosen]
            layer_s[chosen] = done_s
            free[chosen] -= num_bytes
            added[chosen, row, expert] = True
    return added, left_over
