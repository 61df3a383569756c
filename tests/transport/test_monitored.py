"""A monitor that nobody reads for a while stops no connection."""

from __future__ import annotations

import socket

import zmq

from transport.sockets import Context, monitored

NUM_CONNECTIONS = 2_300
"""More events than a socket of libzmq and its peer keep by default, 1,000 each."""


def test_any_number_of_events_may_wait() -> None:
    context: Context = zmq.Context()
    try:
        router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
        events = monitored(router, int(zmq.EVENT_ACCEPTED))
        port = router.bind_to_random_port("tcp://127.0.0.1")
        for _ in range(NUM_CONNECTIONS):
            with socket.create_connection(("127.0.0.1", port), timeout=20.0):
                pass
        dealer.connect(f"tcp://127.0.0.1:{port}")
        dealer.send(b"well?")
        assert router.poll(20_000)
        while events.poll(0):
            events.recv_multipart()
    finally:
        context.destroy(0)
