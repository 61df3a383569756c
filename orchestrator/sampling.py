"""Which token each row of logits gives: what a sequence wants of its next rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.kernels.choosing import choose_token
from orchestrator.penalties import Edits, Penalties
from orchestrator.row_choice import RowChoice
from orchestrator.sampling_params import LEAST_TEMPERATURE, SamplingParams
from placement.errors import InputError, NonFiniteError


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """How one row's token is to be chosen.

    Attributes:
        banned: tokens that are left out.
        allowed: a bit for each token, lowest first, set for those that may come, uint32
            [(vocab + 31) / 32]; None for all.
        edits: None for none.
    """

    how: RowChoice
    banned: tuple[int, ...] = ()
    allowed: NDArray[np.uint32] | None = None
    edits: Edits | None = None

    @property
    def is_plain(self) -> bool:
        """Whether a card can make it: tokens may be left out, but no logits are changed."""
        return self.edits is None

    def left_out(self, vocab: int) -> NDArray[np.uint32] | None:
        """A bit for each token that may not come, not to be written to; None for none."""
        banned = banned_bits(vocab, self.banned) if self.banned else None
        if self.allowed is None:
            return banned
        return ~self.allowed if banned is None else banned | ~self.allowed


class Logits(Protocol):
    """Rows of logits, wherever they are; good until the next pass."""

    def choose(self, choices: Sequence[Choice]) -> list[int]:
        """A token for each row.

        Raises:
            NonFiniteError: a row's largest logit is not finite.
        """
        ...

    def row(self, place: int) -> NDArray[np.float32]:
        """One row in RAM, float32 [vocab], not to be written to."""
        ...


class LogitsInRam:
    """Rows that the CPU computed, float32 [n, vocab]."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows.numpy()

    def choose(self, choices: Sequence[Choice]) -> list[int]:
        """See `Logits.choose`."""
        return [choose_in_ram(row, choice) for row, choice in zip(self._rows, choices, strict=True)]

    def row(self, place: int) -> NDArray[np.float32]:
        """See `Logits.row`."""
        found: NDArray[np.float32] = self._rows[place]
        return found


def choose_in_ram(row: NDArray[np.float32], choice: Choice) -> int:
    """A row's token.

    Raises:
        NonFiniteError: as `Logits.choose`.
        InputError: masks leave no token.
    """
    if choice.edits is not None:
        row = choice.edits.apply(row)
    token_id = choose_token(row, choice.how, choice.left_out(len(row)))
    if token_id < 0 and choice.allowed is not None:
        # What may come alone comes, also where it was to be left out.
        token_id = choose_token(row, choice.how, ~choice.allowed)
    if token_id < 0 and np.isfinite(row).all():
        raise InputError("no token may come next: expected an end of the answer that is not left out")
    if token_id < 0:
        raise NonFiniteError(f"the output matrix gives logits that are not finite; {NonFiniteError.REMEDY}")
    return token_id


def token_bits(vocab: int, token_ids: Iterable[int]) -> NDArray[np.uint32]:
    """A bit for each token, set for the given ones: uint32 [(vocab + 31) / 32]."""
    bits = np.zeros(-(-vocab // 32), np.uint32)
    ids = np.fromiter(token_ids, np.int64)
    np.bitwise_or.at(bits, ids // 32, np.uint32(1) << (ids % 32).astype(np.uint32))
    return bits


@lru_cache(maxsize=64)
def banned_bits(vocab: int, token_ids: tuple[int, ...]) -> NDArray[np.uint32]:
    """`token_bits`, which every row of an answer asks for again; nobody can write to it."""
    bits = token_bits(vocab, token_ids)
    bits.setflags(write=False)
    return bits


class Sampler:
    """Says how one sequence's tokens are chosen.

    The noise at a position is a function of the request's seed and of that position. Drafts are chosen with
    the noise of their positions, and a draft is accepted where the trunk's choice is the same token. So what
    is computed before, beside or again changes no text (docs/arithmetic.md, 'Choosing a token').
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int] = (),
        *,
        answer: int = 0,
        banned: Sequence[int] = (),
    ) -> None:
        """
        Args:
            prompt: what stands before the answer.
            answer: which of several to the same prompt; each has noise of its own.
            banned: tokens that never come.
        """
        self._params = params
        self._temperature = params.temperature and max(params.temperature, LEAST_TEMPERATURE)
        self._answer = answer
        self._banned = tuple(banned)
        self._penalties = Penalties(params, prompt) if params.has_edits else None
        self._avoided: tuple[int, int] | None = None

    def note(self, token_ids: Iterable[int]) -> None:
        """These are the answer's next tokens."""
        if self._penalties is not None:
            self._penalties.note(token_ids)

    def forget(self, token_ids: Iterable[int]) -> None:
        """The newest tokens that were noted are none of the answer after all."""
        if self._penalties is not None:
            self._penalties.note(token_ids, -1)

    def avoid(self, position: int, token_id: int) -> None:
        """Another token comes at that position."""
        self._avoided = position, token_id

    def choice(
        self, position: int, drafts: Sequence[int] = (), allowed: NDArray[np.uint32] | None = None
    ) -> Choice:
        """For the token at a position.

        Args:
            position: tokens before it, prompt included.
            drafts: those of them that were not noted yet.
            allowed: see `Choice`.
        """
        params = self._params
        how = RowChoice(
            self._temperature,
            params.top_k,
            params.top_p,
            params.min_p,
            params.seed,
            self._answer,
            position,
        )
        edits = self._penalties.edits(drafts) if self._penalties is not None else None
        banned = self._banned
        if self._avoided is not None and self._avoided[0] == position:
            banned = (*banned, self._avoided[1])
        return Choice(how, banned, allowed, edits)

    def choices(
        self, position: int, drafts: Sequence[int], masks: Sequence[NDArray[np.uint32] | None] = ()
    ) -> list[Choice]:
        """For the rows of the newest token and of drafts behind it.

        A row's choice counts where the drafts before it were chosen too.

        Args:
            masks: see `Choice.allowed`, of each row; none at all where any token may come.
        """
        return [
            self.choice(position + place, drafts[:place], allowed)
            for place, allowed in zip_longest(range(len(drafts) + 1), masks)
        ]


def accepted(chosen: Sequence[int], drafts: Sequence[int]) -> list[int]:
    """The tokens that a verification gives: the drafts that were chosen too, and one token more.

    Args:
        chosen: for the newest token's row and each draft's, 1 + len(drafts) of them.
    """
    tokens: list[int] = []
    for place, token_id in enumerate(chosen):
        tokens.append(token_id)
        if place < len(drafts) and token_id != drafts[place]:
            break
    return tokens
