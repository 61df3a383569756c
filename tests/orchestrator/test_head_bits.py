"""The same row has the same bits whatever the chunks, the batch and the drafts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orchestrator.generate import GenerationParams, new_sequence, prefill, step
from orchestrator.model.attention import SequenceSlice
from orchestrator.model.mtp import MtpDrafter
from orchestrator.model.step35 import Step35Model
from tests.orchestrator.heads import generate_with_hidden, hidden_states, load_model
from tests.tiny_checkpoint import write_random_checkpoint


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Step35Model:
    """Six tokens: chance accepts a fair share of the drafts."""
    directory: Path = tmp_path_factory.mktemp("checkpoint")
    write_random_checkpoint(
        directory, seed=21, vocab_size=6, num_experts=24, dtype=request.param, swiglu_limits={5: 0.2}
    )
    return load_model(directory, request.param)


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(6, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("chunk_size", [1, 7, 33])
def test_prefill_chunks(model: Step35Model, chunk_size: int) -> None:
    prompt = tokens(50, 1)
    assert torch.equal(hidden_states(model, prompt, chunk_size), hidden_states(model, prompt))


def test_a_batch_of_sequences_of_different_lengths(model: Step35Model) -> None:
    sequences = [tokens(40, 2), tokens(3, 3), tokens(17, 4)]
    cuts = [[13, 27], [1, 2], [16, 1]]
    caches = [model.new_cache() for _ in sequences]
    rows: list[list[torch.Tensor]] = [[] for _ in sequences]
    for turn in range(2):
        pieces = [
            sequence[sum(cut[:turn]) : sum(cut[: turn + 1])]
            for sequence, cut in zip(sequences, cuts, strict=True)
        ]
        batch = [SequenceSlice(cache, len(piece)) for cache, piece in zip(caches, pieces, strict=True)]
        flat = [token for piece in pieces for token in piece]
        outputs = model.forward(torch.tensor(flat), batch)
        for own, part in zip(rows, outputs.split([len(piece) for piece in pieces]), strict=True):
            own.append(part)
    for sequence, own in zip(sequences, rows, strict=True):
        assert torch.equal(torch.cat(own), hidden_states(model, sequence))


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.long), 2])
def test_drafts_change_neither_tokens_nor_hidden_states(model: Step35Model, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        expected, expected_rows = None, None
        for mtp in range(4):
            params = GenerationParams(max_tokens=80, mtp=mtp, ignore_eos=True, chunk_size=5 + mtp)
            result, rows = generate_with_hidden(model, tokens(20, 5), params)
            if expected is None or expected_rows is None:
                expected, expected_rows = result.token_ids, rows
                # The rows that made the tokens are those of a single pass over all of them.
                whole = [*tokens(20, 5), *expected[:-1]]
                assert torch.equal(rows, hidden_states(model, whole))
                continue
            assert result.token_ids == expected
            assert torch.equal(rows, expected_rows)
            assert result.accepted_drafts > 0
    finally:
        torch.set_num_threads(1)


def test_sequences_decoded_in_one_batch_get_the_tokens_they_get_alone(model: Step35Model) -> None:
    drafter = MtpDrafter(model, 3)
    prompts = [tokens(9, 6), tokens(30, 7), tokens(1, 8)]
    lengths = [25, 10, 40]
    alone = [
        generate_with_hidden(model, prompt, GenerationParams(max_tokens=n, mtp=3, ignore_eos=True))[0]
        for prompt, n in zip(prompts, lengths, strict=True)
    ]
    sequences = [
        new_sequence(model, drafter, prompt, GenerationParams(max_tokens=n, ignore_eos=True))
        for prompt, n in zip(prompts, lengths, strict=True)
    ]
    for sequence in sequences:
        prefill(model, drafter, sequence, 256)
    while running := [sequence for sequence in sequences if sequence.finish_reason is None]:
        step(model, drafter, running)
    for sequence, result in zip(sequences, alone, strict=True):
        assert tuple(sequence.generated) == result.token_ids
        assert tuple(sequence.accepted) == result.accepted_by_position
