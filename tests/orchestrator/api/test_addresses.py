"""Names that a browser sends and no page can forge."""

from __future__ import annotations

import pytest

from orchestrator.api.addresses import is_loopback, is_same_origin, names_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_only_this_machine_reaches_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "192.168.1.4", "box.lan", "localhost.evil.example"])
def test_other_machines_may_reach_all_else(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("header", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "[::1]"])
def test_a_host_header_of_this_machine(header: str) -> None:
    assert names_loopback(header)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "localhost/x",
        "[::1",
        "localhost:x",
        "user@localhost",
        "localhost, evil.example",
    ],
)
def test_a_host_header_of_a_rebound_name(header: str) -> None:
    assert not names_loopback(header)


@pytest.mark.parametrize(
    ("origin", "host", "scheme", "same"),
    [
        ("http://localhost:8000", "localhost:8000", "http", True),
        ("http://[::1]:8000", "[::1]:8000", "http", True),
        ("https://box.lan", "box.lan", "https", True),
        ("http://box.lan:80", "box.lan", "http", True),
        ("https://box.lan", "box.lan", "http", True),
        ("https://box.lan:444", "box.lan", "http", False),
        ("http://box.lan", "box.lan", "https", False),
        ("http://LOCALHOST:8000", "localhost:8000", "http", True),
        ("http://localhost:3000", "localhost:8000", "http", False),
        ("http://evil.example", "localhost:8000", "http", False),
        ("null", "localhost:8000", "http", False),
        ("", "", "http", False),
        ("file://", "localhost", "http", False),
        ("http://localhost:8000@evil.example", "localhost:8000", "http", False),
    ],
)
def test_an_origin_is_ours_where_it_names_the_host_that_is_asked(
    origin: str, host: str, scheme: str, same: bool
) -> None:
    assert is_same_origin(origin, host, scheme) is same
