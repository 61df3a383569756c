"""The scheduler over a real model: requests come and go, memory is short, and each gets its own tokens."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.generate import GenerationParams, generate, new_sequence
from orchestrator.model.kv_pool import KvPool
from orchestrator.model.mtp import MtpDrafter
from orchestrator.model.step35 import Step35Model
from orchestrator.scheduler import Scheduler
from orchestrator.scheduling.job import SequenceRequest
from orchestrator.scheduling.kv_budget import KvBudget
from orchestrator.scheduling.limits import Limits
from orchestrator.scheduling.native import MeasuredCosts
from orchestrator.sequence import SequenceState
from orchestrator.serving.batch import run_step
from placement.pass_costs import PassCosts
from tests.examples import examples
from tests.orchestrator.heads import load_model
from tests.tiny_checkpoint import write_random_checkpoint

VOCAB = 6
LENGTHS = ((3, 40), (300, 9), (1, 20), (130, 140), (25, 2), (120, 30), (200, 60), (60, 80))
"""Of each sequence: prompt, tokens behind it. A page has 128 positions."""
COSTS = PassCosts((1, 4, 32), (0.1, 0.15, 0.5), ((0.004, 0.0001),) * 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Step35Model:
    directory: Path = tmp_path_factory.mktemp("checkpoint")
    return load_model(
        write_random_checkpoint(directory, seed=31, vocab_size=VOCAB, num_layers=3, moe_layers=(1, 2))
    )


@pytest.fixture(scope="module")
def alone(model: Step35Model) -> list[tuple[int, ...]]:
    return [generate(model, prompt(number), params_of(number)).token_ids for number in range(len(LENGTHS))]


def prompt(number: int) -> list[int]:
    generator = torch.Generator().manual_seed(100 + number)
    return torch.randint(VOCAB, (LENGTHS[number][0],), generator=generator).tolist()


def params_of(number: int) -> GenerationParams:
    return GenerationParams(max_tokens=LENGTHS[number][1], ignore_eos=True)


@examples(6)
@given(seed=st.integers(0, 2**32), num_drafts=st.sampled_from([0, 2, 3]), places=st.sampled_from([2, 4, 8]))
def test_everyone_gets_the_tokens_that_it_gets_alone_and_memory_is_never_short(
    model: Step35Model, alone: list[tuple[int, ...]], seed: int, num_drafts: int, places: int
) -> None:
    chance = Random(seed)
    drafter = MtpDrafter(model, num_drafts) if num_drafts else None
    # Two of the longest have room together, and little more.
    ((size, _),) = model.kv_sizes(num_drafts)
    budget_bytes = size.num_bytes_in_any_passes(310, 32) + size.num_bytes_in_any_passes(270, 32)
    plenty, model.kv_pool = model.kv_pool, KvPool(budget_bytes)
    try:
        limits = Limits(
            1000, sequences=places, pass_rows=32, turn_tokens=20, spare_tokens=8, most_waiting_kv=20
        )
        kv = KvBudget(tuple(model.kv_sizes(num_drafts)), limits.pass_rows)
        scheduler = Scheduler(limits, kv, MeasuredCosts(COSTS), num_drafts)
        waiting = chance.sample(range(len(LENGTHS)), len(LENGTHS))
        here: dict[int, SequenceState] = {}
        ended: dict[int, list[int]] = {}
        while waiting or here:
            while waiting and (not here or chance.random() < 0.2):
                number = waiting.pop()
                client = "ada" if number % 2 else "ben"
                scheduler.submit([SequenceRequest(number, client, *LENGTHS[number])], 0.0)
                here[number] = new_sequence(model, drafter, prompt(number), params_of(number))
            plan = scheduler.plan_step(0.0)
            outcome = run_step(model, drafter, here, plan)
            assert model.kv_pool.used_bytes <= budget_bytes
            scheduler.finished_step(plan, outcome, chance.uniform(0.1, 0.5))
            for advance in outcome.advances:
                if advance.ended is not None:
                    ended[advance.sequence] = here.pop(advance.sequence).generated
        assert [tuple(ended[number]) for number in range(len(LENGTHS))] == alone
    finally:
        model.kv_pool = plenty
