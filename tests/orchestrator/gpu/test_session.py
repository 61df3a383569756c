"""A session whose head, or experts, are on cards: the same tokens, and what happens when a card is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest

from orchestrator.generate import GenerationParams
from orchestrator.one_box import one_box_plan
from orchestrator.session import Session, open_session
from placement.errors import KvDoesNotFit
from placement.holders import HolderTable
from placement.plan import LOCAL_WORKER, Plan, PlannedTier
from placement.residency import CacheStart, ResidencyRule
from tests.cuda_on_cpu.card import Card, the_card
from tests.tiny_checkpoint import write_random_checkpoint
from tests.workers.serving import wait_until
from workers.formats.open_model import OpenModel, open_model
from workers.gpu.errors import DeviceLost
from workers.gpu.tier import VramTier

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


def cards_of(session: Session) -> list[VramTier]:
    return [tier for tier in session.local.tiers if isinstance(tier, VramTier)]


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


def all_in_ram(model: OpenModel, num_places: int) -> Plan:
    """All experts in RAM, and a card that has the head and a cache."""
    plan = one_box_plan(model, "float32")
    (ram,) = plan.tiers
    cache_bytes = num_places * int(plan.expert_bytes.max())
    card = replace(ram, device="cuda:0", kind="vram", budget_bytes=cache_bytes)
    beside = replace(ram, name="head-ram", worker=LOCAL_WORKER)
    in_ram = HolderTable(np.ones_like(plan.holder_table.table))
    return replace(plan, tiers=(card, beside), holder_table=in_ram)


@pytest.mark.parametrize("rule", ResidencyRule)
def test_a_card_that_is_all_cache_changes_no_token_by_any_rule(
    model: OpenModel, expected: tuple[int, ...], card: Card, rule: ResidencyRule
) -> None:
    with open_session(
        model, all_in_ram(model, 6), num_drafts=1, positions=256, cache=CacheStart(rule)
    ) as session:
        assert session.head.card is not None
        session.generate(PROMPT, PARAMS)
        wait_until(lambda: not any(tier.beside.is_loading for tier in cards_of(session)))
        assert session.generate(PROMPT, PARAMS).token_ids == expected
        report = session.report()
    computed, copied = report.computed, report.copied
    assert (computed.vram, computed.disk, computed.elsewhere) == (0, 0, 0)
    assert computed.ram > 0
    assert (computed.vram_cache > 0) == (copied.background_bytes > 0) == (rule is not ResidencyRule.fixed)


def test_a_cache_begins_with_the_hottest_of_statistics(model: OpenModel, card: Card) -> None:
    uses = {2: np.zeros(model.shape.num_experts), 3: np.zeros(model.shape.num_experts)}
    uses[2][[1, 3]], uses[3][0] = 0.5, 0.25
    start = CacheStart(ResidencyRule.fixed, uses)
    with open_session(model, all_in_ram(model, 6), num_drafts=1, positions=256, cache=start) as session:
        session.generate(PROMPT, PARAMS)
        (tier,) = cards_of(session)
        wait_until(lambda: not tier.beside.is_loading)
        session.generate(PROMPT, PARAMS)
        assert np.flatnonzero(tier.resident(2)).tolist() == [1, 3]
        assert np.flatnonzero(tier.resident(3)).tolist() == [0]
        each = {layer.index: layer.expert_bytes for layer in session.plan.layers}
        assert session.report().copied.background_bytes == 2 * each[2] + each[3]


def test_the_rule_changes_between_texts_and_between_tokens_and_no_token_does(
    model: OpenModel, expected: tuple[int, ...], card: Card
) -> None:
    rules = cycle(ResidencyRule)
    seen = []
    with session_of(model, all_in_ram(model, 4)) as session:
        (tier,) = cards_of(session)

        def change(_: list[int]) -> None:
            session.keep_in_vram(next(rules))
            seen.append(tier.beside.rule)

        for _ in range(3):
            assert session.generate(PROMPT, PARAMS, change).token_ids == expected
        for rule in ResidencyRule:
            session.keep_in_vram(rule)
            assert session.generate(PROMPT, PARAMS).token_ids == expected
    assert set(seen) == set(ResidencyRule)


def test_shares_of_a_decode_steps_experts_add_up_over_all_kinds_of_memory(
    model: OpenModel, card: Card
) -> None:
    devices = (("vram", "cuda:1"), ("vram", "cuda:0"), ("ram", "cpu"), ("disk", "cpu"))
    with session_of(model, plan_with(model, devices)) as session:
        session.generate(PROMPT, replace(PARAMS, mtp=0))
        report = session.report()
    computed = report.computed
    assert min(computed.vram, computed.ram, computed.disk) > 0
    assert computed.elsewhere == 0
    assert computed.total == report.steps * model.shape.num_moe_layers * model.shape.top_k


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
