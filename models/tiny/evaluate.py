"""Figures of an exported model: compression, drafts and expert use on held-out text."""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from models.tiny.corpus import DOMAINS
from models.tiny.data import TokenMix
from models.tiny.net import TinyModel

WINDOW, HOP = 1024, 512
MIX_SEQUENCES = 192


def windows(num_tokens: int) -> Iterator[tuple[int, int, int]]:
    """Overlapping windows in which every token after the first is predicted once.

    Yields:
        (start, end, first): tokens start ... end - 1 are read, those from index `first` on count; all
        but the opening window have at least HOP tokens of context.
    """
    end = 0
    while end < num_tokens:
        start = max(0, end - HOP)
        first = max(end, 1)
        end = min(start + WINDOW, num_tokens)
        yield start, end, first


@dataclass(slots=True)
class DomainFigures:
    """Running sums over one domain's held-out text."""

    num_layers: int
    num_experts: int
    num_drafts: int
    nats: float = 0.0
    compared: list[int] = field(init=False)
    agreed: list[int] = field(init=False)
    counts: NDArray[np.int64] = field(init=False)
    repeated: NDArray[np.int64] = field(init=False)
    pairs: int = 0

    def __post_init__(self) -> None:
        self.compared, self.agreed = [0] * self.num_drafts, [0] * self.num_drafts
        self.counts = np.zeros((self.num_layers, self.num_experts), dtype=np.int64)
        self.repeated = np.zeros(self.num_layers, dtype=np.int64)

    def read(self, model: TinyModel, tokens: Tensor, first: int) -> None:
        """Adds one window.

        Args:
            model: float32, in evaluation mode.
            tokens: [length] int64.
            first: index of the first token that counts.
        """
        hidden = model.hidden_states(tokens[None])
        logits = model.logits(hidden)[0]
        picked = logits[first - 1 : -1].log_softmax(-1).gather(1, tokens[first:, None])
        self.nats -= float(picked.double().sum())
        self._routing(model, first)
        choice = logits.argmax(-1)
        slots = len(tokens) - 1 - self.num_drafts
        if slots <= 0:
            return
        for k, state in enumerate(model.mtp_states(tokens[None], hidden[:, :slots])):
            from_slot = max(0, first - 1 - k)
            drafts = model.mtp_layers[k].logits(state[0, from_slot:]).argmax(-1)
            wanted = choice[from_slot + 1 + k : slots + 1 + k]
            self.compared[k] += len(drafts)
            self.agreed[k] += int((drafts == wanted).sum())

    def _routing(self, model: TinyModel, first: int) -> None:
        for layer, moe in enumerate(model.moe_layers):
            assert moe.expert_ids is not None
            ids = moe.expert_ids
            counted = ids[first - 1 if first == 1 else first :]
            self.counts[layer] += np.bincount(counted.flatten().numpy(), minlength=self.num_experts)
            before, after = ids[first - 1 : -1], ids[first:]
            self.repeated[layer] += int((after[:, :, None] == before[:, None, :]).sum())
        self.pairs += len(after)

    def report(self, text: bytes, num_tokens: int, top_k: int) -> dict[str, Any]:
        """The domain's part of training.json."""
        packed = len(lzma.compress(text, preset=9))
        return {
            "bytes": len(text),
            "tokens": num_tokens,
            "bits_per_byte": round(self.nats / math.log(2) / len(text), 4),
            "xz_9_bytes": packed,
            "xz_9_bits_per_byte": round(8 * packed / len(text), 4),
            "draft_agreement": [round(a / c, 4) for a, c in zip(self.agreed, self.compared, strict=True)],
            "gini_per_layer": [round(gini(c), 4) for c in self.counts],
            "top_tenth_share_per_layer": [round(top_tenth_share(c), 4) for c in self.counts],
            "repeated_expert_share_per_layer": [
                round(r / (self.pairs * top_k), 4) for r in self.repeated.tolist()
            ],
        }


def gini(counts: NDArray[np.int64]) -> float:
    """Inequality of expert use: 0 when all are used alike, near 1 when one has everything."""
    ordered = np.sort(counts.astype(np.float64))
    n = len(ordered)
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * ordered.sum()))


def top_tenth_share(counts: NDArray[np.int64]) -> float:
    """Share of activations on the most used tenth of experts, rounded down."""
    ordered = np.sort(counts)[::-1]
    return float(ordered[: len(ordered) // 10].sum() / ordered.sum())


@torch.inference_mode()
def measure_domain(model: TinyModel, tokenizer: Tokenizer, path: Path) -> dict[str, Any]:
    """Figures of one held-out file, read as <s> and its text in windows of 1,024 tokens, 512 apart.

    A draft agrees when MTP layer k's most likely token, given the true tokens before it, is the trunk's.
    """
    text = path.read_bytes()
    ids = [model.config.bos_token_id, *tokenizer.encode(text.decode()).ids]
    tokens = torch.tensor(ids)
    config = model.config
    figures = DomainFigures(len(model.moe_layers), config.moe_num_experts, config.num_nextn_predict_layers)
    for start, end, first in windows(len(tokens)):
        figures.read(model, tokens[start:end], first - start)
    return figures.report(text, len(ids) - 1, config.moe_top_k)


@torch.inference_mode()
def measure_mix(model: TinyModel, mix: TokenMix, sequences: int = MIX_SEQUENCES) -> dict[str, Any]:
    """Expert use on freshly drawn training sequences of 512 tokens."""
    counts = np.zeros((len(model.moe_layers), model.config.moe_num_experts), dtype=np.int64)
    for part in range(sequences // 8):
        model.hidden_states(mix.batch(10**9 + part, 0, 8, 512))
        for layer, moe in enumerate(model.moe_layers):
            counts[layer] += moe.load.numpy().astype(np.int64)
    return {
        "tokens": sequences // 8 * 8 * 512,
        "dead_experts_per_layer": [int((c == 0).sum()) for c in counts],
        "least_over_mean_load_per_layer": [round(float(c.min() / c.mean()), 3) for c in counts],
        "most_over_mean_load_per_layer": [round(float(c.max() / c.mean()), 3) for c in counts],
        "gini_per_layer": [round(gini(c), 4) for c in counts],
    }


def measure(model: TinyModel, tokenizer: Tokenizer, held_out: Path, mix: TokenMix) -> dict[str, Any]:
    """All figures of a model.

    Args:
        model: as read back from its checkpoint.
        tokenizer: the model's.
        held_out: folder of one text a domain.
        mix: the training tokens.
    """
    domains = {domain: measure_domain(model, tokenizer, held_out / f"{domain}.txt") for domain in DOMAINS}
    return {"held_out": domains, "training_mix": measure_mix(model, mix)}
