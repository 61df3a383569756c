"""What a step takes in an engine that does one thing after another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.published.engine import Places, distinct_experts, places_of, problem_of, step_s
from benchmarks.published.measurements import Measurement
from benchmarks.published.models import published_model
from placement.errors import InputError
from placement.hardware.catalogue import packaged_catalogue
from tests.benchmarks.published.made_up import measured

CARD, RAM = "rtx-3090", "ddr5-6000-dual"


def seconds(measurement: Measurement) -> float:
    problem, _ = problem_of(measurement, packaged_catalogue())
    return step_s(problem, places_of(measurement, problem))


@given(st.integers(1, 35))
def test_each_layer_in_ram_costs_as_much_as_the_next(layers: int) -> None:
    none, some, all_of_them = (
        seconds(measured([CARD, RAM], split))
        for split in ("layers", f"experts-in-ram:{layers}", "experts-in-ram")
    )
    assert none < some < all_of_them
    assert (some - none) / layers == pytest.approx((all_of_them - none) / 36)


def test_a_second_card_takes_over_half_of_the_layers_and_makes_nothing_faster() -> None:
    one, two = measured([CARD], "layers"), measured([CARD, CARD], "layers")
    problem, _ = problem_of(two, packaged_catalogue())
    places = places_of(two, problem)
    assert places.trunk == (0,) * 18 + (1,) * 18
    assert seconds(two) == pytest.approx(seconds(one) + problem.devices[0].overheads.pass_s)


def test_unequal_cards_take_layers_by_their_memory() -> None:
    two = measured(["rtx-pro-6000-blackwell", "rtx-3060-12gb"], "layers")
    problem, _ = problem_of(two, packaged_catalogue())
    assert places_of(two, problem).trunk.count(0) == round(36 * 96 / (96 + 12))


def test_boxes_add_a_round_trip_for_each_hand_over() -> None:
    apart = measured([], "layers", boxes=[["strix-halo"], ["strix-halo"], ["strix-halo"]], link="ethernet-1g")
    beside = measured(["strix-halo"] * 3, "layers")
    problem, _ = problem_of(apart, packaged_catalogue())
    row_s = 4 * problem.shape.hidden_size / problem.devices[1].link_bytes_per_s
    # Half a round trip to the second box, to the third and back from it.
    more_s = 3 * (problem.devices[1].round_trip_s / 2 + row_s)
    assert seconds(apart) == pytest.approx(seconds(beside) + more_s)


def test_cpu_alone_uses_no_card() -> None:
    assert seconds(measured([CARD, RAM], "cpu")) > 5 * seconds(measured([CARD], "all"))
    problem, _ = problem_of(measured([CARD, RAM], "cpu"), packaged_catalogue())
    assert set(places_of(measured([CARD, RAM], "cpu"), problem).trunk) == {1}


def test_an_engine_that_knows_of_sockets_reads_both_memories() -> None:
    plain = measured(["ddr5-4800-octa-2s"], "cpu")
    aware = measured(["ddr5-4800-octa-2s"], "cpu", engine="ktransformers")
    (slow, _), (fast, _) = problem_of(plain, packaged_catalogue()), problem_of(aware, packaged_catalogue())
    assert fast.devices[0].bandwidth_bytes_per_s == 2 * slow.devices[0].bandwidth_bytes_per_s


def test_keys_are_read_again_for_each_eight_query_heads_of_a_group() -> None:
    def per_byte(model: str) -> float:
        near, far = (
            seconds(measured(["dgx-spark"], model=model, quant="Q8_0", context=n)) for n in (0, 30_000)
        )
        shape = published_model(model)
        return (far - near) / (shape.num_hidden_layers * shape.attention[0].num_kv_heads)

    # Groups of 16 heads and of 8, each of 128 values.
    assert per_byte("qwen3-235b-a22b") == pytest.approx(2 * per_byte("qwen3-30b-a3b"))


def test_fewer_bits_of_keys_save_no_time() -> None:
    short, long = (seconds(measured(["dgx-spark"], context=30_000, kv=kv)) for kv in ("q8_0", "f16"))
    assert short == long


def test_drafts_are_verified_together_and_counted_by_what_holds() -> None:
    named = {"model": "step-3.5-flash", "quant": "IQ4_XS"}
    problem, tokens = problem_of(
        measured(["m4-max"], drafts=2, acceptance=[0.9, 0.7], **named), packaged_catalogue()
    )
    assert tokens == pytest.approx(2.6)
    places = Places((0,) * 45, (0,) * 42)
    plain, _ = problem_of(measured(["m4-max"], **named), packaged_catalogue())
    assert step_s(plain, places) < step_s(problem, places) < 3 * step_s(plain, places)


def test_distinct_experts_are_those_of_rows_that_choose_by_lot() -> None:
    shape = published_model("gpt-oss-20b")
    assert distinct_experts(shape, 1) == pytest.approx(shape.top_k)
    assert distinct_experts(shape, 2) == pytest.approx(32 * (1 - (28 / 32) ** 2))
    assert distinct_experts(shape, 10_000) == pytest.approx(32)


@pytest.mark.parametrize(
    ("devices", "split"), [([CARD], "cpu"), ([CARD], "experts-in-ram"), ([RAM], "experts-in-ram:3")]
)
def test_a_split_without_its_device_is_refused(devices: list[str], split: str) -> None:
    measurement = measured(devices, split)
    problem, _ = problem_of(measurement, packaged_catalogue())
    with pytest.raises(InputError, match=f"made-up.*{split}.*of kind"):
        places_of(measurement, problem)
