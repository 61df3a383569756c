"""What a machine has left, from invented files of the system."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from placement.errors import PlanDoesNotFit
from workers.memory.budget import Need, check_memory, missing_bytes
from workers.memory.free import LEAST_MARGIN_BYTES, FreeMemory, cgroup_limits, machine_memory

GB = 10**9


def system(root: Path, *, group: str, mount: str, files: dict[str, str]) -> Path:
    """A tree with /proc/self/cgroup, /proc/self/mountinfo and the files of cgroups."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(group)
    (root / "proc/self/mountinfo").write_text(
        "22 1 0:21 / /proc rw,nosuid - proc proc rw\nnonsense\n" + mount
    )
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


V1 = "36 25 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
V2 = "36 25 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


def test_version_1_counts_what_files_take_as_free(tmp_path: Path) -> None:
    at = "sys/fs/cgroup/memory/box"
    root = system(
        tmp_path,
        group="4:cpu:/box\n3:memory:/box\n",
        mount=V1,
        files={
            f"{at}/memory.limit_in_bytes": "8000000000\n",
            f"{at}/memory.usage_in_bytes": "5000000000\n",
            f"{at}/memory.stat": (
                "cache 9\nactive_file 7\ninactive_file 7\n"
                "total_active_file 1000000000\ntotal_inactive_file 500000000\n"
            ),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "5000000000\n",
        },
    )
    told_by = f"the limit in {root / at / 'memory.limit_in_bytes'}"
    assert cgroup_limits(root) == [FreeMemory(4_500_000_000, told_by)]


def test_version_2_takes_every_group_around_the_process(tmp_path: Path) -> None:
    at = "sys/fs/cgroup"
    root = system(
        tmp_path,
        group="0::/top/slice/box\n",
        mount=V2,
        files={
            f"{at}/top/slice/box/memory.max": "max\n",
            f"{at}/top/slice/box/memory.current": "1\n",
            f"{at}/top/slice/memory.max": "4000000000\n",
            f"{at}/top/slice/memory.current": "1000000000\n",
            f"{at}/top/slice/memory.stat": "active_file 200\ninactive_file 300\nfile 700\n",
            f"{at}/top/memory.max": "9000000000\n",
            f"{at}/top/memory.current": "2000000000\n",
            f"{at}/top/beside/memory.max": "5\n",
            f"{at}/top/beside/memory.current": "1\n",
        },
    )
    assert cgroup_limits(root) == [
        FreeMemory(3_000_000_500, f"the limit in {root / at}/top/slice/memory.max"),
        FreeMemory(7_000_000_000, f"the limit in {root / at}/top/memory.max"),
    ]


def test_a_container_sees_its_own_group_at_the_mount(tmp_path: Path) -> None:
    root = system(
        tmp_path,
        group="0::/docker/abc\n",
        mount="36 25 0:30 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        files={
            "sys/fs/cgroup/memory.max": "2000000000",
            "sys/fs/cgroup/memory.current": "2500000000",
            "sys/fs/cgroup/memory.stat": "",
        },
    )
    assert [free.num_bytes for free in cgroup_limits(root)] == [0]


def test_no_cgroups_no_limit(tmp_path: Path) -> None:
    assert cgroup_limits(tmp_path) == []


def test_the_smaller_of_machine_and_cgroup_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = "sys/fs/cgroup"
    root = system(
        tmp_path,
        group="0::/a/b\n",
        mount=V2,
        files={
            f"{at}/a/memory.max": f"{9 * GB}\n",
            f"{at}/a/memory.current": "0\n",
            f"{at}/a/b/memory.max": f"{6 * GB}\n",
            f"{at}/a/b/memory.current": f"{GB}\n",
        },
    )
    monkeypatch.setattr("workers.memory.free._SYSTEM", root)
    limit = FreeMemory(5 * GB, f"the limit in {root / at}/a/b/memory.max")
    for available, expected in ((7 * GB, limit), (3 * GB, FreeMemory(3 * GB, "this machine"))):
        memory = psutil.virtual_memory()._replace(available=available)
        monkeypatch.setattr(psutil, "virtual_memory", lambda memory=memory: memory)
        assert machine_memory() == expected


def test_a_margin_stays_free() -> None:
    assert FreeMemory(100 * GB, "").usable_bytes == 97 * GB
    assert FreeMemory(GB, "").usable_bytes == GB - LEAST_MARGIN_BYTES
    assert FreeMemory(1000, "").usable_bytes == 0


def test_what_fits_to_the_byte_passes_and_one_more_does_not() -> None:
    free = FreeMemory(100 * GB, "this machine")
    needs = [Need("37 experts", 90 * GB), Need("nothing", 0), Need("the KV cache", 7 * GB)]
    check_memory(needs, free, where="node 'den'", advice="use a smaller context")
    with pytest.raises(PlanDoesNotFit) as caught:
        check_memory([*needs, Need("a last byte", 1)], free, where="node 'den'", advice="use a disk tier")
    assert str(caught.value) == (
        "node 'den': 1 B of memory are missing: expected 97.0 GB (90.0 GB for 37 experts, 7.0 GB for the KV "
        "cache, 1 B for a last byte), but this machine leaves 100.0 GB, of which 3.0 GB stay free: use a "
        "disk tier"
    )
    assert missing_bytes(needs, FreeMemory(80 * GB, "")) == 97 * GB - round(0.97 * 80 * GB)
