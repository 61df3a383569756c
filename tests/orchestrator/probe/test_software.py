"""What of a narrow model's passes counts as software."""

from __future__ import annotations

import pytest

from orchestrator.probe.head_times import ATTENTION_ROWS, HeadTimes
from orchestrator.probe.narrow_shape import narrow_shape
from orchestrator.probe.software import head_software
from tests.placement.given.probes import node


def times(**changes: float) -> HeadTimes:
    usual = {
        "token_s": 0.008,
        "woken_token_s": 0.008,
        "verify_s": 0.01,
        "chunk_s": 0.1,
        "logits_s": 0.001,
        "drafts_s": 0.002,
        "dispatch_s": 1e-4,
        "message_s": 2e-4,
        "dispatch_row_s": 1e-6,
        "message_row_s": 1e-6,
    }
    return HeadTimes(**usual | changes, attention_flops_per_s=(1e9,) * len(ATTENTION_ROWS))


def test_a_slower_pass_is_software_of_its_layers() -> None:
    slower = head_software(times(token_s=0.012), node())
    layers = narrow_shape().num_hidden_layers
    assert slower.layer_s - head_software(times(), node()).layer_s == pytest.approx(0.004 / layers)


def test_what_pauses_cost_is_of_each_layer_that_waits() -> None:
    moe_layers = narrow_shape().num_moe_layers
    assert head_software(times(woken_token_s=0.0101), node()).wake_s == pytest.approx(0.0021 / moe_layers)
    assert head_software(times(woken_token_s=0.005), node()).wake_s == 0.0
