"""A box with a card: its tiers side by side, and what is said where the card is not as the plan has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from placement.errors import WorkerStartError
from tests.cuda_on_cpu.card import Card
from tests.tiny_checkpoint import write_random_checkpoint
from tests.workers.gpu.expert_cases import random_rows
from workers.formats.safetensors import SafetensorsCheckpoint
from workers.gpu import cards
from workers.gpu.tier import VramTier
from workers.held_set import HeldSet
from workers.model_config import Step35Config
from workers.pool import TieredExperts, load_each, side_by_side, tier_needs
from workers.tiers import TierSpec

ALL = {2: tuple(range(16)), 3: tuple(range(16))}
VRAM = {2: (0, 3, 4, 9), 3: (15,)}
RAM = {2: (1, 2, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15), 3: tuple(range(15))}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("model"), seed=3, dtype=torch.bfloat16)


@pytest.fixture(autouse=True)
def newly_opened() -> Iterator[None]:
    """Each test opens its card itself: it may be lost in the end."""
    cards._opened.cache_clear()
    yield
    cards._opened.cache_clear()


def load(model_dir: Path, *specs: TierSpec) -> list:
    checkpoint, config = SafetensorsCheckpoint.open(model_dir), Step35Config.load(model_dir)
    return load_each(specs, checkpoint, config, "bfloat16")


def test_ram_and_card_side_by_side_give_the_bits_of_ram_alone(model_dir: Path, card: Card) -> None:
    config = Step35Config.load(model_dir)
    (whole,) = load(model_dir, TierSpec("w", "ram", "cpu", ALL))
    tiers = load(model_dir, TierSpec("gpu", "vram", "cuda", VRAM), TierSpec("ram", "ram", "cpu", RAM))
    both = side_by_side(tiers)
    assert isinstance(both, TieredExperts)
    assert isinstance(tiers[0], VramTier)
    assert both.experts == ALL
    assert both.held_bytes == whole.held_bytes
    launches = card.count("launches")
    for seed in range(3):
        for layer in ALL:
            rows = random_rows(config, 1 + 4 * seed, seed)
            expected, found = whole.forward(layer, rows), both.forward(layer, rows)
            np.testing.assert_array_equal(found.saturated, expected.saturated)
            kept = ~expected.saturated
            np.testing.assert_array_equal(found.values[kept], expected.values[kept])
    assert card.count("launches") > launches


def test_tiers_on_one_card_share_it(model_dir: Path, card: Card) -> None:
    first, second = load(
        model_dir, TierSpec("a", "vram", "cuda", {2: (0, 1)}), TierSpec("b", "vram", "cuda:0", {2: (2,)})
    )
    assert first.device is second.device


@pytest.mark.parametrize(
    ("settings", "device", "message"),
    [
        ({"count": 0}, "cuda", "the NVIDIA driver shows no card here"),
        ({}, "cuda:3", "cuda:3: this box has one card, cuda:0"),
        ({"capability": 61}, "cuda", "has compute capability 6.1; expected 7.5"),
        ({"memory": 80_000}, "cuda", r"cuda:0: 5 experts take 61.* kB and .* of 80.0 kB free: plan for less"),
    ],
)
def test_a_card_that_cannot_hold_its_experts_is_said_in_one_line_with_its_tier(
    model_dir: Path, card: Card, settings: dict[str, int], device: str, message: str
) -> None:
    for name, value in settings.items():
        card.set(name, value)
    specs = TierSpec("w", "ram", "cpu", RAM), TierSpec("w-gpu", "vram", device, VRAM)
    with pytest.raises(
        WorkerStartError, match=f"^device 'w-gpu': cannot hold its experts: .*{message}"
    ) as error:
        load(model_dir, *specs)
    assert "\n" not in str(error.value)


def test_a_card_that_was_lost_before_is_said_in_one_line(model_dir: Path, card: Card) -> None:
    (tier,) = load(model_dir, TierSpec("w-gpu", "vram", "cuda", VRAM))
    rows = random_rows(Step35Config.load(model_dir), 2, 0, held=[0])
    card.set("fail_after", 0)
    tier.forward(2, rows)
    assert tier.notices()
    with pytest.raises(WorkerStartError, match=r"^cannot hold its experts: cuda:0: the card stopped working"):
        load(model_dir, TierSpec("w-gpu", "vram", "cuda", VRAM))


def test_a_cards_experts_take_no_ram(model_dir: Path) -> None:
    checkpoint, config = SafetensorsCheckpoint.open(model_dir), Step35Config.load(model_dir)
    (few,) = tier_needs([TierSpec("g", "vram", "cuda", VRAM)], checkpoint, config, "bfloat16")
    (all_,) = tier_needs([TierSpec("g", "vram", "cuda", ALL)], checkpoint, config, "bfloat16")
    assert few.num_bytes == all_.num_bytes < 20_000_000


def test_what_orders_drop_stays_on_a_card(model_dir: Path, card: Card) -> None:
    tiers = load(model_dir, TierSpec("gpu", "vram", "cuda", VRAM), TierSpec("ram", "ram", "cpu", RAM))
    left = HeldSet(tuple(tiers)).without({2: (0, 1), 3: (15,)}, lambda _: pytest.fail("no disk is needed"))
    assert left.whole.experts == {2: tuple(e for e in range(16) if e != 1), 3: ALL[3]}
    assert left.to_load({2: (0, 1)}) == {2: (1,)}
