"""Prefixes kept in a card's pages: shared, copied there before they are written, with the CPU's bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from orchestrator.dispatch.dispatcher import Dispatcher
from orchestrator.generate import GenerationParams, generate
from orchestrator.prefix.cache import PrefixCache
from orchestrator.session import load_local
from placement.kv_size import KvForm
from tests.cuda_on_cpu.card import the_card
from tests.orchestrator.gpu.heads_on_cards import on_card
from tests.tiny_checkpoint import write_random_checkpoint
from workers.formats.open_model import open_model

VOCAB = 6


@pytest.mark.card
@pytest.mark.parametrize(
    ("places", "num_mtp", "kv_form"),
    [(range(3), 2, KvForm.int8), (range(1, 3), 1, KvForm.bfloat16), (range(2), 0, KvForm.float32)],
)
def test_turns_on_a_card_go_on_from_pages_there(
    tmp_path: Path, places: range, num_mtp: int, kv_form: KvForm
) -> None:
    directory = write_random_checkpoint(
        tmp_path,
        seed=8,
        vocab_size=VOCAB,
        num_layers=3,
        num_mtp_layers=2,
        moe_layers=(2,),
        sliding_window=20,
        num_experts=4,
        top_k=2,
    )
    cpu = load_local(open_model(directory), torch.bfloat16, kv_form)
    assert isinstance(cpu.experts, Dispatcher)
    plan = cpu.experts.view.plan
    card = on_card(cpu, plan, the_card().device(), places=places, num_mtp=num_mtp)
    assert card.card is not None
    prefix = PrefixCache.of(card)
    params = GenerationParams(12, mtp=2, ignore_eos=True, chunk_size=32)
    tokens: list[int] = []
    for turn, length in enumerate((125, 20, 9)):
        tokens += torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(turn)).tolist()
        rows: list[Tensor] = []
        ours = generate(
            card, tokens, params, on_hidden=lambda part, to=rows: to.append(part.clone()), prefix=prefix
        )
        expected: list[Tensor] = []
        plain = generate(cpu, tokens, params, on_hidden=lambda part, to=expected: to.append(part.clone()))
        assert (ours.token_ids, ours.accepted_by_position) == (plain.token_ids, plain.accepted_by_position)
        computed = torch.cat(rows)
        assert torch.equal(computed, torch.cat(expected)[-len(computed) :])
        # Only what is kept is held between turns, and the card has some of it.
        assert card.kv_pool.used_bytes == card.card.pool.used_bytes == 0
        assert card.card.pool.kept_bytes > 0
        tokens += ours.token_ids
    assert prefix.stats.hits == 2
    assert prefix.stats.saved_tokens > 125 + 125 + 12 + 20
    prefix.evict(1 << 40)
    assert card.card.pool.kept_bytes == card.kv_pool.kept_bytes == 0
