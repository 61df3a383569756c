"""Hardware that a node or a link names from the catalogue, as the devices and links of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from placement.errors import ClusterFileError
from placement.fields.cluster_fields import (
    GbytesPerS,
    Gflops,
    Memory,
    Name,
    NotNegative,
    Positive,
    RoundTrip,
    RowCostsField,
    Rows,
)
from placement.files.quote import one_line
from placement.given.device_fields import (
    DeviceModel,
    OverheadsModel,
)
from placement.given.torch_devices import next_torch_device
from placement.hardware.catalogue import packaged_catalogue
from placement.hardware.entry import Entry
from placement.hardware.expand import expanded_device, expanded_link, numbered
from placement.hardware.figures import figures_of


def _catalogue_name(value: object) -> str:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        raise ValueError(f"expected one name, without brackets: {one_line(value[0])}")
    return packaged_catalogue().entry(value).name


CatalogueName = Annotated[str, BeforeValidator(_catalogue_name)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HardwareItem(_Strict):
    """A name of the catalogue with what the user states of it; that wins."""

    use: CatalogueName
    name: Name | None = None
    memory_bytes: Memory | None = None
    reserved_bytes: Memory | None = None
    bandwidth_gbytes_per_s: GbytesPerS | None = None
    attention_bandwidth_gbytes_per_s: GbytesPerS | None = None
    ffn_gflops: Gflops | None = None
    attention_gflops: Gflops | None = None
    torch_device: str | None = None
    price_per_gbyte: NotNegative | None = None
    overheads: OverheadsModel | None = None
    cores: Positive | None = None
    host_link_gbytes_per_s: GbytesPerS | None = None
    host_link_round_trip_s: RoundTrip | None = None
    kernels: dict[str, dict[Rows, Gflops]] | None = None
    row_costs: RowCostsField | None = None

    @property
    def typed(self) -> dict[str, Any]:
        """What the user states, as the fields of a device."""
        return self.model_dump(exclude={"use"}, exclude_unset=True, exclude_none=True)


def _item(value: object) -> object:
    if isinstance(value, dict) and "use" not in value:
        name = value.get("name")
        if isinstance(name, str) and name in packaged_catalogue().entries:
            raise ValueError(f"expected use, a name of the catalogue: write use: {name} instead of name")
    return {"use": value} if isinstance(value, str) else value


Hardware = Annotated[HardwareItem, BeforeValidator(_item)]
"""In a file: a name alone, or a mapping with `use`."""


def named_devices(items: Sequence[HardwareItem], where: str, *, is_head: bool) -> list[DeviceModel]:
    """The devices of a node whose hardware is named, in the same order.

    Args:
        where: file and field, for errors.
        is_head: whether the head computes on the first of them.

    Raises:
        ClusterFileError: a link, or a product whose memory must be stated; names the item.
    """
    catalogue, devices = packaged_catalogue(), []
    _check_one_ram([catalogue.entry(item.use) for item in items], where)
    torch_devices = [item.torch_device for item in items if item.torch_device is not None]
    by_card = is_head and bool(items) and catalogue.entry(items[0].use).kind == "vram"
    for index, (item, name) in enumerate(zip(items, numbered([item.use for item in items]), strict=True)):
        entry = catalogue.entry(item.use)
        try:
            fields = expanded_device(catalogue, entry, item.typed, is_head=is_head and index == 0)
        except ValueError as error:
            raise ClusterFileError(f"{where}[{index}]: {error}") from None
        if entry.kind == "vram" and not by_card:
            # A CPU asks it over the host link.
            figures = figures_of(entry, catalogue.shares_of(entry))
            if (round_trip := figures.get("host_link_round_trip_s")) is not None:
                fields.setdefault("overheads", {}).setdefault("request_s", round_trip.value)
        if entry.kind == "vram" and item.torch_device is None:
            torch_devices.append(next_torch_device(entry.torch_device or "cuda", torch_devices))
            fields["torch_device"] = torch_devices[-1]
        devices.append(DeviceModel.model_validate(fields | {"name": item.name or name}))
    return devices


def _check_one_ram(entries: Sequence[Entry], where: str) -> None:
    """Raise ClusterFileError for RAM that is named twice: its bandwidth would be counted twice."""
    of_ram = [entry.name for entry in entries if entry.kind == "ram"]
    if len(of_ram) > 1:
        raise ClusterFileError(
            f"{where}: expected a box's RAM once, found {' and '.join(of_ram)}: write one item with the "
            "memory_bytes of all its sticks; boards with two sockets have entries of their own (-2s)"
        )


def link_figures(name: str, typed: dict[str, Any], where: str) -> dict[str, Any]:
    """Round trip and bandwidth of a link whose kind is named; `typed` wins.

    Raises:
        ClusterFileError: it is no link; names `where`.
    """
    try:
        return expanded_link(packaged_catalogue(), packaged_catalogue().entry(name), typed)
    except ValueError as error:
        raise ClusterFileError(f"{where}: {error}") from None
