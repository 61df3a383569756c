"""Where a run without a plan has its experts: all in this process, or over equal workers."""

from __future__ import annotations

from pathlib import Path

from orchestrator.cli.device import Devices
from orchestrator.cli.output import print_note
from orchestrator.one_box import OneBox, plan_here
from orchestrator.run_memory import Demand, mapped_parts
from orchestrator.runnable import DEFAULT_DTYPE, DtypeName
from placement.errors import PlanDoesNotFit
from placement.plan import Plan
from placement.residency import ResidencyRule
from placement.units import size
from placement.vram import vram_margin_bytes
from placement.weight_format import FLOAT32
from workers.formats.contents import ModelContents, Part
from workers.formats.open_model import OpenModel, kept_forms
from workers.memory.reservations import free_memory


def dtype_of(model: OpenModel, asked: DtypeName | None, demand: Demand, *, silent: bool) -> DtypeName:
    """Of a run without a plan, with a line where it rounds the files' weights.

    Raises:
        InputError, CheckpointError: as `ModelContents.check_drafts`.
    """
    model.contents.check_drafts(demand.num_drafts)
    name = asked or DEFAULT_DTYPE
    if asked is None and not silent and _has_float32(model.contents):
        print_note(f"weights are float32 in the files and rounded to {name}; --dtype float32 keeps them")
    return name


def over_workers(model: OpenModel, dtype: DtypeName, num_workers: int, survive: int) -> Plan:
    """Equal workers of this machine; arguments and errors as `even_plan`."""
    # The planner takes a while to load, and a run in one process without figures does without.
    from orchestrator.cli.even_plan import even_plan

    forms = kept_forms(model.checkpoint, model.config, dtype)
    return even_plan(model.shape, num_workers, dtype, forms=forms, survive=survive)


def in_this_process(
    model: OpenModel,
    dtype: DtypeName,
    demand: Demand,
    devices: Devices,
    stats: Path | None,
    residency: ResidencyRule | None = None,
    *,
    silent: bool,
) -> OneBox:
    """All in this process, with a line that says what goes where, and how fast that should be.

    Args:
        devices: that it may use.
        stats: a routing file.
        residency: what VRAM keeps, None for what `plan_with_cards` chooses.

    Raises:
        PlanDoesNotFit: not even what must be in RAM fits there, or nothing a card that was asked for.
        RoutingFileError, ClusterFileError: `stats`, or what a probe wrote, cannot be read.
    """
    free = free_memory(mapped_parts(model, dtype))
    if not devices.cards and stats is None and not _is_measured():
        box = plan_here(model, dtype, demand, free)
    else:
        # The planner takes a while to load, and others do without.
        from orchestrator.cli.here import Here, measured_here
        from orchestrator.cli.hybrid import plan_with_cards
        from placement.interop.read import read_routing

        routing = None if stats is None else read_routing(stats, model.shape)
        here = Here.of(model, dtype, demand, routing, measured_here())
        box = plan_with_cards(model, here, demand, free, devices.cards, residency)
    if box.no_vram and devices.asked:
        raise PlanDoesNotFit(
            f"--device {devices.head}: {box.no_vram}; {size(vram_margin_bytes(0))} are left alone "
            "at the least: end other programs that use the card, take a smaller context, or --device cpu"
        )
    if not silent:
        on_cpu = f"; on the CPU, since {devices.why_cpu}" if devices.why_cpu else ""
        print_note(f"{box.reason}{on_cpu}; {_predicted(box, demand)}")
    return box


def _is_measured() -> bool:
    # What reads probes takes a while to load, and runs on a cluster do without.
    from placement.given.probe import probe_path_here

    return probe_path_here().exists()


def _predicted(box: OneBox, demand: Demand) -> str:
    if box.step_s is None:
        return "`potluck probe` measures this machine, and then its speed is predicted here"
    # How many drafts hold is known after the run alone.
    if demand.num_drafts:
        return f"a step should take {box.step_s * 1e3:.1f} ms"
    least = "at least " if box.is_most else ""
    return f"it should write {least}{1 / box.step_s:.1f} tokens/s"


def _has_float32(contents: ModelContents) -> bool:
    """Whether a run in bfloat16 rounds matrices; norms and routers it leaves as they are."""
    matrices = (tensor for tensor in contents.tensors if tensor.part not in (Part.NORMS, Part.ROUTERS))
    return contents.in_directory and any(matrix.form == FLOAT32.name for matrix in matrices)
