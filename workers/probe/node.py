"""All that a box measures of itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from placement.given.probe_figures import Echo, Node
from transport.keys import HeadKeys, KeyPair
from workers.gpu.opening import cards
from workers.kernels import instruction_set
from workers.probe.disk import disk
from workers.probe.echo import EchoInfo, EchoSpec
from workers.probe.experts import form_named, form_rate, request_s, wake_s, width_of
from workers.probe.gpu import busy_share, gpus, opened
from workers.probe.hardware import condition, hardware, versions
from workers.probe.memory import read_rates, threads
from workers.probe.others import OthersShare
from workers.probe.round_trips import echo_client, measure_trips
from workers.probe.running_echo import running_echo
from workers.probe.time_left import TimeLeft

# Of the seconds there are: the forms share most.
_READS, _ECHOES, _DISK, _WAKE, _GPUS = 0.12, 0.12, 0.08, 0.06, 0.1
_LOOPBACK = "tcp://127.0.0.1:*"


@dataclass(frozen=True, slots=True)
class Loopback:
    """An echo on this box with a plain endpoint and an encrypted one, which lets in the holder of `keys`."""

    info: EchoInfo
    keys: KeyPair


@contextmanager
def loopback() -> Iterator[Loopback]:
    """Start it, and end it with the block.

    Raises:
        WorkerStartError: it did not start.
    """
    keys = KeyPair.make()
    with running_echo(EchoSpec((_LOOPBACK, _LOOPBACK), keys.public.decode(), (False, True))) as info:
        yield Loopback(info, keys)


def measure_node(
    forms: Sequence[str], folder: Path, seconds: float, echo: Loopback, tell: Callable[[str], None]
) -> Node:
    """Measure now, one thing after another.

    Args:
        forms: of weights.
        folder: the model's, or its file: whose disk is read, and whose experts' width is measured.
        seconds: about how long it may take; where that is too short, each thing is measured fewer times.
        echo: of `loopback`.
        tell: called with what is measured next.

    Raises:
        InputError: an unknown form.
        WorkerLost: this box does not let its own processes speak over loopback.
    """
    known = [form_named(name) for name in forms]
    began = time.perf_counter()
    facts, width = hardware(), width_of(folder)
    shown = cards()
    gpu_share, others = busy_share() if shown else None, OthersShare()
    devices = opened(shown)
    gpus_share = _GPUS if devices else 0.0
    each = (1 - _READS - _ECHOES - _DISK - _WAKE - gpus_share) / len(known)
    fixed = {"messages": _ECHOES, "memory": _READS, "a pause": _WAKE, "disk": _DISK}
    fixed["graphics cards"] = gpus_share
    left = TimeLeft(seconds, fixed | {form.name: each for form in known})
    with threads(facts.cores):
        tell("messages")
        plain, encrypted = _echoes(echo, left.next("messages"))
        tell("memory")
        reads = read_rates(facts.cores, left.next("memory"))
        kernels = []
        for form in known:
            tell(f"experts in {form.name}")
            kernels.append(form_rate(form, left.next(form.name), width))
        tell("a pause")
        wake = wake_s(known[0], left.next("a pause"), width)
        call_s = request_s()
    tell("disk")
    found_disk = disk(folder, left.next("disk"))
    tell("graphics cards")
    found_cards = gpus(devices, known, width, left.next("graphics cards"))
    return Node(
        versions=versions(),
        hardware=facts,
        condition=condition(others.share(), gpu_share),
        reads=reads,
        threads=facts.cores,
        instruction_set=instruction_set(),
        kernels=tuple(kernels),
        request_s=call_s,
        wake_s=wake,
        plain=plain,
        encrypted=encrypted,
        gpus=found_cards,
        disk=found_disk,
        seconds=time.perf_counter() - began,
    )


def _echoes(echo: Loopback, seconds: float) -> tuple[Echo, Echo]:
    """The same messages over loopback without CURVE, and with it."""
    keys = HeadKeys(echo.keys, echo.info.public_key.encode())
    found = []
    for endpoint, head_keys in zip(echo.info.endpoints, (None, keys), strict=True):
        with echo_client(endpoint, head_keys) as client:
            trips = measure_trips(client, seconds / 2)
        found.append(Echo(round_trip_s=max(1e-9, trips.quantile_s(0.5)), bytes_per_s=trips.bytes_per_s))
    return found[0], found[1]
