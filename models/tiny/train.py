"""Two phases: the trunk on text, then the MTP layers on the frozen trunk's choices."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from models.tiny.config import TinyConfig
from models.tiny.data import TokenMix
from models.tiny.loss import head_loss
from models.tiny.net import TinyModel
from models.tiny.optim import Optimizer

Phase = Literal["trunk", "mtp"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the run is made of; together with the data it fixes the result."""

    seed: int = 20
    trunk_steps: int = 3200
    mtp_steps: int = 1800
    warmup_steps: int = 100
    decay_fraction: float = 0.35
    trunk_rate: float = 6e-3
    mtp_rate: float = 6e-3
    tokens_per_shard: int = 2048
    shards: int = 2
    length: int = 512
    long_length: int = 1024
    long_fraction: float = 0.15
    bias_rate_start: float = 1e-2
    bias_rate: float = 1e-3
    bias_rate_end: float = 1e-4
    data_share: float = 0.1
    draft_weights: tuple[float, ...] = (1.0, 0.6, 0.4)

    def steps(self, phase: Phase) -> int:
        """Steps of one phase."""
        return self.trunk_steps if phase == "trunk" else self.mtp_steps

    def fraction(self, phase: Phase, step: int) -> float:
        """Learning rate over its peak: warm up, stay, then fall linearly to nothing."""
        total = self.steps(phase)
        decay = max(1, int(total * self.decay_fraction))
        return min(1.0, (step + 1) / self.warmup_steps, (total - step) / decay)

    def length_at(self, phase: Phase, step: int) -> int:
        """Sequence length: the trunk ends on longer ones."""
        late = phase == "trunk" and step >= self.trunk_steps * (1 - self.long_fraction)
        return self.long_length if late else self.length


class Trainer:
    """A model, its float32 master weights and optimizer, and where in the run it stands.

    Every shard of a batch runs in its own thread on its own replica; replicas share the working weights
    (bfloat16 matrices) and each uses a single-threaded torch, which beats one multi-threaded replica when
    other programs use the cores too: no operation waits for a thread that is not running.
    """

    def __init__(self, config: TinyConfig, recipe: Recipe, data: TokenMix) -> None:
        self.config, self.recipe, self.data = config, recipe, data
        self.phase: Phase = "trunk"
        self.step = 0
        self.model = TinyModel(config)
        self.model.initialize(recipe.seed)
        self.master = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        for p in self.model.parameters():
            p.data = p.data.bfloat16() if p.ndim >= 2 else p.data.clone()
        shared: dict[int, Any] = {id(t): t for t in (*self.model.parameters(), *self.model.buffers())}
        copies = (copy.deepcopy(self.model, dict(shared)) for _ in range(recipe.shards - 1))
        self.replicas = [self.model, *copies]
        self.pool = ThreadPoolExecutor(recipe.shards, initializer=lambda: torch.set_num_threads(1))
        self._start_phase("trunk")

    def _start_phase(self, phase: Phase) -> None:
        self.phase, self.step = phase, 0
        self.trained = [name for name in self.master if name.startswith("mtp.") == (phase == "mtp")]
        self.optimizer = Optimizer({name: self.master[name] for name in self.trained})
        work = dict(self.model.named_parameters())
        for name, p in work.items():
            p.requires_grad_(name in self.trained)

    @property
    def finished(self) -> bool:
        """Whether both phases are over."""
        return self.phase == "mtp" and self.step >= self.recipe.mtp_steps

    def advance(self) -> dict[str, float]:
        """One optimizer step, moving to the MTP phase when the trunk is done.

        Returns:
            loss, nats a token (of the first draft in the MTP phase), and imbalance, the fullest expert's load
            over the mean.
        """
        if self.phase == "trunk" and self.step >= self.recipe.trunk_steps:
            self._copy_head_to_drafts()
            self._start_phase("mtp")
        recipe, fraction = self.recipe, self.recipe.fraction(self.phase, self.step)
        results = list(self.pool.map(self._shard, range(recipe.shards)))
        for name, *grads in zip(self.trained, *(grads for _, grads in results), strict=True):
            self.master[name].grad = torch.stack([g.float() for g in grads]).mean(0)
        torch.nn.utils.clip_grad_norm_([self.master[name] for name in self.trained], 1.0)
        peak = recipe.trunk_rate if self.phase == "trunk" else recipe.mtp_rate
        self.optimizer.step(peak * fraction)
        work = dict(self.model.named_parameters())
        with torch.no_grad():
            for name in self.trained:
                work[name].copy_(self.master[name])
        imbalance = self._balance(fraction) if self.phase == "trunk" else 1.0
        self.step += 1
        return {"loss": sum(loss for loss, _ in results) / len(results), "imbalance": imbalance}

    def _shard(self, shard: int) -> tuple[float, tuple[Tensor, ...]]:
        recipe, model = self.recipe, self.replicas[shard]
        length = recipe.length_at(self.phase, self.step)
        sequences = recipe.tokens_per_shard // length
        offset = 0 if self.phase == "trunk" else recipe.trunk_steps
        tokens = self.data.batch(offset + self.step, shard, sequences, length + 1)
        loss, shown = trunk_loss(model, tokens) if self.phase == "trunk" else self._mtp_loss(model, tokens)
        params = dict(model.named_parameters())
        grads = torch.autograd.grad(loss, [params[name] for name in self.trained])
        return shown, grads

    def _mtp_loss(self, model: TinyModel, tokens: Tensor) -> tuple[Tensor, float]:
        recipe = self.recipe
        losses = draft_losses(model, tokens, recipe.data_share)
        weighted = [w * x for w, x in zip(recipe.draft_weights, losses, strict=True)]
        return torch.stack(weighted).sum(), losses[0].item()

    @torch.no_grad()
    def _balance(self, fraction: float) -> float:
        """Moves each router bias by a fixed step towards equal load, as the architecture's authors do."""
        recipe, worst = self.recipe, 0.0
        rate = max(recipe.bias_rate * fraction, recipe.bias_rate_end)
        rate = max(rate, recipe.bias_rate_start * (1 - self.step / (2 * recipe.warmup_steps)))
        for moes in zip(*(replica.moe_layers for replica in self.replicas), strict=True):
            load = torch.stack([moe.load for moe in moes]).sum(0)
            moes[0].router_bias.add_((load.mean() - load).sign(), alpha=rate)
            worst = max(worst, float(load.max() / load.mean()))
        return worst

    @torch.no_grad()
    def _copy_head_to_drafts(self) -> None:
        """Drafts start from the trunk's head and let its hidden state through."""
        hidden = self.config.hidden_size
        work = dict(self.model.named_parameters())
        for k in range(self.config.num_nextn_predict_layers):
            self.master[f"mtp.{k}.head.weight"].copy_(self.master["lm_head.weight"])
            self.master[f"mtp.{k}.head_norm.weight"].copy_(self.master["norm.weight"])
            self.master[f"mtp.{k}.eh_proj.weight"][:, hidden:].add_(torch.eye(hidden))
        for name, p in self.master.items():
            work[name].copy_(p)

    def save(self, path: Path) -> None:
        """Writes a checkpoint to resume from."""
        partial = path.with_suffix(".partial")
        biases = [moe.router_bias for moe in self.model.moe_layers]
        state = {"phase": self.phase, "step": self.step, "master": self.master, "biases": biases}
        torch.save(state | {"optimizer": self.optimizer.state_dict()}, partial)
        partial.rename(path)

    def resume(self, path: Path) -> None:
        """Continues from `save`'s checkpoint, with the same steps as an uninterrupted run."""
        state = torch.load(path, weights_only=True)
        self._start_phase(state["phase"])
        self.step = state["step"]
        self.optimizer.load_state_dict(state["optimizer"])
        work = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in state["master"].items():
                self.master[name].copy_(value)
                work[name].copy_(value)
            for moe, bias in zip(self.model.moe_layers, state["biases"], strict=True):
                moe.router_bias.copy_(bias)

    def weights(self) -> TinyModel:
        """A float32 copy of the model with the master weights."""
        model = TinyModel(self.config)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(self.master[name])
            for mine, theirs in zip(model.moe_layers, self.model.moe_layers, strict=True):
                mine.router_bias.copy_(theirs.router_bias)
        return model


def trunk_loss(model: TinyModel, tokens: Tensor) -> tuple[Tensor, float]:
    """Next-token cross-entropy of [batch, length + 1] tokens, and its value."""
    hidden = model.norm(model.hidden_states(tokens[:, :-1]))
    loss = head_loss(hidden.flatten(0, 1), model.lm_head.weight, tokens[:, 1:].flatten())
    return loss, loss.item()


def draft_losses(model: TinyModel, tokens: Tensor, data_share: float) -> list[Tensor]:
    """Each MTP layer's loss against the frozen trunk's distribution and the true tokens.

    Layer k at slot p is compared with the trunk at position p + 1 + k, which reads the same newest token.

    Args:
        model: with a trunk that needs no gradient.
        tokens: [batch, length + 1].
        data_share: weight of the true tokens.
    """
    slots = tokens.shape[1] - 1 - len(model.mtp_layers)
    with torch.no_grad():
        hidden = model.hidden_states(tokens[:, :-1])
        teacher = model.logits(hidden)
    losses = []
    for k, state in enumerate(model.mtp_states(tokens, hidden[:, :slots])):
        layer = model.mtp_layers[k]
        x = layer.head_norm(state).flatten(0, 1)
        targets = tokens[:, 2 + k : 2 + k + slots].flatten()
        wanted = teacher[:, 1 + k : 1 + k + slots].flatten(0, 1)
        losses.append(head_loss(x, layer.head.weight, targets, wanted, data_share))
    return losses
