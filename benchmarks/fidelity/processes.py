"""A setup's workers as plain processes of this machine, and clients to them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import zmq

from benchmarks.fidelity.layouts import Setup
from benchmarks.fidelity.links import limited_namespace
from benchmarks.relay import relay
from orchestrator.launch.spawn import spawn, wait_ready
from placement.model_shape import ModelShape
from placement.plan import Plan
from transport.client import WorkerClient
from transport.keys import HeadKeys, KeyPair
from transport.messages import WireLimits
from workers.spec import WorkerSpec

HELLO_TIMEOUT_S = 60.0
LIMITED_MBITS_PER_S = 200
DELAY_S = 1.5e-3
"""Each way."""


@dataclass(frozen=True, slots=True)
class RunningWorker:
    """One worker process; `client` belongs to the calling thread. `is_local`: over an ipc socket."""

    name: str
    pid: int
    client: WorkerClient
    is_local: bool


@contextmanager
def running_workers(
    setup: Setup, plan: Plan, shape: ModelShape, model_dir: Path, sockets: Path, *, num_threads: int = 1
) -> Iterator[list[RunningWorker]]:
    """Start the plan's workers, wait until all serve, and stop them on the way out.

    Args:
        sockets: an empty directory for ipc sockets.
    """
    limits = WireLimits.for_shape(shape)
    names = [worker.name for worker in plan.asked_workers]
    with ExitStack() as stack:
        keys = KeyPair.make()
        started = []
        for number, (name, link) in enumerate(zip(names, setup.links, strict=True)):
            prefix: list[str] = []
            address = None
            endpoint = f"ipc://{sockets}/{number}.sock" if link == "local" else "tcp://127.0.0.1:*"
            if link == "limited":
                space = f"potluck{number}"
                address = stack.enter_context(limited_namespace(space, 101 + number, LIMITED_MBITS_PER_S))
                if address is not None:
                    prefix, endpoint = ["ip", "netns", "exec", space], f"tcp://{address}:*"
                else:
                    print(f"{setup.name}: no network namespace, a relay limits the link", file=sys.stderr)
            spec = WorkerSpec.of_plan(
                plan,
                name,
                limits,
                model_dir=str(model_dir),
                endpoint=endpoint,
                pulse_endpoint=endpoint.replace(".sock", ".pulse"),
                allowed=(keys.public,) if address is not None else (),
                num_threads=num_threads,
                lifeline=True,
                linger_s=3600.0,
            )
            process = spawn(spec, prefix=prefix)
            stack.callback(process.wait)
            stack.callback(process.kill)
            started.append((spec, process, link, address))
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stack.callback(context.destroy, 0)
        running = []
        for spec, process, link, address in started:
            assert process.stdout is not None
            info = wait_ready(spec, process.stdout)
            endpoint = info.endpoint
            port = int(endpoint.rpartition(":")[2]) if link != "local" else 0
            if link == "delayed":
                endpoint = f"tcp://127.0.0.1:{stack.enter_context(relay(port, delay_s=DELAY_S))}"
            elif link == "limited" and address is None:
                way = stack.enter_context(relay(port, mbits_per_s=LIMITED_MBITS_PER_S))
                endpoint = f"tcp://127.0.0.1:{way}"
            head_keys = None if info.public_key is None else HeadKeys(keys, info.public_key)
            client = WorkerClient(context, endpoint, limits, name=spec.name, keys=head_keys)
            client.hello(HELLO_TIMEOUT_S, dtype=plan.dtype)
            running.append(RunningWorker(spec.name, info.pid, client, link == "local"))
        yield running
