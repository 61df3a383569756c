"""The head on a card gives the bits of the head on the CPU, wherever parts of it and experts are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.tiny.gguf_file import write_gguf
from orchestrator.dispatch.dispatcher import Dispatcher
from orchestrator.generate import GenerationParams, generate, new_sequence, prefill, step
from orchestrator.gpu.head import HeadOnCard
from orchestrator.gpu.logits import CardLogits
from orchestrator.gpu.work_size import head_work_bytes
from orchestrator.model.attention import SequenceSlice
from orchestrator.model.mtp import MtpDrafter
from orchestrator.model.step35 import Step35Model
from orchestrator.sampling import Logits, Sampler, choose_in_ram, token_bits
from orchestrator.sampling_params import GREEDY, SamplingParams
from orchestrator.session import load_local
from placement.errors import KvDoesNotFit
from placement.kv_size import KvForm
from placement.plan import Plan
from tests.cuda_on_cpu.card import the_card
from tests.orchestrator.gpu.heads_on_cards import on_card
from tests.orchestrator.heads import hidden_states
from tests.tiny_checkpoint import write_random_checkpoint
from workers.formats.open_model import open_model
from workers.gpu.device import Device
from workers.gpu.errors import DeviceLost

VOCAB = 40
PROMPT = torch.randint(VOCAB, (11,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dense layers and two with experts, full attention in the first; a window of 8."""
    return write_random_checkpoint(
        tmp_path_factory.mktemp("head") / "m",
        seed=31,
        vocab_size=VOCAB,
        num_layers=4,
        num_mtp_layers=2,
        moe_layers=(2, 3),
        swiglu_limits={3: 1.0},
        swiglu_limits_shared={0: 2.0, 3: 1.5},
    )


@pytest.fixture(scope="module")
def device() -> Device:
    return the_card().device()


@pytest.fixture(scope="module")
def model(directory: Path) -> Step35Model:
    return load_local(open_model(directory), torch.bfloat16)


def plan_of(model: Step35Model) -> Plan:
    assert isinstance(model.experts, Dispatcher)
    return model.experts.view.plan


def same(cpu: Step35Model, card: Step35Model, *, mtp: int = 0, max_tokens: int = 6) -> None:
    """Hidden states, and generations greedy and at a temperature, have the same bits."""
    assert torch.equal(hidden_states(card, PROMPT, 4), hidden_states(cpu, PROMPT))
    # Twice the first, whose launches are graphs by then.
    for sampling in (GREEDY, SamplingParams(1.2, 9, 0.8, 0.01, seed=4), SamplingParams(1.2, seed=4), GREEDY):
        params = GenerationParams(max_tokens, sampling, ignore_eos=sampling == GREEDY, mtp=mtp)
        assert generate(card, PROMPT, params).token_ids == generate(cpu, PROMPT, params).token_ids


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "q8_0"])
def test_the_whole_head_on_a_card_has_the_cpus_bits(
    directory: Path, tmp_path: Path, device: Device, kind: str
) -> None:
    path = directory
    if kind == "q8_0":
        path = tmp_path / "m.gguf"
        write_gguf(directory, path, kind)
    kv_form = KvForm.int8 if kind == "q8_0" else None
    cpu = load_local(open_model(path), torch.float32 if kind == "float32" else torch.bfloat16, kv_form)
    same(cpu, on_card(cpu, plan_of(cpu), device), mtp=2)


@pytest.mark.parametrize(
    ("places", "has_output", "num_mtp"),
    [(range(4), False, 0), (range(2, 4), True, 1), (range(3), True, 2), (range(0), True, 2)],
)
def test_parts_that_stay_on_the_cpu_change_no_bit(
    model: Step35Model, device: Device, places: range, has_output: bool, num_mtp: int
) -> None:
    some = on_card(model, plan_of(model), device, places=places, has_output=has_output, num_mtp=num_mtp)
    same(model, some, mtp=2, max_tokens=5)


def test_rows_of_several_sequences_have_the_bits_of_each_alone(model: Step35Model, device: Device) -> None:
    card = on_card(model, plan_of(model), device)
    ids = torch.tensor(PROMPT)
    caches = [card.new_cache() for _ in range(3)]
    alone = hidden_states(model, PROMPT)
    firsts = (3, 7, 1)
    rows = card.forward(
        torch.cat([ids[:n] for n in firsts]),
        [SequenceSlice(cache, n) for cache, n in zip(caches, firsts, strict=True)],
    )
    assert torch.equal(rows, torch.cat([alone[:n] for n in firsts]))
    # Again in another order, and one of them leaves out a row that is rolled back.
    caches[1].rollback(5)
    rows = card.forward(
        torch.cat([ids[1:3], ids[5:9]]), [SequenceSlice(caches[2], 2), SequenceSlice(caches[1], 4)]
    )
    assert torch.equal(rows, torch.cat([alone[1:3], alone[5:9]]))


def test_rows_and_drafts_that_are_held_to_a_form_are_chosen_for_by_the_card(
    model: Step35Model, device: Device
) -> None:
    """With one wait for all rows, and the tokens of the CPU."""
    random = np.random.default_rng(2)
    sampling = (SamplingParams(0.0), SamplingParams(1.0, seed=4), SamplingParams(1.1, 9, 0.8, seed=5))
    card, counts = on_card(model, plan_of(model), device), the_card()
    found = {}
    for name, of in (("cpu", model), ("card", card)):
        luck = np.random.default_rng(3)
        drafter, tokens = MtpDrafter(of, 2), []
        for number, params in enumerate(sampling):
            masks = [token_bits(VOCAB, luck.choice(VOCAB, 12, replace=False)) for _ in range(30)]
            generation = GenerationParams(12, params, ignore_eos=number == 1)
            sequence = new_sequence(of, drafter, PROMPT, generation)
            # By what stands before, as a form's.
            sequence.masks = lambda drafts, own=masks, at=sequence: [
                own[len(at.generated) + place] if (len(at.generated) + place) % 4 else None
                for place in range(len(drafts) + 1)
            ]
            prefill(of, drafter, sequence, 16)
            while sequence.finish_reason is None:
                step(of, drafter, [sequence])
            tokens.append((sequence.generated, sequence.drafted, sequence.accepted))
            sequence.close()
        found[name] = tokens
    assert found["card"] == found["cpu"]
    assert sum(sum(accepted) for _, _, accepted in found["cpu"]) > 0
    rows = torch.from_numpy(random.standard_normal((3, model.config.hidden_size)).astype(np.float32))
    choices = [
        Sampler(params, banned=(1, 3)).choice(7, (), token_bits(VOCAB, [1, 5, 30 + place]))
        for place, params in enumerate(sampling)
    ]
    for logits_of in (
        lambda of: of.logits_to_choose_from(rows),
        lambda of: MtpDrafter(of, 2)._logits(1, rows),
    ):
        logits = logits_of(card)
        assert isinstance(logits, CardLogits)
        before = counts.count("waits")
        chosen = logits.choose(choices)
        assert counts.count("waits") - before == 1
        assert chosen == logits_of(model).choose(choices)
        assert {5, 30, 31, 32} >= set(chosen)


def test_output_matrices_of_different_vocabularies_leave_out_tokens_of_their_own(
    model: Step35Model, device: Device
) -> None:
    """The first set of the larger one has two words: the first and the second set of the smaller one."""
    card = on_card(model, plan_of(model), device).card
    assert isinstance(card, HeadOnCard)
    whole = card.weights.output
    assert whole is not None
    half = replace(
        whole, matrix=replace(whole.matrix, each=(replace(whole.matrix.each[0], rows=20),), rows=20)
    )
    luck = torch.Generator().manual_seed(8)
    best, rows = 0, torch.empty(0)
    while best < 32:
        rows = torch.randn((1, model.config.hidden_size), generator=luck)
        (best,) = card.mtp_logits(0, rows).choose([Sampler(SamplingParams(0.0)).choice(0)])

    def check(logits: Logits, banned: int, mask: np.ndarray | None = None) -> None:
        choice = Sampler(SamplingParams(0.0), banned=(banned,)).choice(0, (), mask)
        assert logits.choose([choice]) == [choose_in_ram(logits.row(0), choice)]

    for mask in (None, token_bits(20, [18, 19])):
        check(card.mtp_logits(0, rows), best)
        check(card.mtp_logits(0, rows), 7)
        check(card._logits(rows, half), 7, mask)
        check(card.mtp_logits(0, rows), 7)
        check(card.mtp_logits(0, rows), best)
        check(card._logits(rows, half), 7, mask)
        check(card.mtp_logits(0, rows), 7)


def test_more_rows_than_the_card_has_room_for_are_chosen_for_in_parts(
    model: Step35Model, device: Device
) -> None:
    luck = np.random.default_rng(6)
    rows = torch.from_numpy(luck.standard_normal((19, model.config.hidden_size)).astype(np.float32))
    card, counts = on_card(model, plan_of(model), device), the_card()
    choices = [
        Sampler(SamplingParams(place % 3 * 0.7, top_p=0.9, seed=9), banned=(1, 3)).choice(
            place, (), token_bits(VOCAB, luck.choice(VOCAB, 9, replace=False)) if place % 2 else None
        )
        for place in range(len(rows))
    ]
    on_cpu, there = model.logits_to_choose_from(rows), card.logits_to_choose_from(rows)
    before = counts.count("waits")
    chosen = there.choose(choices)
    # Of each part for the ids, and for what was brought before.
    assert counts.count("waits") - before == 6
    assert chosen == on_cpu.choose(choices)
    for place in (18, 0, 7, 8, 9, 18):
        assert (there.row(place) == on_cpu.row(place)).all()
    assert there.choose(choices) == chosen


def test_a_decode_step_is_a_graph_a_part_and_one_wait_a_layer_with_experts_elsewhere(
    model: Step35Model, device: Device
) -> None:
    card, counts = on_card(model, plan_of(model), device), the_card()
    cache = card.new_cache()
    graphs, waits = [], []
    for position, token in enumerate(PROMPT[:4]):
        before = counts.count("graphs"), counts.count("waits")
        card.forward(torch.tensor([token]), [SequenceSlice(cache, 1)])
        graphs.append(counts.count("graphs") - before[0])
        # Page tables wait for their own copies when a page begins.
        waits.append(counts.count("waits") - before[1] - (4 if position == 0 else 0))
    # Two dense layers, two with experts in two parts each, and the end. The first step may compile kernels.
    assert graphs == [0, 7, 7, 7]
    # One a layer with experts, one for the hidden states, and one for what was brought before, which is done.
    assert waits == [4, 4, 4, 4]


def test_more_positions_than_the_card_has_room_for_are_refused(model: Step35Model, device: Device) -> None:
    card = on_card(model, plan_of(model), device, pool_bytes=4096)
    with pytest.raises(KvDoesNotFit):
        card.forward(torch.tensor(PROMPT), [SequenceSlice(card.new_cache(), len(PROMPT))])


def test_a_card_that_is_lost_in_a_pass_ends_it_with_one_line(model: Step35Model) -> None:
    counts = the_card()
    card = on_card(model, plan_of(model), counts.device())
    counts.set("fail_after", 9)
    try:
        with pytest.raises(DeviceLost, match="the card stopped working"):
            card.forward(torch.tensor(PROMPT), [SequenceSlice(card.new_cache(), len(PROMPT))])
    finally:
        counts.set("fail_after", -1)


def test_a_head_takes_what_is_counted_for_it_before_it_is_loaded(device: Device, model: Step35Model) -> None:
    head = on_card(model, plan_of(model), device).card
    assert isinstance(head, HeadOnCard)
    tables = (head._pages, *head._mtp_pages)
    taken = head._areas.memory.num_bytes + sum(of_layers._memory.num_bytes for of_layers in tables)
    taken += head.weights._grids.memory.num_bytes
    assert taken == head_work_bytes(model.config, 1024, 32)
