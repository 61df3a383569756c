"""Keys and values of one sequence: growing blocks on full layers, a ring on sliding ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.model_config import LayerConfig

BLOCK_TOKENS = 256
MAX_DRAFTS = 3


class LayerCache:
    """Keys and values of one layer, [slots, kv_heads, head_dim]; position p lies in slot p % slots.

    `ring_slots` 0 means a full layer: slots grow by blocks and no position is ever overwritten.
    """

    __slots__ = ("keys", "ring_slots", "values")

    def __init__(self, num_kv_heads: int, head_dim: int, dtype: torch.dtype, ring_slots: int) -> None:
        slots = ring_slots or BLOCK_TOKENS
        self.ring_slots = ring_slots
        self.keys = torch.zeros(slots, num_kv_heads, head_dim, dtype=dtype)
        self.values = torch.zeros(slots, num_kv_heads, head_dim, dtype=dtype)

    def reserve(self, num_positions: int) -> None:
        """Make room for positions 0 .. num_positions-1; a ring has its room already."""
        slots = self.keys.shape[0]
        if self.ring_slots or num_positions <= slots:
            return
        # At least half as much again, so that copying stays a constant cost a token.
        blocks = -(-max(num_positions, slots + slots // 2) // BLOCK_TOKENS)
        for name in ("keys", "values"):
            old: Tensor = getattr(self, name)
            grown = torch.zeros(blocks * BLOCK_TOKENS, *old.shape[1:], dtype=old.dtype)
            grown[:slots] = old
            setattr(self, name, grown)

    def write(self, position: int, keys: Tensor, values: Tensor) -> None:
        """Store rows [num_tokens, kv_heads, head_dim] from `position` on; a ring keeps the last ones."""
        slots = self.keys.shape[0]
        num_tokens = keys.shape[0]
        if num_tokens > slots:
            position += num_tokens - slots
            keys, values, num_tokens = keys[-slots:], values[-slots:], slots
        start = position % slots
        before_wrap = min(num_tokens, slots - start)
        self.keys[start : start + before_wrap] = keys[:before_wrap]
        self.values[start : start + before_wrap] = values[:before_wrap]
        if before_wrap < num_tokens:
            self.keys[: num_tokens - before_wrap] = keys[before_wrap:]
            self.values[: num_tokens - before_wrap] = values[before_wrap:]


class KVCache:
    """All layers' keys and values of one sequence.

    A forward pass calls `begin(n)`, writes n rows at positions length .. length+n-1 in every layer, then
    `commit(n)`. `rollback` forgets the newest positions in O(1).
    """

    __slots__ = ("_reach", "_ring_slots", "_window", "layers", "length")

    def __init__(
        self,
        layers: Sequence[LayerConfig],
        sliding_window: int,
        dtype: torch.dtype,
        max_drafts: int = MAX_DRAFTS,
    ) -> None:
        ring = sliding_window + max_drafts + 1
        self.layers = tuple(
            LayerCache(layer.num_kv_heads, layer.head_dim, dtype, ring if layer.is_sliding else 0)
            for layer in layers
        )
        self.length = 0
        # Positions below _reach have been written at some time. Of those, a ring holds only the last `ring`.
        self._reach = 0
        self._window = sliding_window
        self._ring_slots = ring if any(layer.is_sliding for layer in layers) else 0

    @property
    def nbytes(self) -> int:
        """Bytes reserved now."""
        return sum(2 * layer.keys.numel() * layer.keys.element_size() for layer in self.layers)

    def begin(self, num_tokens: int) -> None:
        """Make room for `num_tokens` rows after the present length.

        Raises:
            ValueError: an earlier pass wrote so far ahead without `commit` that the window is gone.
        """
        self._check_window(self.length)
        stop = self.length + num_tokens
        for layer in self.layers:
            layer.reserve(stop)
        self._reach = max(self._reach, stop)

    def commit(self, num_tokens: int) -> None:
        """Count `num_tokens` rows, written in every layer, as present."""
        self.length += num_tokens

    def rollback(self, length: int) -> None:
        """Forget positions `length` and later.

        Raises:
            ValueError: a sliding ring no longer holds the keys a query at `length` would see.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot roll back a cache of {self.length} tokens to {length}")
        self._check_window(length)
        self.length = length

    def _check_window(self, length: int) -> None:
        if self._ring_slots == 0:
            return
        oldest_needed = max(0, length - self._window + 1)
        if oldest_needed < self._reach - self._ring_slots:
            raise ValueError(
                f"cannot go on at position {length}: positions up to {self._reach - 1} were written and "
                f"a ring of {self._ring_slots} slots no longer holds position {oldest_needed}"
            )
