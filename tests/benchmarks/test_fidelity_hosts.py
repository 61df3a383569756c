"""What cluster layouts are made of; the runs themselves need root and a quiet machine."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fidelity.border import CELLS, CellResult, problem_of, verdict
from benchmarks.fidelity.boxes import HEAD, BoxSetup, Figures, box_device, cluster_of, name_of
from benchmarks.fidelity.hosts import SETUPS, HostsLayout, HostsSetup, of_document, plan_of, summary
from benchmarks.fidelity.kept_rows import KeptRows, at_most, ended_tidily
from benchmarks.fidelity.run import Comparison
from benchmarks.relay import relay
from placement.given.probe import ram_device
from placement.given.problem import planning_devices
from placement.given.stats import RoutingStats
from placement.replay.system import System
from placement.workload import Workload
from tests.orchestrator.processes import DEADLINE_S
from tests.placement.given.probes import link, node, probe
from tests.placement.shapes import small_shape

SHAPE = small_shape()


def figures(boxes: int) -> Figures:
    return Figures(node(), probe().software, node(), 30e9, {name_of(i): link() for i in range(boxes)})


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name)
def test_every_layouts_plan_runs_on_the_cluster_that_probes_give(setup: HostsSetup) -> None:
    plan = plan_of(SHAPE, setup)
    assert {worker.name for worker in plan.asked_workers} == {name_of(i) for i in range(len(setup.boxes))}
    assert (plan.local_worker is not None) == (setup.head_share > 0)
    System.build(plan, cluster_of(figures(len(setup.boxes)), setup.boxes), SHAPE, Workload())


def test_both_kinds_of_boxes_are_among_the_layouts() -> None:
    assert {setup.is_played for setup in SETUPS} == {True, False}
    for setup in SETUPS:
        assert sum(box.share for box in setup.boxes) + setup.head_share == pytest.approx(1)
        # One core serves one real box.
        assert setup.is_played or len(setup.boxes) == 1


def test_a_played_box_has_the_memory_it_plays_and_no_faster_one() -> None:
    boxes = (BoxSetup(0.5), BoxSetup(0.25, pace_bytes_per_s=1e9), BoxSetup(0.25, pace_bytes_per_s=1e15))
    rates = [d.bandwidth_bytes_per_s for d in planning_devices(cluster_of(figures(3), boxes))[1:]]
    alone_bytes_per_s = ram_device(node(), None, None).bandwidth_bytes_per_s
    assert rates == [alone_bytes_per_s, 1e9, alone_bytes_per_s]
    alone, of_three = (box_device(figures(1), boxes[1], number) for number in (1, 3))
    assert of_three.ffn_flops_per_s == pytest.approx(alone.ffn_flops_per_s / 3)
    assert of_three.kernels[0].flops_per_s == pytest.approx([r / 3 for r in alone.kernels[0].flops_per_s])


def test_a_real_box_shares_the_heads_memory_and_a_played_one_does_not() -> None:
    (machine,) = cluster_of(figures(1), (BoxSetup(1.0),)).machines
    assert (machine.nodes, machine.bandwidth_bytes_per_s) == ((HEAD, "box1"), 30e9)
    assert cluster_of(figures(1), (BoxSetup(1.0, pace_bytes_per_s=1e9),)).machines == ()


def test_the_winner_is_the_family_with_the_least_seconds() -> None:
    result = CellResult(
        CELLS[0],
        {"experts": 0.2, "whole layers": 0.1, "one box": 0.3},
        {"experts": 0.2, "whole layers": 0.25, "one box": 0.5},
    )
    assert (result.predicted, result.measured) == ("whole layers", "experts")
    assert result.predicted_margin == pytest.approx(1.0)
    assert result.margin == pytest.approx(0.25)
    assert result.errors["whole layers"] == pytest.approx(-0.6)


def test_a_cell_is_a_tie_where_predictions_differ_by_less_than_they_err() -> None:
    def cell(predicted: tuple[float, float], measured: tuple[float, float]) -> CellResult:
        families = ("experts", "one box")
        return CellResult(
            CELLS[0],
            dict(zip(families, predicted, strict=True)),
            dict(zip(families, measured, strict=True)),
        )

    right, wrong = cell((1.0, 1.3), (1.1, 1.3)), cell((1.0, 1.3), (1.4, 1.3))
    near, near_wrong = cell((1.0, 1.05), (1.1, 1.3)), cell((1.0, 1.05), (1.15, 1.05))
    found = verdict([right, wrong, near, near_wrong])
    assert (found.right, found.wrong, found.ties) == (1, 1, 2)
    assert found.median_error == pytest.approx(1 - 1 / 1.1)
    assert found.worst_error == pytest.approx(1 - 1 / 1.4)


def test_rows_that_a_file_has_stay_until_they_are_measured_again(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    KeptRows(file).keep("1", {"seconds": 1.0})
    again = KeptRows(file)
    again.keep("2", {"seconds": 2.0})
    again.keep("1", {"seconds": 3.0})
    assert KeptRows(file).rows == {"1": {"seconds": 3.0}, "2": {"seconds": 2.0}}
    alone = KeptRows(None)
    alone.keep("1", 1)
    assert alone.rows == {"1": 1}


def test_a_layout_is_read_as_it_was_kept(tmp_path: Path) -> None:
    layout = HostsLayout(
        "head and 1 box", False, 3, Comparison([1.0], [1.25]), Comparison([2.0], [1.6]), 0.01
    )
    KeptRows(tmp_path / "rows.json").keep("1", asdict(layout))
    read = of_document(KeptRows(tmp_path / "rows.json").rows["1"])
    assert read == layout
    assert list(summary([read])) == [
        "real boxes, decode: median error 20.0%, worst 20.0%, of 1 layouts",
        "real boxes, prefill: median error 25.0%, worst 25.0%, of 1 layouts",
    ]


def test_a_block_ends_by_its_time_and_by_a_signal() -> None:
    with pytest.raises(TimeoutError, match="not done"), at_most(0.05):
        time.sleep(10)
    with at_most(0.05):
        pass
    time.sleep(0.1)
    with pytest.raises(SystemExit) as ended, ended_tidily():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM


def test_a_relay_ends_with_what_started_it() -> None:
    command = [sys.executable, "-m", "benchmarks.relay", "127.0.0.1", "1", "0", "0"]
    relaying = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert relaying.stdout is not None
    assert relaying.stdin is not None
    assert int(relaying.stdout.readline()) > 0
    relaying.stdin.close()
    assert relaying.wait(DEADLINE_S) == 0
    relaying.stdout.close()


def test_a_cells_home_holds_its_share_and_its_disk_all() -> None:
    class OfShape:
        shape = SHAPE

    counts = np.full((SHAPE.num_moe_layers, SHAPE.num_experts), SHAPE.top_k)
    stats = RoutingStats.from_counts(SHAPE, counts, SHAPE.num_experts, "even")
    problem = problem_of(OfShape(), CELLS[0], figures(1), stats)  # type: ignore[arg-type]
    cpu, ram, ssd, attic = problem.capacities().tolist()
    everything = SHAPE.num_routed_experts
    assert (cpu, ram, ssd) == (0, int(CELLS[0].home_share * everything), everything)
    assert ram + attic >= everything
    assert problem.devices[2].bandwidth_bytes_per_s == CELLS[0].ssd * 1e9


def test_a_relay_holds_bytes_back_each_way() -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def echo() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(connection.recv(100))

    thread = threading.Thread(target=echo)
    thread.start()
    with (
        relay(server.getsockname()[1], delay_s=0.05) as port,
        socket.create_connection(("127.0.0.1", port)) as client,
    ):
        started = time.monotonic()
        client.sendall(b"there and back")
        assert client.recv(100) == b"there and back"
        assert time.monotonic() - started >= 0.1
    thread.join()
    server.close()
