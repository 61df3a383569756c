"""Hardware of the catalogue as whole-step studies use it: at a memory's rate, with room for experts."""

from __future__ import annotations

from typing import Any

from placement.given.cluster_spec import DeviceSpec, LinkSpec
from placement.given.device_fields import device_spec
from placement.given.hardware_items import HardwareItem, link_figures, named_devices
from placement.hardware.catalogue import packaged_catalogue
from placement.hardware.figures import figures_of
from placement.weight_format import Q4_K

FORM = Q4_K.name
"""Of all weights, the head's too: 4.5 bits."""

ACCEPTANCE = (0.889, 0.758, 0.687)
"""Chance of each draft to hold if those before it did. llama.cpp, pull request 20981, with Step-3.5-Flash."""

UNIFIED_GBYTES_PER_S = 160
"""From here on memory is shared with a GPU, below it is a desktop's RAM."""

RAM, UNIFIED = "ddr5-6000-dual", "dgx-spark"
"""Of the classes desktop-ram and unified-pc. What they reach is scaled to the rate that is asked about."""

CARD = "rtx-4070-ti-super"
"""For the head: 672 GB/s by its data sheet, 453 as its class reaches."""

SSD = "nvme-gen4"


def memory(gbytes_per_s: float, room_bytes: int) -> DeviceSpec:
    """RAM of a box that experts may use, or memory that it shares with its GPU.

    Args:
        gbytes_per_s: reached with one row. Keys and values and arithmetic keep their proportion to it.
    """
    name = RAM if gbytes_per_s < UNIFIED_GBYTES_PER_S else UNIFIED
    entry = packaged_catalogue().entry(name)
    reached = figures_of(entry, packaged_catalogue().shares_of(entry))
    times = gbytes_per_s / reached["bandwidth_gbytes_per_s"].value
    rates = ("bandwidth_gbytes_per_s", "attention_bandwidth_gbytes_per_s", "ffn_gflops")
    return _device(name, room_bytes, **{rate: times * reached[rate].value for rate in rates})


def drive(room_bytes: int, name: str = SSD) -> DeviceSpec:
    """An SSD below a box's RAM, whose processor computes what it holds."""
    return _device(name, room_bytes)


def head_card(name: str = CARD) -> DeviceSpec:
    """A GPU that holds the head and no expert."""
    return _device(name, 0)


def link(name: str) -> LinkSpec:
    """A kind of link: its round trip, our software's part included, and bandwidth."""
    figures = link_figures(name, {}, name)
    return LinkSpec(figures["round_trip_s"], figures["bandwidth_gbits_per_s"] * 1e9 / 8)


LINKS = {
    "Wi-Fi 6": link("wifi-6"),
    "1 Gbit/s": link("ethernet-1g"),
    "2.5 Gbit/s": link("ethernet-2.5g"),
    "10 Gbit/s": link("ethernet-10g"),
}
"""Of home networks, the slowest first."""
TWO_GBIT = "2.5 Gbit/s"


def _device(name: str, room_bytes: int, **stated: Any) -> DeviceSpec:
    """As the head's own, whose software counts nowhere else."""
    item = HardwareItem(use=name, memory_bytes=room_bytes, reserved_bytes=0, **stated)
    (device,) = named_devices([item], name, is_head=True)
    return device_spec(device, name, "catalogue")
