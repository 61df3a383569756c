"""A pass that cannot end under its view: it is rolled back and runs again under the next one."""

from __future__ import annotations


class PassLost(Exception):
    """An expert has no holder left among those that the pass may ask.

    Attributes:
        layer: where the pass stopped, absolute index.
        why: one line for people.
        refused: a worker that lives refused, and nobody stands in for it.
    """

    def __init__(self, layer: int, why: str, *, refused: bool = False) -> None:
        super().__init__(why)
        self.layer = layer
        self.why = why
        self.refused = refused
