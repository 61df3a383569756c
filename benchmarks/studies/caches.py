"""A static plan against caches of experts in VRAM: share found there, and time, by how much fits.

Run from the project's root: `python -m benchmarks.studies.caches` (about four minutes).
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.studies.figures import plain_ticks, save
from benchmarks.studies.tiny_routing import TINY_ON_STEP, tiny_routing
from placement.answers.study.measure import measure, planning_problem
from placement.answers.study.routing_source import Routing, SyntheticSource
from placement.assign.many_steps import assign_steps
from placement.cost.replica_costs import replica_costs
from placement.given.cluster_spec import ClusterSpec, DeviceSpec, NodeSpec
from placement.given.problem import PlanningProblem
from placement.given.traces import CODING, GENERAL
from placement.holders import HolderTable
from placement.model_shape import STEP_3_5_FLASH, ModelShape
from placement.policies.baselines.cached_experts import expert_requests
from placement.workload import SINGLE_TOKEN

SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8)
SIZE = STEP_3_5_FLASH.expert_bytes(4.5)
TOKENS = 4096
POLICIES = {
    "hottest-first": "#E69F00",
    "least-time": "#0072B2",
    "prompt-hottest": "#009E73",
    "lru": "#CC79A7",
    "lfu": "#56B4E9",
    "opt": "#000000",
}
# Bytes/s from RAM into VRAM: as fast as the RAM, or PCIe 4.0 with 16 lanes as it is measured.
HOST_LINKS = {"RAM's speed": None, "PCIe 4.0 x16": 25e9}
FETCHING = ("lru", "lfu", "opt")


def main() -> None:
    texts: dict[str, tuple[ModelShape, Routing]] = {
        domain.name: (
            STEP_3_5_FLASH,
            SyntheticSource(domain.name, domain, domain, TOKENS, 0).load(STEP_3_5_FLASH),
        )
        for domain in (GENERAL, CODING)
    }
    texts["potluck-tiny, python"] = TINY_ON_STEP, tiny_routing("python", TOKENS)
    settings = [
        (text, *texts[text], share, link) for text in texts for share in SHARES for link in HOST_LINKS
    ]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        draw([row for rows in pool.map(judge, settings) for row in rows])


def judge(setting: tuple[str, ModelShape, Routing, float, str]) -> list[dict[str, Any]]:
    """A row for each policy; of those that fetch, for both kinds of link."""
    text, shape, routing, share, link = setting
    host_link = HOST_LINKS[link]
    problem = planning_problem(shape, cluster(shape, share, host_link), SIZE, routing, SINGLE_TOKEN)
    # Of as many layers as the model has, wherever the routing has fewer.
    layers = STEP_3_5_FLASH.num_moe_layers / shape.num_moe_layers
    rows = []
    for policy in POLICIES if host_link is None else FETCHING:
        found = measure(problem, policy, routing)
        hits = found.hit_share if found.table is None else share_in_vram(problem, found.table, routing)
        row = {"text": text, "vram_share": share, "fetched_at": link, "policy": policy}
        rows.append(row | {"hit_share": hits, "moe_ms": 1000 * found.moe_s * layers})
    return rows


def cluster(shape: ModelShape, share: float, host_link_bytes_per_s: float | None) -> ClusterSpec:
    """A GPU with room for `share` of the experts, RAM for all of them."""
    num_experts = shape.num_routed_experts
    gpu = DeviceSpec("gpu", "vram", "cuda", round(share * num_experts) * SIZE, 0, 900e9, 60e12)
    gpu = dataclasses.replace(gpu, host_link_bytes_per_s=host_link_bytes_per_s)
    ram = DeviceSpec("ram", "ram", "cpu", num_experts * SIZE, 0, 70e9, 900e9)
    return ClusterSpec("study", (NodeSpec("study", None, (gpu, ram), None),))


def share_in_vram(problem: PlanningProblem, table: HolderTable, routing: Routing) -> float:
    """Of what tokens ask for, the share that the GPU computes: what a cache calls hits."""
    costs = replica_costs(problem)
    trace = routing.held_out[:, :, None]
    chosen = [assign_steps(trace[:, row], layer, costs) for row, layer in enumerate(table.layers)]
    return float((np.stack(chosen) == 0).sum() / (expert_requests(problem, routing.held_out) >= 0).sum())


def draw(rows: list[dict[str, Any]]) -> None:
    texts = list(dict.fromkeys(row["text"] for row in rows))
    figure, axes = plt.subplots(2, len(texts), figsize=(11, 6.4), layout="constrained", sharey="row")
    for column, text in enumerate(texts):
        for policy, colour in POLICIES.items():
            for link, style in zip(HOST_LINKS, ("-", ":"), strict=True):
                mine = [
                    row
                    for row in rows
                    if (row["text"], row["policy"], row["fetched_at"]) == (text, policy, link)
                ]
                shares = [row["vram_share"] for row in mine]
                label = policy if style == "-" else None
                # The planner's line lies on this one where it does the same.
                width = 4.5 if policy == "hottest-first" else 1.5
                if style == "-":
                    hits = [row["hit_share"] for row in mine]
                    axes[0][column].plot(shares, hits, "o-", ms=3, lw=width, color=colour, label=label)
                times = [row["moe_ms"] for row in mine]
                axes[1][column].plot(shares, times, "o" + style, ms=3, lw=width, color=colour)
        title = text if text.startswith("potluck") else f"synthetic {text} text"
        axes[0][column].set_title(title, loc="left", size=9)
        axes[1][column].set_xlabel("share of the experts that fits in VRAM", size=9)
        axes[1][column].set_yscale("log")
        plain_ticks(axes[1][column].yaxis, (5, 10, 20, 50, 100))
    for panel in axes.flat:
        panel.grid(alpha=0.25, which="both")
    axes[0][0].set_ylabel("share found in VRAM")
    axes[1][0].set_ylabel("MoE ms a token, held-out\n(dotted: fetched over PCIe 4.0 x16)")
    axes[0][0].legend(frameon=False, fontsize=8)
    save(figure, rows, "caches")


if __name__ == "__main__":
    main()
