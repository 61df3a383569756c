"""Up to 1,000 small boxes on paper: what more boxes buy a batch, and where the head becomes the limit.

Run from the project's root: `python -m benchmarks.studies.scale` (about half a minute). MoE
layers alone stand beside whole steps, with the head on a GPU and on a CPU and the best number of drafts.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.studies.device_figures import LINKS, head_card, memory
from benchmarks.studies.figures import plain_ticks, save
from benchmarks.studies.whole_steps import (
    CONTEXTS,
    DEPTHS,
    EXPERT_BYTES,
    best_depth,
    head_step_seconds,
    problem_of,
    together,
    with_drafts,
    workload,
)
from placement.answers.study.routing_source import Routing, SyntheticSource
from placement.given.cluster_spec import ClusterSpec, NodeSpec
from placement.given.traces import GENERAL
from placement.message_size import message_size
from placement.model_shape import STEP_3_5_FLASH as SHAPE
from placement.policies.registry import POLICIES
from placement.replay.evaluate import evaluate

BOXES = (8, 32, 128, 512, 1000)
BATCHES = (1, 16, 128)
LINK = LINKS["10 Gbit/s"]
BOX_GBYTES_PER_S = 50
HEADS = {"GPU": head_card("rtx-5090"), "CPU": memory(60, 0)}
TOKENS = 4096
COLOURS = ("#0072B2", "#009E73", "#D55E00")

Question = tuple[str, int, int]


def main() -> None:
    questions = list(itertools.product(HEADS, BATCHES, BOXES))
    with ProcessPoolExecutor(2) as pool:
        draw(list(pool.map(judge, questions)))


def judge(question: Question) -> dict[str, Any]:
    """MoE layers alone without drafts, and whole steps with the best number of them, by context."""
    head, batch, boxes = question
    problem = problem_of(cluster(head, boxes), _routing().planned, batch)
    table = POLICIES["uniform"](problem)
    moe_s, port_s = [], []
    for drafts in DEPTHS:
        passes = _routing().as_passes(workload(drafts, sequences=batch)).held_out
        moe_s.append(evaluate(with_drafts(problem, drafts), table, passes).mean_s)
        # All replies pass the head's one port, the larger half of its traffic; the cost model gives each
        # box a link of its own. At most: experts of a token on one box are answered together.
        replies = min(boxes, SHAPE.top_k) * batch * (1 + drafts) * SHAPE.num_moe_layers
        reply_bytes = replies * message_size(SHAPE, problem.wires).reply_bytes_per_row
        port_s.append(reply_bytes / LINK.bandwidth_bytes_per_s)
    row: dict[str, Any] = {"head": head, "boxes": boxes, "sequences": batch, "moe_ms": 1e3 * moe_s[0]}
    row["port_ms_at_most"] = 1e3 * port_s[0]
    for context in CONTEXTS:
        head_s = head_step_seconds(problem, context)
        best = best_depth(together(moe_s, head_s), batch)
        with_port = best_depth(together(map(max, moe_s, port_s), head_s), batch)
        row |= {
            f"head_ms at {context}": 1e3 * head_s[0],
            f"tokens/s at {context}": best.tokens_per_s,
            f"drafts at {context}": best.drafts,
            f"tokens/s with port at {context}": with_port.tokens_per_s,
            f"drafts with port at {context}": with_port.drafts,
        }
    print(row, flush=True)
    return row


@cache
def _routing() -> Routing:
    return SyntheticSource("general", GENERAL, GENERAL, TOKENS, 0).load(SHAPE)


def cluster(head: str, boxes: int) -> ClusterSpec:
    """A head that holds no experts, and equal boxes that together hold the model one and a half times."""
    room = -(-3 * SHAPE.num_routed_experts // (2 * boxes)) * EXPERT_BYTES
    ram = memory(BOX_GBYTES_PER_S, room)
    nodes = tuple(NodeSpec(f"box{i}", None, (ram,), LINK) for i in range(boxes))
    return ClusterSpec("head", (NodeSpec("head", None, (HEADS[head],), None), *nodes))


def draw(rows: list[dict[str, Any]]) -> None:
    """MoE layers alone, and whole steps by the head's kind: tokens/s of all sequences by boxes."""
    figure, axes = plt.subplots(1, 1 + len(HEADS), figsize=(11.5, 4.3), layout="constrained", sharey=True)
    short, long = CONTEXTS
    styles = {
        f"tokens/s at {short}": "o-",
        f"tokens/s at {long}": "o--",
        f"tokens/s with port at {short}": "o:",
    }
    for panel, head in zip(axes, (None, *HEADS), strict=True):
        for batch, colour in zip(BATCHES, COLOURS, strict=True):
            mine = [row for row in rows if (row["head"], row["sequences"]) == (head or "GPU", batch)]
            boxes = [row["boxes"] for row in mine]
            label = f"{batch} sequences" if batch > 1 else "1 sequence"
            if head is None:
                speeds = [1e3 * batch / row["moe_ms"] for row in mine]
                panel.plot(boxes, speeds, "o-", ms=4, color=colour, label=label)
            else:
                for column, style in styles.items():
                    panel.plot(boxes, [row[column] for row in mine], style, ms=3, color=colour)
        what = f"whole steps, head on a {head}" if head else "MoE layers alone, no drafts"
        panel.set_title(what, loc="left", size=9)
        panel.set_xscale("log")
        panel.set_yscale("log")
        plain_ticks(panel.xaxis, BOXES)
        plain_ticks(panel.yaxis, (3, 10, 30, 100, 300, 1000, 3000))
        panel.set_xlabel("boxes")
        panel.grid(alpha=0.25)
    axes[0].set_ylabel("tokens/s together")
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        title=f"Solid: context {short:,}. Dashed: {long:,}. Dotted: {short:,}, and all messages through the "
        "head's one 10 Gbit/s port",
        loc="outside upper center",
        ncols=len(BATCHES),
        frameon=False,
        fontsize=9,
        title_fontsize=9,
    )
    save(figure, rows, "scale")


if __name__ == "__main__":
    main()
