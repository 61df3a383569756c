"""How many tokens of statistics a plan needs, and what it loses on traffic it was not made for.

Run from the project's root: `python -m benchmarks.studies.statistics_needed` (about a minute).
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.studies.figures import GALLERY, save
from placement.answers.study.measure import measure, planning_problem
from placement.answers.study.routing_source import Routing
from placement.given.cluster_file import load_cluster
from placement.given.stats import RoutingStats
from placement.given.traces import CODING, GENERAL, SyntheticRouter
from placement.model_shape import STEP_3_5_FLASH as SHAPE
from placement.workload import SINGLE_TOKEN

CLUSTER = Path(GALLERY) / "clusters" / "gpu-and-two-cpu-boxes.yaml"
TOKENS = (256, 1024, 4096, 16384)
POLICIES = ("least-time", "hottest-first", "whole-layers")
COLOURS = {"least-time": "#0072B2", "hottest-first": "#E69F00", "whole-layers": "#009E73"}


def main() -> None:
    router, cluster = SyntheticRouter(SHAPE), load_cluster(CLUSTER)
    rows: list[dict[str, object]] = []
    for judged in (GENERAL, CODING):
        held_out = router.trace(judged, 8192, stream_seed=1)[::4]
        for planned in (GENERAL, CODING):
            trace = router.trace(planned, TOKENS[-1])
            for num_tokens in TOKENS if planned is judged else TOKENS[-1:]:
                stats = RoutingStats.from_trace(SHAPE, trace[:num_tokens], planned.name)
                routing = Routing(stats, held_out)
                problem = planning_problem(SHAPE, cluster, SHAPE.expert_bytes(4.5), routing, SINGLE_TOKEN)
                for policy in POLICIES:
                    found = measure(problem, policy, routing)
                    row = {"traffic": judged.name, "statistics": planned.name, "tokens": num_tokens}
                    rows.append(row | {"policy": policy, "moe_ms": 1000 * found.moe_s})
                    print(rows[-1])
    draw(rows)


def draw(rows: list[dict[str, object]]) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for panel, traffic in zip(axes, ("general", "coding"), strict=True):
        for policy in POLICIES:
            mine = [row for row in rows if row["traffic"] == traffic and row["policy"] == policy]
            own = [(row["tokens"], row["moe_ms"]) for row in mine if row["statistics"] == traffic]
            other = next(row["moe_ms"] for row in mine if row["statistics"] != traffic)
            panel.plot(*zip(*own, strict=True), marker="o", ms=4, color=COLOURS[policy], label=policy)
            panel.axhline(other, color=COLOURS[policy], ls=":", lw=1.2)
        panel.set_xscale("log", base=2)
        panel.set_xticks(TOKENS, [str(n) for n in TOKENS])
        panel.set_ylim(bottom=0)
        panel.set_xlabel("tokens of statistics (dotted: 16384 of the other domain)", size=8)
        panel.set_title(f"{traffic} traffic", loc="left", size=9)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("MoE ms a token, held-out")
    axes[0].legend(frameon=False, fontsize=8)
    save(figure, rows, "statistics-needed")


if __name__ == "__main__":
    main()
