"""Which kept text a new one begins with: a radix tree whose edges are pages' worth of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from orchestrator.prefix.kept import Block, Boundary, LayerPages
from placement.kv_size import PAGE_POSITIONS


@dataclass(frozen=True, slots=True)
class Match:
    """What a text has in common with kept ones.

    Attributes:
        boundary: from which a sequence can go on at `length`; None where there is none, at 0.
        shared: tokens from the beginning on that some kept text has too.
    """

    boundary: Boundary | None
    length: int
    shared: int


class Tree:
    """The blocks and boundaries of all kept texts."""

    def __init__(self) -> None:
        self.root = Block()

    def match(self, tokens: Sequence[int], num_mtp: int, most: int) -> Match:
        """The longest way into a text that some boundary spares; see `matches`."""
        return self.matches(tokens, num_mtp, most)[0]

    def matches(self, tokens: Sequence[int], num_mtp: int, most: int) -> tuple[Match, Match]:
        """The longest ways into a text that some boundary spares: with MTP layers, and of the trunk alone.

        An MTP layer's slot was computed from the tokens after it, one more for each layer. So of the tokens
        that a boundary has in common with the text, the last `num_mtp` are computed again.

        Args:
            num_mtp: MTP layers whose caches are needed.
            most: the largest length that is asked for.
        """
        with_mtp, alone = Match(None, 0, 0), Match(None, 0, 0)
        shared = 0
        for boundary, matched in self._alike(tokens):
            shared = max(shared, matched)
            if matched <= alone.length and matched - num_mtp <= with_mtp.length:
                continue
            length = min(boundary.length, matched, most)
            if max(boundary.lowest, alone.length + 1) <= length:
                alone = Match(boundary, length, 0)
            length = min(boundary.length, matched - num_mtp, most)
            if max(boundary.lowest, with_mtp.length + 1) <= length and boundary.has_mtp(num_mtp, length):
                with_mtp = Match(boundary, length, 0)
        return replace(with_mtp, shared=shared), replace(alone, shared=shared)

    def add(self, tokens: Sequence[int], depth: int, pages: Callable[[int], tuple[LayerPages, ...]]) -> Block:
        """The last of the first `depth` blocks of a text, which are made where they are not there.

        Args:
            pages: gives those of a block that is made; they are counted as kept.
        """
        block = self.root
        for place in range(depth):
            key = tuple(tokens[place * PAGE_POSITIONS : (place + 1) * PAGE_POSITIONS])
            child = block.children.get(key)
            if child is None:
                child = block.children[key] = Block(block, key, pages(place))
                for of_layer in child.pages:
                    of_layer.pool.keep(of_layer.kv, of_layer.pages)
            block = child
        return block

    def remove(self, boundary: Boundary) -> None:
        """Let go of a boundary, and of the blocks that led to it alone."""
        for of_layer in boundary.pages_alone():
            of_layer.pool.let_go(of_layer.kv, of_layer.pages)
        block = boundary.block
        block.boundaries.remove(boundary)
        while block.parent is not None and not block.boundaries and not block.children:
            del block.parent.children[block.tokens]
            block = block.parent

    def _alike(self, tokens: Sequence[int]) -> Iterator[tuple[Boundary, int]]:
        """Boundaries of texts that begin as this one does, and how many tokens are the same.

        Of hundreds of texts nearly all part from this one at once. They are left out.
        """
        block, start = self.root, 0
        while True:
            # Cut once for all: a tail is shorter than two blocks.
            following = tuple(tokens[start : start + 2 * PAGE_POSITIONS])
            first = following[:1]
            for boundary in block.boundaries:
                if start or boundary.tail[:1] == first:
                    yield boundary, start + _common(boundary.tail, following)
            child = block.children.get(following[:PAGE_POSITIONS])
            if child is None:
                break
            block, start = child, start + PAGE_POSITIONS
        for child in block.children.values():
            if not start and child.tokens[:1] != first:
                continue
            matched = start + _common(child.tokens, following)
            for boundary in child.boundaries_below():
                yield boundary, matched


def _common(some: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for place, (one, other) in enumerate(zip(some, others, strict=False)):
        if one != other:
            return place
    return min(len(some), len(others))
