"""Which parts of the head stay on the CPU where VRAM is too small for all, and what VRAM is used for.

docs/cost-model.md, 'A head in two memories'. The embedding is no part: it stays in RAM, since a token reads
one row of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from placement.units import size


@dataclass(frozen=True, slots=True)
class SplitPart:
    """A part of the head that lies in one memory.

    Attributes:
        weight_bytes, kv_bytes: what it takes there.
        gpu_s, cpu_s: what it takes in a step.
    """

    weight_bytes: int
    kv_bytes: int
    gpu_s: float
    cpu_s: float

    @property
    def num_bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes


@dataclass(frozen=True, slots=True)
class HeadParts:
    """The head in the order in which rows pass it: decoder layers, lm_head, MTP heads (none without drafts).

    A decoder layer is what the head computes of it, the shared expert included.
    """

    layers: tuple[SplitPart, ...]
    lm_head: SplitPart
    mtp: tuple[SplitPart, ...] = ()

    @property
    def all(self) -> tuple[SplitPart, ...]:
        return (*self.layers, self.lm_head, *self.mtp)

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.all)


@dataclass(frozen=True, slots=True)
class HeadSplit:
    """What stays on the CPU; all else lies in VRAM.

    Attributes:
        cpu_layers: decoder layers, the first or the last ones; empty for none.
        is_lm_head_on_cpu: whether lm_head is.
        num_cpu_mtp: so many MTP heads, the last ones.
        num_layers, num_mtp: of the model.
        weight_bytes, kv_bytes: of what lies in VRAM.
        head_bytes: of all parts, wherever they lie.
        room_bytes: what VRAM had room for.
        crossings: how often a step's rows change between CPU and GPU.
        seconds: of the head in a step.
        gpu_only_s: what it would be with all of it in VRAM.
    """

    cpu_layers: range
    is_lm_head_on_cpu: bool
    num_cpu_mtp: int
    num_layers: int
    num_mtp: int
    weight_bytes: int
    kv_bytes: int
    head_bytes: int
    room_bytes: int
    crossings: int
    seconds: float
    gpu_only_s: float

    @property
    def is_all_in_vram(self) -> bool:
        return not self.cpu_layers and not self.is_lm_head_on_cpu and not self.num_cpu_mtp

    @property
    def is_all_on_cpu(self) -> bool:
        return (
            len(self.cpu_layers) == self.num_layers
            and self.is_lm_head_on_cpu
            and self.num_cpu_mtp == self.num_mtp
        )

    @property
    def told(self) -> str:
        """The choice and its reason, in one line for people."""
        if self.is_all_in_vram:
            return f"the whole head is in VRAM ({size(self.weight_bytes + self.kv_bytes)})"
        stays = "the whole head stays" if self.is_all_on_cpu else f"of the head, {self._named()}"
        if self.head_bytes <= self.room_bytes:
            why = "there a step is faster"
        else:
            why = f"VRAM has room for {size(self.room_bytes)}, all of the head takes {size(self.head_bytes)}"
        times = (
            f"its part of a step takes {self.seconds * 1e3:.1f} ms, in VRAM {self.gpu_only_s * 1e3:.1f} ms"
        )
        return f"{stays} on the CPU: {why}; {times}"

    def _named(self) -> str:
        names = []
        if self.num_cpu_mtp:
            count = "" if self.num_cpu_mtp == 1 else f"{self.num_cpu_mtp} "
            which = "the last " if self.num_cpu_mtp < self.num_mtp else "the "
            names.append(f"{which}{count}MTP head{'s' if count else ''}")
        if self.is_lm_head_on_cpu:
            names.append("lm_head")
        if self.cpu_layers:
            first, last_layer = self.cpu_layers[0], self.cpu_layers[-1]
            names.append(f"layer {first}" if first == last_layer else f"layers {first} to {last_layer}")
        listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
        num_parts = len(self.cpu_layers) + self.num_cpu_mtp + self.is_lm_head_on_cpu
        return f"{listed} {'stays' if num_parts == 1 else 'stay'}"

    def is_layer_on_cpu(self, layer: int) -> bool:
        """Whether a decoder layer stays on the CPU."""
        return layer in self.cpu_layers


def split_head(parts: HeadParts, room_bytes: int, crossing_s: float) -> HeadSplit:
    """The fastest head of which no more than `room_bytes` lie in VRAM; of equals the one with most there.

    Rows begin and end on the CPU, where the embedding and the choice of ids are, and pass layers, lm_head
    and MTP heads in order. All choices are tried in which the layers on the CPU are the first or the last
    ones, so that rows do not change there and back again.

    Args:
        room_bytes: of VRAM for the head, weights and keys and values.
        crossing_s: of the rows of a step between CPU and GPU, once.
    """
    choices = _choices(len(parts.layers), len(parts.mtp))
    on_cpu = np.array([_mask(choice, len(parts.layers), len(parts.mtp)) for choice in choices])
    in_vram = ~on_cpu @ np.array([part.num_bytes for part in parts.all])
    crossings = np.count_nonzero(np.diff(np.pad(on_cpu, ((0, 0), (1, 1)), constant_values=True)), axis=1)
    gpu_s, cpu_s = (np.array([getattr(part, name) for part in parts.all]) for name in ("gpu_s", "cpu_s"))
    seconds = np.where(on_cpu, cpu_s, gpu_s).sum(axis=1) + crossings * crossing_s
    seconds[in_vram > room_bytes] = np.inf
    best = int(np.lexsort((on_cpu.sum(axis=1), seconds))[0])
    there = [part for part, stays in zip(parts.all, on_cpu[best], strict=True) if not stays]
    layers, is_lm_head_on_cpu, num_cpu_mtp = choices[best]
    return HeadSplit(
        cpu_layers=layers,
        is_lm_head_on_cpu=is_lm_head_on_cpu,
        num_cpu_mtp=num_cpu_mtp,
        num_layers=len(parts.layers),
        num_mtp=len(parts.mtp),
        weight_bytes=sum(part.weight_bytes for part in there),
        kv_bytes=sum(part.kv_bytes for part in there),
        head_bytes=parts.num_bytes,
        room_bytes=room_bytes,
        crossings=int(crossings[best]),
        seconds=float(seconds[best]),
        gpu_only_s=float(gpu_s.sum()) + 2 * crossing_s,
    )


@dataclass(frozen=True, slots=True)
class VramBudget:
    """What the free memory of the head's GPU is used for.

    Attributes:
        free_bytes: now, with what other programs use left out.
        margin_bytes: of it, left alone.
        workspace_bytes: activations, buffers for streaming, the kernels' own.
        split: what of the head lies there.
        expert_bytes: what is left, for experts.
    """

    free_bytes: int
    margin_bytes: int
    workspace_bytes: int
    split: HeadSplit
    expert_bytes: int

    @property
    def told(self) -> str:
        """One line for people."""
        if not self.workspace_bytes and self.split.is_all_on_cpu:
            return f"{size(self.free_bytes)} of VRAM free: too little for any use, so nothing goes there"
        return (
            f"{size(self.free_bytes)} of VRAM free: {size(self.split.weight_bytes)} for the head, "
            f"{size(self.split.kv_bytes)} for keys and values, {size(self.workspace_bytes)} to work in, "
            f"{size(self.expert_bytes)} for experts, {size(self.margin_bytes)} left alone"
        )


def vram_budget(
    parts: HeadParts, free_bytes: int, margin_bytes: int, workspace_bytes: int, crossing_s: float
) -> VramBudget:
    """Share out the free memory of the head's GPU: the head first, experts get what is left.

    A step reads every byte of the head and few bytes of the experts, so a byte of VRAM is worth most there.
    Without room for margin and workspace nothing lies in VRAM.
    """
    room_bytes = free_bytes - margin_bytes - workspace_bytes
    if room_bytes < 0:
        on_cpu = split_head(parts, 0, crossing_s)
        return VramBudget(free_bytes, max(free_bytes, 0), 0, on_cpu, 0)
    split = split_head(parts, room_bytes, crossing_s)
    expert_bytes = room_bytes - split.weight_bytes - split.kv_bytes
    return VramBudget(free_bytes, margin_bytes, workspace_bytes, split, expert_bytes)


_Choice = tuple[range, bool, int]
"""Layers on the CPU, whether lm_head is, and how many MTP heads, the last ones."""


def _choices(num_layers: int, num_mtp: int) -> list[_Choice]:
    layers = [
        *(range(num_layers - count, num_layers) for count in range(num_layers + 1)),
        *(range(count) for count in range(1, num_layers)),
    ]
    return list(product(layers, (False, True), range(num_mtp + 1)))


def _mask(choice: _Choice, num_layers: int, num_mtp: int) -> NDArray[np.bool_]:
    """Which of `HeadParts.all` are on the CPU."""
    layers, is_lm_head_on_cpu, num_cpu_mtp = choice
    mask = np.zeros(num_layers + 1 + num_mtp, dtype=np.bool_)
    mask[layers.start : layers.stop] = True
    mask[num_layers] = is_lm_head_on_cpu
    mask[len(mask) - num_cpu_mtp :] = True
    return mask
