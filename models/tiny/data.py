"""Tokens on disk and batches that depend only on seed and step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from models.tiny.corpus import DOMAINS, Document

MIX = {"python": 0.37, "prose": 0.28, "technical": 0.35}


def encode_split(tokenizer: Tokenizer, docs: list[Document], domain: str, held_out: bool) -> np.ndarray:
    """One domain's documents as one run of uint16 tokens, <s> and </s> around each."""
    chosen = [d.text for d in docs if d.domain == domain and d.held_out == held_out]
    bos, eos = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    pieces = [[bos, *encoding.ids, eos] for encoding in tokenizer.encode_batch(chosen)]
    return np.concatenate([np.array(piece, dtype=np.uint16) for piece in pieces])


def write_tokens(tokenizer: Tokenizer, docs: list[Document], path: Path) -> None:
    """Encodes the training documents of every domain into one .npz."""
    arrays = {domain: encode_split(tokenizer, docs, domain, held_out=False) for domain in DOMAINS}
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)  # type: ignore[arg-type]
    partial.rename(path)


@dataclass(frozen=True, slots=True)
class TokenMix:
    """Training tokens by domain, drawn by `MIX`."""

    tokens: dict[str, np.ndarray]
    seed: int

    @classmethod
    def read(cls, path: Path, seed: int) -> TokenMix:
        """Reads what `write_tokens` wrote."""
        with np.load(path) as arrays:
            return cls({domain: arrays[domain] for domain in DOMAINS}, seed)

    def batch(self, step: int, shard: int, sequences: int, length: int) -> torch.Tensor:
        """Sequences at random offsets; the same arguments give the same batch.

        Returns:
            [sequences, length] int64.
        """
        rng = np.random.default_rng((self.seed, step, shard))
        rows = []
        for domain in rng.choice(DOMAINS, size=sequences, p=[MIX[d] for d in DOMAINS]):
            tokens = self.tokens[str(domain)]
            start = int(rng.integers(0, len(tokens) - length))
            rows.append(tokens[start : start + length].astype(np.int64))
        return torch.from_numpy(np.stack(rows))
