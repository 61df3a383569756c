"""A session whose head, or experts, are on cards: the same tokens, and what happens when a card is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from orchestrator.generate import GenerationParams
from orchestrator.one_box import one_box_plan
from orchestrator.session import Session, open_session
from placement.errors import KvDoesNotFit
from placement.holders import HolderTable
from placement.plan import LOCAL_WORKER, Plan, PlannedTier
from tests.cuda_on_cpu.card import Card, the_card
from tests.tiny_checkpoint import write_random_checkpoint
from workers.formats.open_model import OpenModel, open_model
from workers.gpu.errors import DeviceLost

PROMPT = [5, 17, 30, 2, 9]
PARAMS = GenerationParams(max_tokens=8, ignore_eos=True, mtp=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OpenModel:
    folder = tmp_path_factory.mktemp("session") / "m"
    return open_model(
        write_random_checkpoint(
            folder, seed=3, vocab_size=40, num_layers=4, num_mtp_layers=1, moe_layers=(2, 3)
        )
    )


@pytest.fixture
def card() -> Card:
    """Two of them."""
    card = the_card()
    card.set("count", 2)
    return card


def plan_with(model: OpenModel, devices: tuple[tuple[str, str], ...], *, spare_bytes: int = 0) -> Plan:
    """Experts over tiers of these kinds and devices in turn; the head computes on the first."""
    plan = one_box_plan(model, "float32")
    all_bytes = plan.tiers[0].budget_bytes
    tiers = tuple(
        PlannedTier(
            LOCAL_WORKER if not number else f"{LOCAL_WORKER}-{number}",
            "this-machine",
            device,
            kind,
            all_bytes // len(devices) + (spare_bytes if kind == "vram" else 0),
            worker=LOCAL_WORKER,
        )
        for number, (kind, device) in enumerate(devices)
    )
    shape = plan.holder_table.table[:, :, 0].shape
    holders = (np.arange(shape[0] * shape[1]) % len(devices)).astype(np.int16).reshape(shape)
    return replace(plan, tiers=tiers, holder_table=HolderTable.from_single(holders))


@contextmanager
def session_of(model: OpenModel, plan: Plan) -> Iterator[Session]:
    with open_session(model, plan, num_drafts=1, positions=256) as session:
        yield session


@pytest.fixture(scope="module")
def expected(model: OpenModel) -> tuple[int, ...]:
    with session_of(model, one_box_plan(model, "float32")) as session:
        return session.generate(PROMPT, PARAMS).token_ids


@pytest.mark.parametrize(
    "devices",
    [
        (("vram", "cuda:0"),),
        (("vram", "cuda:0"), ("ram", "cpu")),
        (("ram", "cpu"), ("vram", "cuda:1")),
        (("vram", "cuda:1"), ("vram", "cuda:0"), ("ram", "cpu"), ("disk", "cpu")),
    ],
)
def test_tokens_do_not_depend_on_the_devices(
    model: OpenModel, expected: tuple[int, ...], card: Card, devices: tuple[tuple[str, str], ...]
) -> None:
    plan = plan_with(model, devices)
    with session_of(model, plan) as session:
        assert (session.head.card is not None) == (devices[0][0] == "vram")
        assert session.generate(PROMPT, PARAMS).token_ids == expected
        shares = [worker.share for worker in session.report().workers]
        assert sum(shares) == pytest.approx(1)


def test_a_cache_in_vram_that_fills_while_text_runs_changes_no_token(
    model: OpenModel, expected: tuple[int, ...], card: Card
) -> None:
    plan = plan_with(model, (("vram", "cuda:0"), ("ram", "cpu")), spare_bytes=60_000)
    with session_of(model, plan) as session:
        for _ in range(3):
            assert session.generate(PROMPT, PARAMS).token_ids == expected


def test_after_a_lost_card_the_cpu_computes_the_head_and_its_experts(
    model: OpenModel, expected: tuple[int, ...], card: Card
) -> None:
    with session_of(model, plan_with(model, (("vram", "cuda:0"), ("ram", "cpu")))) as session:
        card.set("fail_after", 150)
        with pytest.raises(DeviceLost, match=r"^cuda:0: the card stopped working"):
            session.generate(PROMPT, PARAMS)
        assert session.generate(PROMPT, PARAMS).token_ids == expected
        notices = session.notices()
        assert any("until then the CPU computes the head" in notice for notice in notices)
        assert all("\n" not in notice for notice in notices)


def test_a_text_longer_than_the_card_was_asked_to_hold_is_refused(model: OpenModel, card: Card) -> None:
    with (
        session_of(model, plan_with(model, (("vram", "cuda:0"),))) as session,
        pytest.raises(KvDoesNotFit),
    ):
        session.generate(list(range(30)) * 20, PARAMS)
