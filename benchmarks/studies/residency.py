"""The model fits no box alone: an SSD below, or a second box? And does frequency beat layers there?

Run from the project's root: `python -m benchmarks.studies.residency` (about two minutes on two idle cores).
MoE layers alone stand beside whole steps, with the head on a CPU and on a GPU and the best number of drafts.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.studies.device_figures import LINKS, drive, head_card, memory
from benchmarks.studies.figures import plain_ticks, save
from benchmarks.studies.whole_steps import (
    CONTEXTS,
    EXPERT_BYTES,
    PLANNED_DEPTHS,
    best_depth,
    head_step_seconds,
    moe_seconds,
    pipeline_seconds,
    problem_of,
    shortest,
    together,
    with_drafts,
)
from placement.answers.study.routing_source import Routing, SyntheticSource
from placement.given.cluster_spec import ClusterSpec, DeviceSpec, NodeSpec
from placement.given.traces import DOMAINS
from placement.model_shape import STEP_3_5_FLASH as SHAPE
from placement.policies.registry import POLICIES

HOME_SHARES = (0.3, 0.5, 0.7, 0.9)
EVERYTHING = 1.0
GBYTES_PER_S = 60
TOKENS = 4096
# The second box has as much RAM as is missing, and a twentieth more.
NETWORKS = ("Wi-Fi 6", "1 Gbit/s", "2.5 Gbit/s")
SSDS = {"SSD, PCIe 3.0": "nvme-gen3", "SSD, PCIe 4.0": "nvme-gen4"}
ALL_IN_RAM = "all in RAM at home"
COLOURS = ("#CC79A7", "#56B4E9", "#0072B2", "#E69F00", "#D55E00")
HEADS = ("CPU", "GPU")
MOE_ALONE = "MoE layers alone"
BEST, WHOLE_LAYERS, ONE_BOX = "least-time", "whole-layers", "one-box"

Question = tuple[str, str, float, str, str]


def main() -> None:
    options = [*itertools.product(NETWORKS, (BEST, WHOLE_LAYERS)), *((ssd, ONE_BOX) for ssd in SSDS)]
    questions: list[Question] = []
    for domain, head in itertools.product(DOMAINS, HEADS):
        questions += [(domain, head, share, *option) for share in HOME_SHARES for option in options]
        questions.append((domain, head, EVERYTHING, ALL_IN_RAM, ONE_BOX))
    with ProcessPoolExecutor(2) as pool:
        draw(list(pool.map(judge, questions, chunksize=8)))


def judge(question: Question) -> dict[str, Any]:
    """MoE layers alone without drafts, and whole steps with the best number of them, by context."""
    domain, head, share, rest, policy = question
    routing = _routing(domain)
    problem = problem_of(cluster(head, share, rest), routing.planned)
    depths = PLANNED_DEPTHS if policy == BEST else (0,)
    tables = [POLICIES[policy](with_drafts(problem, drafts)) for drafts in depths]
    moe_s = shortest([moe_seconds(problem, table, routing.held_out) for table in tables])
    row: dict[str, Any] = {"text": domain, "head": head, "home_share": share, "rest": rest, "policy": policy}
    row["moe_ms"] = 1e3 * moe_s[0]
    for context in CONTEXTS:
        step_s = together(moe_s, head_step_seconds(problem, context))
        if policy == WHOLE_LAYERS:
            step_s = shortest([step_s, pipeline_seconds(problem, routing.held_out, context)])
        best = best_depth(step_s)
        row |= {f"tokens/s at {context}": best.tokens_per_s, f"drafts at {context}": best.drafts}
    return row


@cache
def _routing(domain: str) -> Routing:
    return SyntheticSource(domain, DOMAINS[domain], DOMAINS[domain], TOKENS, 0).load(SHAPE)


def cluster(head: str, share: float, rest: str) -> ClusterSpec:
    """A box at home, and an SSD in it or a second box behind a link."""
    at_home: list[DeviceSpec] = [head_card()] if head == "GPU" else []
    at_home.append(_ram(share))
    if rest in SSDS:
        at_home.append(drive(SHAPE.num_routed_experts * EXPERT_BYTES, SSDS[rest]))
    home = NodeSpec("home", None, tuple(at_home), None)
    if rest not in LINKS:
        return ClusterSpec("home", (home,))
    return ClusterSpec("home", (home, NodeSpec("attic", None, (_ram(1.05 - share),), LINKS[rest])))


def _ram(share: float) -> DeviceSpec:
    return memory(GBYTES_PER_S, round(share * SHAPE.num_routed_experts) * EXPERT_BYTES)


def draw(rows: list[dict[str, Any]]) -> None:
    """By text and kind of step: tokens/s by the share at home."""
    figure, axes = plt.subplots(
        len(DOMAINS), 1 + len(HEADS), figsize=(11.5, 6.4), layout="constrained", sharex=True, sharey=True
    )
    for line, domain in enumerate(DOMAINS):
        for column, head in enumerate((None, *HEADS)):
            panel = axes[line][column]
            mine = [row for row in rows if (row["text"], row["head"]) == (domain, head or HEADS[0])]
            speeds = [row[f"tokens/s at {CONTEXTS[0]}"] if head else 1e3 / row["moe_ms"] for row in mine]
            for name, colour in zip((*NETWORKS, *SSDS), COLOURS, strict=True):
                for policy, style in ((BEST, "-"), (ONE_BOX, "-"), (WHOLE_LAYERS, ":")):
                    points = [
                        (row["home_share"], speed)
                        for row, speed in zip(mine, speeds, strict=True)
                        if (row["rest"], row["policy"]) == (name, policy)
                    ]
                    if points:
                        label = name if policy != WHOLE_LAYERS else None
                        panel.plot(
                            *zip(*points, strict=True), style, color=colour, marker="o", ms=3, label=label
                        )
            in_ram = next(speed for row, speed in zip(mine, speeds, strict=True) if row["rest"] == ALL_IN_RAM)
            panel.axhline(in_ram, color="black", lw=1, ls="--", label=ALL_IN_RAM)
            what = f"whole steps, head on a {head}" if head else f"{MOE_ALONE}, no drafts"
            panel.set_title(f"{domain} text: {what}", loc="left", size=9)
            panel.set_yscale("log")
            plain_ticks(panel.yaxis, (2, 5, 10, 20, 30))
            panel.grid(alpha=0.25, which="both")
    for panel in axes[-1]:
        panel.set_xlabel("share of the experts that fits at home")
    for panel in axes[:, 0]:
        panel.set_ylabel("tokens/s, held-out")
    figure.legend(
        *axes[0][0].get_legend_handles_labels(),
        title=f"Solid: the planner's plan, dotted: whole layers. Context {CONTEXTS[0]:,}",
        loc="outside upper center",
        ncols=6,
        frameon=False,
        fontsize=9,
        title_fontsize=9,
    )
    save(figure, rows, "residency")


if __name__ == "__main__":
    main()
