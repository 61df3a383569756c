"""Where experts over the network win, where whole layers win, where one box wins; and whether we know it.

Run from the project's root: `python -m benchmarks.studies.pay_map` (about three minutes on two cores). With
`--documents 8` it plans from an eighth of the statistics and prints the score only.
"""

from __future__ import annotations

import argparse
import itertools
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np

from placement.answers.study.measure import planning_problem
from placement.answers.study.routing_source import Routing
from placement.given.cluster_spec import ClusterSpec, DeviceSpec, LinkSpec, NodeSpec
from placement.given.problem import PlanningProblem
from placement.given.stats import RoutingStats
from placement.given.traces import GENERAL, SyntheticRouter
from placement.holders import HolderTable
from placement.model_shape import STEP_3_5_FLASH as SHAPE
from placement.policies.registry import POLICIES
from placement.replay.evaluate import evaluate
from placement.workload import Workload

ROUND_TRIPS_MS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 4.0, 10.0)
MEMORY_GBYTES_PER_S = (20, 40, 80, 160, 320, 800)
HOME_SHARES = (0.4, 0.7, 0.9, 0.97)
DRAFTS = (0, 2)
SSD_GBYTES_PER_S = 5
LINK_GBITS_PER_S = 2.5
FAMILIES = ("experts", "whole layers", "one box")
# Pale, so that figures in black can be read on them.
COLOURS, ALPHA = ("#56B4E9", "#009E73", "#E69F00"), 0.65
BASELINES = ("one-box", "whole-layers", "uniform", "hottest-first", "hottest-per-layer")
# Two plans whose times differ by less are equally right.
TIE = 0.01
DOCUMENTS, DOCUMENT_TOKENS, JUDGED_TOKENS = 64, 256, 48
EXPERT_BYTES = SHAPE.expert_bytes(4.5)
HOME, ATTIC = 0, 2


@dataclass(frozen=True, slots=True)
class Place:
    """A cell of the map."""

    drafts: int
    home_share: float
    gbytes_per_s: float
    round_trip_ms: float
    documents: int


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=DOCUMENTS, choices=range(1, DOCUMENTS + 1))
    documents = parser.parse_args().documents
    places = [
        Place(*values, documents)
        for values in itertools.product(DRAFTS, HOME_SHARES, MEMORY_GBYTES_PER_S, ROUND_TRIPS_MS)
    ]
    with ProcessPoolExecutor(2) as pool:
        rows = list(pool.map(judge, places, chunksize=12))
    right = np.array([row["right"] for row in rows])
    regret = np.array([row["regret"] for row in rows], dtype=float)
    wrong = "; ".join(
        f"{DRAFTS[i]} drafts {100 * part.mean():.1f}%" for i, part in enumerate(np.split(right, 2))
    )
    print(f"right in {100 * right.mean():.1f}% of {len(rows)} cells ({wrong})")
    print(f"regret: mean {100 * regret.mean():.2f}%, worst {100 * regret.max():.1f}%")
    for family in FAMILIES:
        print(f"{family} win in {100 * np.mean([row['winner'] == family for row in rows]):.0f}% of cells")
    if documents == DOCUMENTS:
        draw(rows)


def judge(place: Place) -> dict[str, object]:
    """Held-out time of every family in one cell, of the planner's plan, and what the planner chose."""
    problem, routing = situation(place)
    seconds = dict.fromkeys(FAMILIES, float("inf"))
    for name in BASELINES:
        table = POLICIES[name](problem)
        time_s = evaluate(problem, table, routing.held_out).mean_s
        seconds[family_of(table)] = min(seconds[family_of(table)], time_s)
    planned = POLICIES["least-time"](problem)
    chosen, planned_s = family_of(planned), evaluate(problem, planned, routing.held_out).mean_s
    seconds[chosen] = min(seconds[chosen], planned_s)
    winner = min(FAMILIES, key=lambda family: seconds[family])
    regret = planned_s / seconds[winner] - 1
    return {
        "drafts": place.drafts,
        "home_share": place.home_share,
        "memory_gbytes_per_s": place.gbytes_per_s,
        "round_trip_ms": place.round_trip_ms,
        **{f"{family} ms": 1000 * seconds[family] for family in FAMILIES},
        "planner ms": 1000 * planned_s,
        "winner": winner,
        "chosen": chosen,
        "regret": regret,
        "right": int(chosen == winner or regret <= TIE),
    }


def family_of(table: HolderTable, home: int = HOME, attic: int = ATTIC) -> str:
    """What kind of plan it is; most plans the planner finds between the two are told by their majority.

    Nothing in the other box; at least half of the layers that ask it without any expert in this box's RAM; or
    layers divided. Copies count: the other box computes those that it would have done first.

    Args:
        home, attic: devices, this box's RAM and the other's.
    """
    in_attic, at_home = ((table.table == device).any(axis=2) for device in (attic, home))
    asking = in_attic.any(axis=1)
    if not asking.any():
        return "one box"
    whole = asking & ~at_home.any(axis=1)
    return "whole layers" if 2 * int(whole.sum()) >= int(asking.sum()) else "experts"


def situation(place: Place) -> tuple[PlanningProblem, Routing]:
    """A box with a share of the experts in RAM and an SSD below, and a second box of that RAM with room."""

    def ram(share: float) -> DeviceSpec:
        room = int(share * SHAPE.num_routed_experts) * EXPERT_BYTES
        return DeviceSpec(
            "ram", "ram", "cpu", room, 0, place.gbytes_per_s * 1e9, 20 * place.gbytes_per_s * 1e9
        )

    everything = SHAPE.num_routed_experts * EXPERT_BYTES
    ssd = DeviceSpec("ssd", "disk", "cpu", everything, 0, SSD_GBYTES_PER_S * 1e9, 1e12)
    link = LinkSpec(place.round_trip_ms / 1000, LINK_GBITS_PER_S * 1e9 / 8)
    cluster = ClusterSpec(
        "home",
        (
            NodeSpec("home", None, (ram(place.home_share), ssd), None),
            NodeSpec("attic", None, (ram(min(1.0, 1.15 - place.home_share)),), link),
        ),
    )
    workload = Workload(drafts=place.drafts, accepted_drafts=0.6 * place.drafts)
    routing = text(place.documents)
    return planning_problem(SHAPE, cluster, EXPERT_BYTES, routing, workload), routing


@cache
def text(documents: int) -> Routing:
    """So many documents to plan on, the first tokens of 64 others to be judged by."""
    router = SyntheticRouter(SHAPE)
    planned = router.trace(GENERAL, documents * DOCUMENT_TOKENS)
    others = router.trace(GENERAL, DOCUMENTS * DOCUMENT_TOKENS, stream_seed=1)
    others = others.reshape(DOCUMENTS, DOCUMENT_TOKENS, *others.shape[1:])[:, :JUDGED_TOKENS]
    held_out = others.reshape(-1, *others.shape[2:])
    return Routing(RoutingStats.from_trace(SHAPE, planned, "synthetic general"), held_out)


def draw(rows: list[dict[str, object]]) -> None:
    """A map for each number of drafts and share at home; colour: who wins, figure: by what factor."""
    # Here, since who asks for a family draws nothing.
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle

    from benchmarks.studies.figures import save

    by_place = {
        (row["drafts"], row["home_share"], row["memory_gbytes_per_s"], row["round_trip_ms"]): row
        for row in rows
    }
    size = (3.0 * len(HOME_SHARES), 3.0 * len(DRAFTS) + 0.6)
    figure, axes = plt.subplots(
        len(DRAFTS), len(HOME_SHARES), figsize=size, sharex=True, sharey=True, layout="constrained"
    )
    for (line, drafts), (column, share) in itertools.product(enumerate(DRAFTS), enumerate(HOME_SHARES)):
        panel = axes[line, column]
        for (y, speed), (x, trip) in itertools.product(
            enumerate(MEMORY_GBYTES_PER_S), enumerate(ROUND_TRIPS_MS)
        ):
            row = by_place[drafts, share, speed, trip]
            times = sorted(float(str(row[f"{family} ms"])) for family in FAMILIES)
            colour = COLOURS[FAMILIES.index(str(row["winner"]))]
            panel.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, color=colour, alpha=ALPHA, lw=0))
            panel.text(x, y, f"{times[1] / times[0]:.1f}", ha="center", va="center", size=7.5)
            if not row["right"]:
                panel.plot(x + 0.33, y + 0.3, marker="x", color="black", ms=5)
        panel.set_xticks(range(len(ROUND_TRIPS_MS)), [f"{t:g}" for t in ROUND_TRIPS_MS], size=7)
        panel.set_yticks(range(len(MEMORY_GBYTES_PER_S)), [str(m) for m in MEMORY_GBYTES_PER_S], size=7)
        panel.set_xlim(-0.5, len(ROUND_TRIPS_MS) - 0.5)
        panel.set_ylim(-0.5, len(MEMORY_GBYTES_PER_S) - 0.5)
        drafting = f"{drafts} drafts" if drafts else "no drafts"
        panel.set_title(f"{100 * share:.0f}% fits at home, {drafting}", size=9)
    figure.supxlabel("round trip, ms", size=9)
    figure.supylabel("memory, GB/s", size=9)
    handles = [Rectangle((0, 0), 1, 1, color=colour, alpha=ALPHA) for colour in COLOURS]
    figure.legend(
        handles,
        ("experts over the network", "whole layers", "one box with its SSD"),
        title="Fastest kind of plan. Number: how many times faster than the next kind; "
        "cross: the planner chose another and lost more than 1%",
        loc="outside upper center",
        ncols=3,
        frameon=False,
        fontsize=9,
        title_fontsize=9,
    )
    save(figure, rows, "pay-map")


if __name__ == "__main__":
    main()
