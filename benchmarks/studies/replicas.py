"""What spare memory buys when it becomes copies of experts, from none to as much as the model again.

Run from the project's root: `python -m benchmarks.studies.replicas` (about two minutes on two cores).
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.studies.figures import save
from placement.answers.study.measure import measure, planning_problem
from placement.answers.study.routing_source import Routing, SyntheticSource
from placement.errors import PlanDoesNotFit
from placement.given.cluster_spec import ClusterSpec, DeviceSpec, LinkSpec, NodeSpec
from placement.given.traces import CODING, GENERAL, Domain
from placement.model_shape import STEP_3_5_FLASH as SHAPE
from placement.workload import Workload

SPARE = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
SIZE = SHAPE.expert_bytes(4.5)
TOKENS = 4096
POLICIES = {
    "whole-layers": "#CC79A7",
    "uniform": "#56B4E9",
    "hottest-first": "#E69F00",
    "balanced-replicas": "#009E73",
    "least-time": "#0072B2",
}
# Share of all memory, GB/s, round trip in s, Gbit/s; the first is the head's own.
EQUAL = ((0.25, 65, 0.0, 0.0), *3 * ((0.25, 65, 2e-4, 10.0),))
UNEVEN = ((0.1, 400, 0.0, 0.0), (0.4, 65, 2e-4, 10.0), (0.3, 90, 3e-4, 2.5), (0.2, 40, 2e-4, 2.5))
CLUSTERS = {"equal boxes": EQUAL, "uneven boxes": UNEVEN}
WORKLOADS = {"1 token": Workload(), "4 tokens": Workload(drafts=3, accepted_drafts=1.6)}
DOMAINS = (GENERAL, CODING)


def main() -> None:
    settings = [
        (domain, boxes, batch, spare)
        for domain in DOMAINS
        for boxes in CLUSTERS
        for batch in WORKLOADS
        for spare in SPARE
    ]
    with ProcessPoolExecutor(2) as pool:
        draw([row for rows in pool.map(judge, settings) for row in rows])


def judge(setting: tuple[Domain, str, str, float]) -> list[dict[str, Any]]:
    """A row for each policy that fits."""
    domain, boxes, batch, spare = setting
    source, workload = text(domain), WORKLOADS[batch]
    problem = planning_problem(SHAPE, cluster(boxes, spare), SIZE, source, workload)
    rows = []
    for policy in POLICIES:
        try:
            found = measure(problem, policy, source)
        except PlanDoesNotFit:
            continue
        row: dict[str, Any] = {"text": domain.name, "cluster": boxes, "pass": batch, "spare": spare}
        row |= {"policy": policy, "moe_ms": 1000 * found.moe_s, "copies": found.replicas}
        rows.append(row | {"remote_layers": found.remote_layers_per_token * workload.tokens_out_per_step})
    return rows


@cache
def text(domain: Domain) -> Routing:
    return SyntheticSource(domain.name, domain, domain, TOKENS, 0).load(SHAPE)


def cluster(boxes: str, spare: float) -> ClusterSpec:
    """Boxes that together hold the experts and `spare` times as much again."""
    nodes = []
    for index, (share, gbytes_per_s, round_trip_s, gbits_per_s) in enumerate(CLUSTERS[boxes]):
        # One expert more than the share, so that rounding never leaves too little.
        room = int(share * (1 + spare) * SHAPE.num_routed_experts) + 1
        ram = DeviceSpec("ram", "ram", "cpu", room * SIZE, 0, gbytes_per_s * 1e9, 1e12)
        link = LinkSpec(round_trip_s, gbits_per_s * 1e9 / 8) if index else None
        nodes.append(NodeSpec("head" if not index else f"box{index}", None, (ram,), link))
    return ClusterSpec("head", tuple(nodes))


def draw(rows: list[dict[str, Any]]) -> None:
    columns = [(boxes, batch) for boxes in CLUSTERS for batch in WORKLOADS]
    figure, axes = plt.subplots(
        len(DOMAINS), len(columns), figsize=(13, 6), layout="constrained", sharex=True
    )
    for line, domain in enumerate(DOMAINS):
        for column, (boxes, batch) in enumerate(columns):
            panel = axes[line][column]
            for policy, colour in POLICIES.items():
                mine = [
                    row
                    for row in rows
                    if (row["text"], row["cluster"], row["pass"], row["policy"])
                    == (domain.name, boxes, batch, policy)
                ]
                spare = [100 * row["spare"] for row in mine]
                panel.plot(spare, [row["moe_ms"] for row in mine], "o-", ms=3, color=colour, label=policy)
            panel.set_title(f"{domain.name} text, {boxes}, {batch}", loc="left", size=8)
            panel.set_ylim(bottom=0)
            panel.grid(alpha=0.25)
    for panel in axes[-1]:
        panel.set_xlabel("spare memory, % of the experts", size=9)
    for panel in axes[:, 0]:
        panel.set_ylabel("MoE ms a pass, held-out")
    axes[0][0].legend(frameon=False, fontsize=8)
    save(figure, rows, "replicas")


if __name__ == "__main__":
    main()
