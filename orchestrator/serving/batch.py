"""One step of many sequences: draft, one pass over the rows of all, verify, choose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter

import torch
from torch import Tensor

from orchestrator.logprobs import RowLogprob, row_logprob
from orchestrator.model.attention import SequenceSlice
from orchestrator.model.mtp import DraftRequest, MtpDrafter
from orchestrator.model.step35 import Step35Model
from orchestrator.model.waiting_rows import EndPart, append_each
from orchestrator.sampling import Logits
from orchestrator.scheduling.step_plan import Advance, StepOutcome, StepPlan
from orchestrator.sequence import SequenceState


def run_step(
    model: Step35Model,
    drafter: MtpDrafter | None,
    sequences: Mapping[int, SequenceState],
    plan: StepPlan,
    clock: Callable[[], float] = perf_counter,
) -> StepOutcome:
    """Run a step; every sequence gets the tokens that it would get alone.

    If that raises, no sequence has other tokens than before. Its caches may be ahead of them: it is to be
    paused, and computed again.

    Args:
        drafter: None where nothing is drafted.
        sequences: by number; at least those of the plan.

    Raises:
        KvDoesNotFit: a pool has no room for keys and values, or for rows that wait for MTP layers. Also where
            only that shows behind the pass, its tokens are chosen again.
        NonFiniteError, WorkerLost, WorkerRefused: as `Step35Model.forward`.
    """
    for number in plan.pause:
        sequences[number].pause()
    if not plan.rows:
        return StepOutcome(())
    decoded = [sequences[part.sequence] for part in plan.decode]
    read = [sequences[chunk.sequence] for chunk in plan.prefill]
    for sequence in (*decoded, *read):
        if sequence.keeps_rows is not plan.keeps_rows:
            sequence.keep_rows(plan.keeps_rows)
    for sequence in read:
        sequence.resume()
    started = clock()
    drafting_rows = _draft(drafter, plan, decoded, read)
    drafted = clock()

    token_ids: list[int] = []
    batch: list[SequenceSlice] = []
    for sequence in decoded:
        token_ids += [sequence.tokens[-1], *sequence.drafts]
        batch.append(SequenceSlice(sequence.cache, 1 + len(sequence.drafts)))
    decode_rows = len(token_ids)
    for chunk, sequence in zip(plan.prefill, read, strict=True):
        start = sequence.cache.length
        # Nothing behind what may be computed: with all of it a later step goes wrong.
        stop = sequence.pass_end(start + min(chunk.tokens, sequence.to_prefill))
        token_ids += sequence.tokens[start:stop]
        batch.append(SequenceSlice(sequence.cache, stop - start))
    hidden_states = model.forward(torch.tensor(token_ids), batch)

    ends = list(_prompt_ends(read, decode_rows, batch[len(decoded) :]))
    chosen_from = [*range(decode_rows), *ends]
    chosen: list[int] = []
    logprobs: list[RowLogprob | None] = []
    if chosen_from:
        all_of_them = len(chosen_from) == len(token_ids)
        rows = hidden_states if all_of_them else hidden_states[chosen_from]
        logits = model.logits_to_choose_from(rows)
        deciding = [*decoded, *(sequence for sequence in read if sequence.ends_prompt)]
        with model.timer.part("sampling"):
            chosen, logprobs = _choose(logits, deciding)
    advances = _advances(plan, decoded, read, batch, hidden_states, chosen, logprobs)
    return StepOutcome(advances, drafted - started, drafting_rows, len(token_ids) - decode_rows)


def keep_text(sequence: SequenceState, upto: int | None = None) -> None:
    """Keep a sequence's text for others, if it may be: as far as it is computed and before `upto`."""
    if sequence.prefix is not None and sequence.may_be_kept:
        sequence.prefix.keep(sequence.tokens, sequence.cache, sequence.mtp, upto)


def keep_prompts(sequences: Mapping[int, SequenceState], plan: StepPlan) -> None:
    """Keep what is read of prompts, where a step came to a length that is worth it."""
    for chunk in plan.prefill:
        sequence = sequences[chunk.sequence]
        if sequence.cache.length in sequence.stops:
            keep_text(sequence, sequence.cache.length)


def _choose(logits: Logits, sequences: Sequence[SequenceState]) -> tuple[list[int], list[RowLogprob | None]]:
    """A token for each row of these sequences, and probabilities where they are wanted."""
    choices = [(of, choice) for of in sequences for choice in of.choices()]
    chosen = logits.choose([choice for _, choice in choices])
    found: list[RowLogprob | None] = []
    for place, ((sequence, choice), token_id) in enumerate(zip(choices, chosen, strict=True)):
        top, temperature = sequence.top_logprobs, choice.how.temperature
        found.append(None if top is None else row_logprob(logits.row(place), token_id, temperature, top))
    return chosen, found


def _advances(
    plan: StepPlan,
    decoded: Sequence[SequenceState],
    read: Sequence[SequenceState],
    batch: Sequence[SequenceSlice],
    hidden_states: Tensor,
    chosen: Sequence[int],
    logprobs: Sequence[RowLogprob | None],
) -> tuple[Advance, ...]:
    """Hand the sequences what was chosen, and its rows. Where these have no room, all is as before.

    Raises:
        KvDoesNotFit: a sequence has no room for its rows.
    """
    advances: list[Advance] = []
    parts: list[EndPart] = []
    row = 0
    for part, sequence, own in zip(plan.decode, decoded, batch, strict=False):
        stop = row + own.num_tokens
        tokens, accepted = sequence.verified(chosen[row:stop])
        found = _wanted(logprobs[row : row + len(tokens)])
        held, ended, layers = sequence.cache.length, sequence.finish_reason, sequence.layer_bounds
        drafted, may_draft = own.num_tokens - 1, sequence.may_draft
        advances.append(
            Advance(part.sequence, tuple(tokens), drafted, accepted, ended, held, found, layers, may_draft)
        )
        parts.append((sequence.row_end, row, len(tokens)))
        row = stop
    at = row
    for chunk, sequence, own in zip(plan.prefill, read, batch[len(decoded) :], strict=True):
        tokens, found = [], ()
        if sequence.ends_prompt:
            tokens, found = sequence.first_token(chosen[at]), _wanted(logprobs[at : at + 1])
            at += 1
        held, ended, layers = sequence.cache.length, sequence.finish_reason, sequence.layer_bounds
        may_draft = sequence.may_draft
        advances.append(Advance(chunk.sequence, tuple(tokens), 0, 0, ended, held, found, layers, may_draft))
        parts.append((sequence.row_end, row, own.num_tokens))
        row += own.num_tokens
    sequences = [*decoded, *read]
    try:
        _hand_out(sequences, parts, hidden_states)
    except BaseException:
        # Nobody was told of the tokens, so they are chosen again.
        for sequence, advance in zip(sequences, advances, strict=True):
            sequence.put_behind(len(sequence.tokens) - len(advance.tokens), ())
        raise
    return tuple(advances)


def _hand_out(sequences: Sequence[SequenceState], parts: Sequence[EndPart], hidden_states: Tensor) -> None:
    """Have the sequences that want their rows take them; `parts`: of each sequence."""
    for place in append_each(parts, hidden_states):
        sequence, (_, first, count) = sequences[place], parts[place]
        if sequence.wants_rows:
            sequence.take(hidden_states[first : first + count])


def _wanted(logprobs: Sequence[RowLogprob | None]) -> tuple[RowLogprob, ...]:
    return tuple(found for found in logprobs if found is not None)


def _draft(
    drafter: MtpDrafter | None,
    plan: StepPlan,
    decoded: Sequence[SequenceState],
    read: Sequence[SequenceState],
) -> int:
    """Draft where the plan wants it; returns how many rows waited."""
    if drafter is None or not plan.keeps_rows:
        return 0
    requests: list[DraftRequest] = []
    turns: list[SequenceState] = []
    lets_all_wait = drafter.lets_all_wait
    for part, sequence in zip(plan.decode, decoded, strict=True):
        if lets_all_wait and not part.drafts and not sequence.drafts:
            continue
        wanted = sequence.most_drafts(part.drafts)
        if sequence.drafts:
            # Made for a pass that failed.
            sequence.drafts = sequence.drafts[:wanted]
        elif wanted > 0 or (sequence.mtp is not None and sequence.mtp.is_behind):
            requests.append(sequence.draft_request(wanted))
            turns.append(sequence)
    for sequence in read:
        if sequence.mtp is not None and sequence.mtp.is_behind:
            requests.append(sequence.draft_request(0))
            turns.append(sequence)
    if not requests:
        return 0
    num_rows = sum(max(request.state.behind[: request.num_drafts or None]) for request in requests)
    for turn, drafts in zip(turns, drafter.draft(requests), strict=True):
        turn.drafts = drafts
    return num_rows


def _prompt_ends(
    read: Sequence[SequenceState], decode_rows: int, batch: Sequence[SequenceSlice]
) -> Iterator[int]:
    """Rows of the last tokens of prompts that end in this pass; `batch`: the prompts' slices."""
    row = decode_rows
    for sequence, part in zip(read, batch, strict=True):
        row += part.num_tokens
        if sequence.ends_prompt:
            yield row - 1
