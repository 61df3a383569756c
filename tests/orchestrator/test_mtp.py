"""MTP drafts against a plain re-implementation, through prefill chunks, acceptances and rejections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.generate import GenerationParams, new_sequence, prefill, step
from orchestrator.model.mtp import DraftRequest, MtpDrafter
from orchestrator.model.mtp_state import MtpState
from orchestrator.model.step35 import Step35Model
from orchestrator.sampling import Choice, LogitsInRam, Sampler
from orchestrator.sampling_params import GREEDY
from placement.errors import InputError
from tests.orchestrator.heads import hidden_states, load_model
from tests.orchestrator.plain_mtp import PlainMtp
from tests.tiny_checkpoint import write_random_checkpoint


class Recording(MtpDrafter):
    """Remembers what it drafted for one sequence: how many tokens that had, and the drafts."""

    def __init__(self, model: Step35Model, num_layers: int) -> None:
        super().__init__(model, num_layers)
        self.made: list[tuple[int, list[int]]] = []

    def draft(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        drafts = super().draft(requests)
        self.made.append((len(requests[0].tokens), list(drafts[0])))
        return drafts


def tiny_vocab_checkpoint(directory: Path, seed: int = 11) -> Path:
    """Six tokens, so that chance accepts a fair share of a random model's drafts."""
    return write_random_checkpoint(directory, seed=seed, vocab_size=6, swiglu_limits_shared={6: 0.2, 8: 0.1})


@pytest.mark.parametrize(
    ("num_layers", "chunk_size"),
    [
        (1, 5),
        (2, 64),
        (3, 1),
        (3, 5),
        *(pytest.param(*case, marks=pytest.mark.long) for case in ((1, 1), (1, 64), (2, 1), (2, 5), (3, 64))),
    ],
)
def test_every_draft_is_the_plain_implementations(num_layers: int, chunk_size: int, tmp_path: Path) -> None:
    model_dir = tiny_vocab_checkpoint(tmp_path)
    model, plain = load_model(model_dir), PlainMtp(model_dir)
    drafter = Recording(model, num_layers)
    prompt = torch.randint(6, (21,), generator=torch.Generator().manual_seed(3)).tolist()
    params = GenerationParams(max_tokens=60, mtp=num_layers, ignore_eos=True)
    sequence = new_sequence(model, drafter, prompt, params)
    prefill(model, drafter, sequence, chunk_size)
    while sequence.finish_reason is None:
        step(model, drafter, [sequence])
    compared = 0
    rows = hidden_states(model, sequence.tokens)
    for length, drafts in drafter.made:
        expected = plain.draft_logits(rows[: length - 1], sequence.tokens[:length], drafts)
        for draft, logits in zip(drafts, expected, strict=True):
            logits[list(model.config.eos_token_ids)] = -torch.inf
            assert draft == int(logits.argmax())
            compared += 1
    assert compared > 40
    assert 0 < sum(sequence.accepted) < sum(sequence.drafted)
    if num_layers > 1:
        assert sequence.accepted[1] > 0


def greedy(drafts: list[int]) -> Choice:
    return Sampler(GREEDY).choice(len(drafts))


def seen_by_drafters(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Logits from which drafts are chosen from now on."""
    seen: list[torch.Tensor] = []

    def noted(rows: torch.Tensor) -> LogitsInRam:
        seen.extend(rows)
        return LogitsInRam(rows)

    monkeypatch.setattr("orchestrator.model.mtp.LogitsInRam", noted)
    return seen


def test_draft_logits_are_the_plain_implementations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_dir = write_random_checkpoint(tmp_path, seed=12)
    model, plain = load_model(model_dir), PlainMtp(model_dir)
    drafter = MtpDrafter(model, 3)
    tokens = torch.randint(320, (30,), generator=torch.Generator().manual_seed(4)).tolist()
    rows = hidden_states(model, tokens[:-1])
    seen = seen_by_drafters(monkeypatch)
    drafts = drafter.draft([DraftRequest(drafter.new_state(), rows, tokens, 3, greedy)])[0]
    expected = plain.draft_logits(rows, tokens, drafts)
    for ours, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("cuts", [[29], [1] * 29, [10, 1, 2, 16]])
def test_draft_logits_have_the_same_bits_however_the_rows_came(
    cuts: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(write_random_checkpoint(tmp_path, seed=13))
    drafter = MtpDrafter(model, 3)
    tokens = torch.randint(320, (30,), generator=torch.Generator().manual_seed(5)).tolist()
    rows = hidden_states(model, tokens[:-1])

    seen = seen_by_drafters(monkeypatch)

    def drafts_after(pieces: list[int]) -> tuple[list[int], torch.Tensor]:
        state = drafter.new_state()
        start = 0
        for size in pieces:
            stop = start + size
            # Drafts asked for on the way leave tentative slots behind, which must not be seen later.
            asked = DraftRequest(state, rows[start:stop], tokens[: stop + 1], 3, greedy)
            seen.clear()
            chosen = drafter.draft([asked])[0]
            start = stop
        return chosen, torch.stack(seen)

    whole, cut = drafts_after([29]), drafts_after(cuts)
    assert whole[0] == cut[0]
    assert torch.equal(whole[1], cut[1])


@pytest.mark.parametrize("depths", [[1], [2, 1], [1, 1, 2, 0, 3], [None], [1, *[None] * 180, 2]])
def test_draft_logits_have_the_same_bits_whatever_depths_were_asked_for_before(
    depths: list[int | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows wait where nobody asks. The text is so long that most of what waits is never computed."""
    model = load_model(write_random_checkpoint(tmp_path, seed=13))
    drafter = MtpDrafter(model, 3)
    tokens = torch.randint(320, (300,), generator=torch.Generator().manual_seed(6)).tolist()
    rows = hidden_states(model, tokens[:-1])
    seen = seen_by_drafters(monkeypatch)

    def drafts_after(wanted: list[int | None]) -> tuple[list[int], list[torch.Tensor], MtpState]:
        state, asked, start = drafter.new_state(), [*wanted, 3], 0
        for place, depth in enumerate(asked):
            stop = len(rows) if place == len(asked) - 1 else start + 1
            seen.clear()
            if depth is None:
                state.defer(rows[start:stop])
                start = stop
                continue
            request = DraftRequest(state, rows[start:stop], tokens[: stop + 1], depth, greedy)
            chosen = drafter.draft([request])[0]
            start = stop
        return chosen, list(seen), state

    pattern = (depths * 300)[:296]
    whole, cut = drafts_after([]), drafts_after(pattern)
    assert whole[0] == cut[0]
    assert all(map(torch.equal, whole[1], cut[1]))
    assert [cache.length for cache in whole[2].caches] == [cache.length for cache in cut[2].caches]
    assert [max(map(len, of[2].rows)) for of in (whole, cut)] == [1, 1]
    assert tuple(whole[2].behind) == tuple(cut[2].behind) == (0, 1, 2)


@pytest.mark.parametrize("begin", [1, 20, 150])
def test_a_text_that_the_layers_have_from_a_position_on_has_the_bits_of_one_that_begins_there(
    begin: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(write_random_checkpoint(tmp_path, seed=13))
    drafter = MtpDrafter(model, 3)
    tokens = torch.randint(320, (240,), generator=torch.Generator().manual_seed(8)).tolist()
    rows = hidden_states(model, tokens[:-1])
    seen = seen_by_drafters(monkeypatch)

    def drafts_of(state: MtpState, tokens: Sequence[int]) -> list[torch.Tensor]:
        """One each 30 rows, and three at the end, where a row was put back and came again."""
        start, first = begin, len(tokens) - len(rows) - 1 + begin
        for stop in range(begin + 30, len(rows) - 1, 30):
            request = DraftRequest(state, rows[start:stop], tokens[: first + stop - begin + 1], 1, greedy)
            drafter.draft([request])
            start = stop
        state.defer(rows[start:])
        state.forget(first + len(rows) - begin - 1)
        seen.clear()
        drafter.draft([DraftRequest(state, rows[-1:], tokens, 3, greedy)])
        return list(seen)

    late, alone = drafter.new_state(), drafter.new_state()
    late.begin_at(begin)
    found, expected = drafts_of(late, tokens), drafts_of(alone, tokens[begin:])
    assert len(found) == 3
    assert all(map(torch.equal, found, expected))
    assert tuple(late.behind) == tuple(alone.behind)


def counted_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that each of three layers computes from now on."""
    rows = [0, 0, 0]
    real = MtpDrafter._forward

    def counted(self: MtpDrafter, k: int, token_ids: list[int], *rest: Any) -> torch.Tensor:
        rows[k] += len(token_ids)
        return real(self, k, token_ids, *rest)

    monkeypatch.setattr(MtpDrafter, "_forward", counted)
    return rows


def test_layers_that_nobody_asks_for_compute_no_row_and_later_those_that_drafts_hang_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of eight: three layers reach 21 slots back, from a row a page and six before the newest."""
    model = load_model(write_random_checkpoint(tmp_path, seed=13))
    drafter = MtpDrafter(model, 3)
    tokens = torch.randint(320, (602,), generator=torch.Generator().manual_seed(6)).tolist()
    rows = hidden_states(model, tokens[:-1])
    state = drafter.new_state()
    computed = counted_rows(monkeypatch)
    state.defer(rows[:200])
    for place in range(200, 400):
        state.defer(rows[place : place + 1])
        # Whole pages: the newest one, and what is forgotten only when that was begun.
        assert state.deferred <= 156 + 2 * 128
    assert tuple(state.behind) == (156, 149, 142)
    assert computed == [0, 0, 0]
    for place in range(400, 600):
        drafter.draft([DraftRequest(state, rows[place : place + 1], tokens[: place + 2], 1, greedy)])
    assert computed == [156 + 199, 0, 0]
    drafter.draft([DraftRequest(state, rows[600:], tokens, 3, greedy)])
    assert computed == [156 + 200, 149, 142]
    assert tuple(state.behind) == (0, 1, 2)


def test_asking_for_more_layers_than_the_checkpoint_has(tmp_path: Path) -> None:
    model = load_model(write_random_checkpoint(tmp_path, seed=14, num_mtp_layers=1))
    MtpDrafter(model, 1)
    with pytest.raises(InputError, match="has 1 MTP layers"):
        MtpDrafter(model, 2)
