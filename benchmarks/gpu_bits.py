"""Random products on a card beside the CPU kernels' bits, in every form of weights.

    python -m benchmarks.gpu_bits [--cases 10000] [--first-seed 0] [--device cuda]

Case after case: a form, shapes, groups of 1 to 20 rows, weights of any bytes with scales up to the extremes.
Every bit must be equal. Where there is no card, this machine's CPU plays one and runs the same source
(tests/cuda_on_cpu); the first line says which it was. Ends with exit code 1 at a difference.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.cuda_on_cpu.card import the_card
from tests.workers.gpu.linear_cases import computed, expected, random_case, same_bits
from workers.gpu.device import Device
from workers.gpu.grids import Grids
from workers.gpu.opening import cards, open_device


def compare(device: Device, seeds: range) -> tuple[Counter[str], list[str]]:
    """How many cases of each form were computed, and what was different."""
    grids = Grids.upload(device)
    counted, different = Counter[str](), []
    for seed in seeds:
        case = random_case(seed)
        counted[case.form.name] += 1
        if not same_bits(computed(case, device, grids), expected(case)):
            different.append(f"case {seed}: {case.form.name}")
    return counted, different


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    asked = parser.parse_args()
    device = open_device(asked.device) if cards() else the_card().device(asked.device)
    print(f"{device.name}: {device.facts.model}", flush=True)
    start = time.perf_counter()
    counted, different = compare(device, range(asked.first_seed, asked.first_seed + asked.cases))
    for form, count in sorted(counted.items()):
        print(f"{form:12} {count:6} cases")
    print(f"{len(different)} of {asked.cases} different, {time.perf_counter() - start:.0f} s")
    sys.exit("\n".join(different) if different else 0)


if __name__ == "__main__":
    main()
