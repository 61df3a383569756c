"""What probes find: the numbers of one round, from which a cluster file is written."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.fidelity.chunks import ChunkRates


@dataclass(frozen=True, slots=True)
class ProcessProbe:
    """One process computing experts.

    Attributes:
        read_s: of one more expert for the same row: its bytes at the memory's rate.
        chunk: of distinct experts and pairs in a request as a prompt's chunk makes it: what reading an
            expert adds there, and a pair's FLOPs at the rate of arithmetic. In a head without experts the
            same FLOPs of a shared expert.
        request_s: of a request beyond its experts: its messages, one kernel call; in the head's process what
            its dispatcher does for it instead of messages.
    """

    read_s: float
    chunk: ChunkRates
    request_s: float


@dataclass(frozen=True, slots=True)
class LinkProbe:
    """A worker as seen from the head.

    Attributes:
        round_trip_s: of one row, without what either process computes and without its bytes' time.
        row_s: of one row more, both ways, among those of a prompt's chunk; the head's CPU time left out.
    """

    round_trip_s: float
    row_s: float


@dataclass(frozen=True, slots=True)
class FanOut:
    """Mean seconds of the layers that `rows.fan_out_ids` gives for `rows` rows and turns below `turns`."""

    rows: int
    turns: int
    seconds: float


@dataclass(frozen=True, slots=True)
class TogetherProbe:
    """All processes at once.

    Attributes:
        experts_per_s: read by as many processes as there are cores.
        cores: that this process may use.
        fan_outs: of layers for all experts on this machine's node, as the dispatcher runs them: one row each,
            and a chunk's; empty where no worker is there.
    """

    experts_per_s: float
    cores: int
    fan_outs: tuple[FanOut, ...]


@dataclass(frozen=True, slots=True)
class HeadProbe:
    """The head without experts, seconds.

    Attributes:
        token_s, verify_s, chunk_s: forward passes of one row and of `verify_rows` behind `context` others,
            and of `chunk_rows` behind none.
        logits_s: norm, lm_head and sampling of one row.
        drafts_s: all MTP layers behind one new row.
        attention_s: one call of the attention kernel, `chunk_rows` rows behind `context` others.
        dispatch_s, message_s: the dispatcher's CPU time in a layer that asks nobody, and for each worker.
        dispatch_row_s, message_row_s: the same for each row of a chunk, and for each row sent to a worker.
    """

    context: int
    verify_rows: int
    chunk_rows: int
    token_s: float
    verify_s: float
    chunk_s: float
    logits_s: float
    drafts_s: float
    attention_s: float
    dispatch_s: float
    dispatch_row_s: float
    message_s: float
    message_row_s: float


@dataclass(frozen=True, slots=True)
class Probes:
    """One round's numbers of one setup; `workers` and `links` by worker name."""

    head_process: ProcessProbe
    head: HeadProbe
    workers: dict[str, ProcessProbe]
    links: dict[str, LinkProbe]
    together: TogetherProbe | None
