"""Muon for matrices and stacked experts, AdamW for the rest."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Quintic Newton-Schulz coefficients of Muon (Jordan et al., 2024): fast, singular values end near 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315

# Routers move slowly: at the full rate they crowd onto a few experts before the bias can answer.
ROUTER_RATE = 0.1


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Brings every singular value near 1.

    Args:
        matrix: [..., rows, cols].

    Returns:
        bfloat16 of the same shape.
    """
    x = matrix.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.transpose(-2, -1).contiguous()
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).bfloat16()
    for _ in range(steps):
        gram = x @ x.transpose(-2, -1)
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    result: Tensor = x.transpose(-2, -1) if tall else x
    return result


class Optimizer:
    """Muon on the named matrices, AdamW on all other parameters, both in float32.

    The update of a matrix is scaled to the size AdamW's would have (0.2 * sqrt(longer side), Liu et al.,
    2025), so that one learning rate serves both.
    """

    def __init__(self, params: dict[str, Tensor], weight_decay: float = 0.05) -> None:
        self.weight_decay = weight_decay
        self.muon = {name: p for name, p in params.items() if is_hidden_matrix(name, p)}
        self.momentum = {name: torch.zeros_like(p) for name, p in self.muon.items()}
        rest = {name: p for name, p in params.items() if name not in self.muon}
        routers = [p for name, p in rest.items() if name.endswith("moe.gate.weight")]
        others = [p for name, p in rest.items() if not name.endswith("moe.gate.weight")]
        self.groups = [(group, rate) for group, rate in ((others, 1.0), (routers, ROUTER_RATE)) if group]
        groups = [{"params": group} for group, _ in self.groups]
        self.adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, fused=True)

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Applies every parameter's `.grad`."""
        for group, (_, rate) in zip(self.adam.param_groups, self.groups, strict=True):
            group["lr"] = learning_rate * rate
        self.adam.step()
        for name, p in self.muon.items():
            if p.grad is None:
                continue
            momentum = self.momentum[name].lerp_(p.grad, 0.05)
            update = p.grad.lerp(momentum, 0.95)
            if name.endswith("w_in"):
                experts, hidden, both = update.shape
                # Gate and up are two matrices laid side by side.
                halves = update.view(experts, hidden, 2, both // 2).transpose(1, 2)
                update = orthogonalize(halves).transpose(1, 2).reshape(experts, hidden, both)
                longer = max(hidden, both // 2)
            else:
                update = orthogonalize(update)
                longer = max(update.shape[-2:])
            p.mul_(1 - learning_rate * self.weight_decay)
            p.add_(update.float(), alpha=-learning_rate * 0.2 * math.sqrt(longer))

    def state_dict(self) -> dict[str, object]:
        """Everything a resumed run needs."""
        return {"momentum": self.momentum, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restores `state_dict`."""
        momentum = state["momentum"]
        assert isinstance(momentum, dict)
        for name, value in momentum.items():
            self.momentum[name].copy_(value)
        self.adam.load_state_dict(state["adam"])  # type: ignore[arg-type]


def is_hidden_matrix(name: str, p: Tensor) -> bool:
    """Whether Muon moves the parameter: matrices between hidden spaces, stacked experts included."""
    outer = ("embed_tokens.weight", "head.weight", "moe.gate.weight", "g_proj.weight")
    return p.ndim >= 2 and not name.endswith(outer)
