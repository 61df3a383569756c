"""One sequence on its way: its tokens, caches, drafts and counts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from orchestrator.model.mtp import DraftRequest, MtpDrafter, MtpState
from orchestrator.model.step35 import Step35Model
from orchestrator.sampling import Draft, LogitsRow, Sampler
from orchestrator.scheduling.step_plan import Ended

OnHidden = Callable[[Tensor], None]


class SequenceState:
    """A prompt and what was generated behind it.

    Between steps the cache holds every token but the newest, once the prompt is computed. `pause` gives the
    cache back; the tokens stay, and are computed again as a prompt is.
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
    ) -> None:
        """
        Args:
            drafter: None for a sequence that is never drafted for.
            max_tokens: it ends after so many behind the prompt.
            end_ids: it ends with one of these.
            on_hidden: called with the trunk's rows of the sequence's positions, each once, in order.
        """
        self.tokens = list(prompt_ids)
        self.num_prompt = len(self.tokens)
        self.max_tokens = max_tokens
        self.end_ids = end_ids
        self.sampler = sampler
        self.drafts: list[Draft] = []
        """Made and not verified yet."""
        self.finish_reason: Ended | None = None
        self.steps = 0
        num_drafts = drafter.num_layers if drafter is not None else 0
        self.drafted = [0] * num_drafts
        self.accepted = [0] * num_drafts
        self._model = model
        self._drafter = drafter
        self._on_hidden = on_hidden
        self._heard = 0
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
        stop = self.num_prompt if len(self.tokens) == self.num_prompt else len(self.tokens) - 1
        return max(0, stop - self.cache.length)

    @property
    def draft_ids(self) -> list[int]:
        """Tokens of the drafts that were made and not verified yet."""
        return [draft.token_id for draft in self.drafts]

    @property
    def ends_prompt(self) -> bool:
        """Whether what is computed is just the prompt, so that a token is to be chosen behind it."""
        return self.cache.length == self.num_prompt == len(self.tokens)

    @property
    def deferred(self) -> int:
        """Rows that the MTP layers have not seen."""
        return 0 if self.mtp is None else self.mtp.deferred

    def pause(self) -> None:
        """Give back all keys and values."""
        self.drafts = []
        self._new_caches()

    def most_drafts(self, wanted: int) -> int:
        """No more drafts than can become output: a step yields accepted drafts and one token more."""
        return min(wanted, len(self.drafted), self.remaining - 1)

    def draft_request(self, num_drafts: int) -> DraftRequest:
        """Have the MTP layers take in all rows that they have not seen, and draft."""
        if self.mtp is None:
            raise ValueError("this sequence was started without a drafter")
        nothing = self.mtp.pending[0][:0]
        return DraftRequest(self.mtp, nothing, self.tokens, num_drafts, self._draft)

    def prefilled(self, hidden_states: Tensor) -> bool:
        """Take the rows of the next tokens; returns `ends_prompt`."""
        self._take(hidden_states, self.cache.length - len(hidden_states))
        return self.ends_prompt

    def first_token(self, logits: LogitsRow) -> list[int]:
        """Choose the token behind the prompt; returns what became part of the sequence."""
        return self._extend([self.sampler.choose(logits)])

    def verified(self, hidden_states: Tensor, logits: Sequence[LogitsRow]) -> tuple[list[int], int]:
        """Take the rows of the newest token and of `drafts`.

        Returns:
            What became part of the sequence, and how many of these tokens were drafts.
        """
        start = self.cache.length - len(hidden_states)
        chosen = self.sampler.verify(logits, self.drafts)
        kept = self._extend(chosen)
        self.cache.rollback(len(self.tokens) - 1)
        self.steps += 1
        accepted = min(len(kept), len(chosen) - 1)
        for place in range(len(self.drafts)):
            self.drafted[place] += 1
            self.accepted[place] += place < accepted
        self.drafts = []
        self._take(hidden_states[: len(kept)], start)
        return kept, accepted

    def _draft(self, logits: LogitsRow) -> Draft:
        return self.sampler.draft(logits)

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
        return kept

    def _take(self, hidden_states: Tensor, start: int) -> None:
        if self.mtp is not None and self.finish_reason is None:
            self.mtp.defer(hidden_states)
        stop = start + len(hidden_states)
        if self._on_hidden is not None and stop > self._heard:
            self._on_hidden(hidden_states[max(0, self._heard - start) :])
        self._heard = max(self._heard, stop)

    def _new_caches(self) -> None:
        self.cache = self._model.new_cache()
        self.mtp: MtpState | None = self._drafter.new_state() if self._drafter is not None else None
