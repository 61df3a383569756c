"""Asks workers how they are, all at once and within a bound; to them it is a sign of a head."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import zmq

from orchestrator.cluster.run_state import RunningWorker
from transport.keys import HeadKeys, KeyPair
from transport.messages import HelloReply, WireError, WireLimits, random_id
from transport.pulse_client import Link, PulseClient

TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Greeted:
    """What a worker said, and how long it took; `reply` is None where it said nothing, and `why` says why."""

    reply: HelloReply | None
    seconds: float
    why: str = ""


def greet(workers: Sequence[RunningWorker], limits: WireLimits, own: KeyPair) -> dict[str, Greeted]:
    """Greet workers over their pulse sockets.

    Args:
        own: the pair of the head, which they let in.

    Returns:
        By worker name.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    session = random_id()
    found: dict[str, Greeted] = {}
    clients: dict[str, PulseClient] = {}
    try:
        poller = zmq.Poller()
        for worker in workers:
            keys = HeadKeys(own, worker.public_key.encode())
            client = PulseClient(
                context, worker.pulse_endpoint, limits, name=worker.name, session=session, keys=keys
            )
            clients[worker.name] = client
            poller.register(client.socket, zmq.POLLIN)
            poller.register(client.monitor, zmq.POLLIN)
        began_s = time.monotonic()
        while (left_s := began_s + TIMEOUT_S - time.monotonic()) > 0 and len(found) < len(clients):
            poller.poll(round(1000 * left_s))
            for name, client in clients.items():
                seconds = time.monotonic() - began_s
                for link in client.links():
                    if link is Link.UP:
                        client.hello(1)
                    elif link is Link.REFUSED:
                        found[name] = Greeted(None, seconds, "it does not know this head's key")
                try:
                    reply = client.receive()
                except WireError as error:
                    found[name] = Greeted(None, seconds, str(error))
                    continue
                if isinstance(reply, HelloReply):
                    found[name] = Greeted(reply, seconds)
    finally:
        for client in clients.values():
            client.close()
        context.destroy(linger=0)
    silent = Greeted(None, TIMEOUT_S, f"no answer within {TIMEOUT_S:g} s")
    return {worker.name: found.get(worker.name, silent) for worker in workers}
