"""The MTP layers written down once more, in plain torch float64, without caches, from the specification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


class PlainMtp:
    """Layer k at slot p takes embed(x_{p+1+k}) and s^{k-1}_p and predicts x_{p+2+k}."""

    def __init__(self, model_dir: Path) -> None:
        self.config: dict[str, Any] = json.loads((model_dir / "config.json").read_text())
        self.tensors = {
            name: tensor.double() for name, tensor in load_file(model_dir / "model.safetensors").items()
        }

    def draft_logits(self, hidden_states: Tensor, tokens: list[int], drafts: list[int]) -> list[Tensor]:
        """Logits [vocab] from which each draft is taken.

        Args:
            hidden_states: the trunk's rows of positions 0 .. L-1.
            tokens: x_0 .. x_L.
            drafts: the drafts that were made: each later layer sees those before it.
        """
        length = len(tokens) - 1
        states = hidden_states.double()
        logits = []
        for k in range(len(drafts)):
            known = (tokens + drafts)[1 + k : 1 + k + length]
            states = self._layer(k, torch.tensor(known), states)
            name = f"model.layers.{self.config['num_hidden_layers'] + k}.transformer.shared_head"
            normed = self._norm(states[-1], f"{name}.norm.weight")
            logits.append(self.tensors[f"{name}.output.weight"] @ normed)
        return logits

    def _layer(self, k: int, token_ids: Tensor, states: Tensor) -> Tensor:
        index = self.config["num_hidden_layers"] + k
        name = f"model.layers.{index}"
        embedded = self.tensors["model.embed_tokens.weight"][token_ids]
        joined = torch.cat(
            [self._norm(embedded, f"{name}.enorm.weight"), self._norm(states, f"{name}.hnorm.weight")], dim=1
        )
        u = joined @ self.tensors[f"{name}.eh_proj.weight"].T
        u = u + self._attention(name, self._norm(u, f"{name}.input_layernorm.weight"))
        normed = self._norm(u, f"{name}.post_attention_layernorm.weight")
        limit = self.config["swiglu_limits_shared"][index] or float("inf")
        gate = torch.nn.functional.silu(normed @ self.tensors[f"{name}.mlp.gate_proj.weight"].T)
        up = normed @ self.tensors[f"{name}.mlp.up_proj.weight"].T
        inner = gate.clamp(max=limit) * up.clamp(-limit, limit)
        return u + inner @ self.tensors[f"{name}.mlp.down_proj.weight"].T

    def _attention(self, name: str, x: Tensor) -> Tensor:
        setting = self.config["attention_other_setting"]
        heads, groups, dim = (
            setting["num_attention_heads"],
            setting["num_attention_groups"],
            setting["head_dim"],
        )
        length = x.shape[0]

        def heads_of(part: str, count: int) -> Tensor:
            return (x @ self.tensors[f"{name}.self_attn.{part}_proj.weight"].T).view(length, count, dim)

        queries = self._rotate(self._norm(heads_of("q", heads), f"{name}.self_attn.q_norm.weight"))
        keys = self._rotate(self._norm(heads_of("k", groups), f"{name}.self_attn.k_norm.weight"))
        values = heads_of("v", groups)
        gates = torch.sigmoid(x @ self.tensors[f"{name}.self_attn.g_proj.weight"].T)
        back = torch.arange(length)[:, None] - torch.arange(length)[None, :]
        visible = (back >= 0) & (back < self.config["sliding_window"])
        outputs = []
        for head in range(heads):
            group = head // (heads // groups)
            scores = queries[:, head] @ keys[:, group].T / dim**0.5
            weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=1)
            outputs.append(gates[:, head : head + 1] * (weights @ values[:, group]))
        return torch.cat(outputs, dim=1) @ self.tensors[f"{name}.self_attn.o_proj.weight"].T

    def _rotate(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        frequencies = 1e4 ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(x.shape[0], dtype=torch.float64)[:, None, None] * frequencies
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        scale = (x.square().mean(dim=-1, keepdim=True) + self.config["rms_norm_eps"]).rsqrt()
        return x * scale * (1 + self.tensors[name])
