"""From a trace to passes of the model: which tokens run together, and how many of them become text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.errors import InputError, RoutingFileError
from placement.model_shape import ModelShape
from placement.workload import Workload

Trace = NDArray[np.integer] | Iterable[NDArray[np.integer]]
"""Chosen experts in the order of a text: int [num_tokens, num_moe_layers, top_k], or such arrays in turn."""

_MAX_BLOCK_STEPS = 4096
_MAX_BLOCK_CHOICES = 4_000_000
_STEPS_COPIED = 64


@dataclass(frozen=True, slots=True)
class Acceptance:
    """How drafts fare, drawn by seed.

    `probabilities[i]` is that of draft i + 1 to hold when all before it did; a rejected draft ends the step.
    """

    probabilities: tuple[float, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        for probability in self.probabilities:
            if not 0 <= probability <= 1:
                raise InputError(f"acceptance: expected probabilities from 0 to 1, found {probability}")

    @classmethod
    def from_counts(cls, steps: int, accepted_by_position: Sequence[int], seed: int = 0) -> Acceptance:
        """What a run showed: of `steps` passes, how many accepted their first, second, ... draft."""
        before = [steps, *accepted_by_position[:-1]]
        return cls(
            tuple(n / b if b else 0.0 for n, b in zip(accepted_by_position, before, strict=True)), seed
        )

    @property
    def mean_accepted(self) -> float:
        """Expected drafts that hold, of each step."""
        return float(np.cumprod(self.probabilities).sum())

    def generator(self, sequence: int) -> np.random.Generator:
        """The source of one sequence's luck."""
        return np.random.default_rng([self.seed, sequence])

    def draw(self, generator: np.random.Generator, num_steps: int) -> NDArray[np.int64]:
        """Accepted drafts of successive steps, int64 [num_steps]."""
        holds = generator.random((num_steps, len(self.probabilities))) < np.array(self.probabilities)
        accepted: NDArray[np.int64] = holds.cumprod(axis=1).sum(axis=1, dtype=np.int64)
        return accepted


@dataclass(frozen=True, slots=True, eq=False)
class StepBlock:
    """Successive passes.

    `expert_ids`: int [num_steps, num_moe_layers, tokens_per_step, top_k]; `new_tokens`: float64
    [num_steps, num_sequences], what each pass adds to each sequence's text.
    """

    expert_ids: NDArray[np.integer]
    new_tokens: NDArray[np.float64]

    @property
    def num_steps(self) -> int:
        return len(self.expert_ids)

    def columns(self) -> NDArray[np.integer]:
        """`expert_ids` as [tokens_per_step, top_k, num_moe_layers, num_steps], steps side by side."""
        num_steps, num_layers, num_tokens, top_k = self.expert_ids.shape
        columns = np.empty((num_tokens, num_layers, top_k, num_steps), dtype=self.expert_ids.dtype)
        # A few steps at a time: what is read stays in the first-level cache until all of it is used.
        for start in range(0, num_steps, _STEPS_COPIED):
            steps = slice(start, start + _STEPS_COPIED)
            columns[..., steps] = self.expert_ids[steps].transpose(2, 1, 3, 0)
        return columns.transpose(0, 2, 1, 3)


def step_blocks(
    shape: ModelShape, workload: Workload, traces: Sequence[Trace], acceptance: Acceptance | None = None
) -> Iterator[StepBlock]:
    """Cut traces into passes of `workload.tokens_per_step`, in bounded memory, until the first one ends.

    With one trace for all sequences, successive tokens make a pass. With one for each sequence, a pass takes
    1 + drafts tokens from each; with `acceptance` the next pass starts behind the last accepted one, so
    that a rejected draft is run as the token that stands there, whose experts stand for the draft's own.
    Without `acceptance` no token is run twice and `workload.accepted_drafts` says how many count.

    Blocks do not depend on how a trace is cut into arrays, so nothing computed block by block does.

    Raises:
        InputError: the number of traces or of probabilities does not go with the workload; no whole pass.
        RoutingFileError: a trace of another shape.
    """
    _check(workload, traces, acceptance)
    rows = workload.tokens_per_step // len(traces)
    choices = shape.num_moe_layers * workload.tokens_per_step * shape.top_k
    max_steps = max(1, min(_MAX_BLOCK_STEPS, _MAX_BLOCK_CHOICES // choices))
    texts = [_Text(trace, shape) for trace in traces]
    generators = [acceptance.generator(i) for i in range(len(traces))] if acceptance else []
    first = True
    while True:
        advance = np.full((len(texts), max_steps), rows)
        if acceptance is not None:
            advance = np.stack([1 + acceptance.draw(generator, max_steps) for generator in generators])
        starts = np.cumsum(advance, axis=1) - advance
        held = [text.fill(max_steps * rows) for text in texts]
        num_steps = min(int(np.count_nonzero(s + rows <= h)) for s, h in zip(starts, held, strict=True))
        if num_steps:
            parts = [text.windows(s[:num_steps], rows) for text, s in zip(texts, starts, strict=True)]
            windows = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
            new_tokens = np.full((num_steps, workload.num_sequences), 1 + workload.accepted_drafts)
            if acceptance is not None:
                new_tokens = advance[:, :num_steps].T.astype(np.float64)
            yield StepBlock(windows.transpose(0, 2, 1, 3), new_tokens)
        elif first:
            raise InputError(
                f"trace: expected at least {rows} tokens, one pass of {rows}, found {min(held)}; "
                "record a longer text or ask for fewer tokens a step"
            )
        if num_steps < max_steps:
            return
        first = False
        for text, total in zip(texts, advance.sum(axis=1).tolist(), strict=True):
            text.drop(total)


def split_trace(trace: NDArray[np.integer], num_parts: int) -> list[NDArray[np.integer]]:
    """A trace as `num_parts` texts of equal length that follow each other in it; a rest is left out."""
    length = len(trace) // num_parts
    return [trace[i * length : (i + 1) * length] for i in range(num_parts)]


def _check(workload: Workload, traces: Sequence[Trace], acceptance: Acceptance | None) -> None:
    if len(traces) not in (1, workload.num_sequences):
        raise InputError(f"traces: expected 1 or {workload.num_sequences} (sequences), found {len(traces)}")
    if acceptance is None:
        return
    if len(traces) != workload.num_sequences:
        raise InputError(
            f"acceptance: each sequence advances on its own, so expected {workload.num_sequences} traces, "
            f"found {len(traces)}"
        )
    if len(acceptance.probabilities) != workload.drafts:
        raise InputError(
            f"acceptance: expected {workload.drafts} probabilities (drafts a step), "
            f"found {len(acceptance.probabilities)}"
        )


class _Text:
    """The part of a trace that is in memory, from the next token on."""

    def __init__(self, trace: Trace, shape: ModelShape) -> None:
        self._shape = shape
        self._rest = iter([trace] if isinstance(trace, np.ndarray) else trace)
        self._tokens: NDArray[np.integer] = np.empty((0, shape.num_moe_layers, shape.top_k), dtype=np.uint16)

    def fill(self, num_tokens: int) -> int:
        """Read on until `num_tokens` are held or the trace ends; returns how many are."""
        parts, held = [self._tokens], len(self._tokens)
        while held < num_tokens and (part := next(self._rest, None)) is not None:
            _check_part(part, self._shape)
            parts.append(part)
            held += len(part)
        parts = [part for part in parts if len(part)] or parts[:1]
        self._tokens = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return held

    def drop(self, num_tokens: int) -> None:
        self._tokens = self._tokens[num_tokens:]

    def windows(self, starts: NDArray[np.int64], width: int) -> NDArray[np.integer]:
        """`width` tokens from each start: [num_steps, width, num_moe_layers, top_k]."""
        if (np.diff(starts) == width).all():
            length = len(starts) * width
            return self._tokens[:length].reshape(len(starts), width, *self._tokens.shape[1:])
        windows: NDArray[np.integer] = self._tokens[starts[:, None] + np.arange(width)]
        return windows


def _check_part(part: NDArray[np.integer], shape: ModelShape) -> None:
    expected = (shape.num_moe_layers, shape.top_k)
    if part.ndim != 3 or part.shape[1:] != expected or part.dtype.kind not in "iu":
        raise RoutingFileError(
            f"trace of another model: expected whole numbers of shape [tokens, {expected[0]}, {expected[1]}] "
            f"(MoE layers, top_k of {shape.name}), found {part.dtype} {list(part.shape)}"
        )
    if part.size and (part.min() < 0 or part.max() >= shape.num_experts):
        raise RoutingFileError(
            f"trace of another model: expected experts 0 to {shape.num_experts - 1} of {shape.name}, "
            f"found {part.min()} to {part.max()}"
        )
