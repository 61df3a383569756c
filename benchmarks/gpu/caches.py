"""VRAM with fixed experts or as a cache: texts that a real model routed, simulated with measured figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.markdown import table
from orchestrator.cli.here import Figures, Here
from placement.answers.vram_cache import vram_cache
from placement.plan import LOCAL_WORKER, PlannedTier, like_layers
from placement.workload import Workload
from tests.placement.real_routing import OLMOE, olmoe_documents

_FORM = "q4_k"
_TOKENS_A_DOCUMENT = 64


def cache_table(
    figures: Figures,
    device: str,
    vram: Sequence[tuple[str, float]],
    show: Callable[[str], None],
    documents: int = 100,
) -> None:
    """A line for each text and amount of VRAM.

    Args:
        figures: of this machine, the card `device` among them.
        vram: a name, and the share of all experts that VRAM holds.
        documents: of each text, at most.
    """
    expert_bytes = OLMOE.expert_bytes(4.5)
    layers = like_layers(OLMOE.moe_layers, _FORM, expert_bytes)
    here = Here(OLMOE, "bfloat16", layers, Workload(), figures=figures)
    whole = OLMOE.num_routed_experts * expert_bytes
    lines = []
    for text, trace in _texts(documents).items():
        for name, share in vram:
            tiers = (
                _tier(LOCAL_WORKER, device, "vram", max(expert_bytes, round(share * whole))),
                _tier(f"{LOCAL_WORKER}-ram", "cpu", "ram", whole),
            )
            found = vram_cache(here.problem(tiers), trace)
            cells = [
                f"{1e3 * result.moe_s_per_token:.2f} ms, {result.hit_share:.0%}" for result in found.results
            ]
            lines.append([text, f"{name} ({share:.0%})", *cells, found.chosen.value])
    rules = [result.rule.value for result in found.results]
    show(
        "\n**Fixed experts or a cache**: simulated with the figures above, by the routing of OLMoE-1B-7B in "
        "tests/placement/fixtures (counts of 64 tokens a document; which of them chose what within a "
        "document is made up). Fixed experts are those of the first half of a text. MoE time a token, and "
        "the share of experts that were in VRAM:\n"
    )
    show(table(("text", "VRAM as of (experts)", *rules, "chosen"), lines))


def _texts(documents: int) -> dict[str, NDArray[np.int64]]:
    """int [num_tokens, num_moe_layers, top_k] each."""
    general, coding = (tokens_of(olmoe_documents(domain)[:documents]) for domain in ("general", "coding"))
    half = min(len(general), len(coding)) // 2
    return {
        "general": general,
        "coding": coding,
        "general, then coding": np.concatenate([general[:half], coding[:half]]),
    }


def tokens_of(documents: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Tokens whose choices have the counts of each document: dealt out in turn, then shuffled."""
    rng, top_k = np.random.default_rng(0), OLMOE.top_k
    found = np.empty((len(documents), _TOKENS_A_DOCUMENT, documents.shape[1], top_k), np.int64)
    for document, counts in enumerate(documents):
        for layer, of_layer in enumerate(counts):
            # An expert has at most a choice of each token, so that dealing gives none the same expert twice.
            dealt = np.repeat(np.arange(len(of_layer)), of_layer).reshape(top_k, _TOKENS_A_DOCUMENT).T
            found[document, :, layer] = dealt[rng.permutation(_TOKENS_A_DOCUMENT)]
    return found.reshape(-1, documents.shape[1], top_k)


def _tier(name: str, device: str, kind: str, budget_bytes: int) -> PlannedTier:
    return PlannedTier(name, "this-machine", device, kind, budget_bytes, worker=LOCAL_WORKER)
