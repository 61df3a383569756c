"""Experts in a card's memory give the bits of those in RAM, whatever happens to the card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cuda_on_cpu.card import Card
from tests.tiny_checkpoint import write_random_checkpoint
from transport.expert_rows import ExpertRows
from workers.formats.safetensors import SafetensorsCheckpoint
from workers.gpu.errors import DeviceFull, DeviceLost
from workers.gpu.rows import RowsOnCard
from workers.gpu.tier import LEAST_ROWS, MOST_ROWS, VramTier
from workers.model_config import Step35Config
from workers.partial_sum import ExpertNotHeld
from workers.store import ExpertStore, in_one_form

HIDDEN, EXPERTS, TOP_K = 64, 16, 4
LAYERS = (2, 3)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(
        tmp_path_factory.mktemp("model"), seed=3, dtype=torch.bfloat16, swiglu_limits={3: 0.05}
    )


def rows_of(num_rows: int, *, seed: int = 0, bfloat16: bool = False, absent: float = 0.2) -> ExpertRows:
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((num_rows, HIDDEN), dtype=np.float32)
    ids = np.stack([rng.permutation(EXPERTS)[:TOP_K] for _ in range(num_rows)]).astype(np.int32)
    return ExpertRows(
        (hidden.view(np.uint32) >> 16).astype(np.uint16) if bfloat16 else hidden,
        np.where(rng.random(ids.shape) < absent, np.int32(-1), ids),
        rng.random(ids.shape, dtype=np.float32),
        # The finest grids are left by some outputs.
        rng.choice(np.array([-23, -40], np.int32), num_rows),
    )


def both(
    model_dir: Path, card: Card, experts: dict[int, list[int]], dtype=torch.bfloat16
) -> tuple[ExpertStore, VramTier]:
    checkpoint, config = SafetensorsCheckpoint.open(model_dir), Step35Config.load(model_dir)
    formats = in_one_form(experts, dtype)
    store = ExpertStore.load(checkpoint, config, experts, formats=formats)
    tier = VramTier.load(checkpoint, config, experts, formats=formats, device=card.device())
    return store, tier


def assert_same(store: ExpertStore, tier: VramTier, layer: int, rows: ExpertRows) -> None:
    expected, found = store.forward(layer, rows), tier.forward(layer, rows)
    np.testing.assert_array_equal(found.saturated, expected.saturated)
    np.testing.assert_array_equal(found.values[~found.saturated], expected.values[~found.saturated])


ALL = {layer: list(range(EXPERTS)) for layer in LAYERS}


@pytest.mark.parametrize("bfloat16", [False, True])
def test_sums_and_flags_are_those_of_ram(model_dir: Path, card: Card, bfloat16: bool) -> None:
    store, tier = both(model_dir, card, ALL)
    assert tier.experts == store.experts
    assert tier.num_experts == 32
    for num_rows in (1, 3, 8, 20):
        for layer in LAYERS:
            assert_same(store, tier, layer, rows_of(num_rows, seed=num_rows, bfloat16=bfloat16))


def test_rows_that_come_at_once_are_cut_where_the_card_takes_fewer(model_dir: Path, card: Card) -> None:
    store, tier = both(model_dir, card, {2: list(range(EXPERTS))})
    assert_same(store, tier, 2, rows_of(MOST_ROWS + 5))


def test_a_step_is_one_graph_once_it_was_seen(model_dir: Path, card: Card) -> None:
    store, tier = both(model_dir, card, ALL)
    for seed in range(5):
        assert_same(store, tier, 2, rows_of(3, seed=seed))
    graphs, waits = card.count("graphs"), card.count("waits")
    tier.forward(2, rows_of(3, seed=9))
    assert card.count("graphs") == graphs + 1
    assert card.count("waits") == waits + 1
    # More rows need other memory, which the graphs must not go on without.
    assert_same(store, tier, 2, rows_of(LEAST_ROWS + 1))
    for seed in range(3):
        assert_same(store, tier, 2, rows_of(3, seed=seed))


def test_a_layers_launches_do_not_depend_on_its_experts(model_dir: Path, card: Card) -> None:
    counts = []
    for held in ([0], list(range(EXPERTS))):
        _, tier = both(model_dir, card, {2: held})
        rows = rows_of(4)
        ids = np.where(np.isin(rows.expert_ids, held), rows.expert_ids, np.int32(-1))
        before = card.count("launches")
        tier.forward(2, rows._replace(expert_ids=ids))
        counts.append(card.count("launches") - before)
    assert counts[0] == counts[1] <= 8


def test_rows_on_the_card_need_no_copy_and_skip_what_is_elsewhere(model_dir: Path, card: Card) -> None:
    some = {2: [1, 4, 9, 15]}
    store, tier = both(model_dir, card, some)
    rows = rows_of(5, absent=0)
    stream, device = tier.device.stream(), tier.device
    parts = (rows.hidden, rows.expert_ids, rows.weights, rows.scale_exponents)
    at = [device.allocate(part.nbytes) for part in parts]
    for memory, part in zip(at, parts, strict=True):
        stream.upload(memory.address, part)
    tier.reserve(stream, 5)
    copied = card.count("copied")
    hidden, ids, weights, exponents = (memory.address for memory in at)
    found = tier.enqueue(2, stream, RowsOnCard(5, TOP_K, hidden, ids, weights, exponents))
    assert card.count("copied") == copied
    values, flags = np.empty((5, HIDDEN), np.int32), np.empty(5, np.bool_)
    stream.download(values, found.values)
    stream.download(flags, found.flags)
    stream.synchronize()
    here = tier.resident(2)
    assert np.flatnonzero(here).tolist() == some[2]
    masked = np.where(here[rows.expert_ids], rows.expert_ids, np.int32(-1))
    expected = store.forward(2, rows._replace(expert_ids=masked))
    np.testing.assert_array_equal(flags, expected.saturated)
    np.testing.assert_array_equal(values[~flags], expected.values[~flags])


def test_an_expert_that_is_not_held_is_refused(model_dir: Path, card: Card) -> None:
    _, tier = both(model_dir, card, {2: [0, 1]})
    rows = rows_of(3)
    with pytest.raises(ExpertNotHeld, match=r"layer 2: expert \d+ is not held"):
        tier.forward(2, rows)
    with pytest.raises(ExpertNotHeld, match=r"layer 4: expert \d+ is not held"):
        tier.forward(4, rows)
    nothing = tier.forward(4, rows._replace(expert_ids=np.full_like(rows.expert_ids, -1)))
    assert not nothing.values.any()
    assert not nothing.saturated.any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"expert_ids": np.full((3, TOP_K), EXPERTS, np.int32)},
        {"expert_ids": np.full((3, TOP_K), -2, np.int32)},
        {"scale_exponents": np.full(3, 513, np.int32)},
        {"scale_exponents": np.full(3, -(2**31), np.int32)},
        {"scale_exponents": np.zeros(2, np.int32)},
        {"hidden": np.zeros((3, HIDDEN - 1), np.float32)},
        {"weights": np.zeros((3, TOP_K - 1), np.float32)},
    ],
)
def test_rows_that_the_cpu_refuses_never_reach_the_card(
    model_dir: Path, card: Card, wrong: dict[str, np.ndarray]
) -> None:
    store, tier = both(model_dir, card, {2: list(range(EXPERTS))})
    rows = rows_of(3)._replace(**wrong)
    for tier_or_store in (store, tier):
        with pytest.raises(ValueError, match=r"rows of layer 2|moe_partial_sum|scale exponent"):
            tier_or_store.forward(2, rows)


def test_float32_experts_become_bfloat16_on_their_way(tmp_path: Path, card: Card) -> None:
    directory = write_random_checkpoint(tmp_path, seed=3, dtype=torch.float32)
    store, tier = both(directory, card, {2: [3, 5, 7]})
    assert tier.held_bytes == store.held_bytes == 3 * 3 * 64 * 32 * 2
    rows = rows_of(4)
    ids = np.where(np.isin(rows.expert_ids, [3, 5, 7]), rows.expert_ids, np.int32(-1))
    assert_same(store, tier, 2, rows._replace(expert_ids=ids))


def test_experts_that_the_card_has_no_room_for_are_told_in_one_line(model_dir: Path, card: Card) -> None:
    card.set("memory", 400_000)
    used = card.count("used")
    with pytest.raises(
        DeviceFull, match=r"^cuda:0: 32 experts take 393.* kB and .* beside them, .* of 400.* kB free: plan"
    ) as error:
        both(model_dir, card, ALL)
    assert "\n" not in str(error.value)
    assert card.count("used") == used


def test_where_another_program_takes_memory_rows_go_in_smaller_parts(model_dir: Path, card: Card) -> None:
    store, tier = both(model_dir, card, ALL)
    card.set("others", (1 << 30) - card.count("used"))
    assert_same(store, tier, 2, rows_of(3 * LEAST_ROWS + 1))
    (notice,) = tier.notices()
    assert "another program may have taken it" in notice
    card.set("others", 0)
    assert_same(store, tier, 2, rows_of(3 * LEAST_ROWS + 1))
    assert tier.notices() == ()


def test_where_the_card_has_no_room_for_code_the_files_are_computed_from(model_dir: Path, card: Card) -> None:
    store, tier = both(model_dir, card, ALL)
    card.set("others", 1 << 30)
    assert_same(store, tier, 2, rows_of(3))
    (notice,) = tier.notices()
    assert notice.startswith("cuda:0: ")
    assert notice.endswith("computed from the model's files meanwhile")
    card.set("others", 0)
    launches = card.count("launches")
    assert_same(store, tier, 2, rows_of(3))
    assert card.count("launches") > launches
    assert tier.notices() == ()


def test_a_full_card_fails_the_request_alone_where_the_files_have_other_forms(
    tmp_path: Path, card: Card
) -> None:
    directory = write_random_checkpoint(tmp_path, seed=3, dtype=torch.float32)
    store, tier = both(directory, card, ALL)
    card.set("others", 1 << 30)
    with pytest.raises(DeviceFull, match=r"^cuda:0: .* free: another program may have taken it") as error:
        tier.forward(2, rows_of(3))
    assert "\n" not in str(error.value)
    card.set("others", 0)
    assert_same(store, tier, 2, rows_of(3))


def test_the_files_pages_do_not_stay_in_this_processs_memory(tmp_path: Path, card: Card) -> None:
    directory = write_random_checkpoint(
        tmp_path, seed=3, hidden_size=256, moe_intermediate_size=256, num_shards=1, dtype=torch.bfloat16
    )
    checkpoint, config = SafetensorsCheckpoint.open(directory), Step35Config.load(directory)
    formats = in_one_form(ALL, torch.bfloat16)
    tier = VramTier.load(checkpoint, config, ALL, formats=formats, device=card.device())
    assert tier.held_bytes > 10_000_000
    resident, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = str(directory) in line
        elif inside and line.startswith("Rss:"):
            resident += int(line.split()[1]) * 1024
    assert resident < 1_000_000


@pytest.mark.parametrize("launches", [0, 3, 6])
def test_a_card_that_is_lost_is_stood_in_for_by_the_files(model_dir: Path, card: Card, launches: int) -> None:
    store, tier = both(model_dir, card, ALL)
    assert_same(store, tier, 2, rows_of(4))
    card.set("fail_after", launches)
    for num_rows in (2, 4, 20):
        assert_same(store, tier, 3, rows_of(num_rows))
    (notice,) = tier.notices()
    assert notice.startswith("cuda:0: the card stopped working")
    assert notice.endswith("its 32 experts are computed from the model's files until then")
    with pytest.raises(ExpertNotHeld):
        tier.forward(4, rows_of(2))


def test_a_lost_card_fails_requests_where_the_files_have_other_forms(tmp_path: Path, card: Card) -> None:
    directory = write_random_checkpoint(tmp_path, seed=3, dtype=torch.float32)
    _, tier = both(directory, card, ALL)
    card.set("fail_after", 0)
    for _ in range(2):
        with pytest.raises(DeviceLost, match=r"^cuda:0: the card stopped working") as error:
            tier.forward(2, rows_of(4))
        assert "\n" not in str(error.value)
