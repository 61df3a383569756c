"""The Step-3.5 architecture for training: trunk and MTP layers over whole sequences."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.tiny.attention import Attention, RMSNorm
from models.tiny.config import TinyConfig
from models.tiny.moe import FeedForward, SparseMoE


class DecoderLayer(nn.Module):
    """Attention and FFN (dense, or routed + shared experts), each with its norm and residual."""

    def __init__(self, config: TinyConfig, layer: int) -> None:
        super().__init__()
        hidden, limit = config.hidden_size, config.swiglu_limits_shared[layer]
        self.input_layernorm = RMSNorm(hidden, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(hidden, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.moe: SparseMoE | None = None
        if layer in config.moe_layers:
            self.moe = SparseMoE(config, layer)
            self.share_expert = FeedForward(hidden, config.share_expert_dim, limit)
        else:
            self.mlp = FeedForward(hidden, config.intermediate_size, limit)

    def forward(self, h: Tensor) -> Tensor:
        """h and the result are [batch, length, hidden]."""
        h = h + self.self_attn(self.input_layernorm(h))
        x: Tensor = self.post_attention_layernorm(h)
        return h + self.feed_forward(x)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The dense FFN, or the routed experts' sum plus the shared expert; x is [batch, length, hidden]."""
        if self.moe is None:
            dense: Tensor = self.mlp(x)
            return dense
        routed: Tensor = self.moe(x.flatten(0, 1))
        shared: Tensor = self.share_expert(x)
        return shared + routed.view_as(x)


class MTPLayer(nn.Module):
    """One multi-token-prediction layer with its own head."""

    def __init__(self, config: TinyConfig, layer: int) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.enorm = RMSNorm(hidden, config.rms_norm_eps)
        self.hnorm = RMSNorm(hidden, config.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * hidden, hidden, bias=False)
        self.block = DecoderLayer(config, layer)
        self.head_norm = RMSNorm(hidden, config.rms_norm_eps)
        self.head = nn.Linear(hidden, config.vocab_size, bias=False)

    def forward(self, embedded: Tensor, state: Tensor) -> Tensor:
        """The next state s' from embed(x_{p+1+k}) and s_p, all [batch, length, hidden]."""
        joined = torch.cat((self.enorm(embedded), self.hnorm(state)), dim=-1)
        out: Tensor = self.block(self.eh_proj(joined))
        return out

    def logits(self, state: Tensor) -> Tensor:
        """Logits [..., vocab] of the layer's own head."""
        out: Tensor = self.head(self.head_norm(state))
        return out


class TinyModel(nn.Module):
    """Trunk, head and MTP layers."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        first = config.num_hidden_layers
        self.mtp = nn.ModuleList(MTPLayer(config, first + k) for k in range(config.num_nextn_predict_layers))

    def hidden_states(self, token_ids: Tensor) -> Tensor:
        """Trunk output before the final norm.

        Args:
            token_ids: [batch, length] int64.

        Returns:
            [batch, length, hidden].
        """
        h: Tensor = self.embed_tokens(token_ids)
        for layer in self.layers:
            h = layer(h)
        return h

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits [..., vocab] of trunk states."""
        out: Tensor = self.lm_head(self.norm(hidden))
        return out

    def mtp_states(self, token_ids: Tensor, hidden: Tensor) -> list[Tensor]:
        """States of every MTP layer under teacher forcing.

        Layer k at slot p takes embed(x_{p+1+k}) and layer k-1's state at p (the trunk's for k = 0), and
        its logits predict x_{p+2+k}.

        Args:
            token_ids: [batch, length + MTP layers] int64.
            hidden: [batch, length, hidden], the trunk's states of the first `length` tokens.

        Returns:
            One [batch, length, hidden] a layer.
        """
        length, states, state = hidden.shape[1], [], hidden
        embedded = self.embed_tokens(token_ids)
        for k, layer in enumerate(self.mtp_layers):
            state = layer(embedded[:, 1 + k : 1 + k + length], state)
            states.append(state)
        return states

    @property
    def mtp_layers(self) -> list[MTPLayer]:
        """The MTP layers, in order."""
        return [layer for layer in self.mtp if isinstance(layer, MTPLayer)]

    @property
    def moe_layers(self) -> list[SparseMoE]:
        """The routed layers, in order."""
        return [m for m in (layer.moe for layer in self.layers) if isinstance(m, SparseMoE)]

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draws every weight from its own scale: 1/sqrt(fan in), residual outputs shrunk by depth."""
        rng = torch.Generator().manual_seed(seed)
        shrink = 1 / math.sqrt(2 * self.config.num_hidden_layers)
        for name, p in self.named_parameters():
            if p.ndim < 2:
                continue
            fan_in = p.shape[1]
            std = 1 / math.sqrt(fan_in)
            if name.endswith(("o_proj.weight", "down_proj.weight", "w_out")):
                std *= shrink
            elif name.endswith(("g_proj.weight", "moe.gate.weight", "head.weight")):
                std *= 0.25
            elif "embed_tokens" in name:
                std = 0.5
            p.copy_(torch.randn(p.shape, generator=rng) * std)
