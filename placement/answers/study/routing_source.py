"""Where a study's routing comes from: one part to plan on, another to be judged by."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from placement.errors import RoutingFileError
from placement.files.input_file import digest
from placement.given.stats import RoutingStats
from placement.given.traces import Domain, SyntheticRouter
from placement.interop.read import read_routing
from placement.model_shape import ModelShape
from placement.replay.steps import split_trace
from placement.routing.text import DOCUMENT_TOKENS
from placement.workload import Workload


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """`planned`: statistics with a trace. `held_out`: uint16 [num_tokens, num_moe_layers, top_k].

    `document_tokens`: of each document of the held-out text, as `placement.routing.text.Text` takes it.
    """

    planned: RoutingStats
    held_out: NDArray[np.uint16]
    document_tokens: int = DOCUMENT_TOKENS

    def as_passes(self, workload: Workload) -> Routing:
        """Both traces in the order in which passes of `workload` run them; see `in_passes`."""
        trace = self.planned.trace
        if trace is None or workload.num_sequences == 1:
            planned = self.planned
        else:
            ordered = in_passes(trace, workload)
            planned = RoutingStats(
                model=self.planned.model,
                fingerprint=self.planned.fingerprint,
                moe_layers=self.planned.moe_layers,
                top_k=self.planned.top_k,
                num_tokens=self.planned.num_tokens,
                counts=self.planned.counts,
                trace=ordered,
                source=self.planned.source,
            )
        return Routing(planned, in_passes(self.held_out, workload), self.document_tokens)


@dataclass(frozen=True, slots=True)
class SyntheticSource:
    """Text of `domain` to plan on and other text of `held_out_domain`, `num_tokens` each."""

    name: str
    domain: Domain
    held_out_domain: Domain
    num_tokens: int
    seed: int

    def load(self, shape: ModelShape) -> Routing:
        """Raises InputError for a model with fewer experts than top_k."""
        router = SyntheticRouter(shape, seed=self.seed)
        planned = router.trace(self.domain, self.num_tokens)
        held_out = router.trace(self.held_out_domain, self.num_tokens, stream_seed=1)
        stats = RoutingStats.from_trace(shape, planned, f"synthetic {self.domain.name}")
        return Routing(stats, held_out, router.document_tokens)

    @property
    def files(self) -> tuple[Path, ...]:
        return ()

    def fingerprint(self) -> str:
        return repr(self)


@dataclass(frozen=True, slots=True)
class FileSource:
    """Routing files of any known kind (`read_routing`), the one to be judged by with a trace.

    Without a second one the first half of the trace is planned on, the rest held out.
    """

    name: str
    path: Path
    held_out_path: Path | None
    document_tokens: int = DOCUMENT_TOKENS

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,) if self.held_out_path is None else (self.path, self.held_out_path)

    def load(self, shape: ModelShape) -> Routing:
        """Raises RoutingFileError: unreadable, of another model, or without a trace to be judged by."""
        stats = read_routing(self.path, shape)
        if self.held_out_path is not None:
            held_out = _trace(read_routing(self.held_out_path, shape), self.held_out_path)
            return Routing(stats, held_out, self.document_tokens)
        trace = _trace(stats, self.path)
        half = len(trace) // 2
        if not half:
            raise RoutingFileError(f"{self.path}: trace: expected at least 2 tokens to split, found 1")
        planned = RoutingStats.from_trace(shape, trace[:half], stats.source)
        return Routing(planned, trace[half:], self.document_tokens)

    def fingerprint(self) -> str:
        """Changes with the files' contents, not with where they lie."""
        # SGLang writes one dump for each rank, in a folder.
        files = [
            f for path in self.files for f in (sorted(path.glob("*.pt")) if os.path.isdir(path) else [path])
        ]
        digests = [digest(file, RoutingFileError, "a routing file") for file in files]
        return f"{self.name} {self.document_tokens} {' '.join(digests)}"


RoutingSource = SyntheticSource | FileSource


def in_passes(trace: NDArray[np.uint16], workload: Workload) -> NDArray[np.uint16]:
    """A trace as `num_sequences` texts that run side by side: pass after pass, each text's tokens together.

    The texts are equal stretches of the trace, so that the sequences of a pass are different documents
    where the trace has enough of them; a rest is left out. A trace too short to be split stays as it is.

    Args:
        trace: [num_tokens, num_moe_layers, top_k].
    """
    sequences, rows = workload.num_sequences, 1 + workload.drafts
    steps = len(trace) // (sequences * rows)
    if sequences == 1 or not steps:
        return trace
    texts = np.stack(split_trace(trace, sequences))[:, : steps * rows]
    by_pass = texts.reshape(sequences, steps, rows, *trace.shape[1:]).swapaxes(0, 1)
    ordered: NDArray[np.uint16] = by_pass.reshape(steps * sequences * rows, *trace.shape[1:])
    return ordered


def _trace(stats: RoutingStats, path: Path) -> NDArray[np.uint16]:
    if stats.trace is None:
        raise RoutingFileError(
            f"{path}: expected a trace to be judged by, found counts alone; record one with "
            "`potluck stats --trace` (in a study, give it as held_out_file)"
        )
    return stats.trace
