"""Figures of boxes that nobody measured, for tests."""

from __future__ import annotations

from placement.given.probe_figures import (
    Condition,
    Disk,
    Echo,
    FormRate,
    Gpu,
    Hardware,
    HeadSoftware,
    Link,
    Node,
    Probe,
    ReadRate,
    Versions,
)

WAKES_S = 3e-4 + 2 * 1e-4
"""What the head's software and both ends' first request take more after a pause, below."""


def node(
    *,
    cores: int = 2,
    one_row_flops: float = 5e9,
    read_bytes_per_s: float = 20e9,
    channels: int | None = None,
    condition: dict[str, object] | None = None,
    gpus: tuple[Gpu, ...] = (),
) -> Node:
    state: dict[str, object] = {
        "free_bytes": 12_000_000_000,
        "free_told_by": "this machine",
        "swap_bytes": 0,
        "swap_used_bytes": 0,
        "governor": "performance",
        "clock_share": None,
        "others_share": 0.0,
        "gpu_busy_share": None,
        "wireless": (),
    }
    return Node(
        versions=Versions(potluck="1", python="3", torch="2", system="Linux"),
        hardware=Hardware(
            cpu="a CPU",
            cores=cores,
            machine_cores=cores,
            memory_bytes=16_000_000_000,
            memory_channels=channels,
            gpus=tuple(gpu.name for gpu in gpus),
            fingerprint="f",
        ),
        condition=Condition.model_validate(state | (condition or {})),
        reads=(ReadRate(threads=1, bytes_per_s=read_bytes_per_s),),
        threads=cores,
        instruction_set="avx2",
        kernels=(FormRate(form="q8_0", rows=(1, 64), flops_per_s=(one_row_flops, 50e9)),),
        request_s=2e-5,
        wake_s=1e-4,
        plain=Echo(round_trip_s=1e-4, bytes_per_s=1e9),
        encrypted=Echo(round_trip_s=2e-4, bytes_per_s=5e8),
        gpus=gpus,
        disk=Disk(folder="/m", num_bytes=10**12, bytes_per_s=2e9, is_direct=True),
        seconds=9.0,
    )


def gpu(device: str = "cuda:0", *, free_bytes: int = 23_000_000_000) -> Gpu:
    return Gpu(
        name="a card",
        memory_bytes=24_000_000_000,
        free_bytes=free_bytes,
        bandwidth_bytes_per_s=900e9,
        copy_bytes_per_s=20e9,
        flops_per_s=50e12,
        device=device,
        back_bytes_per_s=18e9,
        pageable_bytes_per_s=6e9,
        pageable_back_bytes_per_s=5e9,
        round_trip_s=2e-5,
        kernels=(FormRate(form="q8_0", rows=(1, 64), flops_per_s=(1.4e12, 50e12)),),
    )


def link(*, p50_s: float = 4e-4, p99_s: float = 8e-4) -> Link:
    return Link(round_trip_s=4e-4, p50_s=p50_s, p99_s=p99_s, there_bytes_per_s=100e6, back_bytes_per_s=50e6)


def probe(head: str = "desk", nodes: dict[str, Node] | None = None, of_link: Link | None = None) -> Probe:
    software = HeadSoftware(
        message_s=1e-4,
        message_row_s=1e-6,
        layer_s=2e-4,
        moe_layer_s=1e-4,
        batch_s=0.0,
        row_s=1e-6,
        pass_s=1e-4,
        draft_s=1e-4,
        wake_s=3e-4,
        attention=FormRate(form="attention", rows=(1, 64), flops_per_s=(1e10, 2e10)),
    )
    return Probe(
        date="2026-11-28T12:00:00+00:00",
        head=head,
        nodes=nodes or {"desk": node(), "attic": node()},
        links={"attic": of_link or link()},
        software=software,
    )
