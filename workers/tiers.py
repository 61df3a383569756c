"""The tiers of a box: what one device's experts must do, and what this release can hold them in.

Importing this module loads no torch: a spec can be made anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from placement.files.quote import quote
from placement.plan import Plan
from transport.expert_rows import ExpertRows

if TYPE_CHECKING:
    from workers.fixed_point import PartialSum


class ExpertTier(Protocol):
    """Experts on one device; several of them on the devices of a box (`TieredExperts`) are one too."""

    @property
    def experts(self) -> Mapping[int, tuple[int, ...]]:
        """Absolute layer index -> the ids held."""
        ...

    @property
    def num_experts(self) -> int:
        """Of all layers together."""
        ...

    @property
    def held_bytes(self) -> int:
        """Memory that they take."""
        ...

    def forward(self, layer: int, rows: ExpertRows) -> PartialSum:
        """The sum of the rows' experts, all held here, in arrays that are the caller's.

        One thread at a time calls it. While it computes it lets go of the interpreter, so that other tiers
        can work beside it.

        Args:
            rows: -1 for an expert that is computed elsewhere; hidden in float32 or the bits of bfloat16.

        Raises:
            ExpertNotHeld: an id that is not here.
        """
        ...


@dataclass(frozen=True, slots=True)
class TierSpec:
    """What a tier is to be: `kind` and `device` as in a plan, `experts` absolute layer index -> ids.

    `forms`: layer -> the name of the `ExpertFormat` its experts are kept in, that of the rows where left out.
    """

    name: str
    kind: str
    device: str
    experts: Mapping[int, tuple[int, ...]]
    forms: Mapping[int, str] = field(default_factory=dict)

    @property
    def num_experts(self) -> int:
        return sum(map(len, self.experts.values()))


def tiers_of(plan: Plan, worker: str) -> tuple[TierSpec, ...]:
    """A worker's tiers in the plan's order, without those that hold nothing.

    Raises:
        PlanError: the plan has no such worker.
    """
    forms = {layer.index: layer.form for layer in plan.layers}
    specs = (
        TierSpec(plan.tiers[i].name, plan.tiers[i].kind, plan.tiers[i].device, plan.experts_of_tier(i), forms)
        for i in plan.worker(worker).tiers
    )
    return tuple(spec for spec in specs if spec.experts)


def why_not_run(kind: str, device: str) -> str | None:
    """Why this release cannot hold experts there, and what to do; None if it can."""
    if kind == "disk":
        return (
            "its experts are on a disk, and this release runs them from memory only: plan without that disk"
        )
    if kind == "vram" or device.partition(":")[0] != "cpu":
        return (
            f"its experts are in {kind} on device {quote(device)}, and this release computes experts on "
            "CPUs: plan with devices of kind ram and without a torch_device"
        )
    return None
