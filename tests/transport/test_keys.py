"""Who may bind where, and what keys show of themselves."""

from __future__ import annotations

import pytest

from placement.errors import KeysRequired
from transport.keys import KeyPair, WorkerKeys, is_private, require_keys


@pytest.mark.parametrize(
    "endpoint",
    [
        "inproc://w",
        "ipc:///tmp/w.sock",
        "ipc://*",
        "tcp://127.0.0.1:*",
        "tcp://127.8.0.1:5",
        "tcp://localhost:5",
        "tcp://[::1]:5",
    ],
)
def test_endpoints_that_only_this_machine_reaches_need_no_keys(endpoint: str) -> None:
    assert is_private(endpoint)
    require_keys(endpoint, None)


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://*:5",
        "tcp://0.0.0.0:5",
        "tcp://[::]:5",
        "tcp://192.0.2.1:5",
        "tcp://eth0:5",
        "tcp://lo:5",
        "tcp://a-host:5",
        "tcp://127.0.0.1.example.org:5",
        "pgm://127.0.0.1:5",
        "127.0.0.1:5",
        "",
    ],
)
def test_every_other_endpoint_needs_keys(endpoint: str) -> None:
    with pytest.raises(KeysRequired, match="no keys"):
        require_keys(endpoint, None)
    require_keys(endpoint, WorkerKeys(KeyPair.make(), frozenset([KeyPair.make().public])))


def test_a_secret_key_does_not_show_when_printed() -> None:
    pair = KeyPair.make()
    assert pair.secret.decode() not in repr(pair)
    assert pair.secret != KeyPair.make().secret
