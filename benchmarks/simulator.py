"""Rates of the simulator at Step-3.5-Flash's shape: closed form, choice among replicas, queueing, memory.

    python -m benchmarks.simulator [--tokens 4096]

Wanted: 5 million token-layers/s in closed form, where half of the experts have a copy too; 200,000 events/s
with queues. Rates are by wall time and by this process's CPU time, which other programs disturb less.
In closed form the quickest of five runs counts, after one that finds memory cold: at 4,096 tokens that
one takes up to twice as long.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from placement.assign.one_step import ReplicaCosts, assign_experts
from placement.cost.replica_costs import priced_tiers
from placement.given.problem import PlanningDevice, PlanningProblem
from placement.holders import HolderTable, LayerHolders
from placement.model_shape import STEP_3_5_FLASH as SHAPE
from placement.plan import LOCAL_WORKER, Plan, PlannedTier, like_layers
from placement.replay.queueing.scenario import Stream
from placement.replay.queueing.simulation import simulate_queueing
from placement.replay.simulate import simulate_alone
from placement.replay.steps import split_trace
from placement.replay.system import System
from placement.workload import Workload

EXPERT_BYTES = SHAPE.expert_bytes(4.5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=4096)
    tokens = parser.parse_args().tokens
    order = np.random.default_rng(0).random((tokens, SHAPE.num_moe_layers, SHAPE.num_experts), np.float32)
    trace = np.argpartition(order, SHAPE.top_k, axis=2)[:, :, : SHAPE.top_k].astype(np.uint16)
    del order
    token_layers = tokens * SHAPE.num_moe_layers

    print("closed form, million token-layers/s (wall, CPU), without replicas and with:")
    for num_devices in (1, 2, 4, 8, 32):
        for drafts in (0, 3):
            rates = []
            for copies in (False, True):
                built = system(num_devices, Workload(drafts=drafts), copies=copies)
                wall_s, cpu_s = quickest(partial(simulate_alone, built, [trace]))
                rates.append(f"{token_layers / wall_s / 1e6:5.1f} {token_layers / cpu_s / 1e6:5.1f}")
            print(f"  {num_devices:2} devices, {1 + drafts} tokens a step: {'   '.join(rates)}")

    plan = system(8, Workload(), copies=True).plan
    layer, costs = plan.holder_table.layers[0], plan.replica_costs
    print("the dispatcher's choice for one layer with replicas, 8 devices, microseconds (wall, CPU):")
    for num_tokens in (1, 4):
        steps = trace[:, 0].astype(np.int32).reshape(-1, num_tokens, SHAPE.top_k)
        wall_s, cpu_s = timed(partial(choose_each, steps, layer, costs))
        each = f"{wall_s / len(steps) * 1e6:5.1f} {cpu_s / len(steps) * 1e6:5.1f}"
        print(f"  {num_tokens} tokens a step: {each}")

    built = system(4, Workload())
    print("linearity and memory, 4 devices, a trace that arrives in parts:")
    for repeats in (1, 4, 16):
        parts = (trace for _ in range(repeats))
        wall_s, cpu_s = timed(partial(simulate_alone, built, [parts]))
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"  {repeats * tokens:7} tokens: {cpu_s:6.2f} s CPU, peak of the process {peak_mb:.0f} MiB")

    print("queueing, events/s (wall, CPU):")
    for num_streams in (1, 8):
        streams = [Stream([part]) for part in split_trace(trace[:1024], num_streams)]
        started, started_cpu = time.perf_counter(), time.process_time()
        report = simulate_queueing(built, streams)
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
        print(
            f"  {num_streams} streams: {report.num_events / wall_s:9,.0f} {report.num_events / cpu_s:9,.0f}"
        )


def system(num_devices: int, workload: Workload, *, copies: bool = False) -> System:
    """Equal boxes, experts by lot; with `copies` half of the experts on a second device, also by lot."""
    devices = tuple(
        PlanningDevice(
            PlannedTier(LOCAL_WORKER if i == 0 else f"box{i}-ram", f"box{i}", "cpu", "ram", 10**12),
            is_home=i == 0,
            bandwidth_bytes_per_s=50e9,
            ffn_flops_per_s=1e12,
            round_trip_s=3e-4 if i else 0.0,
            link_bytes_per_s=312.5e6 if i else float("inf"),
        )
        for i in range(num_devices)
    )
    size = (SHAPE.num_moe_layers, SHAPE.num_experts)
    generator = np.random.default_rng(1)
    masks = np.zeros((num_devices, *size), dtype=np.bool_)
    masks[generator.integers(0, num_devices, size), *np.indices(size)] = True
    if copies:
        second = np.where(generator.random(size) < 0.5, generator.integers(0, num_devices, size), -1)
        masks |= np.arange(num_devices)[:, None, None] == second
    plan = Plan(
        SHAPE.name,
        SHAPE.fingerprint,
        like_layers(SHAPE.moe_layers, "q4", EXPERT_BYTES),
        "bfloat16",
        priced_tiers(PlanningProblem(SHAPE, devices, EXPERT_BYTES, workload=workload)),
        HolderTable.from_masks(masks),
        "random",
    )
    return System.build(plan, devices, SHAPE, workload)


def choose_each(steps: NDArray[np.int32], layer: LayerHolders, costs: ReplicaCosts) -> None:
    for step in steps:
        assign_experts(step, layer, costs)


def quickest(action: Callable[[], object], runs: int = 5) -> tuple[float, float]:
    """Wall and CPU seconds of the quickest run, each by its own, after one that does not count."""
    action()
    wall_s, cpu_s = zip(*(timed(action) for _ in range(runs)), strict=True)
    return min(wall_s), min(cpu_s)


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of one run."""
    started, started_cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - started, time.process_time() - started_cpu


if __name__ == "__main__":
    main()
