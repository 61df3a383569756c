"""Synthetic routing with the skew, stickiness, domains and drift measured on real models.

    ln popularity(domain, layer, expert) = skew x depth(layer) x (sqrt(rho) g + sqrt(1 - rho) h)

g is standard normal for each (layer, expert), h for each (domain, layer, expert): domains share part of
their hot experts. A document's distribution is drawn from a Dirichlet around its domain's. A token keeps
each expert of its predecessor with some probability and fills up without replacement by popularity.
Parameters fitted to OLMoE-1B-7B: skew 0.5 and concentration 130 (general text) to 1.7 and 680 (code).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.errors import InputError
from placement.model_shape import ModelShape

# The first MoE layer routes more evenly than the last (OLMoE: Gini 0.46 to 0.70 from first to last, on code).
FIRST_LAYER_DEPTH, LAST_LAYER_DEPTH = 0.7, 1.15


@dataclass(frozen=True, slots=True)
class Domain:
    """A kind of text. `concentration`: how close documents are to their domain (Dirichlet)."""

    name: str
    skew: float
    concentration: float


GENERAL = Domain("general", skew=0.5, concentration=130)
CODING = Domain("coding", skew=1.7, concentration=680)
DOMAINS = {domain.name: domain for domain in (GENERAL, CODING)}


@dataclass(frozen=True, slots=True)
class SyntheticRouter:
    """A model's routers, invented. The same seed gives the same popularity in every domain and trace.

    Attributes:
        common_share: rho, the share of ln popularity's variance that all domains have in common.
        stickiness: probability that an expert of the previous token of the document stays.
        document_tokens: tokens of a document.
    """

    shape: ModelShape
    seed: int = 0
    common_share: float = 0.3
    stickiness: float = 0.3
    document_tokens: int = 256

    def popularity(self, domain: Domain) -> NDArray[np.float64]:
        """float64 [num_moe_layers, num_experts], rows sum to 1."""
        shape = (self.shape.num_moe_layers, self.shape.num_experts)
        common = np.random.default_rng([self.seed, 0]).standard_normal(shape)
        own = np.random.default_rng([self.seed, 1, zlib.crc32(domain.name.encode())]).standard_normal(shape)
        depth = np.linspace(FIRST_LAYER_DEPTH, LAST_LAYER_DEPTH, shape[0])[:, None]
        mixed = np.sqrt(self.common_share) * common + np.sqrt(1 - self.common_share) * own
        popularity = np.exp(domain.skew * depth * mixed)
        normalised: NDArray[np.float64] = popularity / popularity.sum(axis=1, keepdims=True)
        return normalised

    def stream(
        self, domain: Domain, num_tokens: int, *, drift_to: Domain | None = None, stream_seed: int = 0
    ) -> Iterator[NDArray[np.uint16]]:
        """Chosen experts in the order of the text, document after document, in bounded memory.

        Args:
            drift_to: the text moves from `domain` to this one, linearly over its documents.
            stream_seed: another one gives other text of the same domain, held-out text for instance.

        Yields:
            uint16 [a few thousand tokens, num_moe_layers, top_k], experts of a token ascending.

        Raises:
            InputError: fewer experts than top_k, or a share or probability outside 0 to 1.
        """
        self._check()
        generator = np.random.default_rng([self.seed, 2, zlib.crc32(domain.name.encode()), stream_seed])
        start = self.popularity(domain)
        end = start if drift_to is None else self.popularity(drift_to)
        last = domain if drift_to is None else drift_to
        num_documents = -(-num_tokens // self.document_tokens)
        at_once = max(1, 4096 // self.document_tokens)
        for first in range(0, num_documents, at_once):
            documents = np.arange(first, min(first + at_once, num_documents))
            progress = (documents / max(num_documents - 1, 1))[:, None, None]
            concentration = (1 - progress) * domain.concentration + progress * last.concentration
            expected = (1 - progress) * start + progress * end
            left = num_tokens - first * self.document_tokens
            # Of several documents the last one is cut; of a single one no more is drawn than is asked for.
            positions = min(left, self.document_tokens) if len(documents) == 1 else self.document_tokens
            yield self._documents(generator, concentration * expected, positions)[:left]

    def trace(
        self, domain: Domain, num_tokens: int, *, drift_to: Domain | None = None, stream_seed: int = 0
    ) -> NDArray[np.uint16]:
        """All of `stream` in one array, uint16 [num_tokens, num_moe_layers, top_k]."""
        return np.concatenate(
            list(self.stream(domain, num_tokens, drift_to=drift_to, stream_seed=stream_seed))
        )

    def _check(self) -> None:
        if self.shape.num_experts < self.shape.top_k:
            raise InputError(f"top_k {self.shape.top_k}: expected at most {self.shape.num_experts} experts")
        for name in ("common_share", "stickiness"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}: expected 0 to 1, found {getattr(self, name)}")

    def _documents(
        self, generator: np.random.Generator, dirichlet: NDArray[np.float64], num_tokens: int
    ) -> NDArray[np.uint16]:
        """A document of `num_tokens` for each [num_moe_layers, num_experts] of parameters, in turn."""
        num_documents, num_layers, _ = dirichlet.shape
        top_k = self.shape.top_k
        # Gamma draws are a Dirichlet draw up to scale, and scale does not matter to the race below. Tiny
        # parameters may underflow to 0, which would make experts equal there: the floor keeps them last.
        rates = np.maximum(generator.standard_gamma(dirichlet), 1e-30).astype(np.float32)
        chosen = np.empty((num_documents, num_tokens, num_layers, top_k), dtype=np.uint16)
        previous: NDArray[np.intp] | None = None
        for position in range(num_tokens):
            # The first k of exponential clocks are k draws without replacement (Gumbel top-k).
            arrival = generator.standard_exponential(rates.shape, dtype=np.float32) / rates
            if previous is not None:
                stays = generator.random(previous.shape, dtype=np.float32) < self.stickiness
                kept = np.where(stays, np.float32(-1), np.take_along_axis(arrival, previous, axis=2))
                np.put_along_axis(arrival, previous, kept, axis=2)
            previous = np.argpartition(arrival, top_k - 1, axis=2)[:, :, :top_k]
            previous.sort(axis=2)
            chosen[:, position] = previous
        return chosen.reshape(-1, num_layers, top_k)
