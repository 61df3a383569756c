"""One sequence on its way: its tokens, caches, drafts and counts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from numpy import uint32
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.model.mtp import DraftRequest, MtpDrafter
from orchestrator.model.mtp_state import MtpState
from orchestrator.model.native import row_ends
from orchestrator.model.rows_behind import CONTEXT_ROWS, LayerBounds
from orchestrator.model.step35 import Step35Model
from orchestrator.prefix.cache import PrefixCache
from orchestrator.prefix.stops import stops
from orchestrator.sampling import Choice, Sampler, accepted
from orchestrator.scheduling.step_plan import Ended

OnHidden = Callable[[Tensor], None]
Masks = Callable[[Sequence[int]], Sequence[NDArray[uint32] | None]]
"""Of drafts: what may come next, and behind each draft; see `Choice.allowed`."""
_NO_ROWS = torch.empty(0, 0)


class SequenceState:
    """A prompt and what was generated behind it.

    Between steps the cache holds every token but the newest, once the prompt is computed. `pause` gives the
    cache back; the tokens stay, and are computed again as a prompt is. `close` gives it back for good.

    Attributes:
        prefix: where its text is kept and looked for; None for nowhere.
        may_be_kept: whether its caches hold its tokens and nothing else. Whoever knows otherwise says so; new
            caches hold nothing wrong.
        stops: lengths at which it is to be kept while it is read, known once it is resumed.
        masks: which tokens may come; None for all.
        top_logprobs: how many probabilities are wanted of each row; None for none at all.
    """

    def __init__(
        self,
        model: Step35Model,
        drafter: MtpDrafter | None,
        prompt_ids: Sequence[int],
        sampler: Sampler,
        max_tokens: int,
        end_ids: Collection[int],
        on_hidden: OnHidden | None = None,
        prefix: PrefixCache | None = None,
        ends: Sequence[int] = (),
        keeps_rows: bool = True,
    ) -> None:
        """
        Args:
            drafter: None for a sequence that is never drafted for.
            max_tokens: it ends after so many behind the prompt.
            end_ids: it ends with one of these.
            on_hidden: called with the trunk's rows of positions that are computed, each once, in order.
            ends: lengths at which other texts may part from this one.
            keeps_rows: see `keep_rows`.
        """
        self.tokens = list(prompt_ids)
        self.num_prompt = len(self.tokens)
        self.max_tokens = max_tokens
        self.end_ids = end_ids
        self.sampler = sampler
        self.prefix = prefix
        self.stops: tuple[int, ...] = ()
        self.masks: Masks | None = None
        self.top_logprobs: int | None = None
        self.drafts: list[int] = []
        """Made and not verified yet."""
        self.finish_reason: Ended | None = None
        self.steps = 0
        self.matched = 0
        """Tokens that were not computed, because their text was kept."""
        num_drafts = drafter.num_layers if drafter is not None else 0
        self.drafted = [0] * num_drafts
        self.accepted = [0] * num_drafts
        self._model = model
        self._drafter = drafter if num_drafts else None
        self._on_hidden = on_hidden
        self._ends = tuple(ends)
        self._heard = 0
        self._is_resumed = self._was_resumed = False
        self.mtp: MtpState | None = None
        self.row_end: row_ends.RowEnd | None = None
        """Where its next rows go while there is room; None where `take` has them all, or nobody wants any."""
        self.wants_rows = False
        """Whether anybody is to have its rows."""
        self.keeps_rows = keeps_rows
        """Whether rows are kept for drafts, where there is a drafter."""
        self._waits_for_rows = False
        self._layer_bounds: LayerBounds | None = None
        self._new_caches()

    @property
    def generated(self) -> list[int]:
        """Tokens after the prompt."""
        return self.tokens[self.num_prompt :]

    @property
    def remaining(self) -> int:
        """Tokens that it may still get."""
        return self.max_tokens - (len(self.tokens) - self.num_prompt)

    @property
    def to_prefill(self) -> int:
        """Tokens to compute before it is decoded: of its prompt, or all but the newest after a pause."""
        return max(0, self._prefill_end - self.cache.length)

    @property
    def ends_prompt(self) -> bool:
        """Whether what is computed is just the prompt, so that a token is to be chosen behind it."""
        return self.cache.length == self.num_prompt == len(self.tokens)

    @property
    def layer_bounds(self) -> LayerBounds:
        """Of its MTP layers; see `RowsBehind`."""
        # Asked in every step. Of `mtp` that would bring from memory what nobody else looks at without drafts.
        if self._layer_bounds is None:
            self._layer_bounds = self.mtp.layer_bounds if self.mtp is not None else ()
        return self._layer_bounds

    @property
    def may_draft(self) -> bool:
        """Whether it has rows for drafts: all since it began, or enough of those that were kept again."""
        # Asked in every step, as `layer_bounds`.
        if self._waits_for_rows and self.mtp is not None:
            self._waits_for_rows = self.mtp.num_hidden < CONTEXT_ROWS
        return not self._waits_for_rows

    def keep_rows(self, keeps: bool) -> None:
        """Keep the rows of what comes next for drafts, from here on; or keep none, and forget those kept."""
        if self.mtp is not None:
            self.mtp.close()
        self.keeps_rows = keeps
        self.drafts = []
        self._new_mtp()
        if self.mtp is not None:
            self.mtp.begin_at(self.cache.length)

    def resume(self) -> None:
        """Go on from what is kept of the text, if nothing of it is computed yet.

        Raises:
            KvDoesNotFit: there is no room for what is copied; nothing of the text is held then.
        """
        if self.prefix is None or self._is_resumed:
            return
        try:
            found = self.prefix.fill(self.tokens[: self._prefill_end], self.cache, self.mtp)
        except BaseException:
            self.pause()
            raise
        self._layer_bounds = None
        self.stops = stops(found, self.num_prompt, self._ends)
        if not self._was_resumed:
            self.matched = min(found.matched, self.num_prompt)
        self._is_resumed = self._was_resumed = True

    def pass_end(self, stop: int) -> int:
        """Where a pass ends that would compute up to `stop`: at the next length to keep."""
        start = self.cache.length
        return min([stop, *(length for length in self.stops if length > start)])

    def pause(self) -> None:
        """Give back all keys and values."""
        self.close()
        self.drafts = []
        self._new_caches()

    def close(self) -> None:
        """Give the caches' pages back now, of a sequence that has ended or is not wanted any more."""
        self.cache.close()
        if self.mtp is not None:
            self.mtp.close()

    def most_drafts(self, wanted: int) -> int:
        """No more drafts than can become output: a step yields accepted drafts and one token more."""
        return min(wanted, len(self.drafted), self.remaining - 1)

    def draft_request(self, num_drafts: int) -> DraftRequest:
        """Have the MTP layers take in the rows that they need, and draft."""
        if self.mtp is None:
            raise ValueError("this sequence keeps no rows for drafts")
        self._layer_bounds = None
        return DraftRequest(self.mtp, _NO_ROWS, self.tokens, num_drafts, self._draft_choice)

    def choices(self) -> list[Choice]:
        """How the tokens behind the newest one and behind each draft are chosen."""
        masks = self.masks(self.drafts) if self.masks is not None else ()
        return self.sampler.choices(len(self.tokens), self.drafts, masks)

    def take(self, hidden_states: Tensor) -> None:
        """Take the rows of the newest tokens that the cache holds."""
        if self.mtp is not None:
            self.mtp.defer(hidden_states)
        stop = self.cache.length
        if self._on_hidden is not None and stop > self._heard:
            self._on_hidden(hidden_states[max(0, len(hidden_states) - (stop - self._heard)) :])
        self._heard = max(self._heard, stop)

    def first_token(self, token_id: int) -> list[int]:
        """Take the token behind the prompt; returns what became part of the sequence."""
        return self._extend([token_id])

    def verified(self, chosen: Sequence[int]) -> tuple[list[int], int]:
        """Take what was chosen from the rows of the newest token and of `drafts`.

        Returns:
            What became part of the sequence, and how many of these tokens were drafts. The caller then hands
            over the rows of the first ones, as many as became part of it: to `row_end`, else to `take`.
        """
        tokens = accepted(chosen, self.drafts)
        kept = self._extend(tokens)
        self.cache.rollback(len(self.tokens) - 1)
        self.steps += 1
        num_accepted = min(len(kept), len(tokens) - 1)
        for place in range(len(self.drafts)):
            self.drafted[place] += 1
            self.accepted[place] += place < num_accepted
        self.drafts = []
        return kept, num_accepted

    def put_behind(self, length: int, token_ids: Sequence[int]) -> None:
        """Leave out the step's tokens from `length` on, and go on with others in their place.

        They are computed, all but the newest, before another token is chosen.
        """
        self.sampler.forget(self.tokens[length:])
        self.tokens[length:] = token_ids
        self.sampler.note(token_ids)
        self.cache.rollback(min(self.cache.length, length, len(self.tokens) - 1))
        if self.mtp is not None:
            self.mtp.forget(self.cache.length)
        self.finish_reason = None if self.remaining > 0 else "length"

    @property
    def _prefill_end(self) -> int:
        return self.num_prompt if len(self.tokens) == self.num_prompt else len(self.tokens) - 1

    def _draft_choice(self, drafts: list[int]) -> Choice:
        """As the token behind the drafts will be chosen from the trunk's row."""
        allowed = self.masks(drafts)[-1] if self.masks is not None else None
        return self.sampler.choice(len(self.tokens) + len(drafts), drafts, allowed)

    def _extend(self, chosen: Sequence[int]) -> list[int]:
        """Append tokens up to an end token or max_tokens."""
        kept = []
        for token_id in chosen:
            self.tokens.append(token_id)
            kept.append(token_id)
            if token_id in self.end_ids:
                self.finish_reason = "stop"
            elif self.remaining == 0:
                self.finish_reason = "length"
            if self.finish_reason is not None:
                break
        self.sampler.note(kept)
        return kept

    def _new_caches(self) -> None:
        self.cache = self._model.new_cache()
        self._new_mtp()
        self._is_resumed = False
        self.may_be_kept = True

    def _new_mtp(self) -> None:
        self.mtp = self._drafter.new_state() if self._drafter is not None and self.keeps_rows else None
        self._layer_bounds = None
        self._waits_for_rows = self.mtp is None or self.cache.length > 0
        self.wants_rows = self.mtp is not None or self._on_hidden is not None
        # Who listens hears of all rows, from `take`.
        self.row_end = self.mtp.rows[0] if self.mtp is not None and self._on_hidden is None else None
