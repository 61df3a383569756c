"""Steps of many sequences: each gets what it gets alone, whatever shares its passes."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.generate import GenerationParams, generate, new_sequence
from orchestrator.model.attention import SequenceSlice
from orchestrator.model.mtp import DraftRequest, MtpDrafter
from orchestrator.model.rows_behind import CONTEXT_ROWS, RowsBehind
from orchestrator.model.step35 import Step35Model
from orchestrator.prefix.cache import PrefixCache
from orchestrator.sampling import Sampler
from orchestrator.sampling_params import GREEDY
from orchestrator.scheduling.step_plan import Decode, Prefill, StepPlan
from orchestrator.sequence import SequenceState
from orchestrator.serving import batch
from orchestrator.serving.batch import run_step
from placement.errors import KvDoesNotFit
from placement.kv_size import MOST_DEFERRED
from tests.examples import examples
from tests.orchestrator.heads import load_model
from tests.orchestrator.prefix.begun import begun
from tests.tiny_checkpoint import write_random_checkpoint

VOCAB = 6
LENGTHS = ((3, 12), (40, 9), (1, 20), (17, 1), (25, 2), (9, 30))
"""Of each sequence: prompt, most tokens behind it."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Step35Model:
    """Six tokens, so that chance accepts a fair share of a random model's drafts."""
    directory: Path = tmp_path_factory.mktemp("checkpoint")
    return load_model(write_random_checkpoint(directory, seed=31, vocab_size=VOCAB))


@pytest.fixture(scope="module")
def alone(model: Step35Model) -> list[tuple[int, ...]]:
    """Tokens of each sequence without others and without drafts."""
    return [generate(model, prompt(number), params_of(number)).token_ids for number in range(len(LENGTHS))]


def prompt(number: int) -> list[int]:
    generator = torch.Generator().manual_seed(100 + number)
    return torch.randint(VOCAB, (LENGTHS[number][0],), generator=generator).tolist()


def params_of(number: int) -> GenerationParams:
    """Two of them may end with an end token."""
    return GenerationParams(max_tokens=LENGTHS[number][1], ignore_eos=number > 1)


def started(model: Step35Model, drafter: MtpDrafter | None, number: int) -> SequenceState:
    return new_sequence(model, drafter, prompt(number), params_of(number))


def drawn_step(chance: Random, running: dict[int, SequenceState]) -> StepPlan:
    """Any plan over some of the sequences, with at least one row."""
    pause = {number for number in running if chance.random() < 0.04}
    decode, prefill = [], []
    for number in chance.sample(sorted(running), chance.randint(1, len(running))):
        if running[number].to_prefill or number in pause:
            prefill.append(Prefill(number, chance.randint(1, 30)))
        else:
            decode.append(Decode(number, chance.randint(0, 3)))
    return StepPlan(tuple(decode), tuple(prefill), tuple(sorted(pause)), keeps_rows=chance.random() < 0.8)


@examples(12)
@given(seed=st.integers(0, 2**32), num_layers=st.integers(0, 3))
def test_any_mix_of_steps_gives_each_sequence_the_tokens_that_it_gets_alone(
    model: Step35Model, alone: list[tuple[int, ...]], seed: int, num_layers: int
) -> None:
    drafter = MtpDrafter(model, num_layers) if num_layers else None
    chance = Random(seed)
    waiting = chance.sample(range(len(LENGTHS)), len(LENGTHS))
    running: dict[int, SequenceState] = {}
    ended: dict[int, SequenceState] = {}
    while waiting or running:
        while waiting and (not running or chance.random() < 0.3):
            number = waiting.pop()
            running[number] = started(model, drafter, number)
        plan = drawn_step(chance, running)
        before = {number: len(sequence.tokens) for number, sequence in running.items()}
        outcome = run_step(model, drafter, running, plan)
        assert set(outcome.by_sequence) == set(plan.sequences)
        for number, advance in outcome.by_sequence.items():
            sequence = running[number]
            assert tuple(sequence.tokens[before[number] :]) == advance.tokens
            assert advance.accepted <= advance.drafted
            assert advance.ended == sequence.finish_reason
            if advance.ended is not None:
                ended[number] = running.pop(number)
    assert [tuple(ended[number].generated) for number in range(len(LENGTHS))] == alone


def test_drafts_are_accepted_in_steps_that_prompts_share(model: Step35Model) -> None:
    """So that the test above sees drafts that hold and drafts that do not."""
    drafter = MtpDrafter(model, 3)
    sequences = {0: started(model, drafter, 5), 1: started(model, drafter, 1)}
    run_step(model, drafter, sequences, StepPlan(prefill=(Prefill(0, 30),)))
    while sequences[0].finish_reason is None:
        prefill = (Prefill(1, 2),) if sequences[1].to_prefill else ()
        run_step(model, drafter, sequences, StepPlan((Decode(0, 3),), prefill))
    assert 0 < sum(sequences[0].accepted) < sum(sequences[0].drafted)


def test_a_step_is_one_pass_and_one_of_each_mtp_layer(
    model: Step35Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = MtpDrafter(model, 3)
    sequences = {number: started(model, drafter, number) for number in (0, 1, 5)}
    run_step(model, drafter, sequences, StepPlan(prefill=(Prefill(0, 3), Prefill(5, 9))))
    passes: list[list[int]] = []
    forward = model.forward

    def counted(token_ids: torch.Tensor, slices: list[SequenceSlice]) -> torch.Tensor:
        passes.append([part.num_tokens for part in slices])
        return forward(token_ids, slices)

    monkeypatch.setattr(model, "forward", counted)
    model.timer.reset()
    plan = StepPlan((Decode(0, 3), Decode(5, 1)), (Prefill(1, 7),))
    outcome = run_step(model, drafter, sequences, plan)
    assert passes == [[4, 2, 7]]
    # What the MTP layers took in: the rows of both prompts.
    assert outcome.drafting_rows == 12
    assert outcome.drafting_s > 0


def test_nothing_is_drafted_for_nobody_and_rows_wait_for_the_mtp_layers(model: Step35Model) -> None:
    drafter = Counting(model, 3)
    sequence = new_sequence(model, drafter, prompt(5), GenerationParams(max_tokens=200, ignore_eos=True))
    sequences = {0: sequence}
    run_step(model, drafter, sequences, StepPlan(prefill=(Prefill(0, 9),)))
    for _ in range(70):
        run_step(model, drafter, sequences, StepPlan((Decode(0, 0),)))
    assert not drafter.rows
    assert tuple(RowsBehind(sequence.cache.length, sequence.layer_bounds)) == (79, 79, 79)
    run_step(model, drafter, sequences, StepPlan((Decode(0, 3),)))
    expected = generate(model, prompt(5), GenerationParams(max_tokens=200, ignore_eos=True))
    assert expected.token_ids[: len(sequence.generated)] == tuple(sequence.generated)


def test_rows_are_kept_again_from_where_a_sequence_is(model: Step35Model) -> None:
    """Meanwhile they have no pages, and nobody is told that drafts can be made."""
    drafter, params = MtpDrafter(model, 3), GenerationParams(max_tokens=200, ignore_eos=True)
    sequence = new_sequence(model, drafter, prompt(5), params)
    sequences, pool = {0: sequence}, model.kv_pool

    def told(plan: StepPlan) -> bool:
        (advance,) = run_step(model, drafter, sequences, plan).advances
        return advance.may_draft

    def decoded(steps: int, *, keeps_rows: bool) -> list[bool]:
        return [told(StepPlan((Decode(0),), keeps_rows=keeps_rows)) for _ in range(steps)]

    before = pool.used_bytes
    assert told(StepPlan(prefill=(Prefill(0, 9),)))
    assert all(decoded(3, keeps_rows=True))
    state = sequence.mtp
    assert not any(decoded(50, keeps_rows=False))
    assert sequence.mtp is None
    assert state is not None
    assert pool.used_bytes == before + sequence.cache.nbytes
    # It is told of the rows that a sequence had before the step.
    assert decoded(CONTEXT_ROWS + 1, keeps_rows=True) == [*[False] * CONTEXT_ROWS, True]
    assert tuple(RowsBehind(sequence.cache.length, sequence.layer_bounds)) == (CONTEXT_ROWS + 1,) * 3
    outcome = run_step(model, drafter, sequences, StepPlan((Decode(0, 3),)))
    assert outcome.drafting_rows == CONTEXT_ROWS + 1
    assert outcome.advances[0].drafted == 3
    expected = generate(model, prompt(5), params)
    assert expected.token_ids[: len(sequence.generated)] == tuple(sequence.generated)
    sequence.close()


def test_drafts_of_a_pass_that_failed_are_forgotten_with_the_rows(
    model: Step35Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = MtpDrafter(model, 3)
    sequences = {0: started(model, drafter, 5)}
    run_step(model, drafter, sequences, StepPlan(prefill=(Prefill(0, 9),)))
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", failing)
        with pytest.raises(KvDoesNotFit):
            run_step(model, drafter, sequences, StepPlan((Decode(0, 3),)))
    (advance,) = run_step(model, drafter, sequences, StepPlan((Decode(0),), keeps_rows=False)).advances
    assert (advance.drafted, len(advance.tokens)) == (0, 1)


def test_a_sequence_may_begin_without_rows(model: Step35Model) -> None:
    drafter = MtpDrafter(model, 3)
    sequence = SequenceState(model, drafter, prompt(1), Sampler(GREEDY), LENGTHS[1][1], (), keeps_rows=False)
    sequences = {1: sequence}
    run_step(model, drafter, sequences, StepPlan(prefill=(Prefill(1, 15),), keeps_rows=False))
    assert not sequence.may_draft
    run_step(model, drafter, sequences, StepPlan(prefill=(Prefill(1, 25),)))
    assert tuple(RowsBehind(sequence.cache.length, sequence.layer_bounds)) == (25, 25, 25)
    while sequence.finish_reason is None:
        run_step(model, drafter, sequences, StepPlan((Decode(1, 2),)))
    expected = generate(model, prompt(1), GenerationParams(max_tokens=LENGTHS[1][1], ignore_eos=True))
    assert tuple(sequence.generated) == expected.token_ids
    sequence.close()


def test_layers_without_a_window_begin_again_too(tmp_path: Path) -> None:
    """Such a layer takes in all rows from there on, some at a time."""
    path = write_random_checkpoint(tmp_path, seed=31, vocab_size=VOCAB, num_sliding_heads=4)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config["layer_types"][-3:] = ["full_attention"] * 3
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = load_model(path)
    drafter = MtpDrafter(model, 1)
    assert not drafter.lets_all_wait
    params = GenerationParams(max_tokens=120, ignore_eos=True)
    sequence = new_sequence(model, drafter, prompt(1), params)
    run_step(model, drafter, {0: sequence}, StepPlan(prefill=(Prefill(0, 20),), keeps_rows=False))
    run_step(model, drafter, {0: sequence}, StepPlan(prefill=(Prefill(0, 20),)))
    while sequence.finish_reason is None:
        run_step(model, drafter, {0: sequence}, StepPlan((Decode(0, int(sequence.remaining < 20)),)))
        assert sequence.mtp is not None
        assert sequence.mtp.deferred <= MOST_DEFERRED
    assert sequence.mtp.first_position == 20
    assert sum(sequence.drafted) > 0
    assert tuple(sequence.generated) == generate(model, prompt(1), params).token_ids


class Counting(MtpDrafter):
    """Remembers the rows that each call of it took in."""

    def __init__(self, model: Step35Model, num_layers: int) -> None:
        super().__init__(model, num_layers)
        self.rows: list[int] = []

    def draft(self, requests: list[DraftRequest]) -> list[list[int]]:  # type: ignore[override]
        self.rows.append(sum(request.state.deferred for request in requests))
        return super().draft(requests)


def test_the_mtp_layers_get_no_more_rows_at_a_time_than_a_pass_may_have(
    model: Step35Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    forward = MtpDrafter._forward

    def counted(self: MtpDrafter, k: int, token_ids: list[int], *rest: Any) -> torch.Tensor:
        passes.append(len(token_ids))
        return forward(self, k, token_ids, *rest)

    monkeypatch.setattr(MtpDrafter, "_forward", counted)
    drafter = MtpDrafter(model, 2, pass_rows=20)
    sequences = {number: started(model, drafter, number) for number in (1, 3, 4)}
    while any(of.to_prefill for of in sequences.values()):
        reading = [Prefill(number, of.to_prefill) for number, of in sequences.items() if of.to_prefill]
        run_step(model, drafter, sequences, StepPlan(prefill=tuple(reading)))
    assert not passes
    run_step(model, drafter, sequences, StepPlan(tuple(Decode(number, 2) for number in sequences)))
    assert max(passes) <= 20
    assert len(passes) > 2


def test_a_pass_that_failed_is_run_again_as_if_nothing_had_happened(
    model: Step35Model, alone: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = MtpDrafter(model, 3)
    sequence = started(model, drafter, 5)
    sequences = {0: sequence}
    run_step(model, drafter, sequences, StepPlan(prefill=(Prefill(0, 9),)))
    plan = StepPlan((Decode(0, 3),))
    while sequence.finish_reason is None:
        with monkeypatch.context() as patch:
            patch.setattr(model, "forward", failing)
            with pytest.raises(KvDoesNotFit):
                run_step(model, drafter, sequences, plan)
        run_step(model, drafter, sequences, plan)
    assert tuple(sequence.generated) == alone[5]


def failing(_token_ids: torch.Tensor, _slices: list[SequenceSlice]) -> torch.Tensor:
    raise KvDoesNotFit("no page is free")


def test_a_step_whose_rows_have_no_room_to_wait_leaves_all_tokens_as_they_were(
    model: Step35Model, alone: list[tuple[int, ...]]
) -> None:
    """Its pass had room, and one sequence had taken its rows and tokens."""
    drafter, pool = MtpDrafter(model, 3), model.kv_pool
    sequences = {number: started(model, drafter, number) for number in (5, 1)}
    run_step(model, drafter, sequences, StepPlan(prefill=(Prefill(5, 9),)))
    run_step(model, drafter, sequences, StepPlan((Decode(5, 3),)))
    before = {number: list(sequence.tokens) for number, sequence in sequences.items()}
    budget_bytes = pool.budget_bytes
    pool.budget_bytes = pool.used_bytes + sum(of.kv.page_bytes for of in sequences[1].cache.layers)
    with pytest.raises(KvDoesNotFit, match="rows that wait"):
        run_step(model, drafter, sequences, StepPlan((Decode(5, 3),), (Prefill(1, 40),)))
    pool.budget_bytes = budget_bytes
    assert {number: sequence.tokens for number, sequence in sequences.items()} == before
    for number, sequence in sequences.items():
        run_step(model, drafter, sequences, StepPlan(prefill=(Prefill(number, 40),), pause=(number,)))
        while sequence.finish_reason is None:
            run_step(model, drafter, sequences, StepPlan((Decode(number, 3),)))
        assert tuple(sequence.generated) == alone[number]
        sequence.close()


def test_a_paused_sequence_gives_its_pages_back(model: Step35Model) -> None:
    drafter = MtpDrafter(model, 3)
    before = model.kv_pool.used_bytes
    sequences = {0: started(model, drafter, 5)}
    run_step(model, drafter, sequences, StepPlan(prefill=(Prefill(0, 9),)))
    run_step(model, drafter, sequences, StepPlan((Decode(0, 3),)))
    assert model.kv_pool.used_bytes > before
    outcome = run_step(model, drafter, sequences, StepPlan(pause=(0,)))
    assert outcome.advances == ()
    assert model.kv_pool.used_bytes == before
    assert sequences[0].to_prefill == len(sequences[0].tokens) - 1


def test_rows_of_each_position_are_told_once_whatever_is_computed_again(model: Step35Model) -> None:
    expected: list[torch.Tensor] = []
    generate(model, prompt(5), params_of(5), on_hidden=lambda rows: expected.append(rows.clone()))
    drafter = MtpDrafter(model, 3)
    found: list[torch.Tensor] = []
    sequence = new_sequence(model, drafter, prompt(5), params_of(5), lambda rows: found.append(rows.clone()))
    steps = 0
    while sequence.finish_reason is None:
        steps += 1
        pause = (0,) if steps % 7 == 0 else ()
        if pause or sequence.to_prefill:
            plan = StepPlan(prefill=(Prefill(0, 20),), pause=pause)
        else:
            plan = StepPlan((Decode(0, steps % 4),))
        run_step(model, drafter, {0: sequence}, plan)
    assert torch.equal(torch.cat(found), torch.cat(expected))


def test_a_text_is_kept_as_far_when_deeper_mtp_layers_had_let_rows_wait(model: Step35Model) -> None:
    lengths = []
    for drafts in (1, 3):
        drafter = MtpDrafter(model, 3)
        sequence = new_sequence(model, drafter, prompt(5), GenerationParams(max_tokens=40, ignore_eos=True))
        sequence.prefix = PrefixCache.of(model)
        run_step(model, drafter, {0: sequence}, StepPlan(prefill=(Prefill(0, 9),)))
        while sequence.finish_reason is None:
            run_step(model, drafter, {0: sequence}, StepPlan((Decode(0, drafts),)))
        assert sequence.mtp is not None
        assert (max(map(len, sequence.mtp.rows)) > 8) == (drafts == 1)
        batch.keep_text(sequence)
        lengths.append(begun(sequence.prefix, model, sequence.tokens, drafter).matched)
        sequence.close()
        sequence.prefix.close()
    # Of all tokens but the newest, those whose MTP slots need no token behind them.
    assert lengths[0] > 40
    assert abs(lengths[0] - lengths[1]) <= 3


def test_a_text_that_lacks_room_for_what_is_kept_of_it_begins_again(model: Step35Model) -> None:
    """Its whole pages are shared, but there is no page for its last rows."""
    drafter, pool = MtpDrafter(model, 3), model.kv_pool
    prefix, params = PrefixCache.of(model), GenerationParams(max_tokens=40, ignore_eos=True)
    first = new_sequence(model, drafter, prompt(5), params, prefix=prefix)
    run_step(model, drafter, {0: first}, StepPlan(prefill=(Prefill(0, 9),)))
    while first.finish_reason is None:
        run_step(model, drafter, {0: first}, StepPlan((Decode(0, 0),)))
    batch.keep_text(first)
    second = new_sequence(model, drafter, first.tokens, params, prefix=prefix)
    plan, budget_bytes = StepPlan(prefill=(Prefill(0, 9),)), pool.budget_bytes
    pool.budget_bytes = used_bytes = pool.used_bytes
    with pytest.raises(KvDoesNotFit):
        run_step(model, drafter, {0: second}, plan)
    assert (pool.used_bytes, second.cache.length, second.matched) == (used_bytes, 0, 0)
    # A try that found no room is none.
    assert (prefix.stats.asked, prefix.stats.hits, prefix.stats.saved_tokens) == (1, 0, 0)
    pool.budget_bytes = budget_bytes
    run_step(model, drafter, {0: second}, plan)
    assert second.matched > 40
    assert (prefix.stats.asked, prefix.stats.hits, prefix.stats.saved_tokens) == (2, 1, second.matched)
    first.close()
    second.close()
    prefix.close()
    assert pool.used_bytes == pool.kept_bytes == 0
