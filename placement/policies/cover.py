"""Every expert on enough boxes to survive the loss of some: who lacks a holder, and where there is room.

A box is what is lost as a whole: one worker with all its devices. The head's own box counts as one that is
never lost, because nothing runs without the head. So an expert that it holds needs no other holder.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.cost.rates import expert_rates
from placement.given.problem import PlanningProblem
from placement.plan import LOCAL_WORKER


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """The boxes of a problem's devices.

    Attributes:
        of_device: int64 [num_devices].
        head: the head's own box, None where no device is in its process.
        is_memory: bool [num_devices]: it may be given second holders. A disk is not: each box can read any
            expert from its own disk anyway.
        number: of boxes.
    """

    of_device: NDArray[np.int64]
    head: int | None
    is_memory: NDArray[np.bool_]
    number: int

    @classmethod
    def of(cls, problem: PlanningProblem) -> Boxes:
        tiers = [device.tier for device in problem.devices]
        names = list(dict.fromkeys(tier.worker for tier in tiers))
        return cls(
            np.array([names.index(tier.worker) for tier in tiers], dtype=np.int64),
            names.index(LOCAL_WORKER) if LOCAL_WORKER in names else None,
            np.array([tier.kind != "disk" for tier in tiers], dtype=np.bool_),
            len(names),
        )

    def held(self, masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """bool [num_boxes, ...] of bool [num_devices, ...]: what some device of a box holds."""
        held = np.zeros((self.number, *masks.shape[1:]), dtype=np.bool_)
        for device, box in enumerate(self.of_device.tolist()):
            held[box] |= masks[device]
        return held

    def short(self, masks: NDArray[np.bool_], losses: int) -> NDArray[np.int64]:
        """How many more boxes should hold each expert: int64 [num_layers, num_experts].

        Args:
            masks: bool [num_devices, num_layers, num_experts], true where held.
        """
        held = self.held(masks)
        short = np.maximum(losses + 1 - held.sum(axis=0), 0)
        if self.head is not None:
            short[held[self.head]] = 0
        return np.asarray(short, dtype=np.int64)


def lacking_experts(problem: PlanningProblem, losses: int) -> int:
    """Room that is missing, in experts, for a placement in which each survives so many losses; 0 if none."""
    boxes = Boxes.of(problem)
    room = np.bincount(
        boxes.of_device, weights=problem.capacities() * boxes.is_memory, minlength=boxes.number
    ).astype(np.int64)
    # What the head's box holds needs nobody else; of the others no box can use more room than they are.
    others = problem.shape.num_routed_experts
    if boxes.head is not None:
        others = max(others - int(room[boxes.head]), 0)
        room[boxes.head] = 0
    return max((losses + 1) * others - int(np.minimum(room, others).sum()), 0)


class Cover:
    """A placement on its way to having enough holders of everything.

    Attributes:
        masks: bool [num_devices, num_layers, num_experts], true where held.
        room: int64 [num_devices], experts that still fit.
        short: int64 [num_layers, num_experts], see `Boxes.short`.
    """

    def __init__(self, problem: PlanningProblem, masks: NDArray[np.bool_]) -> None:
        self.boxes = Boxes.of(problem)
        self.masks = masks.copy()
        self.room = problem.capacities() - masks.sum(axis=(1, 2))
        self.short = self.boxes.short(masks, problem.survive)
        self._losses = problem.survive
        # Where a box has several devices, the fastest with room takes what comes.
        self._fastest = np.argsort(expert_rates(problem).read_s, kind="stable").tolist()

    def allowed(self) -> NDArray[np.bool_]:
        """bool [num_devices, num_layers, num_experts]: where a holder would help and fits."""
        held = self.boxes.held(self.masks)[self.boxes.of_device]
        has_room = (self.room > 0) & self.boxes.is_memory
        allowed: NDArray[np.bool_] = ~held & (self.short > 0) & has_room[:, None, None]
        return allowed

    def add(self, device: int, layer: int, expert: int) -> None:
        """A holder more, where `allowed`."""
        self.masks[device, layer, expert] = True
        self.room[device] -= 1
        self.recount(layer, expert)

    def recount(self, layer: int, expert: int) -> None:
        """See again how many holders an expert is short of."""
        cell = self.masks[:, layer : layer + 1, expert : expert + 1]
        self.short[layer, expert] = self.boxes.short(cell, self._losses)[0, 0]

    def device_with_room(self, box: int) -> int:
        """The box's fastest memory that has room, -1 if none has."""
        able = (self.boxes.of_device == box) & self.boxes.is_memory & (self.room > 0)
        return next((device for device in self._fastest if able[device]), -1)

    def complete(self, heat: NDArray[np.floating]) -> None:
        """Give holders to all that are short of one, as far as there is room, whatever it costs.

        Where the boxes with room hold an expert already, others make way: an expert moves from a box to the
        next until one has room (augmenting paths of a bipartite flow, so no placement has more holders
        unless disks hold some experts alone). The coldest move.

        Args:
            heat: [num_layers, num_experts], larger is hotter.
        """
        flow = _Flow(self, heat)
        while True:
            for cell in np.flatnonzero(self.short.ravel()).tolist():
                while self.short.ravel()[cell] and flow.give(cell):
                    pass
            if not self.short.any() or not self._drop_what_the_head_holds():
                return
            flow = _Flow(self, heat)

    def _drop_what_the_head_holds(self) -> bool:
        """Free memory in other boxes of experts that survive on the head's; False if there are none."""
        if self.boxes.head is None:
            return False
        is_here = self.boxes.of_device == self.boxes.head
        at_head = self.masks[is_here & self.boxes.is_memory].any(axis=0)
        surplus = self.masks & at_head & (~is_here & self.boxes.is_memory)[:, None, None]
        self.masks &= ~surplus
        self.room += surplus.sum(axis=(1, 2))
        return bool(surplus.any())


class _Flow:
    """Holders from box to box, the experts of all layers in one row."""

    def __init__(self, cover: Cover, heat: NDArray[np.floating]) -> None:
        self._cover = cover
        self._heat = heat.ravel()
        boxes = cover.boxes
        num_devices = len(boxes.of_device)
        self._masks = cover.masks.reshape(num_devices, -1)
        self._held = boxes.held(self._masks)
        # What may make way: in memory, and not in the head's box, where an expert needs no other holder.
        movable = boxes.is_memory & (boxes.of_device != (-1 if boxes.head is None else boxes.head))
        self._movable = boxes.held(self._masks & movable[:, None])
        # How many experts could move from a box to another.
        self._ways = self._movable.astype(np.float32) @ (~self._held).astype(np.float32).T

    def give(self, cell: int) -> bool:
        """One more box holds the expert; False if no box can."""
        path = self._path(cell)
        if path is None:
            return False
        # From the end with room to the box that takes the expert itself.
        for source, target in zip(path[-2::-1], path[:0:-1], strict=True):
            self._move(source, target, self._coldest(source, target))
        self._cover.add(self._cover.device_with_room(path[0]), *divmod(cell, self._cover.short.shape[1]))
        self._held[path[0], cell] = True
        self._movable[path[0], cell] = path[0] != self._cover.boxes.head
        self._count(path)
        return True

    def _path(self, cell: int) -> list[int] | None:
        """Boxes from one that lacks the expert to one with room, each able to pass something on."""
        cover = self._cover
        has_room = set(cover.boxes.of_device[cover.boxes.is_memory & (cover.room > 0)].tolist())
        if not has_room:
            return None
        waiting = deque([box] for box in np.flatnonzero(~self._held[:, cell]).tolist())
        seen = {path[0] for path in waiting}
        while waiting:
            path = waiting.popleft()
            if path[-1] in has_room:
                return path
            for box in np.flatnonzero(self._ways[path[-1]] > 0).tolist():
                if box not in seen:
                    seen.add(box)
                    waiting.append([*path, box])
        return None

    def _coldest(self, source: int, target: int) -> int:
        """Of what may move from `source` to `target`."""
        able = np.flatnonzero(self._movable[source] & ~self._held[target])
        return int(able[self._heat[able].argmin()])

    def _move(self, source: int, target: int, cell: int) -> None:
        cover = self._cover
        device = cover.device_with_room(target)
        for giver in np.flatnonzero((cover.boxes.of_device == source) & cover.boxes.is_memory).tolist():
            if self._masks[giver, cell]:
                self._masks[giver, cell] = False
                cover.room[giver] += 1
        self._masks[device, cell] = True
        cover.room[device] -= 1
        on_disk = (cover.boxes.of_device == source) & ~cover.boxes.is_memory & self._masks[:, cell]
        self._held[source, cell] = bool(on_disk.any())
        self._movable[source, cell] = False
        self._held[target, cell] = True
        self._movable[target, cell] = target != cover.boxes.head
        cover.recount(*divmod(cell, cover.short.shape[1]))

    def _count(self, boxes: list[int]) -> None:
        """Count anew who could pass something on to whom, where these boxes are concerned."""
        self._ways[boxes] = self._movable[boxes].astype(np.float32) @ (~self._held).astype(np.float32).T
        self._ways[:, boxes] = self._movable.astype(np.float32) @ (~self._held[boxes]).astype(np.float32).T
