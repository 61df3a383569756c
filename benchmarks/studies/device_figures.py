"""The figures of hardware that whole-step studies use, each with where it comes from.

A memory's rate is what kernels reach with one row, not what its data sheet says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from placement.given.cluster_spec import DeviceKind, DeviceSpec, LinkSpec
from placement.given.kernel_rates import ATTENTION, KernelRates
from placement.weight_format import Q4_K

FORM = Q4_K.name
"""Of all weights, the head's too: 4.5 bits."""

ACCEPTANCE = (0.89, 0.76, 0.69)
"""Chance of each draft to hold if those before it did. llama.cpp, pull request 20981, with Step-3.5-Flash."""


@dataclass(frozen=True, slots=True)
class RowCosts:
    """What a kind of processor takes for a matrix that several rows are multiplied with.

    Attributes:
        by_rows: rows of a pass, and its time as a multiple of a pass of one row.
        attention_flops_per_byte: of attention, for each byte of weights that one row reads in the same time;
            None where reading keys and values bounds it.
    """

    by_rows: tuple[tuple[int, float], ...]
    attention_flops_per_byte: float | None = None

    def kernels(self, bytes_per_s: float) -> tuple[KernelRates, ...]:
        """The rates of a device of this kind that reads `bytes_per_s` with one row."""
        row_s = Q4_K.bits / 8 / bytes_per_s
        rows = tuple(count for count, _ in self.by_rows)
        rates = tuple(count * 2 / (cost * row_s) for count, cost in self.by_rows)
        kernels: tuple[KernelRates, ...] = (KernelRates(FORM, rows, rates),)
        if self.attention_flops_per_byte is not None:
            kernels += (KernelRates(ATTENTION, (1,), (self.attention_flops_per_byte * bytes_per_s,)),)
        return kernels


CPU_ROWS = RowCosts(((1, 1.0), (2, 1.64), (4, 2.74), (8, 5.1)), attention_flops_per_byte=3.6)
"""Our kernels on two AVX2 cores, 4,096 columns of q4_k: 14.8, 9.0, 5.4 and 2.9 GB/s; attention at 54 GFLOP/s
(benchmarks/RESULTS.md, 'Quantised kernels'). Other boxes are taken for multiples of this one. Processors with
more arithmetic for each GB/s of memory pay less; `FREE_ROWS` is the other end."""

FREE_ROWS = RowCosts(((1, 1.0), (8, 1.0)))
"""Memory alone bounds a pass: the best that any processor could do."""

GPU_ROWS = RowCosts(((1, 1.0), (2, 1.14), (3, 1.6), (4, 1.9), (64, 3.4)))
"""Set so that one box gains from 1, 2 and 3 drafts what llama.cpp gained on a GPU: 35.4 tokens/s without,
then 45.6, 42.7 and 40.0 (pull request 20981, on hardware that it does not name). Six MI50s paid a little more
for one draft (pull request 23274). For 64 rows: 67 FLOP for each byte, as large cards of 900 GB/s have."""

UNIFIED_GBYTES_PER_S = 160
"""From here on memory is taken for a GPU's or shared with one, below for a CPU's."""

GPU_GBYTES_PER_S = 300
"""A card of 12 GB for the head: 504 GB/s by its data sheet (RTX 4070), of which 0.6. With this model
llama.cpp reaches 0.57 of the data sheet on an M4 Max (48.2 tokens/s of 6.45 GB)."""

HOST_LINK = LinkSpec(3e-5, 25e9)
"""Between that card and its box's RAM: PCIe 4.0 x16 as it is measured; the round trip is assumed."""

SSD_GBYTES_PER_S = 5
"""An NVMe drive of PCIe 4.0 that reads whole experts; assumed."""


@dataclass(frozen=True, slots=True)
class LinkKind:
    """A kind of home network: round trip of a small message, our software's part included, and bandwidth."""

    name: str
    round_trip_ms: float
    gbits_per_s: float

    @property
    def spec(self) -> LinkSpec:
        """In seconds and bytes."""
        return LinkSpec(self.round_trip_ms / 1e3, self.gbits_per_s * 1e9 / 8)


WIFI = LinkKind("Wi-Fi", 4.0, 0.3)
ONE_GBIT = LinkKind("1 Gbit/s", 0.35, 1.0)
TWO_GBIT = LinkKind("2.5 Gbit/s", 0.25, 2.5)
TEN_GBIT = LinkKind("10 Gbit/s", 0.15, 10.0)
LINKS = (WIFI, ONE_GBIT, TWO_GBIT, TEN_GBIT)
"""Assumed. `potluck probe` measures yours."""


def memory(gbytes_per_s: float, room_bytes: int, rows: RowCosts | None = None) -> DeviceSpec:
    """RAM of a box that experts may use, or memory that it shares with its GPU.

    Args:
        rows: None for what its rate makes likely.
    """
    usual = CPU_ROWS if gbytes_per_s < UNIFIED_GBYTES_PER_S else GPU_ROWS
    return _device("ram", "ram", gbytes_per_s, room_bytes, rows or usual)


def drive(room_bytes: int, gbytes_per_s: float = SSD_GBYTES_PER_S) -> DeviceSpec:
    """An SSD below a box's RAM, whose processor computes what it holds."""
    return _device("ssd", "disk", gbytes_per_s, room_bytes, FREE_ROWS)


def head_card(gbytes_per_s: float = GPU_GBYTES_PER_S) -> DeviceSpec:
    """A GPU that holds the head and no expert."""
    card = _device("gpu", "vram", gbytes_per_s, 0, GPU_ROWS)
    return replace(
        card,
        torch_device="cuda",
        host_link_round_trip_s=HOST_LINK.round_trip_s,
        host_link_bytes_per_s=HOST_LINK.bandwidth_bytes_per_s,
    )


def _device(name: str, kind: DeviceKind, gbytes_per_s: float, room_bytes: int, rows: RowCosts) -> DeviceSpec:
    bytes_per_s = gbytes_per_s * 1e9
    # Where a kernel's rate is given, this counts no more: weights of another form, attention of GPUs.
    flops_per_s = 67 * bytes_per_s
    return DeviceSpec(
        name, kind, "cpu", room_bytes, 0, bytes_per_s, flops_per_s, kernels=rows.kernels(bytes_per_s)
    )
