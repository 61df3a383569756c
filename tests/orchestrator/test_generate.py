"""The decode loop: ends, limits, counts, bad input, and the distribution of sampled tokens."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from orchestrator.generate import GenerationParams, generate, new_sequence, prefill, step
from orchestrator.model.mtp import MtpDrafter
from orchestrator.model.step35 import Step35Model
from orchestrator.sampling_params import SamplingParams
from placement.errors import InputError
from tests.orchestrator.chi_square import p_value
from tests.orchestrator.heads import hidden_states, load_model
from tests.tiny_checkpoint import write_random_checkpoint

VOCAB = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Step35Model:
    directory: Path = tmp_path_factory.mktemp("checkpoint")
    return load_model(write_random_checkpoint(directory, seed=31, vocab_size=VOCAB))


def prompt(seed: int, count: int = 12) -> list[int]:
    return torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_generation_ends_at_an_end_token_even_inside_accepted_drafts(model: Step35Model) -> None:
    ended_in_drafts = 0
    for seed in range(16):
        plain = generate(model, prompt(seed), GenerationParams(max_tokens=30))
        drafted = generate(model, prompt(seed), GenerationParams(max_tokens=30, mtp=3))
        assert drafted.token_ids == plain.token_ids
        assert drafted.finish_reason == plain.finish_reason
        ends = [token_id in model.config.eos_token_ids for token_id in plain.token_ids]
        assert not any(ends[:-1])
        assert (plain.finish_reason == "stop") == ends[-1]
        # A step gives its accepted drafts and one token more, unless a draft was the end.
        missing = 1 + drafted.steps + drafted.accepted_drafts - len(drafted.token_ids)
        assert missing in (0, 1)
        ended_in_drafts += missing
    assert ended_in_drafts > 0


@pytest.mark.parametrize("mtp", [0, 3])
def test_end_tokens_are_never_chosen_when_ignored(model: Step35Model, mtp: int) -> None:
    for temperature in (0.0, 1.5):
        params = GenerationParams(
            max_tokens=60, mtp=mtp, ignore_eos=True, sampling=SamplingParams(temperature)
        )
        result = generate(model, prompt(3), params)
        assert len(result.token_ids) == 60
        assert result.finish_reason == "length"
        assert not set(result.token_ids) & set(model.config.eos_token_ids)


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 4, 5])
def test_no_draft_goes_beyond_max_tokens(model: Step35Model, max_tokens: int) -> None:
    params = GenerationParams(max_tokens=max_tokens, mtp=3, ignore_eos=True)
    result = generate(model, prompt(4), params)
    assert len(result.token_ids) == max_tokens
    assert result.drafted <= sum(min(3, left - 1) for left in range(max_tokens, 0, -1) if left > 1)
    assert len(result.token_ids) == 1 + result.steps + result.accepted_drafts
    if max_tokens == 2:
        assert result.drafted == 0


def test_counts_and_callbacks_agree(model: Step35Model) -> None:
    pieces: list[list[int]] = []
    params = GenerationParams(max_tokens=50, mtp=3, ignore_eos=True)
    result = generate(model, prompt(5), params, on_tokens=pieces.append)
    assert [token_id for piece in pieces for token_id in piece] == list(result.token_ids)
    assert len(pieces) == 1 + result.steps
    assert result.accepted_drafts_per_step == result.accepted_drafts / result.steps
    drafted, accepted = result.drafted_by_position, result.accepted_by_position
    assert list(accepted) == sorted(accepted, reverse=True)
    assert all(a <= d for a, d in zip(accepted, drafted, strict=True))
    assert sum(result.time_s.values()) == pytest.approx(result.decode_s, rel=0.2)
    assert {"attention", "router", "local_experts", "mtp", "lm_head"} <= set(result.time_s)


def test_the_same_seed_gives_the_same_tokens_and_another_one_others(model: Step35Model) -> None:
    def tokens(seed: int) -> tuple[int, ...]:
        params = GenerationParams(max_tokens=40, mtp=2, sampling=SamplingParams(seed=seed), ignore_eos=True)
        return generate(model, prompt(6), params).token_ids

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


@pytest.mark.parametrize("sampling", [SamplingParams(seed=3), SamplingParams(1.3, 4, 0.9, 0.05, 8)])
def test_drafts_and_sequences_beside_change_no_sampled_token(
    model: Step35Model, sampling: SamplingParams
) -> None:
    first, other = prompt(9), prompt(10, 7)
    params = [GenerationParams(40, sampling, ignore_eos=True, mtp=mtp) for mtp in (0, 1, 3)]
    plain, *drafted = (generate(model, first, settings).token_ids for settings in params)
    assert drafted == [plain, plain]
    drafter = MtpDrafter(model, 3)
    together = [new_sequence(model, drafter, ids, params[2]) for ids in (first, other)]
    for sequence in together:
        prefill(model, drafter, sequence, params[2].chunk_size)
    while running := [sequence for sequence in together if sequence.finish_reason is None]:
        step(model, drafter, running)
    assert tuple(together[0].generated) == plain
    assert sum(together[0].accepted) > 0


@pytest.mark.parametrize(
    ("mtp", "batches"),
    [
        (0, 2),
        (3, 2),
        pytest.param(0, 20, marks=pytest.mark.long),
        pytest.param(3, 20, marks=pytest.mark.long),
    ],
)
def test_sampled_tokens_follow_the_trunks_distribution(model: Step35Model, mtp: int, batches: int) -> None:
    """Joint distribution of tokens two to four, against the exact probabilities of all continuations."""
    temperature, batch_size = 1.0, 100
    first = prompt(7, 5)
    drafter = MtpDrafter(model, mtp) if mtp else None
    allowed = [token for token in range(VOCAB) if token not in model.config.eos_token_ids]

    def probabilities(tokens: list[int]) -> list[float]:
        logits = model.logits(hidden_states(model, tokens)[-1:])[0].double() / temperature
        return logits[allowed].softmax(0).tolist()

    paths: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(4):
        paths = {
            (*tokens, token): mass * share
            for tokens, mass in paths.items()
            for token, share in zip(allowed, probabilities([*first, *tokens]), strict=True)
        }
    exact: Counter[tuple[int, ...]] = Counter()
    for tokens, mass in paths.items():
        exact[tokens[1:]] += mass

    counts: Counter[tuple[int, ...]] = Counter()
    accepted = 0
    for batch in range(batches):
        sequences = [
            new_sequence(
                model,
                drafter,
                first,
                GenerationParams(
                    max_tokens=4, sampling=SamplingParams(temperature, seed=batch * 1000 + n), ignore_eos=True
                ),
            )
            for n in range(batch_size)
        ]
        for sequence in sequences:
            prefill(model, drafter, sequence, 256)
        while running := [sequence for sequence in sequences if sequence.finish_reason is None]:
            step(model, drafter, running)
        counts.update(tuple(sequence.generated[1:]) for sequence in sequences)
        accepted += sum(sum(sequence.accepted) for sequence in sequences)
    total = batch_size * batches
    # Rare continuations are counted together, as a chi-square test needs.
    common = [tokens for tokens, mass in exact.items() if mass * total >= 5]
    observed = [counts[tokens] for tokens in common]
    expected = [exact[tokens] * total for tokens in common]
    observed.append(total - sum(observed))
    expected.append(total - sum(expected))
    assert p_value(observed, expected) > 0.001
    assert (accepted > 0) == (mtp > 0)


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [([], "prompt is empty"), ([0, VOCAB], "outside the vocabulary"), ([-1], "outside the vocabulary")],
)
def test_prompts_the_model_cannot_take(model: Step35Model, token_ids: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate(model, token_ids, GenerationParams(max_tokens=1))


def test_more_positions_than_the_model_has(model: Step35Model) -> None:
    with pytest.raises(InputError, match="4,096 positions"):
        generate(model, prompt(8), GenerationParams(max_tokens=4090))


def test_more_drafts_than_mtp_layers(model: Step35Model) -> None:
    with pytest.raises(InputError, match="has 3 MTP layers"):
        generate(model, prompt(8), GenerationParams(mtp=4))


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_tokens", 0), ("chunk_size", 0), ("mtp", -1)],
)
def test_parameters_out_of_range(field: str, value: int) -> None:
    with pytest.raises(InputError, match=field):
        GenerationParams(**{field: value})
