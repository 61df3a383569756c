"""Attention over pages of keys and values beside its roofline, at Step-3.5's sizes.

    python -m benchmarks.attention [--threads N]

The roofline of a call is the longer of two times: its keys' and values' bytes at the rate of a plain read,
and its operations at the kernel's own rate over a context in the second-level cache. Beside that rate stands
what torch's matrix product reaches, which is near the processor's bound. What happens to new rows between the
projections and attention is timed as well.

With one thread, times are processor time, so that a busy machine disturbs them less.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import best_s, read_rate
from orchestrator import kernels
from orchestrator.kernels.attention import PageTable
from placement.kv_size import PAGE_POSITIONS, KvForm, KvShape
from workers.kernels import instruction_set

KV_HEADS, HEAD_DIM = 8, 128
FULL_HEADS, SLIDING_HEADS, WINDOW = 64, 96, 512
# One KV head's keys and values are then 320 kB in bfloat16.
CACHED_KEYS = 640
DECODE_ROWS, CHUNK_ROWS = (1, 3), 256


@dataclass(frozen=True, slots=True)
class Context:
    """A layer's pages, filled with the keys and values of random rows.

    Attributes:
        memory: what `table` points to.
    """

    kv: KvShape
    table: PageTable
    memory: tuple[Tensor, ...]
    num_heads: int
    window: int

    def call(self, queries: Tensor, position: int) -> Callable[[], Tensor]:
        """Attention of rows that end the context."""

        def attend() -> Tensor:
            return kernels.attention(queries, self.table, self.kv, position, self.window, HEAD_DIM**-0.5)

        return attend


def context(form: KvForm, keys: int, num_heads: int, window: int, kv_heads: int = KV_HEADS) -> Context:
    kv = KvShape(form, kv_heads, HEAD_DIM)
    pages = tuple(torch.zeros(kv.page_bytes, dtype=torch.uint8) for _ in range(-(-keys // PAGE_POSITIONS)))
    made = Context(kv, np.array([page.data_ptr() for page in pages], np.int64), pages, num_heads, window)
    for start in range(0, keys, 1024):
        write(made, torch.randn(min(1024, keys - start), (num_heads + 2 * kv_heads) * HEAD_DIM), start)
    return made


def write(into: Context, qkv: Tensor, position: int) -> Tensor:
    """Norm, rotation by nothing, and the way into the pages."""
    heads = into.num_heads + into.kv.num_kv_heads
    cos, sin = torch.ones(len(qkv), 1, HEAD_DIM), torch.zeros(len(qkv), 1, HEAD_DIM)
    norm = torch.ones(heads, HEAD_DIM)
    return kernels.kv_rows(qkv, norm, 1e-5, cos, sin, HEAD_DIM // 2, into.table, into.kv, position)


def operations(rows: int, position: int, num_heads: int, window: int) -> int:
    """Multiplications and additions: two of each for a head's dimension and key."""
    seen = sum(min(p + 1, window or p + 1) for p in range(position, position + rows))
    return 4 * num_heads * HEAD_DIM * seen


def key_bytes(rows: int, position: int, window: int, kv: KvShape) -> int:
    """Bytes of the keys and values that some row sees."""
    first = max(0, position + 1 - window) if window else 0
    return (position + rows - first) * kv.page_bytes // PAGE_POSITIONS


def rate_from_cache(form: KvForm, rows: int, num_heads: int) -> float:
    """Operations a second of one KV head's heads over a context in cache, times the threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = context(form, CACHED_KEYS, num_heads // KV_HEADS, 0, kv_heads=1)
    queries = torch.randn(rows, num_heads // KV_HEADS, HEAD_DIM)
    work = operations(rows, CACHED_KEYS - rows, num_heads // KV_HEADS, 0)
    seconds = best_s(made.call(queries, CACHED_KEYS - rows), 0.2)
    torch.set_num_threads(threads)
    return threads * work / seconds


def product_rate() -> float:
    """Operations a second of a matrix product in caches."""
    a = torch.randn(768, 768)
    return float(2 * 768**3 / best_s(lambda: torch.mm(a, a), 0.5))


def measure(form: KvForm, read: float) -> None:
    print(f"\n{form.value}")
    print(
        "layer               keys  rows      ms  floor ms: bytes  operations  share  GFLOP/s  in cache   GB/s"
    )
    cases = [("full", FULL_HEADS, 0, keys) for keys in (0, 512, 4096, 32768)]
    cases.append(("sliding", SLIDING_HEADS, WINDOW, 4096))
    for name, num_heads, window, keys in cases:
        made = context(form, keys + CHUNK_ROWS, num_heads, window)
        for rows in (*DECODE_ROWS, CHUNK_ROWS):
            if keys > 4096 and rows > max(DECODE_ROWS):
                continue  # takes minutes
            queries = torch.randn(rows, num_heads, HEAD_DIM)
            work, num_bytes = (
                operations(rows, keys, num_heads, window),
                key_bytes(rows, keys, window, made.kv),
            )
            rate = rate_from_cache(form, rows, num_heads)
            seconds = best_s(made.call(queries, keys), 0.6)
            floors = (num_bytes / read, work / rate)
            cells = [f"{name:<8} {num_heads:>3} heads {keys:>7} {rows:>5} {seconds * 1e3:>8.3f}"]
            cells += [f"{floors[0] * 1e3:>15.3f} {floors[1] * 1e3:>11.3f} {max(floors) / seconds:>6.0%}"]
            cells += [f"{work / seconds / 1e9:>8.1f} {rate / 1e9:>9.1f} {num_bytes / seconds / 1e9:>6.1f}"]
            print(*cells, flush=True)


def between() -> None:
    """New rows into the cache: norm, rotation, rounding, pages."""
    print("\nnew rows into the pages, ms")
    for form in (KvForm.bfloat16, KvForm.int8):
        made = context(form, 1024, FULL_HEADS, 0)
        times = []
        for rows in (*DECODE_ROWS, CHUNK_ROWS):
            qkv = torch.randn(rows, (FULL_HEADS + 2 * KV_HEADS) * HEAD_DIM)
            times.append(f"{rows} rows {best_s(lambda qkv=qkv: write(made, qkv, 500), 0.3) * 1e3:.3f}")  # type: ignore[misc]  # noqa: B023
        print(f"{form.value:<9} {', '.join(times)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    with torch.inference_mode():
        read = read_rate()
        print(f"{instruction_set()}, {torch.get_num_threads()} threads")
        print(f"plain read {read / 1e9:.1f} GB/s, torch's matrix product {product_rate() / 1e9:.1f} GFLOP/s")
        for form in (KvForm.bfloat16, KvForm.int8):
            measure(form, read)
        between()


if __name__ == "__main__":
    main()
