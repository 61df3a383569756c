"""The real-size benchmark's bookkeeping: bytes, floors, predictions and phases, on a small model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from benchmarks.random_gguf import SMALL, FileTypes, write_random_gguf
from benchmarks.real_size.__main__ import once
from benchmarks.real_size.machine import Machine
from benchmarks.real_size.measured import LayoutRun, Passes
from benchmarks.real_size.predict import Layout, attention_rates, software
from benchmarks.real_size.report import Round, Theirs, floor_of, joined, passes_table
from benchmarks.real_size.work import FileWork, by_form
from placement.given.cluster_spec import NO_OVERHEADS, LinkSpec
from placement.given.kernel_rates import KernelRates
from workers.formats.open_model import load_config

TYPES = FileTypes((("q8_0", "q8_0", "q4_k"),), head="q8_0", output="q6_k")
READ = 10e9


def machine(flops_per_s: float = 1e18) -> Machine:
    rates = tuple(
        KernelRates(form, (1, 8), (flops_per_s, flops_per_s)) for form in ("float32", "q8_0", "q4_k", "q6_k")
    )
    return Machine("portable", 2, READ, rates, rates)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_gguf(tmp_path_factory.mktemp("real") / "model.gguf", SMALL, TYPES)


@pytest.fixture(scope="module")
def work(model: Path) -> FileWork:
    return FileWork.of(model, load_config(model).shape("model"))


def passes(rows: int, seconds: float = 1.0, context: int = 16) -> Passes:
    """Each row with experts of its own, in every layer the same."""
    chosen = (np.arange(rows * SMALL.top_k) % SMALL.experts).reshape(rows, 1, SMALL.top_k)
    routing = np.repeat(chosen, SMALL.moe_layers, axis=1).tolist()
    return Passes(rows, context, [seconds], {"other": 0.0}, [routing])


def run_of(*found: Passes, workers: int = 0, prefill_s: float = 1.0) -> LayoutRun:
    prompt = found[0].routing[0]
    return LayoutRun(workers, 2, 1.0, 1, [prefill_s], prompt, list(found), [1], [1])


def test_a_pass_reads_all_of_the_trunk_but_norms_embedding_and_unchosen_experts(
    model: Path, work: FileWork
) -> None:
    sizes = {t.name: (t.n_bytes, len(t.shape)) for t in gguf.GGUFReader(model).tensors}
    trunk = [
        size
        for name, (size, dimensions) in sizes.items()
        if dimensions == 2
        and not name.startswith(("token_embd", *(f"blk.{SMALL.layers + i}." for i in range(3))))
    ]
    experts = sum(size for name, (size, _) in sizes.items() if "_exps" in name)
    assert work.head_bytes == sum(trunk)
    chosen = passes(2).chosen()[0]
    share = 2 * SMALL.top_k / SMALL.experts
    trunk_layers = work.shape.attention[: work.shape.num_hidden_layers]
    kv = 16 * sum(2 * 2 * a.num_kv_heads * a.head_dim for a in trunk_layers)
    assert work.distinct_bytes(chosen, 16) == sum(trunk) + experts * share + kv


def test_arithmetic_counts_each_weight_once_a_row_that_meets_it(work: FileWork) -> None:
    slow = by_form(machine(1e9).from_cache)
    head = sum(matrix.parameters for matrix in work.head)
    expert = 3 * SMALL.hidden * SMALL.expert_width
    flops = 2 * (2 * head + SMALL.moe_layers * 2 * SMALL.top_k * expert)
    assert work.multiply_s(passes(2).chosen()[0], slow) == pytest.approx(flops / 1e9)
    less = 2 * SMALL.hidden * SMALL.vocab
    assert work.multiply_s(passes(2).chosen()[0], slow, logits_rows=1) == pytest.approx((flops - less) / 1e9)


@pytest.mark.parametrize("rows", [1, 4])
def test_the_cost_model_reads_what_the_file_has(model: Path, work: FileWork, rows: int) -> None:
    """Where arithmetic costs nothing, a pass takes its distinct bytes at the memory's rate."""
    layout = Layout.of(model, 0, machine(), machine())
    floor = floor_of(work, passes(rows), machine())
    assert layout.pass_s(passes(rows)) == pytest.approx(floor.seconds, rel=0.01)


def test_what_a_narrow_model_takes_beyond_its_matrices_is_software(model: Path) -> None:
    plain = Layout.of(model, 0, machine(), machine())
    times = [plain.pass_s(passes(rows)) for rows in (1, 4)]
    extra_s = 1e-3 * SMALL.layers
    slower = run_of(
        passes(1, times[0] + extra_s), passes(4, times[1] + extra_s), prefill_s=times[0] + extra_s
    )
    found = software(model, slower, None, (machine(), machine()), None, choice_s=5e-4)
    assert found.overheads.layer_s == pytest.approx(1e-3, rel=0.02)
    assert found.overheads.pass_s == 5e-4
    predicted = found.put_into(plain).pass_s(passes(4))
    assert predicted == pytest.approx(times[1] + extra_s + 5e-4, rel=0.02)


def test_workers_add_messages(model: Path) -> None:
    apart = Layout.of(model, 2, machine(), machine())
    near = apart.with_software(NO_OVERHEADS, LinkSpec(0.0, 1e18))
    far = near.with_software(NO_OVERHEADS, LinkSpec(1e-3, 1e18))
    assert far.pass_s(passes(1)) - near.pass_s(passes(1)) == pytest.approx(1e-3 * SMALL.moe_layers)


def test_rounds_are_joined_and_theirs_found_by_rows_and_context() -> None:
    one = joined([run_of(passes(1, 1.0), passes(1, 9.0, 4096)), run_of(passes(1, 3.0))])
    assert [(p.context, p.seconds) for p in one] == [(16, [1.0, 3.0]), (4096, [9.0])]
    theirs = Theirs({1: [3.0, 1.0, 2.0], 2: [4.0]}, {0: [1.0], 4096: [5.0]}, [])
    assert theirs.of(1, 0) == 2.0
    assert theirs.of(2, 0) == 4.0
    assert theirs.of(1, 4096) == 5.0
    assert theirs.of(2, 4096) is None


def test_a_phase_whose_result_is_there_is_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    once(path, lambda: run_of(passes(1)).write(path))
    once(path, lambda: pytest.fail("run again"))
    assert LayoutRun.read(path) == run_of(passes(1))


def test_a_machines_figures_come_back(tmp_path: Path) -> None:
    machine(2e9).write(tmp_path / "machine.json")
    assert Machine.read(tmp_path / "machine.json") == machine(2e9)


def test_a_table_compares_each_round_with_its_own_probe(model: Path) -> None:
    """A machine that was half as fast while it was probed and measured predicts as well."""
    slow = replace(machine(), read_bytes_per_s=READ / 2)
    rounds = []
    for here in (machine(), slow, machine()):
        layout = Layout.of(model, 0, here, here)
        run = run_of(passes(1, layout.pass_s(passes(1)) / 1.1), prefill_s=1.0)
        rounds.append(Round(run, here, layout))
    table = passes_table(rounds, Theirs({1: [1.0]}, {}, [2.0]), 4096)
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert cells["error"][0] == "+10.0%"
    assert cells["llama.cpp ms"] == ["1000.00", "2000.00"]


def test_what_a_pass_takes_more_behind_many_tokens_is_attention(model: Path, work: FileWork) -> None:
    near = replace(passes(1), parts_s={"attention": 0.5})
    far = replace(passes(1, context=4000), parts_s={"attention": 1.5})
    rates = attention_rates(run_of(near, far), work.shape)
    keys = [SMALL.window if a.is_sliding else 4000 for a in work.shape.attention]
    flops = 4 * sum(k * a.num_heads * a.head_dim for k, a in zip(keys, work.shape.attention, strict=True))
    assert rates is not None
    assert rates.flops_per_s == pytest.approx((flops,))
    assert attention_rates(run_of(near), work.shape) is None
