"""A device as a cluster file writes it, checked, and as the planner has it."""

from __future__ import annotations

from operator import attrgetter

from pydantic import BaseModel, ConfigDict

from placement.errors import ClusterFileError, InputError
from placement.fields.cluster_fields import (
    GbytesPerS,
    Gflops,
    Memory,
    Name,
    NotNegative,
    Number,
    Positive,
    RoundTrip,
    RowCostsField,
    Rows,
)
from placement.fields.overhead_fields import HEAD_ALONE, OF_LAYERS
from placement.files.quote import quote
from placement.given.cluster_spec import DeviceKind, DeviceSpec, FiguresFrom, Overheads
from placement.given.kernel_rates import ATTENTION, KernelRates, RowCosts
from placement.units import size
from placement.weight_format import planned_format


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OverheadsModel(_Strict):
    request_s: NotNegative = 0.0
    expert_s: NotNegative = 0.0
    message_s: NotNegative = 0.0
    message_row_s: NotNegative = 0.0
    layer_s: NotNegative = 0.0
    moe_layer_s: NotNegative = 0.0
    batch_s: Number = 0.0
    row_s: NotNegative = 0.0
    pass_s: NotNegative = 0.0
    draft_s: NotNegative = 0.0


class DeviceModel(_Strict):
    name: Name
    kind: DeviceKind
    memory_bytes: Memory
    bandwidth_gbytes_per_s: GbytesPerS
    ffn_gflops: Gflops
    reserved_bytes: Memory = 0
    torch_device: str | None = None
    price_per_gbyte: NotNegative | None = None
    overheads: OverheadsModel = OverheadsModel()
    cores: Positive = 1.0
    host_link_gbytes_per_s: GbytesPerS | None = None
    host_link_round_trip_s: RoundTrip = 0.0
    attention_gflops: Gflops | None = None
    attention_bandwidth_gbytes_per_s: GbytesPerS | None = None
    kernels: dict[str, dict[Rows, Gflops]] = {}
    row_costs: RowCostsField = {}


def device_spec(device: DeviceModel, where: str, figures_from: FiguresFrom = "typed") -> DeviceSpec:
    """
    Raises:
        ClusterFileError: fields that do not go together; names them below `where`.
    """
    if device.reserved_bytes > device.memory_bytes:
        raise ClusterFileError(
            f"{where}.reserved_bytes: expected at most memory_bytes ({size(device.memory_bytes)}), "
            f"found {size(device.reserved_bytes)}"
        )
    for field in ("host_link_gbytes_per_s", "host_link_round_trip_s"):
        if not getattr(device, field) or device.kind == "vram":
            continue
        raise ClusterFileError(
            f"{where}.{field}: expected on devices of kind 'vram' only, found on "
            f"{device.kind!r}: leave it out"
        )
    if device.overheads.batch_s < -device.overheads.layer_s:
        raise ClusterFileError(
            f"{where}.overheads.batch_s: expected at least -layer_s ({-device.overheads.layer_s:g}), "
            f"which it is added to, found {device.overheads.batch_s:g}"
        )
    return DeviceSpec(
        name=device.name,
        kind=device.kind,
        torch_device=device.torch_device or ("cuda" if device.kind == "vram" else "cpu"),
        memory_bytes=device.memory_bytes,
        reserved_bytes=device.reserved_bytes,
        bandwidth_bytes_per_s=device.bandwidth_gbytes_per_s * 1e9,
        ffn_flops_per_s=device.ffn_gflops * 1e9,
        price_per_gbyte=device.price_per_gbyte,
        overheads=Overheads(**device.overheads.model_dump()),
        cores=device.cores,
        host_link_bytes_per_s=scaled(device.host_link_gbytes_per_s, 1e9),
        host_link_round_trip_s=device.host_link_round_trip_s,
        attention_flops_per_s=scaled(device.attention_gflops, 1e9),
        kernels=tuple(_kernel_rates(form, rates, where) for form, rates in device.kernels.items()),
        attention_bandwidth_bytes_per_s=scaled(device.attention_bandwidth_gbytes_per_s, 1e9),
        row_costs=RowCosts.of(device.row_costs),
        figures_from=figures_from,
    )


def _kernel_rates(form: str, gflops: dict[int, float], where: str) -> KernelRates:
    field = f"{where}.kernels.{quote(form)}"
    name = form
    if form != ATTENTION:
        try:
            name = planned_format(form).name
        except InputError as error:
            raise ClusterFileError(f"{field}: {error}, or {ATTENTION}") from None
    if 1 not in gflops:
        raise ClusterFileError(
            f"{field}: expected GFLOP/s by rows of a pass, 1 row among them, found none of 1"
        )
    rows = tuple(sorted(gflops))
    return KernelRates(name, rows, tuple(gflops[number] * 1e9 for number in rows))


def check_no_head_software(node: str, device: DeviceModel, where: str) -> None:
    """Raise ClusterFileError where a device that is not the head's own has what would count nowhere."""
    without_effect = HEAD_ALONE | (OF_LAYERS if device.kind == "disk" else set())
    if device.kind != "vram":
        # `device_spec` refuses it with the better reason: there is no host link.
        without_effect -= {"host_link_round_trip_s"}
    for name in sorted(without_effect):
        if attrgetter(name)(device):
            raise ClusterFileError(
                f"{where}.{name}: expected on the first device of the head's node, found on device "
                f"{device.name!r} of node {node!r}, where it has no effect: leave it out"
            )


def scaled(number: float | None, unit: float) -> float | None:
    return None if number is None else number * unit
