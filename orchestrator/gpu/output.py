"""Output matrices on a card: logits stay there, and greedy choices are read back as ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.gpu.areas import FEW_ROWS
from orchestrator.gpu.layers import CardLayers
from orchestrator.gpu.logits import CardLogits
from orchestrator.gpu.passing import Passing
from orchestrator.gpu.sampling import banned_bits
from orchestrator.gpu.step import Step
from orchestrator.gpu.weights import CardOutput
from orchestrator.sampling import LogitsRow
from workers.gpu.device import Device


class Outputs:
    """Computes logits, of some rows at a time; those before are then gone from the card."""

    def __init__(self, device: Device, layers: CardLayers, passing: Passing, vocab: int) -> None:
        """`vocab`: of the largest matrix, at least 1."""
        self._layers = layers
        self._passing = passing
        self._banned: tuple[int, ...] = ()
        self._ids = device.pinned(4 * FEW_ROWS).view(np.int32)
        self._row = device.pinned(4 * vocab).view(np.float32)
        self._bits = device.pinned(4 * -(-vocab // 32)).view(np.uint32)

    def few(self, step: Step, rows: Tensor, output: CardOutput) -> Sequence[LogitsRow]:
        """Of at most FEW_ROWS rows before the norm, float32 [n, hidden], as many as the step has."""
        return self._on_card(step, rows, output).rows()

    def many(self, steps: Sequence[Step], rows: Tensor, output: CardOutput) -> Sequence[LogitsRow]:
        """Of any number of rows, in RAM; each step takes its own number of them."""
        found: list[LogitsRow] = []
        for step in steps:
            part = rows[len(found) : len(found) + step.num_rows]
            logits = self._on_card(step, part, output).rows()
            found += [torch.from_numpy(row.numpy().copy()) for row in logits]
        return found

    def _on_card(self, step: Step, rows: Tensor, output: CardOutput) -> CardLogits:
        stream, at, vocab = step.stream, step.at, output.matrix.rows
        self._passing.bring_hidden(stream, at, rows)
        key = ("logits", output.matrix.each[0].table, step.num_rows)
        self._layers.keep(step, key, lambda: step.logits(output))

        def fetch(row: int) -> NDArray[np.float32]:
            stream.download(self._row[:vocab], at["logits"] + 4 * vocab * row)
            stream.synchronize()
            return self._row[:vocab]

        def largest(banned: Sequence[int]) -> NDArray[np.int32]:
            if banned and tuple(banned) != self._banned:
                bits = banned_bits(vocab, banned)
                self._bits[: len(bits)] = bits
                stream.upload(at["banned"], self._bits[: len(bits)])
                self._banned = tuple(banned)
            has_banned = bool(banned)
            key = ("largest", vocab, has_banned, step.num_rows)
            self._layers.keep(step, key, lambda: step.largest(vocab, has_banned=has_banned))
            stream.download(self._ids[: step.num_rows], at["token_ids"])
            stream.synchronize()
            return self._ids[: step.num_rows].copy()

        return CardLogits(step.num_rows, fetch, largest)
