"""A run can stop anywhere and go on; drafts are compared with the right trunk position."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from models.tiny.config import TinyConfig
from models.tiny.corpus import DOMAINS
from models.tiny.data import TokenMix
from models.tiny.export import read_checkpoint, write_checkpoint
from models.tiny.loss import head_loss
from models.tiny.net import TinyModel
from models.tiny.train import Recipe, Trainer, draft_losses

CONFIG = replace(
    TinyConfig(),
    vocab_size=64,
    hidden_size=32,
    intermediate_size=32,
    moe_num_experts=12,
    moe_top_k=3,
    sliding_window=16,
)
RECIPE = Recipe(
    trunk_steps=4,
    mtp_steps=3,
    warmup_steps=2,
    tokens_per_shard=96,
    length=32,
    long_length=48,
    bias_rate_start=0.0,
)


def _mix() -> TokenMix:
    rng = np.random.default_rng(0)
    return TokenMix({domain: rng.integers(0, 64, 500).astype(np.uint16) for domain in DOMAINS}, seed=1)


def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = Trainer(CONFIG, RECIPE, _mix())
    for _ in range(5):
        whole.advance()
    whole.save(tmp_path / "checkpoint.pt")
    while not whole.finished:
        whole.advance()
    resumed = Trainer(CONFIG, RECIPE, _mix())
    resumed.resume(tmp_path / "checkpoint.pt")
    while not resumed.finished:
        resumed.advance()
    for name, tensor in whole.master.items():
        assert torch.equal(tensor, resumed.master[name]), name


def test_mtp_steps_leave_the_trunk_alone() -> None:
    trainer = Trainer(CONFIG, RECIPE, _mix())
    for _ in range(RECIPE.trunk_steps):
        trainer.advance()
    before = {name: tensor.clone() for name, tensor in trainer.master.items()}
    biases = [moe.router_bias.clone() for moe in trainer.model.moe_layers]
    trainer.advance()
    moved = {name for name, tensor in trainer.master.items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith("mtp.") for name in moved)
    for moe, bias in zip(trainer.model.moe_layers, biases, strict=True):
        assert torch.equal(moe.router_bias, bias)


def test_checkpoint_round_trips_in_bfloat16(tmp_path: Path) -> None:
    model = TinyModel(CONFIG)
    model.initialize(1)
    model.moe_layers[0].router_bias.fill_(0.123456789)
    write_checkpoint(model, tmp_path)
    back = read_checkpoint(tmp_path).state_dict()
    for name, tensor in model.state_dict().items():
        expected = tensor if name.endswith("router_bias") else tensor.bfloat16().float()
        assert torch.equal(back[name], expected), name


def test_a_draft_is_compared_with_the_trunk_reading_the_same_newest_token() -> None:
    model = TinyModel(CONFIG)
    model.initialize(2)
    tokens = torch.randint(0, 64, (2, 33))
    with torch.no_grad():
        hidden = model.hidden_states(tokens[:, :-1])
        teacher = model.logits(hidden).softmax(-1)
        losses = draft_losses(model, tokens, data_share=0.0)
        for k, state in enumerate(model.mtp_states(tokens, hidden[:, :29])):
            log_probs = model.mtp_layers[k].logits(state).log_softmax(-1)
            plain = -(teacher[:, 1 + k : 30 + k] * log_probs).sum(-1).mean()
            torch.testing.assert_close(losses[k], plain)


def test_head_loss_has_the_gradients_of_cross_entropy() -> None:
    x, weight = torch.randn(300, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    targets, teacher = torch.randint(0, 20, (300,)), torch.randn(300, 20)
    ours = head_loss(x, weight, targets, teacher, 0.25)
    log_probs = (x @ weight.t()).log_softmax(-1)
    data = -log_probs.gather(1, targets[:, None]).mean()
    plain = 0.25 * data - 0.75 * (teacher.softmax(-1) * log_probs).sum(-1).mean()
    torch.testing.assert_close(ours, plain)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (x, weight)), torch.autograd.grad(plain, (x, weight)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
