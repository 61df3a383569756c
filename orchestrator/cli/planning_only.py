"""GPUs that plans know and this release does not compute on: other makers' and cards older than Turing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from orchestrator.runnable import check_runnable
from placement.errors import PlanError
from placement.given.cluster_spec import ClusterSpec, DeviceSpec
from placement.hardware.catalogue import packaged_catalogue
from placement.hardware.entry import Entry
from placement.plan import LOCAL_WORKER, Plan
from workers.gpu.opening import LEAST_CAPABILITY
from workers.tiers import why_not_run

_LEAST = ".".join(map(str, LEAST_CAPABILITY))
_RUNS_ON = "this release computes on CPUs, and on NVIDIA cards from Turing on"
_AS_RAM = "with the memory typed as `ram` (docs/hardware.md, Strix Halo)"
_MOST_NAMES = 4


def is_planning_only(entry: Entry) -> bool:
    """Whether the catalogue has it for plans alone; links and disks always run."""
    if entry.kind == "link":
        return False
    device = entry.torch_device or ("cuda" if entry.kind == "vram" else "cpu")
    return why_not_run(entry.kind, device) is not None or _is_old(entry)


def what_runs(entry: Entry) -> str | None:
    """A sentence on what of such a box computes; None where the device itself does, as others of its kind."""
    if entry.hardware_class == "unified-pc":
        cpu = f"The CPU of such a box runs, {_AS_RAM}"
        if is_planning_only(entry):
            return f"Planning only: {_RUNS_ON}. {cpu}."
        return f"Not tried yet: its GPU, or any other beside an Arm CPU. {cpu}."
    if not is_planning_only(entry):
        return None
    if entry.hardware_class.startswith("apple"):
        return "Planning only: Potluck does not run on macOS, nor on this GPU."
    old = f"; this one has compute capability {entry.compute_capability:.1f}" if _is_old(entry) else ""
    return f"Planning only: {_RUNS_ON}{old}. The CPU of such a box runs, with its RAM."


def why_planning_only(plan: Plan, cluster: ClusterSpec) -> str | None:
    """Why a run would refuse the plan, as made for the cluster; None where it would not."""
    try:
        check_runnable(plan)
    except PlanError as error:
        return str(error)
    devices = [device for node in cluster.nodes for device in node.devices]
    held = plan.experts_per_tier().tolist()
    for tier, num_experts, device in zip(plan.tiers, held, devices, strict=True):
        if (num_experts or tier.name == LOCAL_WORKER) and (entry := _entry(device)) and _is_old(entry):
            return (
                f"{tier.node}/{device.name}: {entry.name} has compute capability "
                f"{entry.compute_capability:.1f}, and this release runs on cards of {_LEAST} (Turing) or "
                "newer: plan with devices of kind ram; `potluck simulate` takes the plan as it is"
            )
    return None


def planning_only_note(clusters: Iterable[ClusterSpec]) -> str | None:
    """One line on the devices of clusters that a run would not use; None where there are none."""
    names = list(dict.fromkeys(name for cluster in clusters for name in _names(cluster)))
    if not names:
        return None
    more = "" if len(names) <= _MOST_NAMES else f" and {len(names) - _MOST_NAMES} more"
    return f"for planning and simulation only: {', '.join(names[:_MOST_NAMES])}{more}; {_RUNS_ON}"


def _names(cluster: ClusterSpec) -> Iterator[str]:
    for node in cluster.nodes:
        for device in node.devices:
            entry = _entry(device)
            if why_not_run(device.kind, device.torch_device) or (entry is not None and _is_old(entry)):
                yield f"{node.name}/{device.name}"


def _entry(device: DeviceSpec) -> Entry | None:
    return None if device.hardware is None else packaged_catalogue().entry(device.hardware)


def _is_old(entry: Entry) -> bool:
    """Whether it is a card of a generation without our kernels."""
    return entry.compute_capability is not None and entry.compute_capability < float(_LEAST)
