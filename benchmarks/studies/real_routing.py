"""Published routing of real models on boxes sized for Step-3.5-Flash.

OLMoE routes 16 layers of 64 experts. Here its experts are given Step's size, and the boxes the same share of
the model that they hold of Step's: how popularity is spread is OLMoE's, what an expert costs is Step's.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from placement.answers.study.routing_source import Routing
from placement.given.cluster_spec import ClusterSpec
from placement.given.stats import RoutingStats
from placement.interop.count_tables import read_count_tables
from placement.model_shape import STEP_3_5_FLASH, ModelShape

FIXTURES = Path(__file__).resolve().parents[2] / "tests" / "placement" / "fixtures"
TOKENS_A_DOCUMENT = 64

OLMOE_ON_STEP = dataclasses.replace(
    STEP_3_5_FLASH,
    name="olmoe routing, step-3.5-flash experts",
    moe_layers=tuple(range(3, 19)),
    num_experts=64,
    attention=(*STEP_3_5_FLASH.attention[:19], *STEP_3_5_FLASH.attention[-3:]),
)


def scaled(cluster: ClusterSpec, shape: ModelShape) -> ClusterSpec:
    """The boxes with as much of their memory as holds the same share of `shape`'s experts."""
    share = shape.num_routed_experts / STEP_3_5_FLASH.num_routed_experts
    nodes = tuple(
        dataclasses.replace(
            node,
            devices=tuple(
                dataclasses.replace(device, memory_bytes=round(device.budget_bytes * share), reserved_bytes=0)
                for device in node.devices
            ),
        )
        for node in cluster.nodes
    )
    return dataclasses.replace(cluster, nodes=nodes)


def olmoe(domain: str, seed: int = 0) -> Routing:
    """Half of the 100 documents of a domain to plan on, the other half held out."""
    documents = read_count_tables(FIXTURES / f"olmoe-{domain}.npz", OLMOE_ON_STEP)
    generator = np.random.default_rng(seed)
    documents = documents[generator.permutation(len(documents))]
    texts = np.concatenate([as_tokens(counts, OLMOE_ON_STEP.top_k, generator) for counts in documents])
    half = len(texts) // 2
    stats = RoutingStats.from_trace(OLMOE_ON_STEP, texts[:half], f"OLMoE, {domain}, 50 documents")
    return Routing(stats, texts[half:])


def as_tokens(counts: NDArray[np.int64], top_k: int, generator: np.random.Generator) -> NDArray[np.uint16]:
    """A trace that has a document's counts exactly; which token chose an expert is by lot.

    A layer's choices are laid out expert by expert in random order and dealt to the tokens round by round:
    an expert chosen c times goes to c different tokens (systematic sampling; Madow, Annals of Mathematical
    Statistics 20, 1949).

    Args:
        counts: [layers, experts], every row sums to tokens x top_k, no count above the tokens.
    """
    num_layers, num_experts = counts.shape
    num_tokens = int(counts[0].sum()) // top_k
    trace = np.empty((num_tokens, num_layers, top_k), dtype=np.uint16)
    for layer in range(num_layers):
        order = generator.permutation(num_experts)
        choices = np.repeat(order, counts[layer, order])
        trace[generator.permutation(num_tokens), layer] = choices.reshape(top_k, num_tokens).T
    return trace
