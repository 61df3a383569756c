"""Keys, values and attention on a card, beside the CPU kernels."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.gpu.attention import Workspace, attention
from orchestrator.gpu.kv_rows import RowPlaces, kv_rows
from placement.errors import InputError
from placement.kv_size import KvForm, KvShape
from tests.orchestrator.gpu.batches import Batch, Layer
from tests.orchestrator.gpu.on_card import OnCard, assert_same_bits
from tests.orchestrator.kernels.kv_pages import EPS

FORMS = list(KvForm)


def random_batch(seed: int, most_before: int, most_rows: int) -> Batch:
    random = np.random.default_rng(seed)
    kv_heads, group = int(random.integers(1, 4)), int(random.integers(1, 10))
    dim = int(random.choice([1, 7, 16, 24, 33, 64, 80, 128, 144, 192, 256, 300, 512]))
    if dim > 128:
        kv_heads, group = 1, min(group, 4)
    rotary = 2 * int(random.integers(0, dim // 2 + 1))
    window = int(random.integers(1, 600)) if random.integers(2) else 0
    kv = KvShape(FORMS[int(random.integers(3))], kv_heads, dim)
    layer = Layer(
        kv,
        kv_heads * group,
        rotary,
        window,
        bool(random.integers(2)),
        float(random.choice([1.0, 1e-37, 30.0])),
    )
    sequences = int(random.integers(1, 4))
    before = [int(random.integers(0, most_before)) for _ in range(sequences)]
    rows = [int(random.integers(1, most_rows)) for _ in range(sequences)]
    return Batch(layer, before, rows, seed, not_finite=float(random.choice([0.0, 0.002, 0.1])))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "rotary", "window"),
    [(8, 1, 64, 32, 0), (6, 2, 24, 24, 100), (3, 3, 33, 10, 0), (4, 1, 144, 64, 128), (1, 1, 300, 0, 77)],
)
def test_rows_of_several_sequences_have_the_cpu_kernels_bits(
    on_card: OnCard, form: KvForm, heads: int, kv_heads: int, dim: int, rotary: int, window: int
) -> None:
    layer = Layer(KvShape(form, kv_heads, dim), heads, rotary, window)
    Batch(layer, [126, 0], [3, 1], seed=dim).check(on_card, absent=1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("window", [0, 500])
def test_pages_join_within_spans_and_spans_after_them(on_card: OnCard, form: KvForm, window: int) -> None:
    layer = Layer(KvShape(form, 1, 16), 2, 8, window)
    Batch(layer, [1150, 2047], [1, 2], seed=1).check(on_card)


@pytest.mark.parametrize("group", [1, 3, 4])
def test_a_prompts_rows_go_through_a_warp_together(on_card: OnCard, group: int) -> None:
    layer = Layer(KvShape(KvForm.bfloat16, 2, 32), 2 * group, 32)
    # A number that is not finite shows where a row sees what only later rows may.
    Batch(layer, [120, 0], [15, 6], seed=group, not_finite=0.1).check(on_card, absent=2)


@pytest.mark.parametrize("form", FORMS)
def test_keys_and_values_that_are_not_finite_give_what_the_cpu_gives(on_card: OnCard, form: KvForm) -> None:
    layer = Layer(KvShape(form, 2, 16), 4, 8)
    for seed in range(6):
        Batch(layer, [200], [3], seed, not_finite=0.01).check(on_card)


def test_values_too_small_for_a_scale_are_zero(on_card: OnCard) -> None:
    layer = Layer(KvShape(KvForm.int8, 1, 16), 1, 0, scale=1e-37)
    Batch(layer, [3], [4], seed=1).check(on_card)


@pytest.mark.parametrize("before", [128 * 128 - 2, 18_000])
def test_beyond_128_pages_a_part_is_a_span(on_card: OnCard, before: int) -> None:
    layer = Layer(KvShape(KvForm.bfloat16, 1, 16), 1, 16)
    Batch(layer, [before], [4], seed=1).check(on_card)


@pytest.mark.parametrize("seed", range(6))
def test_rows_of_random_shapes_have_the_cpu_kernels_bits(on_card: OnCard, seed: int) -> None:
    random_batch(seed, most_before=400, most_rows=4).check(on_card, absent=seed % 2)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 400))
def test_rows_of_many_shapes_have_the_cpu_kernels_bits(on_card: OnCard, seed: int) -> None:
    rows = 40 if seed % 4 == 0 else 9
    random_batch(seed, most_before=2500, most_rows=rows).check(on_card, absent=seed % 3)


def test_a_graph_serves_every_step_with_as_many_rows(on_card: OnCard) -> None:
    heads, dim, first, steps = 4, 16, 125, 6
    batch = Batch(Layer(KvShape(KvForm.int8, 2, dim), heads, 8), [first], [steps], seed=1)
    layer, kv = batch.layer, batch.layer.kv
    device, stream = on_card.device, on_card.stream
    qkv, rope = batch.qkv[0].numpy(), batch.rope.rows(first, first + steps)
    # What a step brings, and where it is on the card.
    brought = {
        "position": np.arange(first, first + steps, dtype=np.int32)[:, None],
        "qkv": qkv,
        "cos": rope.cos.numpy(),
        "sin": rope.sin.numpy(),
    }
    here = {name: device.pinned(rows[0].nbytes) for name, rows in brought.items()}
    there = {name: on_card.put(rows[0]) for name, rows in brought.items()}
    table = on_card.put(np.stack([page.numpy() for page in batch.pages[0]]))
    pages = on_card.put(np.int64([table, table + kv.page_bytes]))
    places = RowPlaces(pages, 2, on_card.put(np.int32([0])), there["position"])
    queries, out = on_card.put(np.zeros((heads, dim), np.float32)), on_card.room(heads, dim)
    parts = Workspace.parts_of(256, 0)
    workspace = Workspace(on_card.room(Workspace.num_bytes(1, heads, dim, parts), item_bytes=1), parts)
    qk_norm = on_card.put(batch.qk_norm)

    def step() -> None:
        for name, pinned in here.items():
            stream.upload(there[name], pinned)
        kv_rows(
            stream,
            1,
            places,
            kv,
            heads,
            qkv=there["qkv"],
            qkv_stride=qkv.shape[1],
            qk_norm=qk_norm,
            eps=EPS,
            cos=there["cos"],
            sin=there["sin"],
            rotary_half=layer.rotary // 2,
            queries=queries,
        )
        attention(
            stream,
            1,
            places,
            kv,
            heads,
            queries=queries,
            out=out,
            window=0,
            scale=0.25,
            gate=there["qkv"] + 4 * layer.qkv_width,
            gate_stride=qkv.shape[1],
            workspace=workspace,
        )

    with stream.captured() as graph:
        step()
    expected = batch.attend_here()
    for row in range(steps):
        for name, rows in brought.items():
            here[name][:] = rows[row].reshape(-1).view(np.uint8)
        stream.replay(graph)
        assert_same_bits(on_card.get(out, (heads, dim)), expected[row])


@pytest.mark.parametrize("window", [0, 1, 128, 129, 5000, 100_000])
@pytest.mark.parametrize("most_positions", [1, 128, 129, 16_384, 16_385, 200_000])
def test_a_workspace_has_a_place_for_each_part_of_any_row(most_positions: int, window: int) -> None:
    most = Workspace.parts_of(most_positions, window)
    for position in {*range(0, most_positions, 127), *range(max(0, most_positions - 200), most_positions)}:
        first = max(0, position + 1 - window) if window else 0
        pages = position // 128 - first // 128 + 1
        assert (pages if pages <= 128 else position // 1024 - first // 1024 + 1) <= most


@pytest.mark.parametrize("head_dim", [513, 576])
def test_a_head_dim_beyond_the_kernels_is_refused(on_card: OnCard, head_dim: int) -> None:
    places, kv = RowPlaces(1, 1, 1, 1), KvShape(KvForm.int8, 1, head_dim)
    message = rf"^head_dim {head_dim}: the GPU kernels of attention take 1 to 512: use --device cpu$"
    with pytest.raises(InputError, match=message):
        attention(on_card.stream, 1, places, kv, 1, queries=1, out=1, window=0, scale=1.0)
    with pytest.raises(InputError, match=message):
        kv_rows(
            on_card.stream,
            1,
            places,
            kv,
            1,
            qkv=1,
            qkv_stride=1,
            qk_norm=1,
            eps=1e-6,
            cos=1,
            sin=1,
            rotary_half=0,
            queries=1,
        )
