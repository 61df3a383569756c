"""The head's parts with their bytes and their seconds on two devices, for `placement.head_split`."""

from __future__ import annotations

from placement.cost.head import decoder_layer_s, mtp_head_s, shared_expert_s, weights_s
from placement.given.problem import PlanningDevice
from placement.head_split import HeadParts, SplitPart
from placement.kv_size import SequenceSize
from placement.model_shape import AttentionShape, ModelShape
from placement.workload import HeadPart, Workload


def head_parts(shape: ModelShape, workload: Workload, gpu: PlanningDevice, cpu: PlanningDevice) -> HeadParts:
    """Of a decode step of `workload`; norms count as bytes with what they stand before, and take no time.

    Args:
        gpu, cpu: what computes a part in VRAM and in RAM.
    """

    def bytes_of(part: HeadPart, parameters: int) -> int:
        return int(parameters * workload.head_bits(part) / 8)

    def kv_bytes(attention: AttentionShape) -> int:
        return workload.num_sequences * SequenceSize([attention], workload.kv_form).num_bytes(
            workload.context
        )

    def layer(index: int) -> SplitPart:
        attention, is_moe = shape.attention[index], index in shape.moe_layers
        ffn = shape.shared_expert_parameters if is_moe else shape.dense_ffn_parameters
        gpu_s, cpu_s = (
            decoder_layer_s(shape, index, workload, device)
            + (shared_expert_s(device, shape, workload) if is_moe else 0.0)
            for device in (gpu, cpu)
        )
        weight_bytes = (
            bytes_of("attention", attention.parameters(shape.hidden_size))
            + bytes_of("ffn", ffn + 2 * shape.hidden_size)
            + (bytes_of("router", shape.router_parameters) if is_moe else 0)
        )
        return SplitPart(weight_bytes, kv_bytes(attention), gpu_s, cpu_s)

    def mtp(index: int) -> SplitPart:
        attention = shape.attention[shape.num_hidden_layers + index]
        attention_parameters = attention.parameters(shape.hidden_size)
        others = shape.mtp_layer_parameters(index) - shape.lm_head_parameters - attention_parameters
        weight_bytes = (
            bytes_of("attention", attention_parameters)
            + bytes_of("ffn", others)
            + bytes_of("output", shape.lm_head_parameters)
        )
        gpu_s, cpu_s = (mtp_head_s(shape, index, workload, device) for device in (gpu, cpu))
        return SplitPart(weight_bytes, kv_bytes(attention), gpu_s, cpu_s)

    rows = workload.tokens_per_step
    lm_head_s = [
        weights_s("output", shape.lm_head_parameters, rows, workload, device) for device in (gpu, cpu)
    ]
    lm_head_bytes = bytes_of("output", shape.lm_head_parameters + shape.hidden_size)
    return HeadParts(
        layers=tuple(layer(index) for index in range(shape.num_hidden_layers)),
        lm_head=SplitPart(lm_head_bytes, 0, lm_head_s[0], lm_head_s[1]),
        mtp=tuple(mtp(index) for index in range(min(workload.drafts, shape.num_mtp_layers))),
    )
