"""Routed experts as padded products equal the plain sum, values and gradients; load balances itself."""

from __future__ import annotations

import pytest
import torch

from models.tiny import moe
from models.tiny.config import TinyConfig
from models.tiny.moe import SparseMoE, clamped_swiglu, layout

TOKENS, TOP_K, EXPERTS, HIDDEN, INNER = 33, 3, 10, 6, 4


def _draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.double, requires_grad=True)


@pytest.mark.parametrize("limit", [0.0, 0.3])
@pytest.mark.parametrize("group", [3, 100])
def test_values_and_gradients_equal_a_gather_of_every_tokens_own_matrices(
    limit: float, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moe, "GROUP", group)
    torch.manual_seed(0)
    x, weights = _draw(TOKENS, HIDDEN), _draw(TOKENS, TOP_K)
    w_in, w_out = _draw(EXPERTS, HIDDEN, 2 * INNER), _draw(EXPERTS, INNER, HIDDEN)
    # The last expert is never chosen.
    ids = torch.stack([torch.randperm(EXPERTS - 1)[:TOP_K] for _ in range(TOKENS)])
    ours = moe._RoutedExperts.apply(x, weights, layout(ids, EXPERTS), w_in, w_out, limit)  # type: ignore[no-untyped-call]
    gate, up = torch.einsum("nh,nkhi->nki", x, w_in[ids]).chunk(2, -1)
    each = torch.einsum("nki,nkih->nkh", clamped_swiglu(gate, up, limit), w_out[ids])
    plain = (each * weights[..., None]).sum(1)
    torch.testing.assert_close(ours, plain)
    direction = torch.randn_like(plain)
    leaves = (x, weights, w_in, w_out)
    for mine, theirs in zip(
        torch.autograd.grad((ours * direction).sum(), leaves),
        torch.autograd.grad((plain * direction).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_every_routed_row_has_its_own_slot_in_its_experts_rectangle() -> None:
    ids = torch.stack([torch.randperm(50)[:8] for _ in range(200)])
    place = layout(ids, 64)
    assert place.slot.unique().numel() == ids.numel()
    assert torch.equal(place.source[place.slot], torch.arange(200)[:, None].expand_as(ids))
    assert place.load.sum() == ids.numel()
    for ranks, slots, capacity in place.groups:
        for offset, expert in enumerate(place.by_load[ranks].tolist()):
            first = slots.start + offset * capacity
            mine = place.slot[ids == expert]
            assert ((mine >= first) & (mine < first + capacity)).all()


def test_the_bias_chooses_and_does_not_weigh() -> None:
    layer = SparseMoE(TinyConfig(), 1)
    torch.nn.init.normal_(layer.gate.weight)
    x = torch.randn(20, layer.gate.in_features)
    layer.router_bias[7] = 10.0
    ids, weights = layer.route(x)
    assert (ids == 7).any(1).all()
    scores = layer.gate(x).sigmoid().gather(1, ids)
    torch.testing.assert_close(weights, 3.0 * scores / scores.sum(1, keepdim=True))
