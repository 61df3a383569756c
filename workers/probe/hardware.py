"""What a box is and how it is found, by what the system says. Loads no torch."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

import psutil

from placement.given.probe_figures import MOST_TEXT, Condition, Hardware, Versions
from workers.gpu.opening import cards
from workers.memory.free import cgroup_total
from workers.memory.reservations import free_memory

_SYSTEM = Path("/")
_CPU = Path("sys/devices/system/cpu")


def versions() -> Versions:
    return Versions(
        potluck=_version("potluck-moe"),
        python=platform.python_version(),
        torch=_version("torch"),
        system=f"{platform.system()} {platform.release()}",
    )


def hardware(root: Path = _SYSTEM) -> Hardware:
    """`root`: where /proc and /sys are looked for, "/" but in tests."""
    facts: dict[str, object] = {
        "cpu": _cpu_name(root),
        "cores": len(os.sched_getaffinity(0)),
        "machine_cores": os.cpu_count() or 1,
        "memory_bytes": min(psutil.virtual_memory().total, cgroup_total(root)),
        "memory_channels": _memory_channels(root),
        "gpus": _gpu_names(root),
    }
    told: object = (sorted(facts.items()), sorted(versions().model_dump().items()))
    # Not before a driver and what compiles kernels for it are there can they be measured.
    shown = cards() if root == _SYSTEM else ()
    if shown:
        facts["gpus"] = facts["gpus"] or tuple(card.model[:200] for card in shown)
        told = (told, [(card.model, card.total_bytes) for card in shown])
    return Hardware.model_validate(
        facts | {"fingerprint": hashlib.sha256(repr(told).encode()).hexdigest()[:32]}
    )


def condition(others_share: float, gpu_busy_share: float | None, root: Path = _SYSTEM) -> Condition:
    """Ask right after some load, which shows what clock the cores reach."""
    free, swap = free_memory(), psutil.swap_memory()
    return Condition(
        free_bytes=free.usable_bytes,
        free_told_by=free.told_by[:MOST_TEXT],
        swap_bytes=swap.total,
        swap_used_bytes=swap.used,
        governor=_text(root / _CPU / "cpu0/cpufreq/scaling_governor"),
        clock_share=_clock_share(root),
        others_share=min(1.0, others_share),
        gpu_busy_share=gpu_busy_share,
        wireless=tuple(sorted(path.parent.name for path in root.glob("sys/class/net/*/wireless"))),
    )


def last_cache_bytes(root: Path = _SYSTEM) -> int:
    """The largest cache of the first core; 0 where the system does not tell."""
    sizes = [_text(path) for path in root.glob(f"{_CPU}/cpu0/cache/index*/size")]
    return max((int(size[:-1]) << 10 for size in sizes if size[:-1].isdigit() and size[-1] == "K"), default=0)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _cpu_name(root: Path) -> str:
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "Hardware"):
            return value.strip()[:200]
    return platform.machine()


def _memory_channels(root: Path) -> int | None:
    """Channels that have memory, by what the memory controllers' drivers tell; many boxes load none."""
    used = set()
    for path in root.glob("sys/devices/system/edac/mc/mc*/*/dimm_location"):
        if _text(path.with_name("size")) not in ("", "0"):
            # Such as "channel 1 slot 0", or "csrow 0 channel 1".
            words = _text(path).split()
            channel = words[words.index("channel") + 1] if "channel" in words[:-1] else ""
            used.add((path.parents[1].name, channel))
    return len(used) or None


def _gpu_names(root: Path) -> tuple[str, ...]:
    names = []
    for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        fields = dict(line.split(":", 1) for line in _text(path).splitlines() if ":" in line)
        names.append(fields.get("Model", "unknown").strip()[:200])
    return tuple(names)


def _clock_share(root: Path) -> float | None:
    """The quickest core's clock now, by the highest it can have."""
    highest = _text(root / _CPU / "cpu0/cpufreq/cpuinfo_max_freq")
    now = [_text(path) for path in root.glob(f"{_CPU}/cpu[0-9]*/cpufreq/scaling_cur_freq")]
    clocks = [int(clock) for clock in now if clock.isdigit()]
    return max(clocks) / int(highest) if clocks and highest.isdigit() and int(highest) else None


def _text(path: Path) -> str:
    """Without the last line's end; "" where there is no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
