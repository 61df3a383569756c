"""How fast experts come from a disk, beside the disk's own rate in the same run.

    python -m benchmarks.disk_tier MODEL.gguf [--cache-bytes N] [--tokens 12] [--rows 1]

Random experts are asked for, layer after layer, as decoding does. In turns, a plain loop of direct reads
reads as many bytes: a disk that others use changes its rate.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from transport.expert_rows import ExpertRows
from workers import fixed_point
from workers.disk.direct_file import ALIGNMENT, DirectFile
from workers.disk.slots import Slots
from workers.disk.tier import LARGEST_READ_BYTES, READING_THREADS, DiskTier
from workers.formats.open_model import kept_forms, open_model
from workers.model_config import Step35Config


@dataclass(slots=True)
class Total:
    """Bytes read and the seconds that took."""

    num_bytes: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        return self.num_bytes / self.seconds


def token_rows(config: Step35Config, rng: np.random.Generator, num_rows: int) -> ExpertRows:
    """Rows that ask for random experts."""
    hidden = rng.standard_normal((num_rows, config.hidden_size), dtype=np.float32)
    ids = np.stack([rng.permutation(config.moe_num_experts)[: config.moe_top_k] for _ in range(num_rows)])
    weights = rng.random(ids.shape, dtype=np.float32)
    exponents = fixed_point.scale_exponents(torch.from_numpy(hidden))
    return ExpertRows(hidden, ids.astype(np.int32), weights, exponents)


class PlainLoop:
    """The disk's own rate: direct reads of one size at random places, so many at once."""

    def __init__(self, path: Path, num_threads: int = READING_THREADS, read_bytes: int = 3 * 2**20) -> None:
        self._file, self._read_bytes = DirectFile(path), read_bytes // ALIGNMENT * ALIGNMENT
        # Large pages, as the tier's cache has: a read then takes fewer of the device's requests.
        self._slots = Slots(num_threads, 4 * 2**20)
        self._threads = ThreadPoolExecutor(num_threads)

    def read(self, num_bytes: int, rng: np.random.Generator) -> float:
        """Seconds for so many bytes."""
        count = max(1, round(num_bytes / self._read_bytes))
        places = rng.integers(0, (self._file.num_bytes - self._read_bytes) // ALIGNMENT, count) * ALIGNMENT
        waiting = deque(places.tolist())

        def read(thread: int) -> None:
            buffer = self._slots.buffer(thread, 0, self._read_bytes)
            with suppress(IndexError):
                while True:
                    self._file.read(buffer, waiting.popleft())

        started = time.perf_counter()
        list(self._threads.map(read, range(self._slots.num_slots)))
        return (time.perf_counter() - started) * num_bytes / (count * self._read_bytes)


def main(
    model: Annotated[Path, typer.Argument(help="GGUF file with real shapes.")],
    cache_bytes: Annotated[int, typer.Option(help="Of the tier's cache.")] = 4 * 10**8,
    tokens: Annotated[int, typer.Option(help="Passes through all layers.")] = 12,
    rows: Annotated[int, typer.Option(help="Of a pass.")] = 1,
) -> None:
    """Print the tier's rate and the plain loop's, which take turns layer by layer."""
    config, checkpoint = open_model(model)
    formats = kept_forms(checkpoint, config, "bfloat16")
    experts = {layer: range(config.moe_num_experts) for layer in config.moe_layers}
    tier = DiskTier(checkpoint, config, experts, formats=formats, cache_bytes=cache_bytes)
    plain_loop, rng = PlainLoop(model), np.random.default_rng(0)
    # A slot's memory comes with its first expert; what is measured is a cache that is full.
    while tier.counts.read_bytes < 1.2 * tier.held_bytes:
        for layer in config.moe_layers:
            tier.forward(layer, token_rows(config, rng, rows))
    of_tier, plain, computing, ratios = Total(), Total(), [], []
    for _ in range(tokens):
        for layer in config.moe_layers:
            asked, before = token_rows(config, rng, rows), tier.counts.read_bytes
            started = time.perf_counter()
            tier.forward(layer, asked)
            seconds = time.perf_counter() - started
            # What was just read is in the cache: the same request again is computing alone.
            started = time.perf_counter()
            tier.forward(layer, asked)
            computing.append(time.perf_counter() - started)
            read = tier.counts.read_bytes - before
            alone = plain_loop.read(read, rng)
            ratios.append(alone / seconds)
            for total, took in ((of_tier, seconds), (plain, alone)):
                total.num_bytes += read
                total.seconds += took
    typer.echo(
        f"tier {of_tier.rate / 1e9:.2f} GB/s, plain loop {plain.rate / 1e9:.2f} GB/s: ratio "
        f"{of_tier.rate / plain.rate:.2f}, median of {len(ratios)} layers {statistics.median(ratios):.2f}; "
        f"computing alone {1e3 * statistics.median(computing):.1f} ms a layer of "
        f"{of_tier.num_bytes / len(ratios) / 1e6:.0f} MB read; {READING_THREADS} reads of up to "
        f"{LARGEST_READ_BYTES >> 20} MiB at once"
    )


if __name__ == "__main__":
    typer.run(main)
