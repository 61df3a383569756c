"""Steps of many sequences through a card: each gets the tokens that it gets alone on the CPU."""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch

from orchestrator.dispatch.dispatcher import Dispatcher
from orchestrator.generate import GenerationParams, generate, new_sequence
from orchestrator.gpu.areas import MOST_SEQUENCES
from orchestrator.model.mtp import MtpDrafter
from orchestrator.scheduling.step_plan import Decode, Prefill, StepPlan
from orchestrator.sequence import SequenceState
from orchestrator.serving.batch import run_step
from orchestrator.session import load_local
from tests.cuda_on_cpu.card import the_card
from tests.orchestrator.gpu.heads_on_cards import on_card
from tests.tiny_checkpoint import write_random_checkpoint
from workers.formats.open_model import open_model

VOCAB = 6
NUM_SEQUENCES = MOST_SEQUENCES + 3


def prompt(number: int) -> list[int]:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(VOCAB, (1 + number % 5,), generator=generator).tolist()


def test_as_many_sequences_as_a_pass_may_have_come_and_go(tmp_path: Path) -> None:
    """More rows than a graph has, all kinds of steps, and more sequences in turn than the card has tables."""
    directory = write_random_checkpoint(
        tmp_path / "m", seed=31, vocab_size=VOCAB, num_layers=2, num_mtp_layers=2, moe_layers=(1,)
    )
    cpu = load_local(open_model(directory), torch.bfloat16)
    assert isinstance(cpu.experts, Dispatcher)
    card = on_card(cpu, cpu.experts.view.plan, the_card().device())
    params = GenerationParams(max_tokens=4, ignore_eos=True)
    drafter, chance = MtpDrafter(card, 2), Random(5)
    waiting, here, ended = list(range(NUM_SEQUENCES)), dict[int, SequenceState](), dict[int, list[int]]()
    most_rows = 0
    while waiting or here:
        while waiting and len(here) < MOST_SEQUENCES:
            here[waiting[0]] = new_sequence(card, drafter, prompt(waiting[0]), params)
            waiting.pop(0)
        pause = tuple(number for number in here if chance.random() < 0.05)
        reading = [n for n, one in here.items() if one.to_prefill or n in pause]
        plan = StepPlan(
            tuple(Decode(number, chance.randint(0, 2)) for number in here if number not in reading),
            tuple(Prefill(number, chance.randint(1, 5)) for number in reading),
            pause,
        )
        most_rows = max(most_rows, plan.rows)
        for advance in run_step(card, drafter, here, plan).advances:
            if advance.ended is not None:
                ended[advance.sequence] = here.pop(advance.sequence).generated
    assert most_rows > MOST_SEQUENCES
    for number in range(NUM_SEQUENCES):
        assert tuple(ended[number]) == generate(cpu, prompt(number), params).token_ids
