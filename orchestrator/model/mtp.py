"""Multi-token prediction: drafts of the next tokens from the layers after the trunk.

Let x be the tokens and h_p the trunk's hidden state at position p. MTP layer k at slot p takes two inputs:
the embedding of x_{p+1+k}, and s^{k-1}_p, the state of the layer before it (s^{-1} is h). It gives s^k_p,
and its own head predicts x_{p+2+k} from that.

Every layer runs over every slot of the sequence, so that its KV cache covers the whole context. A slot is
committed once the tokens it was computed from are verified. The newest k slots of layer k were computed from
drafts, so they are computed again after each verification.

A layer that is not asked for a draft lets its rows wait: many rows take it little longer than one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from orchestrator import kernels
from orchestrator.model.attention import SequenceSlice
from orchestrator.model.finite import check_finite
from orchestrator.model.kv_cache import KVCache
from orchestrator.model.layer import decoder_layer, ffn_of
from orchestrator.model.passes import run_pass
from orchestrator.model.step35 import Step35Model
from orchestrator.sampling import Choice, Logits, LogitsInRam
from placement.errors import InputError, NonFiniteError

MOST_DEFERRED = 64
"""Rows of a sequence that wait for an MTP layer while nobody wants its drafts.

A row takes a hidden state's memory, and the MTP layers compute many rows nearly as fast as one.
"""


class MtpState:
    """What the MTP layers remember of one sequence.

    Attributes:
        num_hidden: trunk rows seen, L.
        caches: one cache a layer; its length is the number of committed slots, c_k.
        pending: for each layer k, the verified input rows s^{k-1} of slots c_k, …, float32 [n, hidden].
    """

    __slots__ = ("caches", "num_hidden", "pending")

    def __init__(self, caches: tuple[KVCache, ...], hidden_size: int) -> None:
        self.num_hidden = 0
        self.caches = caches
        self.pending = [torch.empty(0, hidden_size) for _ in caches]

    @property
    def deferred(self) -> int:
        """Trunk rows that wait for the next `MtpDrafter.draft`."""
        return len(self.pending[0])

    @property
    def waiting(self) -> int:
        """The most rows that wait for one layer; one waits for each where all were asked for drafts."""
        return max(map(len, self.pending))

    def defer(self, hidden_states: Tensor) -> None:
        """Keep newly verified trunk rows, float32 [n, hidden], for the next `MtpDrafter.draft`."""
        self.num_hidden += len(hidden_states)
        self.pending[0] = torch.cat([self.pending[0], hidden_states])

    def forget(self, num_hidden: int) -> None:
        """Keep so many trunk rows alone; those after them must be deferred still."""
        gone = self.num_hidden - num_hidden
        if gone > 0:
            self.pending[0] = self.pending[0][: len(self.pending[0]) - gone]
            self.num_hidden = num_hidden

    def close(self) -> None:
        """Give the caches' pages back now."""
        for cache in self.caches:
            cache.close()


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """One sequence's turn.

    Attributes:
        hidden_states: trunk rows of the newly verified positions, float32 [n, hidden].
        tokens: all verified tokens of the sequence, prompt first.
        num_drafts: drafts wanted; more than 0 only when the token after the last trunk row is known.
        choice: how a draft is chosen, given the drafts of this step before it.
    """

    state: MtpState
    hidden_states: Tensor
    tokens: Sequence[int]
    num_drafts: int
    choice: Callable[[list[int]], Choice]


@dataclass(slots=True)
class _Turn:
    """A request while it passes through the layers.

    `inputs` are rows s^{k-1} from slot caches[k].length on. Rows of slots below `verified` are verified.
    Layer k computes `num_slots` of them, and keeps those below `committed`.
    """

    request: DraftRequest
    inputs: Tensor
    verified: int
    drafts: list[int]
    num_slots: int = 0
    committed: int = 0


class MtpDrafter:
    """Drafts with the first `num_layers` MTP layers of a model.

    Raises:
        InputError: the checkpoint has fewer.
    """

    def __init__(self, model: Step35Model, num_layers: int) -> None:
        available = len(model.weights.mtp)
        if not 0 <= num_layers <= available:
            raise InputError(
                f"{num_layers} drafts a step asked for, but this checkpoint has {available} MTP layers; "
                f"expected 0 to {available}"
            )
        self._model = model
        self._layers = model.weights.mtp[:num_layers]
        first = model.config.num_hidden_layers
        self._configs = model.config.layers[first : first + num_layers]

    @property
    def num_layers(self) -> int:
        """The most drafts a step."""
        return len(self._layers)

    def new_state(self) -> MtpState:
        """State of a sequence of which no trunk row was seen yet."""
        model = self._model
        caches = tuple(model.new_mtp_cache(k) for k in range(self.num_layers))
        return MtpState(caches, model.config.hidden_size)

    @torch.inference_mode()
    def draft(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        """Take in newly verified trunk rows and draft each sequence's next tokens, one pass a layer for all.

        A layer behind a request's last draft takes in nothing until `MOST_DEFERRED` rows wait for it. A
        request for no drafts has all layers take in all that they can.

        Returns:
            For each request its drafts, `num_drafts` of them.

        Raises:
            NonFiniteError: an MTP layer's weights are broken.
        """
        if not requests:
            return []
        with self._model.timer.part("mtp", owns_inner=True):
            turns = []
            for request in requests:
                state = request.state
                if len(request.hidden_states):
                    state.defer(request.hidden_states)
                turns.append(_Turn(request, state.pending[0], state.num_hidden, []))
            for k in range(self.num_layers):
                try:
                    self._run_layer(k, turns)
                except NonFiniteError as error:
                    layer = self._configs[k].index
                    raise NonFiniteError(
                        f"{error}; this was in MTP layer {layer}, and --mtp 0 goes without it"
                    ) from None
            return [turn.drafts for turn in turns]

    def _run_layer(self, k: int, turns: list[_Turn]) -> None:
        token_ids: list[int] = []
        rows: list[Tensor] = []
        batch: list[SequenceSlice] = []
        for turn in turns:
            request, cache = turn.request, turn.request.state.caches[k]
            known = [*request.tokens[cache.length + 1 + k :], *turn.drafts]
            turn.committed = cache.length if _waits(k, turn) else _committed(k, turn)
            stop = request.state.num_hidden if k < request.num_drafts else turn.committed
            turn.num_slots = stop - cache.length
            if turn.num_slots:
                token_ids += known[: turn.num_slots]
                rows.append(turn.inputs[: turn.num_slots])
                batch.append(SequenceSlice(cache, turn.num_slots))
        outputs = self._forward(k, token_ids, torch.cat(rows), batch) if batch else turns[0].inputs[:0]

        ends = []
        start = 0
        for turn in turns:
            state, cache = turn.request.state, turn.request.state.caches[k]
            own = outputs[start : start + turn.num_slots]
            start += turn.num_slots
            if k < turn.request.num_drafts:
                ends.append(start - 1)
            newly = turn.committed - cache.length
            # The rows are copied: a view would keep a whole prefill chunk alive.
            state.pending[k] = turn.inputs[newly : turn.verified - cache.length].clone()
            cache.commit(newly)
            if k + 1 < self.num_layers:
                turn.inputs = torch.cat([state.pending[k + 1], own])
            turn.verified = turn.committed
        if ends:
            logits = self._logits(k, outputs[ends])
            drafting = [turn for turn in turns if k < turn.request.num_drafts]
            chosen = logits.choose([turn.request.choice(turn.drafts) for turn in drafting])
            for turn, token_id in zip(drafting, chosen, strict=True):
                turn.drafts.append(token_id)

    def _forward(
        self, k: int, token_ids: list[int], states: Tensor, batch: Sequence[SequenceSlice]
    ) -> Tensor:
        model, layer = self._model, self._configs[k].index
        embedded = model.embed(torch.tensor(token_ids))
        layers = partial(self._on_card, k, embedded, states, batch)
        if model.card is None or k >= model.card.num_mtp:
            layers = partial(self._on_cpu, k, self._projected(k, embedded, states), batch)
        for part in batch:
            part.cache.begin(part.num_tokens)
        # Nothing is committed and no draft chosen before the layer's pass has ended.
        outputs = run_pass(model.experts, layers)
        check_finite(outputs, ffn_of(layer))
        return outputs

    def _on_card(self, k: int, embedded: Tensor, states: Tensor, batch: Sequence[SequenceSlice]) -> Tensor:
        assert self._model.card is not None
        return self._model.card.run_mtp(k, embedded, states, batch, self._model.experts)

    def _projected(self, k: int, embedded: Tensor, states: Tensor) -> Tensor:
        weights = self._layers[k]
        both = torch.cat(
            [weights.embedding_norm.forward(embedded), weights.hidden_norm.forward(states)], dim=1
        )
        hidden_states = kernels.linear(both, weights.eh_proj)
        check_finite(hidden_states, input_projection(self._configs[k].index))
        return hidden_states

    def _on_cpu(self, k: int, hidden_states: Tensor, batch: Sequence[SequenceSlice]) -> Tensor:
        model = self._model
        rope = model.rope_rows(batch, self._configs[k].index)
        return decoder_layer(self._layers[k].layer, hidden_states, rope, batch, 0, model.experts, model.timer)

    def _logits(self, k: int, rows: Tensor) -> Logits:
        card = self._model.card
        if card is not None and k < card.num_mtp:
            return card.mtp_logits(k, rows)
        head = self._layers[k]
        return LogitsInRam(kernels.linear(head.head_norm.forward(rows), head.head))


def input_projection(layer: int) -> str:
    """What makes an MTP layer's input, for messages."""
    return f"layer {layer}: its input projection"


def _waits(k: int, turn: _Turn) -> bool:
    """Whether layer k lets its rows wait."""
    return k >= turn.request.num_drafts > 0 and len(turn.inputs) < MOST_DEFERRED


def _committed(k: int, turn: _Turn) -> int:
    """Slots of layer k whose tokens and states are all verified."""
    return max(0, min(turn.verified, len(turn.request.tokens) - 1 - k))
