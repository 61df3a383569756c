"""What a probe found: figures of boxes and links, as they lie in probe.json. Units are bytes and seconds."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_Positive = Annotated[float, Field(gt=0, lt=1e18)]
_NotNegative = Annotated[float, Field(ge=0, lt=1e18)]
_Bytes = Annotated[int, Field(ge=0, lt=2**63)]
_Count = Annotated[int, Field(ge=1, lt=2**31)]
_Share = Annotated[float, Field(ge=0, le=1)]
MOST_TEXT = 512
_Text = Annotated[str, Field(max_length=MOST_TEXT)]


class Figures(BaseModel):
    """A part of probe.json; an unknown key is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Versions(Figures):
    """Of what was measured with; other versions may be faster or slower."""

    potluck: _Text
    python: _Text
    torch: _Text
    system: _Text


class Hardware(Figures):
    """What stays the same until somebody opens the box.

    Attributes:
        cores: that a process may use here; `machine_cores`: that the machine has.
        memory_bytes: of the machine, or of the process's cgroup where that is less.
        memory_channels: in use, None where the system does not tell.
        gpus: names.
        fingerprint: of all this and of the versions, hexadecimal.
    """

    cpu: _Text
    cores: _Count
    machine_cores: _Count
    memory_bytes: _Bytes
    memory_channels: _Count | None
    gpus: tuple[_Text, ...]
    fingerprint: _Text


class Condition(Figures):
    """How the box was found, which may be another tomorrow.

    Attributes:
        free_bytes: memory that a run may take; `free_told_by`: what allows no more.
        swap_used_bytes: of `swap_bytes`.
        governor: of the cores' clocks, "" where the system does not tell.
        clock_share: the clock under load as a share of the highest; None likewise.
        others_share: of the cores' time that other programs took meanwhile.
        gpu_busy_share: of the GPU that is busiest, before it was measured; None without one.
        wireless: network interfaces that are.
    """

    free_bytes: _Bytes
    free_told_by: _Text
    swap_bytes: _Bytes
    swap_used_bytes: _Bytes
    governor: _Text
    clock_share: _NotNegative | None
    others_share: _Share
    gpu_busy_share: _Share | None
    wireless: tuple[_Text, ...]


class ReadRate(Figures):
    """Bytes a second that come from memory when so many threads read."""

    threads: _Count
    bytes_per_s: _Positive


class FormRate(Figures):
    """What our kernels reach with experts in one form: FLOP/s by rows of an expert, from 1 row on."""

    form: _Text
    rows: Annotated[tuple[_Count, ...], Field(min_length=1)]
    flops_per_s: Annotated[tuple[_Positive, ...], Field(min_length=1)]


class Gpu(Figures):
    """One graphics card. Files of earlier releases lack what has a default.

    Attributes:
        device: such as "cuda:0"; "" where an earlier release measured.
        free_bytes: of `memory_bytes`.
        bandwidth_bytes_per_s: of its memory: bytes read and bytes written of a copy within it.
        copy_bytes_per_s, back_bytes_per_s: from page-locked RAM into it, and back.
        pageable_bytes_per_s, pageable_back_bytes_per_s: the same of RAM that is not page-locked.
        flops_per_s: what the quickest form reaches with many rows; products in bfloat16 in earlier releases.
        round_trip_s: a row to it, a kernel, a row back, and the wait.
        kernels: what our kernels reach with weights in some forms.
    """

    name: _Text
    memory_bytes: _Bytes
    free_bytes: _Bytes
    bandwidth_bytes_per_s: _Positive
    copy_bytes_per_s: _Positive
    flops_per_s: _Positive
    device: _Text = ""
    back_bytes_per_s: _Positive | None = None
    pageable_bytes_per_s: _Positive | None = None
    pageable_back_bytes_per_s: _Positive | None = None
    round_trip_s: _NotNegative = 0.0
    kernels: tuple[FormRate, ...] = ()


class Disk(Figures):
    """Reads past the page cache where `is_direct`, as the disk tier makes them; `num_bytes`: of the disk."""

    folder: _Text
    num_bytes: _Bytes
    bytes_per_s: _Positive
    is_direct: bool


class Echo(Figures):
    """A service that computes nothing, over loopback: its round trip with one row, and bytes a second."""

    round_trip_s: _Positive
    bytes_per_s: _Positive


class Node(Figures):
    """One box.

    Attributes:
        threads: with which the kernels were measured: those that read most.
        request_s: a request's software beside its experts: one kernel call of a row that finds no expert.
        wake_s: how much longer a request takes after a pause, as in a step that others take part in.
        plain, encrypted: the same messages without CURVE and with it.
    """

    versions: Versions
    hardware: Hardware
    condition: Condition
    reads: Annotated[tuple[ReadRate, ...], Field(min_length=1)]
    threads: _Count
    instruction_set: _Text
    kernels: Annotated[tuple[FormRate, ...], Field(min_length=1)]
    request_s: _NotNegative
    wake_s: _NotNegative = 0.0
    plain: Echo
    encrypted: Echo
    gpus: tuple[Gpu, ...]
    disk: Disk | None
    seconds: _NotNegative

    @property
    def read_bytes_per_s(self) -> float:
        """The most that any number of threads, or any kernel, reads."""
        return max(rate.bytes_per_s for rate in self.reads)

    @property
    def flops_per_s(self) -> float:
        """What the quickest form reaches with many rows."""
        return max(rate.flops_per_s[-1] for rate in self.kernels)


class Link(Figures):
    """From the head to a box, over the encrypted sockets that serve.

    Attributes:
        round_trip_s: mean of a request of one row and its answer, without what either end computes.
        p50_s, p99_s: of the same.
        there_bytes_per_s, back_bytes_per_s: of many rows, to the box and back to the head.
    """

    round_trip_s: _NotNegative
    p50_s: _NotNegative
    p99_s: _NotNegative
    there_bytes_per_s: _Positive
    back_bytes_per_s: _Positive

    @property
    def bytes_per_s(self) -> float:
        """One rate for both ways: a row in bfloat16 goes there, twice its bytes come back."""
        return 3 / (1 / self.there_bytes_per_s + 2 / self.back_bytes_per_s)


class HeadSoftware(Figures):
    """Seconds of the head's software, as `placement.given.cluster_spec.Overheads` names them.

    `attention`: what its kernel reaches, by rows. `wake_s`: what the software of a layer takes more after a
    pause.
    """

    message_s: _NotNegative
    message_row_s: _NotNegative
    layer_s: _NotNegative
    moe_layer_s: _NotNegative
    batch_s: float
    row_s: _NotNegative
    pass_s: _NotNegative
    draft_s: _NotNegative
    wake_s: _NotNegative = 0.0
    attention: FormRate


class Probe(Figures):
    """All of a cluster: by node name. `date`: ISO 8601. A link stands for each node but the head."""

    format: Annotated[int, Field(ge=1, le=1)] = 1
    date: _Text
    head: _Text
    nodes: dict[_Text, Node]
    links: dict[_Text, Link]
    software: HeadSoftware
