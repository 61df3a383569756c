"""Output matrices on a card: logits stay there, and chosen tokens are read back as ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.gpu.areas import BANNED_SETS, FEW_ROWS
from orchestrator.gpu.layers import CardLayers
from orchestrator.gpu.logits import CardLogits, LogitsInParts
from orchestrator.gpu.passing import Passing
from orchestrator.gpu.sampling import CHOICE_BYTES, NeededKernels
from orchestrator.gpu.step import Step
from orchestrator.gpu.weights import CardOutput
from orchestrator.row_choice import RowChoiceArgs
from orchestrator.sampling import Choice, Logits, banned_bits
from workers.gpu.device import Device


class Outputs:
    """Computes logits, of some rows at a time; those before are then gone from the card."""

    def __init__(self, device: Device, layers: CardLayers, passing: Passing, vocab: int) -> None:
        """`vocab`: of the largest matrix, at least 1."""
        self._layers = layers
        self._passing = passing
        self._first_set: tuple[int, tuple[int, ...]] = (0, ())
        """What the card's first set of banned tokens is of: a vocabulary, and these tokens."""
        self._ids = device.pinned(4 * FEW_ROWS).view(np.int32)
        self._choices = device.pinned(CHOICE_BYTES * FEW_ROWS)
        self._row = device.pinned(4 * vocab).view(np.float32)
        self._bits = device.pinned(4 * BANNED_SETS * -(-vocab // 32)).view(np.uint32)

    def few(self, step: Step, rows: Tensor, output: CardOutput) -> Logits:
        """Of at most FEW_ROWS rows before the norm, float32 [n, hidden], as many as the step has."""
        return self._on_card(step, rows, output)

    def many(self, steps: Sequence[Step], rows: Tensor, output: CardOutput) -> Logits:
        """Of any number of rows; each step takes its own number of them, all but the last as many."""

        def compute(part: int) -> CardLogits:
            start = part * steps[0].num_rows
            return self._on_card(steps[part], rows[start : start + steps[part].num_rows], output)

        return LogitsInParts(steps[0].num_rows, compute)

    def _on_card(self, step: Step, rows: Tensor, output: CardOutput) -> CardLogits:
        stream, at, vocab = step.stream, step.at, output.matrix.rows
        words = -(-vocab // 32)
        self._passing.bring_hidden(stream, at, rows)
        key = ("logits", output.matrix.each[0].table, step.num_rows)
        self._layers.keep(step, key, lambda: step.logits(output))

        def fetch(row: int) -> NDArray[np.float32]:
            stream.download(self._row[:vocab], at["logits"] + 4 * vocab * row)
            stream.synchronize()
            return self._row[:vocab]

        def leave_out(bits: NDArray[np.uint32], number: int) -> None:
            """Bring the set of that number, from 0."""
            own = self._bits[number * words : (number + 1) * words]
            own[:] = bits
            stream.upload(at["banned"] + own.itemsize * words * number, own)

        def leave_out_own(place: int, choice: Choice) -> None:
            bits = choice.left_out(vocab)
            assert bits is not None
            if self._first_set[0] != vocab:
                # Sets of a smaller vocabulary lie closer: this one may be where the first set is.
                self._first_set = (0, ())
            leave_out(bits, 1 + place)

        def choose(choices: Sequence[RowChoiceArgs], banned: tuple[int, ...]) -> list[int]:
            if len(choices) != step.num_rows:
                raise ValueError(f"{len(choices)} choices for {step.num_rows} rows of logits")
            if banned and self._first_set != (vocab, banned):
                leave_out(banned_bits(vocab, banned), 0)
                self._first_set = (vocab, banned)
            packed = b"".join(bytes(choice) for choice in choices)
            self._choices[: len(packed)] = np.frombuffer(packed, np.uint8)
            stream.upload(at["choices"], self._choices[: len(packed)])
            needed = NeededKernels.of(choices)
            key = ("choose", vocab, needed, step.num_rows)
            self._layers.keep(step, key, lambda: step.choose(vocab, needed))
            stream.download(self._ids[: step.num_rows], at["token_ids"])
            stream.synchronize()
            found: list[int] = self._ids[: step.num_rows].tolist()
            return found

        return CardLogits(fetch, choose, leave_out_own)
