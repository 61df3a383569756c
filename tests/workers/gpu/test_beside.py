"""Experts of RAM on a card, kept or passing through: the same bits, whatever is where at the moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import numpy as np
import pytest

from placement.given.problem import PlanningProblem
from placement.policies.vram_residency import simulate_residency
from placement.residency import CacheStart, ResidencyRule
from placement.streaming import ExpertSeconds, StreamingRates
from placement.weight_format import ExpertFormat
from placement.workload import Workload
from tests.cuda_on_cpu.card import Card
from tests.placement.boxes import device
from tests.placement.shapes import small_shape
from tests.tiny_checkpoint import write_random_checkpoint
from tests.workers.gpu.expert_cases import RandomExperts, random_rows
from tests.workers.serving import wait_until
from transport.expert_rows import ExpertRows
from workers.gpu.counts import CardCounts
from workers.gpu.rows import RowsOnCard
from workers.gpu.tier import MOST_ROWS, VramTier
from workers.model_config import Step35Config
from workers.pool import TieredExperts
from workers.store import ExpertStore

LAYERS = (2, 3)
FORMS = {2: ExpertFormat.of_name("q8_0/bfloat16/q5_0"), 3: ExpertFormat.of_name("fp8_e4m3")}
FIXED = {2: (0, 5), 3: (7,)}
# Of the larger ones: 4,352 bytes in q8_0, 8,192 in bfloat16, 2,816 in q5_0.
SLOT_BYTES = 15_360
# Anything is better computed on the card, however long the link takes.
ALWAYS = StreamingRates(1e-9, ExpertSeconds.line(1.0, 1.0), ExpertSeconds.line(0.0, 1e-9))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Step35Config:
    directory = write_random_checkpoint(
        tmp_path_factory.mktemp("model"),
        seed=3,
        hidden_size=64,
        moe_intermediate_size=64,
        num_layers=4,
        moe_layers=LAYERS,
        num_experts=16,
    )
    return Step35Config.load(directory)


class Box:
    """A card and RAM side by side, and RAM alone to compare with."""

    def __init__(
        self,
        config: Step35Config,
        card: Card,
        *,
        cache_bytes: int = 0,
        forms: Mapping[int, ExpertFormat] = FORMS,
        fixed: Mapping[int, tuple[int, ...]] = FIXED,
    ) -> None:
        checkpoint = RandomExperts(dict(forms))
        everything = dict.fromkeys(LAYERS, tuple(range(16)))
        left = {layer: tuple(set(range(16)) - set(fixed.get(layer, ()))) for layer in LAYERS}
        self.config = config
        self.alone = ExpertStore.load(checkpoint, config, everything, formats=forms)
        self.ram = ExpertStore.load(checkpoint, config, left, formats=forms)
        self.tier = VramTier.load(
            checkpoint, config, fixed, formats=forms, device=card.device(), cache_bytes=cache_bytes
        )
        self.box = TieredExperts([self.tier, self.ram])

    def check(self, layer: int, rows: ExpertRows) -> None:
        expected, found = self.alone.forward(layer, rows), self.box.forward(layer, rows)
        np.testing.assert_array_equal(found.saturated, expected.saturated)
        kept = ~expected.saturated
        np.testing.assert_array_equal(found.values[kept], expected.values[kept])

    def step(self, seed: int, num_rows: int = 3, experts: range = range(16)) -> None:
        for layer in LAYERS:
            self.check(layer, random_rows(self.config, num_rows, seed, held=list(experts)))

    def residents(self) -> int:
        """On the card beside its own."""
        return sum(int(self.tier.resident(layer).sum()) - len(FIXED[layer]) for layer in LAYERS)


def test_what_is_used_comes_to_the_card_in_the_background(config: Step35Config, card: Card) -> None:
    box = Box(config, card, cache_bytes=6 * SLOT_BYTES)
    seeds = count()

    def has_come() -> bool:
        # Experts 1 to 4 alone, eight of both layers, so that they are wanted most.
        box.step(next(seeds), experts=range(1, 5))
        return box.residents() == 6

    wait_until(has_come)
    assert box.tier.beside.num_places == 6
    assert all(box.tier.resident(layer)[list(FIXED[layer])].all() for layer in LAYERS)


def test_who_is_on_the_card_changes_and_the_bits_do_not(config: Step35Config, card: Card) -> None:
    box = Box(config, card, cache_bytes=3 * SLOT_BYTES)
    seen: set[tuple[int, ...]] = set()
    seeds = count()

    def changed_often() -> bool:
        seed = next(seeds)
        # What is wanted moves on, and so does the rule that decides.
        box.tier.beside.rule = list(ResidencyRule)[1 + seed // 7 % 2]
        box.step(seed, experts=range(seed // 10 * 3 % 12, seed // 10 * 3 % 12 + 4))
        seen.add(tuple(np.flatnonzero(box.tier.resident(2)).tolist()))
        return len(seen) >= 8

    wait_until(changed_often)


def test_what_a_head_asked_for_is_computed_with_the_places_of_that_moment(
    config: Step35Config, card: Card
) -> None:
    """Its stream has done nothing yet when experts make room for others."""
    box = Box(config, card, cache_bytes=2 * SLOT_BYTES)
    device, stream, seeds = box.tier.device, box.tier.device.stream(), count()
    rows = random_rows(config, 5, 1, absent=0, held=[1, 2, 3, 4])
    parts = (rows.hidden, rows.expert_ids, rows.weights, rows.scale_exponents)
    at = [device.allocate(part.nbytes) for part in parts]
    for memory, part in zip(at, parts, strict=True):
        stream.upload(memory.address, part)

    def step_until(experts: range, condition: Callable[[], bool]) -> None:
        def is_there() -> bool:
            box.step(next(seeds), experts=experts)
            return condition()

        wait_until(is_there)

    step_until(range(1, 5), lambda: box.tier.resident(2)[1:5].any())
    hidden, ids, weights, exponents = (memory.address for memory in at)
    box.tier.reserve(stream, 5)
    found = box.tier.enqueue(2, stream, RowsOnCard(5, 4, hidden, ids, weights, exponents))
    then = box.tier.resident(2)
    box.tier.note(2, rows.expert_ids)
    step_until(range(9, 13), lambda: not box.tier.resident(2)[1:5].any())
    values, flags = np.empty((5, config.hidden_size), np.int32), np.empty(5, np.bool_)
    stream.download(values, found.values)
    stream.download(flags, found.flags)
    stream.synchronize()
    mine = np.where(then[rows.expert_ids], rows.expert_ids, np.int32(-1))
    expected = box.alone.forward(2, rows._replace(expert_ids=mine))
    np.testing.assert_array_equal(flags, expected.saturated)
    np.testing.assert_array_equal(values[~flags], expected.values[~flags])
    assert expected.values[~flags].any()


def turning_text(rows: int, top_k: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """What 40 steps ask for, int [40, rows, layers, top_k]; every ten steps others are popular."""
    rng = np.random.default_rng(11)
    popularity = np.repeat(rng.exponential(size=(4, 2, 16)) ** 3, 10, axis=0)
    clocks = rng.exponential(size=(40, rows, 2, 16)) / popularity[:, None]
    return np.argsort(clocks, axis=-1)[..., :top_k]


@pytest.mark.parametrize("rule", ResidencyRule)
def test_hits_are_those_of_the_simulator_and_those_that_arrive_within_a_step(
    config: Step35Config, card: Card, rule: ResidencyRule
) -> None:
    """Where the link brings in a step what the step asks for.

    In a simulation a copy counts from the step after it on, in a run from the next layer on. So each copy may
    give one hit more here, and none less.
    """
    rows, top_k, places = 3, config.moe_top_k, 6
    text = turning_text(rows, top_k)
    box = Box(config, card, cache_bytes=places * SLOT_BYTES, fixed={})
    box.tier.beside.start(CacheStart(rule))
    hits = asked = 0
    for number, step in enumerate(text):
        for place, layer in enumerate(LAYERS):
            given = random_rows(config, rows, number, absent=0)
            ids = step[:, place].astype(np.int32)
            box.check(layer, given._replace(expert_ids=ids))
            hits += int(box.tier.resident(layer)[np.unique(ids)].sum())
            asked += len(np.unique(ids))
        wait_until(lambda: not box.tier.beside.is_loading)
    counts = box.tier.counts

    shape = small_shape(num_moe_layers=2, num_experts=16, top_k=top_k)
    expert_bytes = shape.expert_bytes(16)
    gpu = device("head", places, expert_bytes, tier="vram", gflops=1e-3)
    ram = device("study-ram", 32, expert_bytes, home=True, gflops=1e-3)
    problem = PlanningProblem(shape, (gpu, ram), expert_bytes, workload=Workload(drafts=rows - 1))
    simulated = simulate_residency(problem, text.reshape(-1, 2, top_k), [rule])[0]
    loads = simulated.copied_bytes // expert_bytes
    least = round(simulated.hit_share * asked)
    assert least <= hits <= least + loads
    assert (hits > 0) == (loads > 0) == (counts.kept > 0) == (rule is not ResidencyRule.fixed)
    assert counts.own == counts.passing == counts.passed == 0


def test_a_cache_begins_with_the_hottest_of_statistics_by_any_rule(config: Step35Config, card: Card) -> None:
    for rule in ResidencyRule:
        # More than come at a time.
        box = Box(config, card, cache_bytes=19 * SLOT_BYTES)
        uses = {2: np.arange(16) / 16, 3: np.zeros(16)}
        uses[3][[9, 1, 2, 3, 4, 6]], uses[2][0] = [0.99, 0.9, 0.8, 0.7, 0.01, 0.02], 1.0
        box.tier.beside.start(CacheStart(rule, uses))
        for _ in range(3):
            box.check(2, random_rows(config, 3, 0, held=[0, 5]))
            wait_until(lambda box=box: not box.tier.beside.is_loading)
        box.check(2, random_rows(config, 3, 0, held=[0, 5]))
        # 0 and 5 of layer 2 are the card's own, and 4 of layer 3 has no place.
        assert box.tier.resident(2).all()
        assert np.flatnonzero(box.tier.resident(3)).tolist() == [1, 2, 3, 6, 7, 9]


def test_each_choice_is_counted_where_it_was_computed(config: Step35Config, card: Card) -> None:
    box = Box(config, card)
    rows = random_rows(config, 4, 1, held=list(range(16)))
    box.check(2, rows)
    chosen = rows.expert_ids[rows.expert_ids >= 0]
    assert box.tier.counts == CardCounts(own=int(np.isin(chosen, FIXED[2]).sum()))
    box.tier.beside.rates = ALWAYS
    many = random_rows(config, 24, 2, absent=0)
    box.check(2, many)
    own = int(np.isin(many.expert_ids, FIXED[2]).sum())
    brought = len(np.setdiff1d(many.expert_ids, FIXED[2]))
    of_expert = FORMS[2].expert_bytes(64, 64)
    assert box.tier.counts.passing == many.expert_ids.size - own
    assert (box.tier.counts.passed, box.tier.counts.passed_bytes) == (brought, brought * of_expert)
    assert box.tier.beside.crossover_rows == 1


def test_a_rule_that_loads_nothing_leaves_what_is_there(config: Step35Config, card: Card) -> None:
    box = Box(config, card, cache_bytes=4 * SLOT_BYTES)
    box.tier.beside.rule = ResidencyRule.fixed
    for seed in range(6):
        box.step(seed)
    assert box.residents() == 0
    assert box.tier.beside.num_places == 4


def test_the_cache_gives_way_to_the_rows_of_a_request(config: Step35Config, card: Card) -> None:
    """Where another program takes the memory meanwhile: the cache goes first, and nothing fails."""
    box = Box(config, card, cache_bytes=40 * SLOT_BYTES)
    for seed in range(6):
        box.step(seed)
    assert box.tier.beside.num_places
    card.set("others", (1 << 30) - card.count("used"))
    box.step(7, num_rows=20)
    assert box.tier.beside.num_places == 0
    assert box.residents() == 0
    assert box.tier.notices() == ()
    for seed in range(4):
        box.step(seed)


def test_a_lost_card_leaves_what_it_kept_of_ram_to_ram(config: Step35Config, card: Card) -> None:
    box = Box(config, card, cache_bytes=6 * SLOT_BYTES)
    seeds = count()

    def has_come() -> bool:
        box.step(next(seeds), experts=range(1, 5))
        return box.residents() > 0

    wait_until(has_come)
    card.set("fail_after", 2)
    for seed in range(3):
        box.step(seed, experts=range(8))
    assert "computed from the model's files" in box.tier.notices()[0]


def test_other_ram_beside_a_card_is_taken_up_between_requests(config: Step35Config, card: Card) -> None:
    box = Box(config, card, cache_bytes=6 * SLOT_BYTES)
    for seed in range(8):
        box.step(seed, experts=range(1, 5))
    less = {2: tuple(range(3, 16)), 3: tuple(range(16))}
    other = ExpertStore.load(RandomExperts(dict(FORMS)), config, less, formats=FORMS)
    box.box = TieredExperts([box.tier, other, box.alone])
    seeds = count()

    def has_come() -> bool:
        box.step(next(seeds), experts=range(1, 5))
        return box.residents() > 0

    wait_until(has_come)
    assert not box.tier.resident(2)[[1, 2]].any()


@pytest.mark.parametrize("cache_slots", [0, 4])
def test_experts_of_ram_pass_through_the_card_for_many_rows(
    config: Step35Config, card: Card, cache_slots: int
) -> None:
    box = Box(config, card, cache_bytes=cache_slots * SLOT_BYTES)
    box.tier.beside.rates = ALWAYS
    before = card.count("copied")
    box.step(1, num_rows=24)
    assert card.count("copied") - before > box.ram.held_bytes
    for seed in range(2):
        box.step(seed)
        box.step(seed, num_rows=9)


def test_more_rows_than_the_card_takes_pass_in_parts(config: Step35Config, card: Card) -> None:
    box = Box(config, card)
    box.tier.beside.rates = ALWAYS
    box.check(2, random_rows(config, MOST_ROWS + 3, 0, held=[0, 1, 2, 3]))


def test_rates_are_measured_once_at_the_first_request_of_many_rows(config: Step35Config, card: Card) -> None:
    box = Box(config, card)
    box.step(0)
    assert box.tier.beside.rates is None
    box.step(1, num_rows=9)
    rates = box.tier.beside.rates
    assert rates is not None
    assert rates.copy_s > 0
    for of_device in (rates.cpu, rates.gpu):
        assert min(of_device.seconds) > 0
        assert len(of_device.seconds) == len(of_device.rows) == 3
    box.step(2, num_rows=9)
    assert box.tier.beside.rates is rates


def test_link_and_ram_share_a_layer_as_the_rates_say(config: Step35Config, card: Card) -> None:
    box = Box(config, card)
    # A copy takes as long as three rows in RAM.
    box.tier.beside.rates = StreamingRates(3.0, ExpertSeconds.line(0.0, 1.0), ExpertSeconds.line(0.0, 0.01))
    rows = random_rows(config, 30, 5, absent=0)
    box.check(2, rows)
    claimed = box.tier.claims(2, rows.expert_ids)
    assert claimed is not None
    streamed = claimed.copy()
    streamed[list(FIXED[2])] = False
    counts = np.bincount(rows.expert_ids.ravel(), minlength=16)
    left = ~claimed & (counts > 0)
    assert streamed.any()
    assert left.any()
    assert counts[streamed].min() >= counts[left].max()


def test_a_layer_in_other_forms_than_the_cards_stays_in_ram(config: Step35Config, card: Card) -> None:
    box = Box(config, card, cache_bytes=6 * SLOT_BYTES)
    other = {2: ExpertFormat.of_name("q4_0"), 3: FORMS[3]}
    store = ExpertStore.load(RandomExperts(other), config, {2: (1, 2), 3: (1, 2)}, formats=other)
    box.box = TieredExperts([box.tier, store])
    for seed in range(6):
        for layer in LAYERS:
            box.box.forward(layer, random_rows(config, 3, seed, held=[1, 2]))
    assert not box.tier.resident(2)[[1, 2]].any()


def test_a_full_card_that_is_given_other_ram_keeps_none_of_the_old(config: Step35Config, card: Card) -> None:
    box = Box(config, card, cache_bytes=6 * SLOT_BYTES)
    seeds = count()

    def has_come() -> bool:
        box.step(next(seeds), experts=range(1, 5))
        return box.residents() == 6

    wait_until(has_come)
    card.set("others", 1 << 30)
    box.box = TieredExperts([box.tier, box.ram])
    for _ in range(2):
        box.step(next(seeds))
        # A head that asks the card itself goes by that.
        assert box.residents() == 0
        card.set("others", 0)
