"""Attention over pages of keys and values beside its roofline, at Step-3.5's sizes.

    python -m benchmarks.attention [--threads N]

The roofline of a call is the longer of two times: its keys' and values' bytes at the rate of a plain read,
and its operations at the kernel's own rate over a context in the second-level cache. Beside that rate stands
what torch's matrix product reaches, which is near the processor's bound. A call writes the new rows' keys and
values too.

With one thread, times are processor time, so that a busy machine disturbs them less.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import best_s, read_rate
from orchestrator import kernels
from orchestrator.kernels import AttentionHeads, PassRows, Rotation, SequenceRows
from orchestrator.kernels.attention import PageTables
from placement.kv_size import PAGE_POSITIONS, KvForm, KvShape
from workers.kernels import instruction_set

KV_HEADS, HEAD_DIM = 8, 128
FULL_HEADS, SLIDING_HEADS, WINDOW = 64, 96, 512
# One KV head's keys and values are then 320 kB in bfloat16.
CACHED_KEYS = 640
DECODE_ROWS, CHUNK_ROWS = (1, 3), 256
SMALL_KV_HEADS, SMALL_HEAD_DIM = 2, 32
SEQUENCES = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """A layer and a sequence's pages in it, filled with the keys and values of random rows.

    Attributes:
        memory: what `tables` point to.
    """

    heads: AttentionHeads
    kv: KvShape
    tables: PageTables
    memory: tuple[Tensor, ...]

    def rows(self, position: int, num_rows: int) -> SequenceRows:
        return SequenceRows(self.tables, position, num_rows)

    def call(self, position: int, num_rows: int) -> Callable[[], Tensor]:
        """Attention of rows that end the context."""
        return call([self], position, num_rows)


def call(sequences: list[Context], position: int, num_rows: int) -> Callable[[], Tensor]:
    """Attention of as many rows of each sequence, from the same position on."""
    heads, kv = sequences[0].heads, sequences[0].kv
    rows = PassRows((kv,), [of.rows(position, num_rows) for of in sequences])
    qkv = torch.randn(rows.num_rows, heads.width)
    turn = rotation(rows.stop, heads.head_dim)

    def attend() -> Tensor:
        assert sequences  # whose memory has to stay
        return kernels.attention(qkv, heads, turn, rows, 0)

    return attend


def rotation(stop: int, head_dim: int) -> Rotation:
    """By nothing."""
    return Rotation(torch.ones(stop, 1, head_dim), torch.zeros(stop, 1, head_dim), head_dim // 2)


def context(
    form: KvForm, keys: int, num_heads: int, window: int, kv_heads: int = KV_HEADS, head_dim: int = HEAD_DIM
) -> Context:
    kv = KvShape(form, kv_heads, head_dim)
    pages = tuple(torch.zeros(kv.page_bytes, dtype=torch.uint8) for _ in range(-(-keys // PAGE_POSITIONS)))
    qk_norm = torch.ones(num_heads + kv_heads, head_dim)
    tables = np.array([[page.data_ptr() for page in pages]], np.int64)
    made = Context(AttentionHeads(qk_norm, kv_heads, window, head_dim**-0.5, 1e-5, False), kv, tables, pages)
    # With the shortest window, as only the pages count.
    writing = replace(made, heads=replace(made.heads, window=1))
    for start in range(0, keys, 1024):
        writing.call(start, min(1024, keys - start))()
    return made


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
    work = operations(rows, CACHED_KEYS - rows, num_heads // KV_HEADS, 0)
    seconds = best_s(made.call(CACHED_KEYS - rows, rows), 0.2)
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
            work, num_bytes = (
                operations(rows, keys, num_heads, window),
                key_bytes(rows, keys, window, made.kv),
            )
            rate = rate_from_cache(form, rows, num_heads)
            seconds = best_s(made.call(keys, rows), 0.6)
            floors = (num_bytes / read, work / rate)
            cells = [f"{name:<8} {num_heads:>3} heads {keys:>7} {rows:>5} {seconds * 1e3:>8.3f}"]
            cells += [f"{floors[0] * 1e3:>15.3f} {floors[1] * 1e3:>11.3f} {max(floors) / seconds:>6.0%}"]
            cells += [f"{work / seconds / 1e9:>8.1f} {rate / 1e9:>9.1f} {num_bytes / seconds / 1e9:>6.1f}"]
            print(*cells, flush=True)


def together(read: float) -> None:
    """Sequences of a small model in one call: potluck-tiny's heads, keys in bfloat16."""
    print("\nsequences of a small model in one call, us; floor: bytes in memory's time, and an empty pass")
    print("layer     keys  rows of each   " + "".join(f"{number:>16}" for number in SEQUENCES))
    empty_s = best_s(call([context(KvForm.bfloat16, 1, 1, 0, 1, 1)], 0, 1), 0.1)
    for name, num_heads, window in (("full", 4, 0), ("sliding", 6, 128)):
        for keys in (100, 2000):
            made = [
                context(KvForm.bfloat16, keys + 4, num_heads, window, SMALL_KV_HEADS, SMALL_HEAD_DIM)
                for _ in range(max(SEQUENCES))
            ]
            for rows in (1, 4):
                floor_s = key_bytes(rows, keys, window, made[0].kv) / read
                cells = [
                    f"{best_s(call(made[:number], keys, rows), 0.2) * 1e6:>8.1f}"
                    f"{(empty_s + number * floor_s) * 1e6:>8.1f}"
                    for number in SEQUENCES
                ]
                print(f"{name:<8}{keys:>6}{rows:>10}      ", *cells, sep="", flush=True)


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
        together(read)


if __name__ == "__main__":
    main()
