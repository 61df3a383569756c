"""What a run asked of its workers, in counts."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import zip_longest


@dataclass(slots=True)
class Usage:
    """What was asked of whom, since the last reset.

    Attributes:
        activations: (token, expert) pairs computed, by worker index.
        remote_layers: layer passes that asked at least one worker outside this process.
        messages: requests sent, probes left out.
        sent_bytes, received_bytes: tensors of requests and answers, headers left out.
        coarsened_rows: rows that had to be asked again on a coarser grid.
        checked: requests that others computed too, to compare.
    """

    activations: list[int]
    remote_layers: int = 0
    messages: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    coarsened_rows: int = 0
    checked: int = 0

    def since(self, earlier: Usage) -> Usage:
        """What was added after `earlier`, a copy made of these counts; workers may have joined since."""
        counts = {f.name: getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)[1:]}
        pairs = zip_longest(self.activations, earlier.activations, fillvalue=0)
        activations = [now - then for now, then in pairs]
        return Usage(activations, **counts)

    def copy(self) -> Usage:
        return replace(self, activations=list(self.activations))
