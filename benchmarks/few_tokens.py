"""The planner beside hottest first on one workstation, from few tokens of statistics.

python -m benchmarks.few_tokens

Held-out text of the same domain judges. The SSD is what few tokens mislead about: which experts it gets is up
to those that hardly any token chose.
"""

from __future__ import annotations

from pathlib import Path

from placement.answers.study.measure import planning_problem
from placement.answers.study.routing_source import Routing
from placement.given.cluster_file import load_cluster
from placement.given.stats import RoutingStats
from placement.given.traces import CODING, GENERAL, SyntheticRouter
from placement.model_shape import STEP_3_5_FLASH as SHAPE
from placement.policies.registry import POLICIES
from placement.replay.evaluate import evaluate
from placement.workload import SINGLE_TOKEN

CLUSTER = Path(__file__).resolve().parents[1] / "docs/studies/clusters/gpu-workstation.yaml"
TOKENS = (128, 256, 512, 1024, 2048)
NAMES = ("least-time", "hottest-first", "hottest-per-layer")
SEEDS = 2


def main() -> None:
    print(f"| text | tokens | {', ms | '.join(NAMES)}, ms | behind the best |")
    print("|---" * (len(NAMES) + 3) + "|")
    cluster = load_cluster(CLUSTER)
    for domain in (GENERAL, CODING):
        for seed in range(SEEDS):
            router = SyntheticRouter(SHAPE, seed=seed)
            trace = router.trace(domain, max(TOKENS))
            held_out = router.trace(domain, 8192, stream_seed=1)[::6]
            for num_tokens in TOKENS:
                stats = RoutingStats.from_trace(SHAPE, trace[:num_tokens], domain.name)
                routing = Routing(stats, held_out)
                problem = planning_problem(SHAPE, cluster, SHAPE.expert_bytes(4.5), routing, SINGLE_TOKEN)
                ours, *others = (
                    evaluate(problem, POLICIES[name](problem), held_out).mean_s for name in NAMES
                )
                cells = " | ".join(f"{seconds * 1e3:.1f}" for seconds in (ours, *others))
                behind = ours / min(others) - 1
                print(f"| {domain.name}, seed {seed} | {num_tokens} | {cells} | {behind:+.1%} |", flush=True)


if __name__ == "__main__":
    main()
