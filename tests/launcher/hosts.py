"""Hosts for tests, which are left out, with the reason, where this machine cannot have them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks.namespaces import Host, hosts, why_no_hosts


@contextmanager
def hosts_or_skip(count: int, net: str) -> Iterator[tuple[Host, ...]]:
    """As `benchmarks.namespaces.hosts`; each file of tests needs a network of its own."""
    reason = why_no_hosts()
    if reason is not None:
        pytest.skip(reason)
    with hosts(count, net) as made:
        yield made
