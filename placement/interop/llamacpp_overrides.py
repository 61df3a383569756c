"""Tensor overrides of llama.cpp (`-ot`) for the part of a plan that keeps layers whole.

llama.cpp stores all experts of a layer in one tensor each for gate, up and down, so a layer's experts go to
one buffer together. `-ot` (ggml-org/llama.cpp, common/arg.cpp) takes `regex=buffer` pairs between commas; the
first regex found anywhere in a tensor's name decides (src/llama-model-loader.cpp). Buffers are named CPU,
CUDA0, Vulkan0, Metal, ROCm0, or RPC0[host:port] with `--rpc host:port`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from placement.errors import PlanError
from placement.given.stats import RoutingStats
from placement.plan import Plan

# llama.cpp splits the option at commas, then each part at its first equals sign.
_BUFFER_NAME = re.compile(r"[^,=\s]+")
_RPC_BUFFER = re.compile(r"RPC\d+\[(.+)\]")
_TORCH_DEVICE = re.compile(r"(cuda|cpu)(?::(\d+))?")


@dataclass(frozen=True, slots=True)
class TensorOverrides:
    """`layers_of_buffer`: buffer -> whole layers there. `split_layers`: layers that the plan divides between
    buffers; each is in `layers_of_buffer` with the buffer that serves most of its choices."""

    layers_of_buffer: Mapping[str, tuple[int, ...]]
    split_layers: tuple[int, ...]

    def option(self) -> str:
        """The value of `-ot`, with a pattern a buffer."""
        return ",".join(
            rf"blk\.({'|'.join(map(str, layers))})\.ffn_(gate|up|down|gate_up)_exps\.={buffer}"
            for buffer, layers in self.layers_of_buffer.items()
        )

    def arguments(self) -> list[str]:
        """Command-line arguments. Attention and the rest go where `-ngl` and `--device` say.

        `--rpc` comes first: llama.cpp knows a remote buffer's name only after it.
        """
        servers = dict.fromkeys(m[1] for m in map(_RPC_BUFFER.fullmatch, self.layers_of_buffer) if m)
        return [*(["--rpc", ",".join(servers)] if servers else []), "-ot", self.option()]

    def command_line(self) -> str:
        """The same as text for a shell, which would take the pattern's brackets and bars for its own."""
        return shlex.join(self.arguments())


def tensor_overrides(
    plan: Plan, stats: RoutingStats | None = None, buffers: Mapping[str, str] | None = None
) -> TensorOverrides:
    """Where each MoE layer's experts go as a whole.

    A layer that the plan divides goes to the buffer that would serve the largest share of its choices, of
    experts without `stats`: the plan's gain within such a layer is lost, and its budgets may not hold.

    Args:
        buffers: worker name -> llama.cpp buffer; needed for workers on other nodes than the head's, whose
            RPC address the plan does not know. On the head's node "cuda:1" is CUDA1 and "cpu" is CPU.

    Raises:
        PlanError: a worker whose buffer is not known, or a name llama.cpp cannot take.
        RoutingFileError: statistics of another model.
    """
    if stats is not None:
        stats.check_fingerprint(plan.fingerprint, plan.model)
    names = [_buffer_of(plan, index, buffers or {}) for index in range(len(plan.tiers))]
    masks = plan.holder_table.masks(len(names))
    holds_some: list[list[bool]] = [mask.any(axis=1).tolist() for mask in masks]
    # Replicas are held several times; their choices are shared out evenly, as the dispatcher does on average.
    shares = masks / masks.sum(axis=0)
    weights = np.ones(masks.shape[1:]) if stats is None else stats.counts.astype(np.float64)
    served = (shares * weights).sum(axis=2)

    layers_of_buffer: dict[str, list[int]] = {}
    split = []
    for row, layer in enumerate(plan.moe_layers):
        share_of_buffer: dict[str, float] = {}
        for index, name in enumerate(names):
            if holds_some[index][row]:
                share_of_buffer[name] = share_of_buffer.get(name, 0.0) + float(served[index, row])
        if len(share_of_buffer) > 1:
            split.append(layer)
        best = max(share_of_buffer, key=lambda name: share_of_buffer[name])
        layers_of_buffer.setdefault(best, []).append(layer)
    return TensorOverrides({name: tuple(layers) for name, layers in layers_of_buffer.items()}, tuple(split))


def _buffer_of(plan: Plan, index: int, buffers: Mapping[str, str]) -> str:
    worker = plan.tiers[index]
    buffer = buffers.get(worker.name)
    if buffer is None:
        device = _TORCH_DEVICE.fullmatch(worker.device)
        if not plan.tiers_at_home()[index] or device is None:
            raise PlanError(
                f"device {worker.name!r} ({worker.device} on {worker.node}): expected the name of its "
                f"llama.cpp buffer, such as --buffer '{worker.name}=RPC0[{worker.node}:50052]'; "
                "llama-server --list-devices prints them"
            )
        buffer = "CPU" if device[1] == "cpu" else f"CUDA{device[2] or 0}"
    if not _BUFFER_NAME.fullmatch(buffer):
        raise PlanError(
            f"buffer {buffer!r} of device {worker.name!r}: expected no comma, equals sign or space"
        )
    return buffer
