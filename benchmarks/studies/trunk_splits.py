"""What a pass takes on two equal boxes that divide more than experts: the trunk's parts, or whole layers.

All seconds of a box are those of `placement.cost`. Here stands how parts are shared out and what is sent.
Both boxes have room for all that a way to divide may want there.

There are three ways:

- *Asked*: the head sends rows, and computes its own part while the other box computes and answers. Experts
  are computed so today.
- *In step*: both boxes hold the residual rows. Each computes its part of every block and sends its sums to
  the other. So a block costs one way on the wire, not two.
- *Whole layers*: each box has half of the layers, with their keys and values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from placement.cost.head import decoder_layer_s, head_seconds, mtp_head_s, weights_s
from placement.cost.rates import expert_rates
from placement.cost.roofline import roofline_seconds
from placement.given.cluster_spec import LinkSpec
from placement.given.problem import PlanningProblem
from placement.message_size import message_size
from placement.model_shape import ModelShape

EIGHTHS = 8
"""A block is divided in eighths: Step-3.5-Flash has eight heads of keys and values in every layer."""
LOGIT_BYTES = 4
# Of a chosen token on its way to the other box, which hardly matters.
_TOKEN_BYTES = 64


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A part of a pass that two boxes may share.

    Attributes:
        count: how often a pass has it.
        part_s: float64 [9], seconds of so many eighths of it on one box.
        ask_bytes: of its rows, to a box that does not have them.
        sum_bytes: of its int32 sums, however small the part.
        logit_bytes: of all its results, where they are no sums and each box has its own.
    """

    count: int
    part_s: NDArray[np.float64]
    ask_bytes: float
    sum_bytes: float = 0.0
    logit_bytes: float = 0.0

    @property
    def alone_s(self) -> float:
        return float(self.part_s[EIGHTHS])

    def asked_s(self, link: LinkSpec) -> float:
        """As many eighths asked of the other box as make it shortest, none at least."""
        there = np.arange(1, EIGHTHS + 1)
        sent = self.ask_bytes + self.sum_bytes + self.logit_bytes * there / EIGHTHS
        back_s = link.round_trip_s + sent / link.bandwidth_bytes_per_s + self.part_s[there]
        return min(self.alone_s, float(np.maximum(self.part_s[EIGHTHS - there], back_s).min()))

    def in_step_s(self, link: LinkSpec) -> float:
        """A half on each box, or all of it on both where that is shorter.

        Sums go both ways at once. Logits go to the box that chooses a token, which the other has to learn.
        """
        half_s = float(self.part_s[EIGHTHS // 2])
        if self.logit_bytes:
            sent = self.logit_bytes / 2 + _TOKEN_BYTES
            return min(self.alone_s, half_s + link.round_trip_s + sent / link.bandwidth_bytes_per_s)
        return min(self.alone_s, half_s + exchange_s(link, self.sum_bytes))


def exchange_s(link: LinkSpec, num_bytes: float) -> float:
    """Until both boxes have what the other sent: one way, which takes half a round trip."""
    return link.round_trip_s / 2 + num_bytes / link.bandwidth_bytes_per_s


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """A pass on one of two equal boxes, part by part.

    Attributes:
        attention, dense, output: the trunk's blocks and the MTP layers'.
        own_s: routers and software; every box that has the rows has them to itself.
        shared_s: the shared expert of a MoE layer.
        expert_s: float64 [most + 1, most + 1]: seconds of n experts out of the u that a layer needs, [u, n].
        distinct: how often a layer needs u experts, as a share, by u.
        num_moe_layers: of a pass.
        ask_bytes, sum_bytes: of the rows of a MoE layer, to a box that does not have them, and of its sums.
        head_s: all but MoE layers, on one box.
        hidden_bytes: of the rows from one layer to the next.
    """

    attention: tuple[Block, ...]
    dense: tuple[Block, ...]
    output: tuple[Block, ...]
    own_s: float
    shared_s: float
    expert_s: NDArray[np.float64]
    distinct: Mapping[int, float]
    num_moe_layers: int
    ask_bytes: float
    sum_bytes: float
    head_s: float
    hidden_bytes: float

    def one_box_s(self) -> float:
        return self.head_s + self._moe_s(None)

    def experts_s(self, link: LinkSpec) -> float:
        """The best plan with experts alone: in each layer as many are asked as make it shortest."""
        return self.head_s + self._moe_s(link)

    def outer_asked_s(self, link: LinkSpec) -> float:
        """Experts, dense layers and lm_head asked of the other box too."""
        alone_s = sum(block.count * block.alone_s for block in self.attention)
        outer_s = sum(block.count * block.asked_s(link) for block in (*self.dense, *self.output))
        return alone_s + outer_s + self.own_s + self._moe_s(link)

    def trunk_asked_s(self, link: LinkSpec) -> float:
        """The same, and heads of attention with their keys and values."""
        blocks = (*self.attention, *self.dense, *self.output)
        return sum(block.count * block.asked_s(link) for block in blocks) + self.own_s + self._moe_s(link)

    def in_step_s(self, link: LinkSpec) -> float:
        """Both boxes compute the same pass, each its half of every block."""
        blocks = (*self.attention, *self.dense, *self.output)
        seconds = sum(block.count * block.in_step_s(link) for block in blocks) + self.own_s
        exchanged_s = exchange_s(link, self.sum_bytes)
        for number, share in self.distinct.items():
            there = np.arange(number + 1)
            here_s = self.shared_s + self.expert_s[number, number - there]
            shared_out_s = np.maximum(here_s, self.expert_s[number, there]).min() + exchanged_s
            seconds += share * self.num_moe_layers * min(here_s[0], shared_out_s)
        return float(seconds)

    def whole_layers_s(self, link: LinkSpec) -> float:
        """Half of the layers on each box, for one text: each box waits for the other.

        With two texts at once each box has one of them at any time, and a pass of both takes as long.
        """
        return self.one_box_s() + 2 * exchange_s(link, self.hidden_bytes)

    def _moe_s(self, link: LinkSpec | None) -> float:
        seconds = 0.0
        for number, share in self.distinct.items():
            there = np.arange(number + 1)
            layer_s = self.shared_s + self.expert_s[number, number - there]
            if link is not None:
                sent_s = (self.ask_bytes + self.sum_bytes) / link.bandwidth_bytes_per_s
                asked_s = (there > 0) * (link.round_trip_s + sent_s) + self.expert_s[number, there]
                layer_s = np.maximum(layer_s, asked_s)
            seconds += share * float(layer_s[0] if link is None else layer_s.min())
        return self.num_moe_layers * seconds


def work_of(problem: PlanningProblem, distinct: Mapping[int, float]) -> Work:
    """The pass of `problem.workload` on the head's device.

    Args:
        distinct: as `distinct_experts` counts them.
    """
    assert problem.head is not None
    shape, workload, device = problem.shape, problem.workload, problem.devices[problem.head]
    rows, num_drafts = workload.tokens_per_step, min(workload.drafts, problem.shape.num_mtp_layers)
    message, rates = message_size(shape, problem.wires), expert_rates(problem)
    head = head_seconds(problem)
    own_s = head.router_s + head.layer_overhead_s + head.pass_overhead_s
    hidden, sums = message.hidden_bytes_per_row, message.reply_bytes_per_row
    shapes = [_with_attention(shape, eighths) for eighths in range(EIGHTHS + 1)]

    def attention_block(seconds: list[float], num_rows: float, count: int = 1) -> Block:
        # What is left without a single head is no attention.
        return Block(count, np.array(seconds) - seconds[0], hidden * num_rows, sums * num_rows)

    def linear_block(part_s: float, num_rows: float, count: int = 1) -> Block:
        part = part_s * np.arange(EIGHTHS + 1) / EIGHTHS
        return Block(count, part, hidden * num_rows, sums * num_rows)

    def output_block(num_rows: int) -> Block:
        part_s = weights_s("output", shape.lm_head_parameters, num_rows, workload, device)
        part = part_s * np.arange(EIGHTHS + 1) / EIGHTHS
        return Block(1, part, hidden * num_rows, logit_bytes=LOGIT_BYTES * shape.vocab_size * num_rows)

    trunk = shape.attention[: shape.num_hidden_layers]
    attention = [
        attention_block(
            [decoder_layer_s(each, trunk.index(kind), workload, device) for each in shapes], rows, count
        )
        for kind, count in Counter(trunk).items()
    ]
    dense_s = weights_s("ffn", shape.dense_ffn_parameters, rows, workload, device)
    dense = [linear_block(dense_s, rows, shape.num_dense_layers)]
    output = [output_block(rows)]
    for index in range(num_drafts):
        slots = workload.num_sequences * (1 + workload.accepted_drafts + index)
        seconds = [mtp_head_s(each, index, workload, device) for each in shapes]
        output.append(output_block(workload.num_sequences))
        attention.append(attention_block(seconds, slots))
        software_s = device.overheads.draft_s + slots * device.overheads.row_s
        dense.append(linear_block(seconds[0] - output[-1].alone_s - software_s, slots))
        own_s += software_s
    most = max(distinct)
    needed, computed = np.arange(most + 1)[:, None], np.arange(most + 1)[None, :]
    pairs = rows * shape.top_k * computed / np.maximum(needed, 1)
    return Work(
        attention=tuple(attention),
        dense=tuple(dense),
        output=tuple(output),
        own_s=own_s,
        shared_s=float(rates.busy_s[problem.head]),
        expert_s=roofline_seconds(rates, np.broadcast_to(computed, pairs.shape), pairs, problem.head),
        distinct=distinct,
        num_moe_layers=shape.num_moe_layers,
        ask_bytes=message.request_bytes_per_row * rows,
        sum_bytes=sums * rows,
        head_s=head.total_s,
        hidden_bytes=hidden * rows,
    )


def distinct_experts(trace: NDArray[np.integer], rows: int) -> dict[int, float]:
    """How many experts a layer needs for so many successive tokens, and for which share of layers.

    Args:
        trace: int [num_tokens, num_moe_layers, top_k].
    """
    num_steps = len(trace) // rows
    steps = trace[: num_steps * rows].reshape(num_steps, rows, *trace.shape[1:])
    chosen = np.sort(steps.transpose(0, 2, 1, 3).reshape(num_steps * trace.shape[1], -1), axis=1)
    numbers = 1 + (np.diff(chosen.astype(np.int64), axis=1) != 0).sum(axis=1)
    values, counts = np.unique(numbers, return_counts=True)
    return {int(value): float(count) for value, count in zip(values, counts / counts.sum(), strict=True)}


def _with_attention(shape: ModelShape, eighths: int) -> ModelShape:
    """The model with so many eighths of each layer's heads."""
    parts = tuple(
        replace(
            attention,
            num_heads=attention.num_heads * eighths // EIGHTHS,
            num_kv_heads=attention.num_kv_heads * eighths // EIGHTHS,
        )
        for attention in shape.attention
    )
    return replace(shape, attention=parts)
