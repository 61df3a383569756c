"""From what passes of a narrow model take to the head's overheads, as the cost model counts them."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.probe.head_times import ATTENTION_ROWS, CHUNK_ROWS, CONTEXT, VERIFY_ROWS, HeadTimes
from orchestrator.probe.narrow_shape import narrow_shape
from placement.cost.head import head_layer_seconds, head_seconds, shared_expert_s
from placement.cost.prefill import prefill_head_seconds
from placement.given.cluster_spec import ClusterSpec, NodeSpec
from placement.given.kernel_rates import ATTENTION
from placement.given.probe import ram_device
from placement.given.probe_figures import FormRate, HeadSoftware, Node
from placement.given.problem import PlanningProblem, planning_devices
from placement.kv_size import KvForm
from placement.workload import Workload

_BITS = 32


def head_software(times: HeadTimes, node: Node) -> HeadSoftware:
    """What the passes take beyond the bytes and FLOPs that `node`'s figures say they have."""
    attention = FormRate(form=ATTENTION, rows=ATTENTION_ROWS, flops_per_s=times.attention_flops_per_s)
    device = replace(ram_device(node, None, attention), memory_bytes=10**12, reserved_bytes=0)
    cluster = ClusterSpec("head", (NodeSpec("head", None, (device,), None),))
    shape = narrow_shape()
    workload = Workload(head_bits_per_weight=_BITS, kv_form=KvForm.bfloat16, context=CONTEXT)
    problem = PlanningProblem(shape, planning_devices(cluster), shape.expert_bytes(_BITS), workload=workload)
    head, layers, moe_layers = problem.devices[0], shape.num_hidden_layers, shape.num_moe_layers

    def pass_s(rows: int) -> float:
        """Of decode, by its bytes and FLOPs."""
        verifying = replace(workload, drafts=rows - 1)
        matrices_s = float(head_layer_seconds(replace(problem, workload=verifying)).sum())
        return matrices_s + moe_layers * shared_expert_s(head, shape, verifying)

    layer_s = max(0.0, times.token_s - pass_s(1)) / layers
    batch_layer_s = max(0.0, times.verify_s - pass_s(VERIFY_ROWS)) / layers
    empty = replace(problem, workload=replace(workload, context=0))
    chunk_s = prefill_head_seconds(empty, CHUNK_ROWS, is_last=False)
    chunk_s += moe_layers * shared_expert_s(head, shape, workload, rows=CHUNK_ROWS)
    rows_s = max(0.0, times.chunk_s - chunk_s - layers * batch_layer_s)
    drafting = replace(problem, workload=replace(workload, drafts=shape.num_mtp_layers))
    draft_s = (times.drafts_s - head_seconds(drafting).mtp_s) / shape.num_mtp_layers
    return HeadSoftware(
        message_s=times.message_s,
        message_row_s=times.message_row_s,
        layer_s=layer_s,
        moe_layer_s=times.dispatch_s,
        batch_s=batch_layer_s - layer_s,
        row_s=rows_s / CHUNK_ROWS / layers + times.dispatch_row_s * moe_layers / layers,
        pass_s=max(0.0, times.logits_s - head_seconds(problem).lm_head_s),
        draft_s=max(0.0, draft_s),
        wake_s=max(0.0, times.woken_token_s - times.token_s) / moe_layers,
        attention=attention,
    )
