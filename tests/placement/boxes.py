"""Devices for placement tests."""

from __future__ import annotations

import math

from placement.given.problem import PlanningDevice
from placement.plan import LOCAL_WORKER, PlannedTier


def device(
    name: str,
    num_experts: int,
    expert_bytes: int,
    *,
    tier: str = "ram",
    home: bool = False,
    gbytes_per_s: float = 50,
    gflops: float = 1000,
    round_trip_s: float = 3e-4,
    gbits_per_s: float = 1,
) -> PlanningDevice:
    """A device with room for `num_experts` and half a one; at home there is no round trip and no wire."""
    home = home or name == LOCAL_WORKER
    return PlanningDevice(
        tier=PlannedTier(
            name, "home" if home else name, "cpu", tier, num_experts * expert_bytes + expert_bytes // 2
        ),
        is_home=home,
        bandwidth_bytes_per_s=gbytes_per_s * 1e9,
        ffn_flops_per_s=gflops * 1e9,
        round_trip_s=0.0 if home else round_trip_s,
        link_bytes_per_s=math.inf if home else gbits_per_s * 1e9 / 8,
    )
