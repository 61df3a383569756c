"""Where a server listens, and which settings it refuses."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.api.keys import make_key
from orchestrator.api.listening import check_listening, listen, url_of
from orchestrator.api.server import serve
from orchestrator.api.settings import ApiSettings
from orchestrator.cluster.tls import make_tls
from placement.errors import InputError, KeysRequired
from tests.orchestrator.api.scripted import Scripted


def test_small_packets_are_sent_at_once() -> None:
    """An answer's first lines and what follows are two packets; the second must not wait for the client."""

    async def accepted() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            found.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = listen(ApiSettings(port=0))
        async with await asyncio.start_server(note, sock=listener):
            with socket.create_connection(listener.getsockname()):
                return await found

    assert asyncio.run(accepted()) != 0


def test_what_cannot_be_served_is_said_at_once(tmp_path: Path) -> None:
    key, none = tmp_path / "key", tmp_path / "none"
    key.write_text("no key")
    with listen(ApiSettings(port=0)) as taken:
        port = taken.getsockname()[1]
        for settings, words in (
            (ApiSettings(port=port), f"port {port}"),
            (
                ApiSettings(port=0, tls_key=key, tls_certificate=key),
                "PEM certificate",
            ),
            (
                ApiSettings(port=0, tls_key=none, tls_certificate=none),
                "no such file",
            ),
        ):
            with pytest.raises(InputError, match=words):
                asyncio.run(serve(Scripted(), settings))
            with pytest.raises(InputError, match=words):
                check_listening(settings)
    check_listening(ApiSettings(port=0))


def test_each_of_the_tls_files_is_told_from_the_other(tmp_path: Path) -> None:
    ours, others = (make_tls("test", [], datetime.now(UTC)) for _ in range(2))
    for name, content in (("c.pem", ours.certificate), ("k.pem", ours.key), ("o.pem", others.key)):
        (tmp_path / name).write_bytes(content)

    def check(certificate: str, key: str) -> None:
        check_listening(ApiSettings(port=0, tls_certificate=tmp_path / certificate, tls_key=tmp_path / key))

    check("c.pem", "k.pem")
    for files, words in (
        (("none.pem", "k.pem"), "--tls-cert .*none.pem: there is no such file"),
        (("c.pem", "none.pem"), "--tls-key .*none.pem: there is no such file"),
        (("c.pem", "o.pem"), "o.pem is not the key of .*c.pem"),
        (("c.pem", "c.pem"), "--tls-key .*c.pem: expected a PEM key"),
    ):
        with pytest.raises(InputError, match=words):
            check(*files)


def test_a_host_that_does_not_exist_is_said_so() -> None:
    settings = ApiSettings(host="not.a.host.invalid", port=0, keys=(make_key("ann")[1],))
    with pytest.raises(InputError, match=r"not\.a\.host\.invalid: no such name"):
        check_listening(settings)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_is_named_by_its_host(host: str) -> None:
    settings = ApiSettings(host=host, port=0)
    with listen(settings) as listener:
        assert url_of(settings, listener) == f"http://{host}:{listener.getsockname()[1]}"


def test_a_server_on_all_addresses_is_named_by_one_that_clients_can_use() -> None:
    settings = ApiSettings(host="0.0.0.0", port=8000, keys=(make_key("ann")[1],))
    # Only its port is asked for, so that nothing has to listen on other machines' side.
    with listen(ApiSettings(port=0)) as listener:
        url = url_of(settings, listener)
    address = url.removeprefix("http://").rsplit(":", 1)[0]
    assert not ipaddress.ip_address(address).is_unspecified


def test_other_machines_need_keys() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.2", "box.lan"):
        with pytest.raises(KeysRequired, match=host):
            ApiSettings(host=host)
        assert ApiSettings(host=host, keys=(make_key("ann")[1],)).keys
    with pytest.raises(InputError, match="--tls-cert is missing"):
        ApiSettings(tls_key=Path("x"))
    with pytest.raises(InputError, match="port"):
        ApiSettings(port=65536)


@pytest.mark.parametrize(
    ("host", "advice"),
    [
        ("127.0.0.1:8000", "; the port is --port 8000$"),
        ("box.lan:80", "; the port is --port 80$"),
        ("http://127.0.0.1", "such as 127.0.0.1$"),
        ("http://127.0.0.1:8000/", "such as 127.0.0.1$"),
    ],
)
def test_a_host_has_no_port_and_is_no_url(host: str, advice: str) -> None:
    with pytest.raises(InputError, match=f"--host {host}: expected an address or a name alone.*{advice}"):
        ApiSettings(host=host, keys=(make_key("ann")[1],))
