"""Speed of the native kernels beside a plain read of the same bytes and beside torch.

    python -m benchmarks.kernels [--threads N] [--instruction-set avx2]

With one thread, times are processor time, so that a busy machine disturbs them less; with more they are wall
time. The floor of a decode step is the plain read: every weight has to come from memory once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

from workers import kernels  # before torch: it sets what torch reads when loaded

# isort: split
import numpy as np
import torch

from transport.expert_rows import ExpertRows

HIDDEN, INTERMEDIATE = 4096, 11264
EXPERTS, EXPERT_INTERMEDIATE, TOP_K = 24, 1280, 8


def best_s(call: Callable[[], object], repeats: int) -> float:
    """Shortest of some runs after a warm-up."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    call()
    times = []
    for _ in range(repeats):
        start = clock()
        call()
        times.append(clock() - start)
    return min(times)


def decode() -> None:
    """One to eight rows against weights far larger than the caches."""
    weight = torch.randn(INTERMEDIATE, HIDDEN) * 0.02
    narrow = weight.bfloat16()
    read = weight.nbytes / best_s(weight.sum, 7) / 1e9
    print(f"plain read (sum of float32 weights): {read:.1f} GB/s")
    print("rows  float32 GB/s  share   bfloat16 GB/s  share   torch float32 GB/s")
    for rows in (1, 2, 4, 8):
        x = torch.randn(rows, HIDDEN)
        wide_rate = weight.nbytes / best_s(partial(kernels.linear, x, weight), 7) / 1e9
        narrow_rate = narrow.nbytes / best_s(partial(kernels.linear, x, narrow), 7) / 1e9
        torch_rate = weight.nbytes / best_s(partial(torch.mm, x, weight.T), 3) / 1e9
        print(
            f"{rows:>4}  {wide_rate:12.1f}  {wide_rate / read:5.0%}"
            f"  {narrow_rate:14.1f}  {narrow_rate / read:5.0%}  {torch_rate:19.1f}"
        )


def prefill() -> None:
    """Many rows: arithmetic decides."""
    weight = torch.randn(HIDDEN, HIDDEN) * 0.02
    narrow = weight.bfloat16()
    print("\nrows  float32 GFLOP/s  bfloat16 GFLOP/s  torch float32 GFLOP/s  share of torch")
    for rows in (32, 128, 512):
        x = torch.randn(rows, HIDDEN)
        operations = 2 * rows * HIDDEN * HIDDEN / 1e9
        wide = operations / best_s(partial(kernels.linear, x, weight), 3)
        half = operations / best_s(partial(kernels.linear, x, narrow), 3)
        mm = operations / best_s(partial(torch.mm, x, weight.T), 3)
        print(f"{rows:>4}  {wide:15.1f}  {half:16.1f}  {mm:21.1f}  {wide / mm:14.2f}")


def experts() -> None:
    """The routed experts' sum at Step-3.5's sizes, bfloat16, top 8 of a few experts."""
    gate = (torch.randn(EXPERTS, EXPERT_INTERMEDIATE, HIDDEN) * 0.02).bfloat16()
    up, down = gate.flip(0).contiguous(), gate.transpose(1, 2).contiguous()
    slots = torch.arange(EXPERTS, dtype=torch.int32)
    print("\nrows  experts touched  ms      GB/s of expert weights  GFLOP/s   ms as a message lies")
    for rows in (1, 4, 64, 256):
        x = torch.randn(rows, HIDDEN)
        received = torch.empty(x.numel() + 4)[4:].view_as(x).copy_(x)  # 16 bytes behind a cache line's start
        ids = torch.stack([torch.randperm(EXPERTS)[:TOP_K] for _ in range(rows)]).int()
        asked = ExpertRows(
            x.numpy(), ids.numpy(), torch.rand(rows, TOP_K).numpy(), np.full(rows, -23, np.int32)
        )
        experts = (slots, gate, up, down, 0.0, TOP_K)
        seconds = best_s(partial(kernels.moe_partial_sum, asked, *experts), 4)
        as_received = asked._replace(hidden=received.numpy())
        received_s = best_s(partial(kernels.moe_partial_sum, as_received, *experts), 4)
        touched = len(set(ids.flatten().tolist()))
        parameters = 3 * HIDDEN * EXPERT_INTERMEDIATE
        rate = touched * parameters * 2 / seconds / 1e9
        speed = 2 * rows * TOP_K * parameters / seconds / 1e9
        wanted = f"{rows:>4}  {touched:>15}  {seconds * 1e3:6.1f}  {rate:22.1f}  {speed:7.1f}"
        print(f"{wanted}  {received_s * 1e3:21.1f}")


def attention() -> None:
    """One sliding layer's decode, one full layer's decode at 8,192 positions, and a prefill chunk."""
    print("\nattention                          ms      GB/s of keys and values  GFLOP/s")
    for name, rows, heads, position, window in (
        ("sliding, 1 row, 512 keys", 1, 96, 8191, 512),
        ("full, 1 row, 8,192 keys", 1, 64, 8191, 0),
        ("full, 4 rows, 8,192 keys", 4, 64, 8188, 0),
        ("sliding, 256 rows", 256, 96, 4096, 512),
    ):
        q = torch.randn(rows, heads, 128)
        new = torch.randn(rows, 8, 128).bfloat16()
        cache = torch.randn(window + 3 if window else position, 8, 128).bfloat16()
        seconds = best_s(
            partial(kernels.attention, q, new, new, cache, cache, position, window, 128**-0.5),
            4,
        )
        keys = window or position
        rate = 2 * keys * 8 * 128 * 2 / seconds / 1e9
        speed = 4 * rows * heads * keys * 128 / seconds / 1e9
        print(f"{name:<33}  {seconds * 1e3:6.2f}  {rate:23.1f}  {speed:7.1f}")


def calls() -> None:
    """What one call costs when there is next to nothing to compute."""
    x, weight, norm = torch.randn(1, 16), torch.randn(16, 16), torch.randn(16)
    number = 10_000

    def many(call: Callable[[], object]) -> float:
        def repeat() -> None:
            for _ in range(number):
                call()

        return best_s(repeat, 5) / number * 1e6

    print(f"\nlinear 1 x 16 x 16: {many(lambda: kernels.linear(x, weight)):.1f} us a call")
    print(f"torch.mm:           {many(lambda: torch.mm(x, weight)):.1f} us a call")
    print(f"rms_norm 1 x 16:    {many(lambda: kernels.rms_norm(x, norm, 1e-5, True)):.1f} us a call")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--instruction-set", default=kernels.instruction_set())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not kernels.use_instruction_set(arguments.instruction_set):
        parser.error(f"this machine has no {arguments.instruction_set}")
    print(f"{kernels.instruction_set()}, {arguments.threads} threads")
    with torch.inference_mode():
        decode()
        prefill()
        experts()
        attention()
        calls()


if __name__ == "__main__":
    main()
