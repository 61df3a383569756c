"""What looks wrong in a probe's figures, in plain words."""

from __future__ import annotations

from collections.abc import Iterator

from placement.given.probe_figures import Condition, Link, Node, Probe
from placement.units import size

_JITTER, _SLOW_S = 4.0, 2e-3
_SWAP_BYTES = 64_000_000
_ONE_CHANNEL_BYTES_PER_S = 17e9
"""What one channel of DDR4-3200 gives a program at best, of the 25.6 GB/s on its label."""
_MANY_CORES = 4
_SAVING = ("powersave", "conservative")
_LOW_CLOCK = 0.6
_OTHERS, _GPU_BUSY = 0.15, 0.1


def findings(probe: Probe) -> list[str]:
    """One sentence each, boxes in order, then links."""
    found = [f"{name}: {text}" for name, node in probe.nodes.items() for text in _of_node(node)]
    for name, link in probe.links.items():
        wireless = probe.nodes[name].condition.wireless if name in probe.nodes else ()
        found += [f"link to {name}: {text}" for text in _of_link(link, wireless)]
    return found


def _of_node(node: Node) -> Iterator[str]:
    condition, hardware = node.condition, node.hardware
    if condition.swap_used_bytes > _SWAP_BYTES:
        yield (
            f"{size(condition.swap_used_bytes)} lie in swap: memory is short; end what you do not need, or "
            "experts will be swapped out too"
        )
    if hardware.memory_channels == 1:
        yield "memory runs in a single channel: a second module of the same size reads up to twice as fast"
    elif (
        hardware.memory_channels is None
        and hardware.cores >= _MANY_CORES
        and node.read_bytes_per_s < _ONE_CHANNEL_BYTES_PER_S
    ):
        yield (
            f"{hardware.cores} cores read {node.read_bytes_per_s / 1e9:.1f} GB/s, as one memory channel "
            "gives: is there a single module in it?"
        )
    yield from _of_clock(condition)
    if condition.others_share > _OTHERS:
        yield (
            f"other programs took {condition.others_share:.0%} of the cores meanwhile: end them and probe "
            "again, or its figures are too low"
        )
    if condition.gpu_busy_share is not None and condition.gpu_busy_share > _GPU_BUSY:
        yield f"another program keeps the GPU {condition.gpu_busy_share:.0%} busy"
    if len(hardware.gpus) > len(node.gpus):
        names = ", ".join(dict.fromkeys(hardware.gpus))
        yield (
            f"{len(hardware.gpus) - len(node.gpus)} of its cards ({names}) were not measured, so no plan has "
            "them: `potluck generate --device cuda` says what is missing"
        )
    for gpu in node.gpus:
        if gpu.free_bytes < 0.8 * gpu.memory_bytes:
            yield f"{gpu.name}: other programs hold {size(gpu.memory_bytes - gpu.free_bytes)} of its memory"
    if node.disk is not None and not node.disk.is_direct:
        yield f"{node.disk.folder} cannot be read past the page cache, so its rate may be memory's"


def _of_clock(condition: Condition) -> Iterator[str]:
    share = condition.clock_share
    if share is not None and share < _LOW_CLOCK:
        why = f", governor {condition.governor}" if condition.governor in _SAVING else ""
        yield (
            f"its cores ran at {share:.0%} of their highest clock under load{why}: is it saving power, "
            "hot, or on battery?"
        )
    elif share is None and condition.governor in _SAVING:
        yield f"its cores' governor is {condition.governor}: `performance` keeps the clock up"


def _of_link(link: Link, wireless: tuple[str, ...]) -> Iterator[str]:
    if link.p99_s < _SLOW_S or link.p99_s < _JITTER * link.p50_s:
        return
    hint = f"; it has Wi-Fi ({', '.join(wireless)})" if wireless else ""
    yield (
        f"half of the messages take {link.p50_s * 1e3:.2f} ms, one in a hundred {link.p99_s * 1e3:.1f} ms, "
        f"as over Wi-Fi{hint}: a cable helps more than a faster box"
    )
