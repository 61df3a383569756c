"""The listener hears what is said, however it is written and cut up: else its silence proves nothing."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.namespaces import Host
from tests.launcher.hosts import hosts_or_skip
from tests.security.listener import forms_of, found_in, heard, overheard
from tests.security.packets import _joined

SECRET = b"a secret of nobody"
# Listens, says where, and gives back all that comes on one connection, a little at a time.
SERVER = (
    "import socket;s=socket.create_server(('0.0.0.0',0));print(s.getsockname()[1],flush=True);c,_=s.accept();"
    "print(b''.join(iter(lambda:c.recv(100),b'')).hex())"
)
CLIENT = (
    "import socket,sys,time;s=socket.create_connection((sys.argv[1],int(sys.argv[2])));"
    "s.setsockopt(socket.IPPROTO_TCP,socket.TCP_NODELAY,1);"
    "[(s.sendall(bytes.fromhex(part)),time.sleep(.01)) for part in sys.argv[3:]]"
)


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Host, ...]]:
    with hosts_or_skip(2, "10.38.9.0/24") as made:
        yield made


def said(pair: tuple[Host, ...], parts: list[bytes]) -> None:
    """One host sends the other these parts, each in a packet of its own."""
    first, second = pair
    server = second.popen(["python3", "-c", SERVER], stdout=-1)
    assert server.stdout is not None
    port = server.stdout.readline().strip()
    first.run(["python3", "-c", CLIENT, second.address, port, *(part.hex() for part in parts)])
    assert bytes.fromhex(server.stdout.readline()) == b"".join(parts)
    server.wait()


@pytest.mark.parametrize(
    ("form", "written"),
    [
        ("itself", SECRET),
        ("hex", SECRET.hex().encode()),
        ("base64", base64.b64encode(b'{"key": "' + SECRET + b'"}')),
    ],
)
def test_a_secret_between_two_hosts_is_heard_across_packets(
    pair: tuple[Host, ...], tmp_path: Path, form: str, written: bytes
) -> None:
    with overheard(pair, tmp_path):
        said(pair, [b"x" * 3000 + written[:7], written[7:12], written[12:] + b"y" * 3000])
    found = found_in(heard(tmp_path), {"secret": SECRET, "other": b"never said"})
    assert len(found) == 1
    assert found[0].startswith(f"secret as {form}")


@given(before=st.binary(max_size=8), secret=st.binary(min_size=6, max_size=40), after=st.binary(max_size=8))
def test_base64_is_recognised_wherever_the_secret_stands(before: bytes, secret: bytes, after: bytes) -> None:
    forms = dict(forms_of(secret))
    place = len(before) % 3
    whole = before + secret + after
    assert forms[f"base64+{place}"] in base64.b64encode(whole)
    for_urls = forms.get(f"base64url+{place}", forms[f"base64+{place}"])
    assert for_urls in base64.urlsafe_b64encode(whole)


@given(
    data=st.binary(min_size=1, max_size=200),
    begin=st.integers(0, 2**32 - 1),
    order=st.randoms(use_true_random=False),
    cuts=st.lists(st.tuples(st.integers(0, 199), st.integers(1, 60)), max_size=30),
)
def test_a_stream_is_put_together_from_segments_in_any_order_and_sent_twice(
    data: bytes, begin: int, order: object, cuts: list[tuple[int, int]]
) -> None:
    whole = [(start, data[start : start + 20]) for start in range(0, len(data), 20)]
    again = [(start, data[start : start + length]) for start, length in cuts if start < len(data)]
    parts = [((begin + start) % 2**32, part) for start, part in whole + again]
    order.shuffle(parts)  # type: ignore[attr-defined]
    assert _joined(parts) == data
