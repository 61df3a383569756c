"""What plans and simulations say is sent is what the transport sends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.random_gguf import SMALL, FileTypes, write_random_gguf
from orchestrator.generate import GenerationParams, generate
from orchestrator.in_process import dispatcher_with_threads
from orchestrator.model.routing_recorder import RoutingRecorder
from orchestrator.model.step35 import Step35Model
from placement.given.cluster_file import load_cluster
from placement.plan_file import read_plan
from placement.replay.recorded_run import replay_decode, replay_prefill
from placement.replay.system import System
from tests.orchestrator.command_line import Potluck, document
from transport.client import WorkerClient
from transport.expert_rows import ExpertRows
from transport.messages import ForwardRequest
from transport.wire import encode
from workers.formats.open_model import model_name, open_model

SHAPE = replace(SMALL, mtp_layers=0)
PROMPT = [5, 17, 300, 42, 9, 9, 120, 77]
CLUSTER = """
head: study
nodes:
  - name: study
    devices: [{name: ram, kind: ram, memory_bytes: 64MB, bandwidth_gbytes_per_s: 10, ffn_gflops: 50}]
  - name: attic
    devices: [{name: ram, kind: ram, memory_bytes: 64MB, bandwidth_gbytes_per_s: 10, ffn_gflops: 50}]
links:
  - {node: attic, round_trip_s: 0.001, bandwidth_gbits_per_s: 1}
"""


@pytest.mark.parametrize(
    ("gate", "up", "bytes_a_row"),
    [
        ("q4_k", "q4_k", 256 + 4),
        ("q8_0", "q8_0", 256 + 8 * 4),
        ("q4_k", "q8_0", 2 * 256 + 4 + 8 * 4),
        ("bfloat16", "bfloat16", 2 * 256),
        ("float16", "float16", 2 * 256),
        ("float32", "float32", 4 * 256),
    ],
)
def test_a_plan_for_a_file_counts_the_bytes_that_its_run_sends(
    potluck: Potluck, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: str, up: str, bytes_a_row: int
) -> None:
    types = FileTypes(((gate, up, "q5_k"),), "q4_k", "q6_k", "q4_k")
    path = write_random_gguf(tmp_path / "random.gguf", SHAPE, types)
    cluster, plan_path = tmp_path / "cluster.yaml", tmp_path / "plan.json"
    cluster.write_text(CLUSTER)
    planning = ("plan", cluster, "--model", path, "--policy", "uniform", "--context", 128, "--survive", 0)
    document(potluck(*planning, "--out", plan_path, "--json"))
    plan = read_plan(plan_path)
    assert plan.workload is not None
    assert [wire.row_bytes(256) for wire in plan.wires] == [bytes_a_row]
    sent_bytes, send = [], WorkerClient.send_forward

    def counted(client: WorkerClient, request_id: int, epoch: int, layer: int, rows: ExpertRows) -> None:
        frames = encode(ForwardRequest(request_id, client.session, epoch, layer, rows))
        sent_bytes.append(sum(memoryview(frame).nbytes for frame in frames))
        send(client, request_id, epoch, layer, rows)

    monkeypatch.setattr(WorkerClient, "send_forward", counted)
    config, checkpoint = open_model(path)
    dtype = getattr(torch, plan.dtype)
    with dispatcher_with_threads(plan, checkpoint, config, dtype, wire="tcp") as dispatcher:
        head = Step35Model.load(checkpoint, config, dtype, dispatcher)
        head.recorder = RoutingRecorder(config.moe_layers, config.moe_num_experts, config.moe_top_k)
        generate(head, PROMPT, GenerationParams(6, ignore_eos=True))
        usage = dispatcher.usage
    passes = head.recorder.passes()
    system = System.build(plan, load_cluster(cluster), config.shape(model_name(path)), plan.workload)
    reports = (replay_prefill(system, passes[:1]), replay_decode(system, passes[1:], 5))
    assert len(sent_bytes) == usage.messages == sum(report.counts.messages for report in reports) > 0
    assert usage.sent_bytes == sum(report.counts.sent_bytes for report in reports)
    assert usage.sent_bytes % bytes_a_row == 0
    on_link = sum(report.bytes_by_link["link attic out"] for report in reports)
    # Headers hold a few numbers more: what is no row's.
    assert 0 < sum(sent_bytes) - on_link < 64 * len(sent_bytes)
