"""All that a box measures of itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from placement.given.probe_figures import Echo, Node
from transport.keys import HeadKeys, KeyPair
from workers.kernels import instruction_set
from workers.probe.disk import disk
from workers.probe.echo import EchoSpec
from workers.probe.experts import form_named, form_rate, request_s
from workers.probe.gpu import busy_share, gpus
from workers.probe.hardware import condition, hardware, versions
from workers.probe.memory import read_rates, threads
from workers.probe.others import OthersShare
from workers.probe.round_trips import echo_client, measure_trips
from workers.probe.running_echo import running_echo

# Of the seconds there are: the forms share most.
_READS, _ECHOES, _DISK, _GPUS = 0.1, 0.12, 0.08, 0.1
_LOOPBACK = "tcp://127.0.0.1:*"


def measure_node(forms: Sequence[str], folder: Path, seconds: float, tell: Callable[[str], None]) -> Node:
    """Measure now, one thing after another.

    Args:
        forms: of weights.
        folder: the model's, or its file: whose disk is read.
        seconds: about how long it may take.
        tell: called with what is measured next.

    Raises:
        InputError: an unknown form.
        WorkerStartError, WorkerLost: this box does not let its own processes speak over loopback.
    """
    known = [form_named(name) for name in forms]
    began = time.perf_counter()
    facts = hardware()
    gpu_share, others = busy_share(), OthersShare()
    with threads(facts.cores):
        tell("messages")
        plain, encrypted = _echoes(_ECHOES * seconds)
        tell("memory")
        reads = read_rates(facts.cores, _READS * seconds)
        left = 1 - _READS - _ECHOES - _DISK - (_GPUS if torch.cuda.is_available() else 0)
        kernels = []
        for form in known:
            tell(f"experts in {form.name}")
            kernels.append(form_rate(form, left * seconds / len(known)))
        call_s = request_s()
    tell("disk")
    found_disk = disk(folder, _DISK * seconds)
    tell("graphics cards")
    cards = gpus(_GPUS * seconds)
    return Node(
        versions=versions(),
        hardware=facts,
        condition=condition(others.share(), gpu_share),
        reads=reads,
        threads=facts.cores,
        instruction_set=instruction_set(),
        kernels=tuple(kernels),
        request_s=call_s,
        plain=plain,
        encrypted=encrypted,
        gpus=cards,
        disk=found_disk,
        seconds=time.perf_counter() - began,
    )


def _echoes(seconds: float) -> tuple[Echo, Echo]:
    """The same messages over loopback without CURVE, and with it."""
    keys = KeyPair.make()
    spec = EchoSpec((_LOOPBACK, _LOOPBACK), keys.public.decode(), (False, True))
    found = []
    with running_echo(spec) as info:
        for endpoint, encrypted in zip(info.endpoints, spec.encrypted, strict=True):
            head_keys = HeadKeys(keys, info.public_key.encode()) if encrypted else None
            with echo_client(endpoint, head_keys) as client:
                trips = measure_trips(client, seconds / 2)
            found.append(Echo(round_trip_s=max(1e-9, trips.quantile_s(0.5)), bytes_per_s=trips.bytes_per_s))
    return found[0], found[1]
