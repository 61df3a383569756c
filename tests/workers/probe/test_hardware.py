"""What a box is, by a made-up /proc and /sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.probe.hardware import condition, hardware, last_cache_bytes


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


BOX = {
    "proc/cpuinfo": "processor : 0\nmodel name\t: A fine CPU\n",
    "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t RTX 0000\nIRQ: 1\n",
    "sys/devices/system/edac/mc/mc0/dimm0/dimm_location": "channel 0 slot 0 \n",
    "sys/devices/system/edac/mc/mc0/dimm0/size": "8192\n",
    "sys/devices/system/edac/mc/mc0/dimm1/dimm_location": "channel 1 slot 0 \n",
    "sys/devices/system/edac/mc/mc0/dimm1/size": "0\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "4000000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1000000\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "2000000\n",
    "sys/devices/system/cpu/cpu0/cache/index3/size": "8192K\n",
    "sys/devices/system/cpu/cpu0/cache/index0/size": "32K\n",
    "sys/class/net/wlan0/wireless/status": "",
    "sys/class/net/eth0/speed": "1000",
}


def test_a_boxs_facts_are_read(tmp_path: Path) -> None:
    root = put(tmp_path, BOX)
    found = hardware(root)
    assert found.cpu == "A fine CPU"
    assert found.gpus == ("RTX 0000",)
    assert found.memory_channels == 1
    assert last_cache_bytes(root) == 8 << 20
    now = condition(0.25, None, root)
    assert (now.governor, now.clock_share, now.wireless) == ("powersave", 0.5, ("wlan0",))
    assert now.others_share == 0.25


def test_a_system_that_tells_nothing_gives_no_figure(tmp_path: Path) -> None:
    found = hardware(tmp_path)
    assert (found.gpus, found.memory_channels) == ((), None)
    assert last_cache_bytes(tmp_path) == 0
    assert condition(0.0, None, tmp_path).clock_share is None


@pytest.mark.parametrize("changed", ["proc/cpuinfo", "proc/driver/nvidia/gpus/0000:01:00.0/information"])
def test_other_hardware_has_another_fingerprint(tmp_path: Path, changed: str) -> None:
    root = put(tmp_path, BOX)
    before = hardware(root)
    assert hardware(root) == before
    put(root, {changed: "Model: another\nmodel name: another\n"})
    assert hardware(root).fingerprint != before.fingerprint
