"""Up to 1,000 small boxes on paper: what more boxes buy a batch, and where the head becomes the limit.

Run from the project's root: `python -m benchmarks.studies.scale` (about two minutes).
"""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt

from benchmarks.studies.figures import plain_ticks, save
from placement.answers.study.measure import measure, planning_problem
from placement.answers.study.routing_source import SyntheticSource
from placement.given.cluster_spec import ClusterSpec, DeviceSpec, LinkSpec, NodeSpec
from placement.given.traces import GENERAL
from placement.message_size import message_size
from placement.model_shape import STEP_3_5_FLASH as SHAPE
from placement.wire_form import BFLOAT16_ROWS
from placement.workload import Workload

BOXES = (8, 32, 128, 512, 1000)
BATCHES = (1, 16, 128)
SIZE = SHAPE.expert_bytes(4.5)
LINK = LinkSpec(1.5e-4, 10e9 / 8)
COLOURS = ("#0072B2", "#009E73", "#D55E00")


def main() -> None:
    source = SyntheticSource("general", GENERAL, GENERAL, 8192, 0).load(SHAPE)
    rows: list[dict[str, Any]] = []
    for batch in BATCHES:
        workload = Workload(num_sequences=batch, context=4096)
        routing = source.as_passes(workload)
        for boxes in BOXES:
            problem = planning_problem(SHAPE, cluster(boxes), SIZE, routing, workload)
            found = measure(problem, "uniform", routing)
            # All replies pass the head's one port, the larger half of its traffic; the cost model gives each
            # box a link of its own. At most: experts of a token on one box are answered together.
            replies = min(boxes, SHAPE.top_k) * batch * SHAPE.num_moe_layers
            reply_bytes = replies * message_size(SHAPE, (BFLOAT16_ROWS,)).reply_bytes_per_row
            port_s = reply_bytes / LINK.bandwidth_bytes_per_s
            rows.append(
                {
                    "boxes": boxes,
                    "sequences": batch,
                    "tokens_per_s": found.tokens_per_s,
                    "moe_ms": 1000 * found.moe_s,
                    "head_ms": 1000 * found.head_s,
                    "head_port_ms_at_most": 1000 * port_s,
                    "tokens_per_s_with_port": batch / (found.head_s + max(found.moe_s, port_s)),
                }
            )
            print(rows[-1])
    draw(rows)


def cluster(boxes: int) -> ClusterSpec:
    """A GPU head that holds no experts, and equal boxes that together hold the model one and a half times."""
    gpu = DeviceSpec("gpu", "vram", "cuda", 24 * 10**9, 24 * 10**9, 900e9, 60e12)
    room = -(-3 * SHAPE.num_routed_experts // (2 * boxes)) * SIZE
    ram = DeviceSpec("ram", "ram", "cpu", room, 0, 50e9, 500e9)
    nodes = tuple(NodeSpec(f"box{i}", None, (ram,), LINK) for i in range(boxes))
    return ClusterSpec("head", (NodeSpec("head", None, (gpu,), None), *nodes))


def draw(rows: list[dict[str, Any]]) -> None:
    figure, panel = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for batch, colour in zip(BATCHES, COLOURS, strict=True):
        mine = [row for row in rows if row["sequences"] == batch]
        boxes = [row["boxes"] for row in mine]
        label = f"{batch} sequences" if batch > 1 else "1 sequence"
        panel.plot(boxes, [row["tokens_per_s"] for row in mine], "o-", ms=4, color=colour, label=label)
        panel.plot(boxes, [row["tokens_per_s_with_port"] for row in mine], "o:", ms=3, color=colour)
    panel.set_xscale("log")
    panel.set_yscale("log")
    plain_ticks(panel.xaxis, BOXES)
    plain_ticks(panel.yaxis, (30, 100, 300, 1000))
    panel.set_xlabel("boxes (dotted: all messages through the head's one 10 Gbit/s port)")
    panel.set_ylabel("tokens/s together")
    panel.grid(alpha=0.25)
    panel.legend(frameon=False, fontsize=8)
    save(figure, rows, "scale")


if __name__ == "__main__":
    main()
