"""The benchmark of a workstation with a card runs on a card that the CPU plays, and counts right."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu.caches import tokens_of
from benchmarks.gpu.calls import GRAPHS, WAITS, counted
from benchmarks.gpu.decoding import StepBytes
from benchmarks.gpu.layouts import WHOLE, Vram
from benchmarks.gpu.markdown import table
from benchmarks.random_gguf import FileShape, FileTypes
from orchestrator.cli.here import Figures
from placement.given.probe_figures import Gpu
from tests.cuda_on_cpu.card import Card, the_card
from tests.placement.given.probes import node, probe
from tests.placement.real_routing import olmoe_documents

ROOT = Path(__file__).parents[2]
FEW = replace(FileShape(), dense_layers=0, moe_layers=3)
POSITIONS = 2152


@pytest.fixture
def card() -> Iterator[Card]:
    yield the_card()
    the_card()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.card
def test_the_whole_benchmark_runs_on_the_card_that_the_cpu_plays() -> None:
    found = run("benchmarks.hybrid", "--on-cpu")
    assert found.returncode == 0, found.stderr
    assert "the figures mean nothing" in found.stdout
    titles = re.findall(r"^\*\*([^*]+)\*\*", found.stdout, re.MULTILINE)
    assert titles == [
        "This machine's CPU plays the card, with tiny shapes: the figures mean nothing.",
        "Few rows",
        "Many rows",
        "The head alone",
        "Decoding",
        "Asked of the card",
        "Prompts",
        "Fixed experts or a cache",
    ]
    asked = {cells[0]: cells[1:] for cells in _cells(found.stdout, "Asked of the card")}
    assert asked["CPU alone"] == ["0", "0", "0", "0"]
    # With all experts on the card all is in graphs after the first steps, and nobody waits for the router.
    assert asked["all in VRAM"][0] == "0"
    assert int(asked["64 GB"][1]) > 0
    assert int(asked["all in VRAM"][2]) < int(asked["64 GB"][2])


@pytest.mark.card
def test_generations_are_the_same_wherever_head_and_experts_are() -> None:
    found = run("benchmarks.gpu_generation", "--on-cpu", "--tokens", "2", "--types", "q4_k")
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count("| same |") == 4


def test_what_is_asked_of_a_card_is_counted_within_the_block_alone(card: Card) -> None:
    device = card.device()
    stream, memory = device.stream(), device.allocate(64)
    with stream.captured() as graph:
        stream.clear(memory.address, 64)
    before = card.count("graphs"), card.count("waits")
    with counted() as calls:
        stream.replay(graph)
        stream.replay(graph)
        stream.synchronize()
    stream.replay(graph)
    stream.synchronize()
    assert (calls[GRAPHS], sum(calls[name] for name in WAITS)) == (2, 1)
    assert (card.count("graphs") - before[0], card.count("waits") - before[1]) == (3, 2)


@pytest.mark.parametrize("whole_bytes", [8 * 10**9, 24 * 10**9])
@pytest.mark.parametrize("layers", [1, 5])
def test_a_part_of_the_layers_gets_the_same_share_of_the_memory(whole_bytes: int, layers: int) -> None:
    shape = replace(FEW, moe_layers=layers)

    def vram(num_bytes: int, of: FileShape) -> Vram:
        return Vram.of(num_bytes, of, FileTypes(), POSITIONS)

    some, whole = vram(whole_bytes, shape), vram(whole_bytes, WHOLE)
    # What is left for layers beside what has nothing to do with them.
    for_some = some.usable_bytes - vram(0, shape).usable_bytes
    for_all = whole.usable_bytes - vram(0, WHOLE).usable_bytes
    assert (whole.layer_share, 0.02 * layers < some.layer_share < 0.03 * layers) == (1, True)
    assert for_some == pytest.approx(some.layer_share * for_all, abs=2)
    assert 0 < some.expert_share == whole.expert_share < 0.3


def test_a_whole_card_is_told_as_free_with_its_margin() -> None:
    whole = Vram.of(24 * 10**9, WHOLE, FileTypes(), POSITIONS)
    assert whole.free_bytes == pytest.approx(24 * 10**9, rel=1e-6)


def test_a_step_takes_as_long_as_the_memory_that_has_more_to_read() -> None:
    rates = {"bandwidth_bytes_per_s": 1e11, "copy_bytes_per_s": 1e10, "flops_per_s": 1e12}
    gpu = Gpu(name="c", memory_bytes=10, free_bytes=10, round_trip_s=1e-4, **rates)
    figures = Figures(node(), probe().software)
    read = figures.node.read_bytes_per_s
    assert StepBytes(1e9, 0, 0).floor_s(gpu, figures) == pytest.approx(1e-2)
    assert StepBytes(1e9, 0.02 * read, 3).floor_s(gpu, figures) == pytest.approx(0.02 + 3e-4)
    assert StepBytes(1e9, 0.001 * read, 3).floor_s(gpu, figures) == pytest.approx(1e-2)


def test_tokens_of_documents_have_the_documents_counts_and_no_expert_twice() -> None:
    counts = olmoe_documents("coding")[:3]
    tokens = tokens_of(counts)
    assert tokens.shape == (3 * 64, 16, 8)
    assert all(len(set(chosen)) == 8 for chosen in tokens.reshape(-1, 8).tolist())
    for document, expected in enumerate(counts):
        of_document = tokens[64 * document : 64 * (document + 1)]
        found = np.stack([np.bincount(of_document[:, layer].ravel(), minlength=64) for layer in range(16)])
        np.testing.assert_array_equal(found, expected)


def test_a_table_keeps_its_columns() -> None:
    assert table(("a", "b"), [("1", "x|y")]) == "| a | b |\n| --- | --- |\n| 1 | x/y |"


def _cells(text: str, title: str) -> list[list[str]]:
    """The rows of the table behind a title."""
    lines = text.partition(f"**{title}**")[2].split("\n\n")[1].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
