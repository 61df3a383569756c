"""What of the head stays on the CPU: against all subsets of its parts, and how it is said."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.head_split import HeadParts, SplitPart, split_head, vram_budget
from tests.examples import examples

PART = st.builds(
    SplitPart,
    weight_bytes=st.integers(1, 50),
    kv_bytes=st.integers(0, 10),
    gpu_s=st.floats(0.0, 2.0),
    cpu_s=st.floats(0.0, 6.0),
)
PARTS = st.builds(
    HeadParts,
    layers=st.lists(PART, min_size=1, max_size=5).map(tuple),
    lm_head=PART,
    mtp=st.lists(PART, max_size=3).map(tuple),
)
ROOM = st.integers(0, 400)
CROSSING = st.sampled_from([0.0, 0.1, 3.0])


def seconds_of(parts: HeadParts, on_cpu: tuple[bool, ...], crossing_s: float) -> float:
    """A step told part by part: where the rows are, and what each part takes there."""
    seconds, here = 0.0, True
    for part, is_cpu in zip(parts.all, on_cpu, strict=True):
        seconds += crossing_s if is_cpu != here else 0.0
        seconds += part.cpu_s if is_cpu else part.gpu_s
        here = is_cpu
    return seconds + (0.0 if here else crossing_s)


def best_of(parts: HeadParts, room_bytes: int, crossing_s: float, *, ends_only: bool) -> float:
    num_layers = len(parts.layers)
    best = float("inf")
    for on_cpu in itertools.product([False, True], repeat=len(parts.all)):
        layers, mtp = on_cpu[:num_layers], on_cpu[num_layers + 1 :]
        is_run = list(layers) in (sorted(layers), sorted(layers, reverse=True)) and list(mtp) == sorted(mtp)
        in_vram = sum(p.num_bytes for p, is_cpu in zip(parts.all, on_cpu, strict=True) if not is_cpu)
        if in_vram <= room_bytes and (is_run or not ends_only):
            best = min(best, seconds_of(parts, on_cpu, crossing_s))
    return best


@given(parts=PARTS, room_bytes=ROOM, crossing_s=CROSSING)
@examples(60)
def test_the_split_is_the_fastest_of_all_with_layers_at_one_end(
    parts: HeadParts, room_bytes: int, crossing_s: float
) -> None:
    found = split_head(parts, room_bytes, crossing_s)
    assert found.seconds == pytest.approx(best_of(parts, room_bytes, crossing_s, ends_only=True))
    on_cpu = (
        *(found.is_layer_on_cpu(layer) for layer in range(len(parts.layers))),
        found.is_lm_head_on_cpu,
        *(index >= len(parts.mtp) - found.num_cpu_mtp for index in range(len(parts.mtp))),
    )
    there = [part for part, is_cpu in zip(parts.all, on_cpu, strict=True) if not is_cpu]
    assert found.weight_bytes == sum(part.weight_bytes for part in there)
    assert found.kv_bytes == sum(part.kv_bytes for part in there)
    assert found.weight_bytes + found.kv_bytes <= room_bytes
    assert found.seconds == pytest.approx(seconds_of(parts, on_cpu, crossing_s))
    assert seconds_of(parts, on_cpu, crossing_s + 1) - found.seconds == pytest.approx(found.crossings)
    assert found.is_all_in_vram == (not any(on_cpu))
    assert found.is_all_on_cpu == all(on_cpu)
    assert "\n" not in found.told


@given(
    num_layers=st.integers(1, 5),
    layer=PART,
    lm_head=PART,
    mtp=PART,
    num_mtp=st.integers(0, 3),
    room_bytes=ROOM,
    crossing_s=CROSSING,
)
@examples(60)
def test_with_equal_layers_it_is_the_fastest_of_all_subsets(
    num_layers: int,
    layer: SplitPart,
    lm_head: SplitPart,
    mtp: SplitPart,
    num_mtp: int,
    room_bytes: int,
    crossing_s: float,
) -> None:
    parts = HeadParts((layer,) * num_layers, lm_head, (mtp,) * num_mtp)
    found = split_head(parts, room_bytes, crossing_s)
    assert found.seconds == pytest.approx(best_of(parts, room_bytes, crossing_s, ends_only=False))


LAYER = SplitPart(weight_bytes=60_000_000, kv_bytes=10_000_000, gpu_s=1e-4, cpu_s=1e-3)
LM_HEAD = SplitPart(weight_bytes=300_000_000, kv_bytes=0, gpu_s=4e-4, cpu_s=6e-3)
MTP = SplitPart(weight_bytes=400_000_000, kv_bytes=10_000_000, gpu_s=8e-4, cpu_s=3e-3)
HEAD = HeadParts((LAYER,) * 45, LM_HEAD, (MTP,) * 3)


@pytest.mark.parametrize(
    ("room_bytes", "told"),
    [
        (5_000_000_000, "the whole head is in VRAM (4.7 GB)"),
        (
            4_500_000_000,
            "of the head, the last MTP head stays on the CPU: VRAM has room for 4.5 GB, all of the head "
            "takes 4.7 GB; its part of a step takes 9.6 ms, in VRAM 7.4 ms",
        ),
        (
            3_440_000_000,
            "of the head, the 3 MTP heads and layer 0 stay on the CPU: VRAM has room for 3.4 GB, all of the "
            "head takes 4.7 GB; its part of a step takes 14.9 ms, in VRAM 7.4 ms",
        ),
        (
            150_000_000,
            "of the head, the 3 MTP heads, lm_head and layers 2 to 44 stay on the CPU: VRAM has room for "
            "150.0 MB, all of the head takes 4.7 GB; its part of a step takes 58.3 ms, in VRAM 7.4 ms",
        ),
        (
            0,
            "the whole head stays on the CPU: VRAM has room for 0 B, all of the head takes 4.7 GB; its part "
            "of a step takes 60.0 ms, in VRAM 7.4 ms",
        ),
    ],
)
def test_the_choice_is_told_with_its_reason(room_bytes: int, told: str) -> None:
    assert split_head(HEAD, room_bytes, crossing_s=5e-5).told == told


def test_a_gpu_slower_than_the_cpu_gets_nothing_though_there_is_room() -> None:
    slow = HeadParts(tuple(replace(part, gpu_s=part.cpu_s) for part in HEAD.layers), LM_HEAD)
    found = split_head(replace(slow, lm_head=replace(LM_HEAD, gpu_s=1.0)), 5_000_000_000, 5e-5)
    assert found.is_all_on_cpu
    assert "the whole head stays on the CPU: there a step is faster;" in found.told


@given(parts=PARTS, free=ROOM, margin=st.integers(0, 100), workspace=st.integers(1, 100), crossing_s=CROSSING)
def test_a_budget_adds_up_to_what_is_free_and_experts_get_what_is_left(
    parts: HeadParts, free: int, margin: int, workspace: int, crossing_s: float
) -> None:
    found = vram_budget(parts, free, margin, workspace, crossing_s)
    head_bytes = found.split.weight_bytes + found.split.kv_bytes
    used = head_bytes + found.margin_bytes + found.workspace_bytes + found.expert_bytes
    assert used == free
    assert min(head_bytes, found.margin_bytes, found.workspace_bytes, found.expert_bytes) >= 0
    assert found.margin_bytes >= min(margin, free)
    if free >= margin + workspace:
        best = best_of(parts, free - margin - workspace, crossing_s, ends_only=True)
        assert found.split.seconds == pytest.approx(best)
    else:
        assert found.split.is_all_on_cpu
        assert found.expert_bytes == 0


def test_a_budget_is_told_in_one_line() -> None:
    assert vram_budget(HEAD, 24_000_000_000, 500_000_000, 300_000_000, 5e-5).told == (
        "24.0 GB of VRAM free: 4.2 GB for the head, 480.0 MB for keys and values, 300.0 MB to work in, "
        "18.5 GB for experts, 500.0 MB left alone"
    )
    assert vram_budget(HEAD, 700_000_000, 500_000_000, 300_000_000, 5e-5).told == (
        "700.0 MB of VRAM free: too little for any use, so nothing goes there"
    )
