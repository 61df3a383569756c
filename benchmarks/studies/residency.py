"""The model fits no box alone: an SSD below, or a second box? And does frequency beat layers there?

Run from the project's root: `python -m benchmarks.studies.residency` (about a minute).
"""

from __future__ import annotations

import matplotlib.pyplot as plt

from benchmarks.studies.figures import plain_ticks, save
from placement.answers.study.measure import measure, planning_problem
from placement.answers.study.routing_source import SyntheticSource
from placement.given.cluster_spec import ClusterSpec, DeviceSpec, LinkSpec, NodeSpec
from placement.given.traces import CODING, GENERAL
from placement.model_shape import STEP_3_5_FLASH as SHAPE
from placement.workload import SINGLE_TOKEN

HOME_SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SIZE = SHAPE.expert_bytes(4.5)
# Name, round trip in ms, Gbit/s; the second box has as much RAM as is missing, and a twentieth more.
LINKS = (("Wi-Fi", 4.0, 0.3), ("1 GbE", 0.35, 1.0), ("2.5 GbE", 0.25, 2.5))
SSDS_GBYTES_PER_S = (3, 7)
COLOURS = ("#CC79A7", "#56B4E9", "#0072B2", "#E69F00", "#D55E00")
SECOND_BOX_POLICIES = ("least-time", "whole-layers")


def main() -> None:
    rows: list[dict[str, object]] = []
    for domain in (GENERAL, CODING):
        routing = SyntheticSource(domain.name, domain, domain, 8192, 0).load(SHAPE)
        for share in HOME_SHARES:
            options = [
                (name, policy, _second_box(share, trip, gbits))
                for name, trip, gbits in LINKS
                for policy in SECOND_BOX_POLICIES
            ]
            options += [(f"SSD {speed} GB/s", "one-box", _ssd(speed, share)) for speed in SSDS_GBYTES_PER_S]
            for name, policy, cluster in options:
                problem = planning_problem(SHAPE, cluster, SIZE, routing, SINGLE_TOKEN)
                found = measure(problem, policy, routing)
                row = {"text": domain.name, "home_share": share, "rest": name, "policy": policy}
                rows.append(row | {"moe_ms": 1000 * found.moe_s, "remote": found.remote_layers_per_token})
    draw(rows)


def draw(rows: list[dict[str, object]]) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharey=True)
    names = [name for name, _, _ in LINKS] + [f"SSD {speed} GB/s" for speed in SSDS_GBYTES_PER_S]
    for panel, text in zip(axes, ("general", "coding"), strict=True):
        for name, colour in zip(names, COLOURS, strict=True):
            for policy, style in (("least-time", "-"), ("one-box", "-"), ("whole-layers", ":")):
                points = [
                    (row["home_share"], row["moe_ms"])
                    for row in rows
                    if (row["text"], row["rest"], row["policy"]) == (text, name, policy)
                ]
                if points:
                    label = name if policy != "whole-layers" else None
                    panel.plot(*zip(*points, strict=True), style, color=colour, marker="o", ms=3, label=label)
        panel.set_yscale("log")
        plain_ticks(panel.yaxis, (50, 100, 200, 500))
        panel.set_title(f"{text} text (dotted: whole layers)", loc="left", size=9)
        panel.set_xlabel("share of the experts that fits at home")
        panel.grid(alpha=0.25, which="both")
    axes[0].set_ylabel("MoE ms a token, held-out")
    axes[1].legend(frameon=False, fontsize=8)
    save(figure, rows, "residency")


def _ram(share: float) -> DeviceSpec:
    return DeviceSpec("ram", "ram", "cpu", round(share * SHAPE.num_routed_experts) * SIZE, 0, 60e9, 700e9)


def _second_box(share: float, round_trip_ms: float, gbits: float) -> ClusterSpec:
    link = LinkSpec(round_trip_ms / 1000, gbits * 1e9 / 8)
    attic = NodeSpec("attic", None, (_ram(1.05 - share),), link)
    return ClusterSpec("home", (NodeSpec("home", None, (_ram(share),), None), attic))


def _ssd(gbytes_per_s: float, share: float) -> ClusterSpec:
    disk = DeviceSpec("ssd", "disk", "cpu", SHAPE.num_routed_experts * SIZE, 0, gbytes_per_s * 1e9, 700e9)
    return ClusterSpec("home", (NodeSpec("home", None, (_ram(share), disk), None),))


if __name__ == "__main__":
    main()
