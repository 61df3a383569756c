"""What a pass brings to a card and what its layers tell the host, through page-locked memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.gpu.areas import Areas, HeadShape
from orchestrator.model.attention import SequenceSlice
from orchestrator.model.rope import RopeRows
from placement.wire_form import BFLOAT16_ROWS, WireForm
from transport.expert_rows import ExpertRows, Hidden
from transport.rounded_hidden import RoundedHidden, RoundedPart
from workers.gpu.device import Device, Stream


class Passing:
    """Page-locked memory beside the areas of a pass, for at most as many rows."""

    def __init__(self, device: Device, shape: HeadShape, rows: int, num_layers: int) -> None:
        """Raises DeviceFull where the system locks no more pages."""
        H = shape.hidden
        self._shape = shape
        self._places = _array(device, np.int32, (2, rows))
        self._hidden = _array(device, np.float32, (rows, H))
        self._states = _array(device, np.float32, (rows, H))
        self._ropes = [_array(device, np.float32, (2, rows, width)) for width in shape.rope_widths]
        self._sums = _array(device, np.int32, (rows, H))
        self._exponents = _array(device, np.int32, (rows,))
        self._told = {
            "exponents": _array(device, np.int32, (rows,)),
            "broken": _array(device, np.int32, (rows,)),
            "expert_ids": _array(device, np.int32, (rows, shape.top_k)),
            "expert_weights": _array(device, np.float32, (rows, shape.top_k)),
        }
        self._rows = _array(device, np.float32, (rows, H))
        self._q = {block: _array(device, np.int8, (rows, H)) for block in (256, 32)}
        self._scales = {block: _array(device, np.float32, (rows, -(-H // block))) for block in (256, 32)}
        self._brought = device.event()
        self._flags = _array(device, np.uint8, (num_layers, rows))
        self._flagged: list[int] = []

    def bring(
        self,
        stream: Stream,
        at: Areas,
        hidden_states: Tensor,
        batch: Sequence[SequenceSlice],
        sequences: Sequence[int],
        ropes: Sequence[RopeRows],
    ) -> None:
        """Begin to bring rows and where they stand.

        Args:
            hidden_states: float32 [num_rows, hidden].
            sequences: which one each slice of the batch is, in the page tables.
            ropes: of each kind of rotation.
        """
        # What was brought last may not have left yet: of a pass that was given up, say.
        self._brought.synchronize()
        T = len(hidden_states)
        positions, of_rows = self._places[0, :T], self._places[1, :T]
        start = 0
        for part, sequence in zip(batch, sequences, strict=True):
            stop = start + part.num_tokens
            positions[start:stop] = np.arange(part.cache.length, part.cache.length + part.num_tokens)
            of_rows[start:stop] = sequence
            start = stop
        stream.upload(at["positions"], positions)
        stream.upload(at["sequences"], of_rows)
        self._hidden[:T] = hidden_states.numpy()
        stream.upload(at["hidden"], self._hidden[:T])
        for place, (here, rope) in enumerate(zip(self._ropes, ropes, strict=True)):
            for side, (name, table) in enumerate((("cos", rope.cos), ("sin", rope.sin))):
                here[side, :T] = table[:, 0].numpy()
                stream.upload(at[f"{name}{place}"], here[side, :T])
        stream.record(self._brought)
        self._flagged.clear()

    def bring_hidden(self, stream: Stream, at: Areas, hidden_states: Tensor) -> None:
        """Begin to bring rows alone, float32 [num_rows, hidden]."""
        self._brought.synchronize()
        self._hidden[: len(hidden_states)] = hidden_states.numpy()
        stream.upload(at["hidden"], self._hidden[: len(hidden_states)])
        stream.record(self._brought)

    def bring_states(self, stream: Stream, at: Areas, states: Tensor) -> None:
        """Begin to bring what an MTP layer takes of the layer before it, float32 [num_rows, hidden]."""
        self._brought.synchronize()
        self._states[: len(states)] = states.numpy()
        stream.upload(at["states"], self._states[: len(states)])
        stream.record(self._brought)

    def tell(self, stream: Stream, at: Areas, num_rows: int, wire: WireForm) -> None:
        """Begin to fetch what experts elsewhere need of a layer. May be kept in a graph."""
        for name, here in self._told.items():
            stream.download(here[:num_rows], at[name])
        if not wire.blocks:
            name = "narrowed" if wire == BFLOAT16_ROWS else "normed"
            stream.download(self._rows[:num_rows], at[name])
        for block in wire.blocks:
            rounded = at.rounded("normed", block)
            stream.download(self._q[block][:num_rows], rounded.q)
            stream.download(self._scales[block][:num_rows], rounded.scales)

    def tell_broken(self, stream: Stream, at: Areas, num_rows: int) -> None:
        """Begin to fetch which rows are not finite."""
        stream.download(self._told["broken"][:num_rows], at["broken"])

    def broken(self, num_rows: int) -> bool:
        """Whether a row that was told is not finite."""
        return bool(self._told["broken"][:num_rows].any())

    def told(self, num_rows: int, wire: WireForm) -> ExpertRows:
        """What was fetched, in copies: a message may still be on its way when the next layer tells."""
        hidden: Hidden
        if wire.blocks:
            hidden = RoundedHidden(
                tuple(
                    RoundedPart(
                        block, self._q[block][:num_rows].copy(), self._scales[block][:num_rows].copy()
                    )
                    for block in wire.blocks
                )
            )
        else:
            hidden = self._rows[:num_rows].copy()
        told = self._told
        return ExpertRows(
            hidden,
            told["expert_ids"][:num_rows].copy(),
            told["expert_weights"][:num_rows].copy(),
            told["exponents"][:num_rows].copy(),
        )

    def bring_sums(
        self, stream: Stream, at: Areas, values: NDArray[np.int32], exponents: NDArray[np.int32] | None
    ) -> None:
        """Begin to bring what experts elsewhere gave: int32 [num_rows, hidden].

        Args:
            exponents: int32 [num_rows] of their grids, where they are not the layer's.
        """
        self._sums[: len(values)] = values
        stream.upload(at["host_sum"], self._sums[: len(values)])
        if exponents is not None:
            self._exponents[: len(values)] = exponents
            stream.upload(at["exponents"], self._exponents[: len(values)])

    def note_flags(self, stream: Stream, layer: int, flags: int, num_rows: int) -> None:
        """Begin to fetch which rows left the grid of the card's own experts: uint8 [num_rows] at `flags`."""
        stream.download(self._flags[layer, :num_rows], flags)

    def flagged(self, layer: int) -> None:
        """Flags of a layer come in this pass."""
        self._flagged.append(layer)

    def any_flags(self, num_rows: int) -> bool:
        """Whether a row did, in a layer of the pass; once all of it is done."""
        return bool(self._flags[self._flagged, :num_rows].any()) if self._flagged else False

    def fetch_hidden(self, stream: Stream, at: Areas, num_rows: int) -> Tensor:
        """What lies in the area of hidden states, float32 [num_rows, hidden]; waits for all before it."""
        stream.download(self._hidden[:num_rows], at["hidden"])
        stream.download(self._told["broken"][:num_rows], at["broken"])
        stream.synchronize()
        return torch.from_numpy(self._hidden[:num_rows].copy())


def _array(device: Device, dtype: type[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    made: NDArray[Any] = device.pinned(num_bytes).view(dtype).reshape(shape)
    return made
