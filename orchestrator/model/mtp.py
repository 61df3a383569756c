"""Multi-token prediction: drafts of the next tokens from the layers after the trunk.

Let x be the tokens and h_p the trunk's hidden state at position p. MTP layer k at slot p takes two inputs:
the embedding of x_{p+1+k}, and s^{k-1}_p, the state of the layer before it (s^{-1} is h). It gives s^k_p,
and its own head predicts x_{p+2+k} from that.

A slot is committed once the tokens it was computed from are verified. The newest k slots of layer k were
computed from drafts, so they are computed again after each verification.

Rows wait for a layer until somebody asks for its drafts. What lies farther back than the layers reach
(`placement.kv_size.reaches`) is never computed. A layer that sees all slots computes all of them.

A row waits for one layer at a time. So a sequence never holds more rows than reach back for the first layer,
whoever was asked for what (`WaitingSize`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from orchestrator import kernels
from orchestrator.model.attention import SequenceSlice, pass_rows
from orchestrator.model.finite import check_finite
from orchestrator.model.kv_cache import KVCache
from orchestrator.model.layer import decoder_layer, ffn_of
from orchestrator.model.mtp_state import MtpState
from orchestrator.model.passes import run_pass
from orchestrator.model.step35 import Step35Model
from orchestrator.model.waiting_rows import EndPart, append_each
from orchestrator.sampling import Choice, Logits, LogitsInRam
from placement.errors import InputError, NonFiniteError
from placement.kv_size import MAX_DRAFTS, PAGE_POSITIONS, PASS_ROWS, reaches

_FEW_ROWS = 2 * MAX_DRAFTS
"""A sequence's next draft takes no more rows where few wait. They go into a cache without regard to pages."""


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """One sequence's turn.

    Attributes:
        hidden_states: trunk rows of the newly verified positions that the state has not, float32 [n, hidden].
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

    `hanging` are rows s^{k-1} of the slots after those that are verified: they hang on drafts.
    """

    request: DraftRequest
    hanging: Tensor
    drafts: list[int]


@dataclass(slots=True)
class _Work:
    """What one layer computes of one sequence.

    Attributes:
        first: slot that it begins with; nothing before it was there if `is_new`.
        inputs, token_ids: of that slot and those after it.
        committed: the slots below this one are kept.
        done: how many slots are computed.
    """

    turn: _Turn
    cache: KVCache
    first: int
    is_new: bool
    inputs: Tensor
    token_ids: list[int]
    committed: int
    done: int = 0

    @property
    def left(self) -> int:
        """Slots that are not computed yet."""
        return len(self.token_ids) - self.done

    def piece(self, room: int) -> int:
        """How many slots the next pass computes. It ends with a page, so that no cache holds too many."""
        left = self.left
        if left <= min(room, _FEW_ROWS):
            return left
        return min(left, room, PAGE_POSITIONS - self.cache.length % PAGE_POSITIONS)

    def settle(self) -> None:
        """Have in the cache what is committed, and nothing behind it."""
        if self.cache.length > self.committed:
            self.cache.rollback(self.committed)
        else:
            self.cache.commit(self.committed - self.cache.length)


class MtpDrafter:
    """Drafts with the first `num_layers` MTP layers of a model.

    Raises:
        InputError: the checkpoint has fewer.
    """

    def __init__(self, model: Step35Model, num_layers: int, pass_rows: int = PASS_ROWS) -> None:
        """`pass_rows`: that a layer computes at a time, at most."""
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
        self._pass_rows = pass_rows
        self._reaches = reaches(model.config.shape("").attention[first : first + num_layers])
        self.lets_all_wait = not self._reaches or self._reaches[0] is not None
        """Whether rows may wait for ever where nobody asks for drafts."""

    @property
    def num_layers(self) -> int:
        """The most drafts a step."""
        return len(self._layers)

    def new_state(self) -> MtpState:
        """State of a sequence of which no trunk row was seen yet; ValueError without layers."""
        model = self._model
        caches = tuple(model.new_mtp_cache(k) for k in range(self.num_layers))
        return MtpState(caches, model.config.hidden_size, self._reaches, model.kv_pool)

    @torch.inference_mode()
    def draft(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        """Take in newly verified trunk rows and draft each sequence's next tokens, one pass a layer for all.

        A layer behind a request's last draft lets its rows wait. A request for no drafts has all layers take
        in all that they can. Where more rows wait than a pass may have, a layer makes several.

        Returns:
            For each request its drafts, `num_drafts` of them.

        Raises:
            NonFiniteError: an MTP layer's weights are broken.
            KvDoesNotFit: a pool has no room for keys and values, or for rows that wait.
        """
        if not requests:
            return []
        with self._model.timer.part("mtp", owns_inner=True):
            turns = []
            for request in requests:
                if len(request.hidden_states):
                    request.state.defer(request.hidden_states)
                turns.append(_Turn(request, request.hidden_states[:0], []))
            for k in range(self.num_layers):
                try:
                    self._run_layer(k, turns)
                except NonFiniteError as error:
                    layer = self._configs[k].index
                    raise NonFiniteError(
                        f"{error}; this was in MTP layer {layer}, and --mtp 0 goes without it"
                    ) from None
            return [turn.drafts for turn in turns]

    def _run_layer(self, k: int, turns: Sequence[_Turn]) -> None:
        works = [self._work(k, turn) for turn in turns if _runs(k, turn.request)]
        works = [work for work in works if work.token_ids]
        if not works:
            return
        outputs = self._computed(k, works)
        ends: list[int] = []
        drafting: list[_Turn] = []
        firsts: list[int] = []
        stop = 0
        for work in works:
            firsts.append(stop)
            turn, state = work.turn, work.turn.request.state
            stop += len(work.token_ids)
            if k < turn.request.num_drafts:
                ends.append(stop - 1)
                drafting.append(turn)
            hang = firsts[-1] + work.committed - work.first
            turn.hanging = outputs[hang:stop] if k + 1 < turn.request.num_drafts else outputs[:0]
            work.settle()
            state.rows[k].drop_before(work.committed)
        if k + 1 < self.num_layers:
            self._hand_on(k + 1, works, outputs, firsts)
        if ends:
            logits = self._logits(k, _rows_at(outputs, ends))
            chosen = logits.choose([turn.request.choice(turn.drafts) for turn in drafting])
            for turn, token_id in zip(drafting, chosen, strict=True):
                turn.drafts.append(token_id)

    def _work(self, k: int, turn: _Turn) -> _Work:
        request, state = turn.request, turn.request.state
        cache, rows = state.caches[k], state.rows[k]
        first = max(rows.start, state.first_needed(k))
        is_new = first > cache.length
        if is_new:
            state.begin_layer_at(k, first)
        begin = state.first_position
        committed = max(first, min(rows.stop, len(request.tokens) - begin - 1 - k))
        stop = state.num_hidden if k < request.num_drafts else committed
        known = [*request.tokens[begin + first + 1 + k :], *turn.drafts][: stop - first]
        waiting = rows.rows()
        inputs = torch.cat([waiting, turn.hanging]) if len(turn.hanging) else waiting
        return _Work(turn, cache, first, is_new, inputs[: stop - first], known, committed)

    def _hand_on(self, k: int, works: Sequence[_Work], outputs: Tensor, firsts: Sequence[int]) -> None:
        """Let what the layer before has committed wait for layer k.

        Args:
            outputs: its states of all works.
            firsts: where each work's begin.
        """
        hang = self._model.config.sliding_window - 1
        targets = [work.turn.request.state.rows[k] for work in works]
        parts: list[EndPart] = []
        for work, rows, first in zip(works, targets, firsts, strict=True):
            count, skipped = work.committed - work.first, 0
            if work.is_new:
                # The first states hang on slots that were not there.
                rows.begin_at(work.first + hang)
                skipped = min(hang, count)
            parts.append((rows, first + skipped, count - skipped))
        for place in append_each(parts, outputs):
            _, first, count = parts[place]
            targets[place].append(outputs[first : first + count])
        for work, rows in zip(works, targets, strict=True):
            rows.forget_before(work.turn.request.state.first_needed(k))

    def _computed(self, k: int, works: Sequence[_Work]) -> Tensor:
        """The states of all slots, one sequence after another. All but each sequence's last are committed."""
        counts = [len(work.token_ids) for work in works]
        if max(counts) <= _FEW_ROWS and sum(counts) <= self._pass_rows:
            batch = [SequenceSlice(work.cache, count) for work, count in zip(works, counts, strict=True)]
            inputs = works[0].inputs if len(works) == 1 else torch.cat([work.inputs for work in works])
            return self._forward(k, [token for work in works for token in work.token_ids], inputs, batch)
        return self._computed_in_pieces(k, works)

    def _computed_in_pieces(self, k: int, works: Sequence[_Work]) -> Tensor:
        found: list[list[Tensor]] = [[] for _ in works]
        while any(work.left for work in works):
            room = self._pass_rows
            token_ids: list[int] = []
            inputs: list[Tensor] = []
            batch: list[SequenceSlice] = []
            taken: list[tuple[int, int]] = []
            for place, work in enumerate(works):
                size = work.piece(room)
                if size:
                    room -= size
                    begin, end = work.done, work.done + size
                    token_ids += work.token_ids[begin:end]
                    inputs.append(work.inputs[begin:end])
                    batch.append(SequenceSlice(work.cache, size))
                    taken.append((place, size))
            outputs = self._forward(k, token_ids, torch.cat(inputs), batch)
            for (place, size), own in zip(
                taken, torch.split(outputs, [size for _, size in taken]), strict=True
            ):
                work = works[place]
                work.done += size
                found[place].append(own)
                if work.left:
                    work.cache.commit(size)
        return torch.cat([part for parts in found for part in parts])

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
        return kernels.linear(both, weights.eh_proj)

    def _on_cpu(self, k: int, hidden_states: Tensor, batch: Sequence[SequenceSlice]) -> Tensor:
        model = self._model
        rows = pass_rows(batch)
        rotation = model.rotation(self._configs[k].index, rows.stop)
        try:
            return decoder_layer(
                self._layers[k].layer, hidden_states, rotation, rows, 0, model.experts, model.timer
            )
        except NonFiniteError:
            # The layer blames the layer before it, but an MTP layer's input comes from its projection.
            check_finite(hidden_states, input_projection(self._configs[k].index))
            raise

    def _logits(self, k: int, rows: Tensor) -> Logits:
        card = self._model.card
        if card is not None and k < card.num_mtp:
            return card.mtp_logits(k, rows)
        head = self._layers[k]
        return LogitsInRam(kernels.linear(head.head_norm.forward(rows), head.head))


def _rows_at(outputs: Tensor, places: list[int]) -> Tensor:
    """These rows, in their order."""
    if len(places) == len(outputs):
        return outputs
    if len(places) == 1:
        return outputs[places[0] : places[0] + 1]
    return outputs.index_select(0, torch.tensor(places))


def input_projection(layer: int) -> str:
    """What makes an MTP layer's input, for messages."""
    return f"layer {layer}: its input projection"


def _runs(k: int, request: DraftRequest) -> bool:
    """Whether layer k takes in what waits for it."""
    return k < request.num_drafts or not request.num_drafts or request.state.must_take_in(k)
