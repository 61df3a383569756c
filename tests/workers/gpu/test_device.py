"""A card's memory, streams and graphs, and what is said where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from placement.errors import InputError
from tests.cuda_on_cpu.card import Card
from workers.gpu.errors import DeviceFull, DeviceLost, DeviceUnavailable
from workers.gpu.rounding import RoundRowsArgs
from workers.kernels import round_rows


@pytest.mark.parametrize("block", [256, 32])
def test_a_kernel_launched_through_the_driver_gives_the_cpu_kernels_bits(card: Card, block: int) -> None:
    device = card.device()
    stream = device.stream()
    T, K = 5, 768
    x = np.random.default_rng(0).standard_normal((T, K)).astype(np.float32)
    x[1, 3] = np.inf
    x[2] = 0
    x[3] *= np.float32(1e-44)
    memory = device.allocate(1 << 20)
    rows, q_at, scales_at, sums_at = (memory.address + place * (1 << 16) for place in range(4))
    here = device.pinned(x.nbytes).view(np.float32).reshape(x.shape)
    here[:] = x
    q = device.pinned(T * K).view(np.int8).reshape(T, K)
    scales = device.pinned(4 * T * K // block).view(np.float32).reshape(T, -1)
    stream.upload(rows, here)
    arguments = RoundRowsArgs(rows, q_at, scales_at, sums_at, T * K // block)
    stream.launch(f"round_rows_{block}", (T * K // block, 1, 1), 64, arguments)
    stream.download(q, q_at)
    stream.download(scales, scales_at)
    stream.synchronize()
    (expected,) = round_rows(x, (block,)).parts
    np.testing.assert_array_equal(q, expected.q)
    np.testing.assert_array_equal(scales, expected.scales)


def test_a_stream_waits_for_another_ones_event_and_for_nothing_else(card: Card) -> None:
    device = card.device()
    first, second = device.stream(), device.stream()
    memory = device.allocate(64)
    source, found = device.pinned(64), device.pinned(64)
    source[:] = 7
    first.upload(memory.address, source)
    event = first.record()
    second.download(found, memory.address)
    second.synchronize()
    assert not (found == 7).any()
    second.wait(event)
    second.download(found, memory.address)
    second.synchronize()
    assert (found == 7).all()


def test_a_graph_repeats_what_was_captured(card: Card) -> None:
    device = card.device()
    stream = device.stream()
    memory = device.allocate(64)
    source, found = device.pinned(64), device.pinned(64)
    with stream.captured() as graph:
        stream.upload(memory.address, source)
        stream.download(found, memory.address)
    for value in (3, 4):
        source[:] = value
        stream.replay(graph)
        stream.synchronize()
        assert (found == value).all()


def test_a_thread_may_use_several_cards_in_turn(card: Card) -> None:
    card.set("count", 2)
    devices = [card.device(f"cuda:{number}") for number in (0, 1)]
    streams = [device.stream() for device in devices]
    for device, stream in zip(devices, streams, strict=True):
        memory, source, found = device.allocate(64), device.pinned(64), device.pinned(64)
        source[:] = 5
        stream.upload(memory.address, source)
        stream.download(found, memory.address)
        stream.synchronize()
        assert (found == 5).all()


def test_memory_may_go_while_a_graph_is_captured(card: Card) -> None:
    device = card.device()
    stream = device.stream()
    memory, gone = device.allocate(64), [device.allocate(64), device.pinned(64)]
    source, found = device.pinned(64), device.pinned(64)
    source[:] = 9
    with stream.captured() as graph:
        stream.upload(memory.address, source)
        gone.clear()
        stream.download(found, memory.address)
    stream.replay(graph)
    stream.synchronize()
    assert (found == 9).all()


AT_THE_END = """
import threading
import numpy as np
from tests.cuda_on_cpu.card import the_card
from workers.gpu.loading import Uploader
device = the_card().device()
uploader, memory = Uploader(device), device.allocate(64 << 20)
source, begun = np.ones(64 << 20, np.uint8), threading.Event()
def load():
    while True:
        uploader.copy(source.ctypes.data, memory.address, source.nbytes)
        begun.set()
threading.Thread(target=load, daemon=True).start()
begun.wait()
"""


def test_a_process_may_end_while_a_thread_still_copies() -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", AT_THE_END], cwd=root, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_memory_is_given_back_with_its_object(card: Card) -> None:
    device = card.device()
    before = device.free_bytes
    memory = device.allocate(1 << 20)
    assert device.free_bytes == before - (1 << 20)
    del memory
    assert device.free_bytes == before


def test_more_memory_than_there_is_says_how_much_there_is(card: Card) -> None:
    device = card.device()
    card.set("others", 1_000_000_000)
    with pytest.raises(DeviceFull, match=r"^cuda:0: 100.*MB asked for, 7.*MB of .* free: another program"):
        device.allocate(100_000_000)


def test_a_card_that_falls_off_the_bus_is_lost_for_good(card: Card) -> None:
    device = card.device()
    stream = device.stream()
    memory = device.allocate(1 << 16)
    arguments = RoundRowsArgs(*(memory.address + place * 4096 for place in range(4)), 1)
    stream.launch("round_rows_32", (1, 1, 1), 32, arguments)
    stream.synchronize()
    card.set("fail_after", 0)
    stream.launch("round_rows_32", (1, 1, 1), 32, arguments)
    with pytest.raises(DeviceLost, match=r"^cuda:0: the card stopped working \(CUDA_ERROR_ILLEGAL_ADDRESS"):
        stream.synchronize()
    with pytest.raises(DeviceLost):
        device.allocate(64)


@pytest.mark.parametrize(
    ("settings", "name", "message"),
    [
        ({}, "cuda:3", r"^cuda:3: this box has one card, cuda:0$"),
        ({"count": 2}, "cuda:3", r"^cuda:3: this box has cards cuda:0 to cuda:1$"),
        ({"count": 0}, "cuda", r"the NVIDIA driver shows no card here: use --device cpu"),
        ({"taken": 1}, "cuda", r"^cuda:0: another program has the card for itself"),
        ({"init": 100}, "cuda", r"the NVIDIA driver shows no card here: use --device cpu"),
        (
            {"init": 999},
            "cuda",
            r"the NVIDIA driver does not start \(CUDA_ERROR_UNKNOWN\): see whether nvidia-smi",
        ),
        ({"version": 12040}, "cuda", r"the NVIDIA driver is for CUDA 12.4, .* CUDA 13: update it"),
        (
            {"capability": 61},
            "cuda",
            r"cuda:0: CPU that plays card 0 has compute capability 6.1; expected 7.5",
        ),
    ],
)
def test_a_card_that_cannot_be_used_is_said_in_one_line(
    card: Card, settings: dict[str, int], name: str, message: str
) -> None:
    for setting, value in settings.items():
        card.set(setting, value)
    with pytest.raises(DeviceUnavailable, match=message) as error:
        card.device(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["cuda:", "cuda:x", "gpu", "cuda:-1", "rocm:0"])
def test_a_name_that_is_none_of_a_card_is_refused(card: Card, name: str) -> None:
    with pytest.raises(InputError, match="expected cpu, cuda, or cuda:N"):
        card.device(name)
