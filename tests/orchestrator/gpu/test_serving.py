"""Requests on a card: the CPU's answers, also when the card is lost while they are written."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.sampling_params import GREEDY, SamplingParams
from orchestrator.scheduling.limits import Limits
from orchestrator.serving.answer import Finished, Text
from orchestrator.serving.engine import EngineSettings, ModelEngine
from orchestrator.serving.request import GenerationRequest
from orchestrator.session import Session, open_session
from orchestrator.tokenizer import Tokenizer
from placement.pass_costs import costs_of_reading
from placement.plan import Plan
from tests.cuda_on_cpu.card import Card, the_card
from tests.orchestrator.gpu.test_session import plan_with
from tests.tiny_checkpoint import write_random_checkpoint
from workers.formats.open_model import OpenModel, open_model

REQUESTS = [
    GenerationRequest("a", (5, 17, 30, 2, 9), GREEDY, max_tokens=20, ignore_eos=True),
    GenerationRequest("b", (5, 17, 30, 2, 9), SamplingParams(1.1, 8, 0.9, seed=4), max_tokens=25),
    GenerationRequest("a", tuple(range(1, 39)), SamplingParams(seed=2, presence_penalty=0.5), max_tokens=20),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(
        tmp_path_factory.mktemp("served") / "m",
        seed=3,
        num_layers=4,
        num_mtp_layers=1,
        moe_layers=(2, 3),
        tokenizer=True,
    )


@pytest.fixture
def card() -> Card:
    return the_card()


def answers_of(session: Session, folder: Path, lose: Card | None = None) -> list[tuple[str, str]]:
    costs = costs_of_reading(session.head.config.shape(""), 32.0)
    settings = EngineSettings("m", 0, Limits(256), costs, 1)

    async def answer(engine: ModelEngine, request: GenerationRequest) -> tuple[str, str]:
        text, reason = "", ""
        async with engine.answer([request]) as events:
            async for _, event in events:
                if isinstance(event, Text):
                    text += event.text
                    if lose is not None and session.head.card is not None:
                        lose.set("fail_after", 0)
                if isinstance(event, Finished):
                    reason = event.reason
        return text, reason

    async def all_of_them(engine: ModelEngine) -> Sequence[tuple[str, str]]:
        return await asyncio.gather(*(answer(engine, request) for request in REQUESTS))

    with ModelEngine(session, Tokenizer.load(folder), settings) as engine:
        return list(asyncio.run(asyncio.wait_for(all_of_them(engine), 120)))


def served(model: OpenModel, plan: Plan, folder: Path, lose: Card | None = None) -> list[tuple[str, str]]:
    with open_session(model, plan, num_drafts=1, positions=256) as session:
        found = answers_of(session, folder, lose)
        assert (session.head.card is None) == (lose is not None or plan.head_device == "cpu")
        return found


def test_a_card_gives_the_cpus_answers_and_its_loss_costs_none(card: Card, folder: Path) -> None:
    model = open_model(folder)
    expected = served(model, plan_with(model, (("ram", "cpu"),)), folder)
    assert all(text for text, _ in expected)
    on_card = plan_with(model, (("vram", "cuda:0"), ("ram", "cpu")))
    assert served(model, on_card, folder) == expected
    assert served(model, on_card, folder, lose=card) == expected
