"""What the catalogue says of one device or link, and of a class of them. Fields as files have them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from placement.fields.cluster_fields import (
    GbitsPerS,
    GbytesPerS,
    Gflops,
    Memory,
    Name,
    NotNegative,
    Number,
    Positive,
    RoundTrip,
    RowCostsField,
    Text,
)

HardwareClass = Literal[
    "discrete-gpu",
    "apple-m1",
    "apple-m2-m3",
    "apple-m4-m5",
    "unified-pc",
    "desktop-ram",
    "server-ram",
    "laptop-ram",
    "disk",
    "wired",
    "wireless",
]
CLASSES: tuple[HardwareClass, ...] = get_args(HardwareClass)
HardwareKind = Literal["vram", "ram", "disk", "link"]

Prose = Annotated[str, StringConstraints(min_length=1, max_length=600)]


def _share(value: float) -> float:
    if value > 1:
        raise ValueError(f"expected a share, at most 1, found {value:g}")
    return value


Share = Annotated[Positive, AfterValidator(_share)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class DataSheet(_Strict):
    """What the maker prints. `source`: which sheet."""

    source: Prose
    bandwidth_gbytes_per_s: GbytesPerS | None = None
    ffn_gflops: Gflops | None = None
    host_link_gbytes_per_s: GbytesPerS | None = None
    bandwidth_gbits_per_s: GbitsPerS | None = None


class Stated(_Strict):
    """Figures in place of the class's shares. `source`: who measured them, or why they are assumed.

    `read_gbytes_per_s`: what a program reached that does nothing but read or copy memory. Engines reach less,
    so it is no figure of a device, but none of its bandwidths is taken to be more.
    """

    source: Prose
    read_gbytes_per_s: GbytesPerS | None = None
    bandwidth_gbytes_per_s: GbytesPerS | None = None
    ffn_gflops: Gflops | None = None
    bandwidth_gbits_per_s: GbitsPerS | None = None
    round_trip_s: RoundTrip | None = None

    @property
    def figures(self) -> dict[str, Any]:
        """In place of the class's, as fields of a device or link."""
        return self.model_dump(exclude={"source", "read_gbytes_per_s"}, exclude_none=True)


class Entry(_Strict):
    """One product, as catalogue.yaml has it.

    Attributes:
        memory_bytes: of the product; None where it is sold in several sizes, and the user states it.
        compute_capability: of an NVIDIA GPU, such as 8.9; None of any other hardware.
        sockets: whose memories are one device here; the data sheet counts all of them.
        reached: what a published benchmark of this very device says.
        assumed: what nobody published, and no share of the data sheet can say.
    """

    name: Name
    hardware_class: HardwareClass = Field(alias="class")
    title: Text
    kind: HardwareKind
    data_sheet: DataSheet
    memory_bytes: Memory | None = None
    torch_device: Text | None = None
    compute_capability: Positive | None = None
    sockets: int = Field(default=1, ge=1)
    reached: Stated | None = None
    assumed: Stated | None = None

    @model_validator(mode="after")
    def _check(self) -> Entry:
        is_link = self.hardware_class in ("wired", "wireless")
        if is_link != (self.kind == "link"):
            raise ValueError(f"expected kind link with classes wired and wireless only, found {self.kind}")
        needed = "bandwidth_gbits_per_s" if is_link else "bandwidth_gbytes_per_s"
        if getattr(self.data_sheet, needed) is None:
            raise ValueError(f"expected data_sheet.{needed}, found nothing")
        return self


class ClassShares(_Strict):
    """What devices of a class reach, as reached.yaml has it. Shares are of the data sheet.

    Attributes:
        source: what the figures were set on.
        assumed: those of the figures below that nobody measured.
        attention_bandwidth_share: of keys and values in long texts; None for `bandwidth_share`.
        host_link_share: of the host link.
        layer_s, batch_s, pass_s, draft_s: software as `overheads` of the cluster file name it.
        row_costs: passes of a few rows beside one row, as the cluster file has them.
        reserved_bytes: what the system needs; the head's own need comes on top.
    """

    source: Prose
    assumed: tuple[Text, ...] = ()
    bandwidth_share: Share
    attention_bandwidth_share: Share | None = None
    arithmetic_share: Share = 1.0
    host_link_share: Share = 1.0
    host_link_round_trip_s: RoundTrip = 0.0
    layer_s: NotNegative = 0.0
    batch_s: Number = 0.0
    pass_s: NotNegative = 0.0
    draft_s: NotNegative = 0.0
    row_costs: RowCostsField = {}
    reserved_bytes: Memory = 0
    round_trip_s: RoundTrip = 0.0
