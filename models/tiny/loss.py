"""Cross-entropy through an output head, in blocks of tokens small enough for the cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 256


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, teacher: Tensor | None, data_share: float
    ) -> Tensor:
        grad_x, grad_weight = torch.empty_like(x), torch.zeros(weight.shape)
        total = torch.zeros(2)
        count = x.shape[0]
        for start in range(0, count, BLOCK):
            rows = slice(start, start + BLOCK)
            log_probs = torch.log_softmax(x[rows].matmul(weight.t()).float(), dim=-1)
            picked = targets[rows, None]
            total[0] -= log_probs.gather(1, picked).sum()
            grad = log_probs.exp()
            if teacher is None:
                grad.scatter_add_(1, picked, grad.new_full(picked.shape, -1.0))
            else:
                wanted = teacher[rows].float().softmax(-1)
                total[1] -= (wanted * log_probs).sum()
                grad.sub_(wanted, alpha=1 - data_share)
                grad.scatter_add_(1, picked, grad.new_full(picked.shape, -data_share))
            scaled = grad.div_(count).to(x.dtype)
            torch.matmul(scaled, weight, out=grad_x[rows])
            grad_weight += scaled.t().matmul(x[rows])
        ctx.save_for_backward(grad_x, grad_weight.to(weight.dtype))
        total /= count
        return total[0] if teacher is None else data_share * total[0] + (1 - data_share) * total[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight = ctx.saved_tensors
        return grad_x * grad, grad_weight * grad, None, None, None


def head_loss(
    x: Tensor, weight: Tensor, targets: Tensor, teacher: Tensor | None = None, data_share: float = 1.0
) -> Tensor:
    """Mean cross-entropy of softmax(x @ weight.T), computing its gradients on the way.

    Args:
        x: [tokens, hidden], after the head's norm.
        weight: [vocab, hidden].
        targets: [tokens] int64, the true next tokens.
        teacher: [tokens, vocab] logits to imitate, or None.
        data_share: weight of the true tokens beside the teacher's distribution.

    Returns:
        A scalar: data_share * CE(targets) + (1 - data_share) * CE(softmax(teacher)).
    """
    out: Tensor = _HeadLoss.apply(x, weight, targets, teacher, data_share)  # type: ignore[no-untyped-call]
    return out
