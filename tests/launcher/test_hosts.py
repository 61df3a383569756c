"""Hosts are apart from each other, reach each other by ssh, and go without a trace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.namespaces import Host
from tests.launcher.hosts import hosts_or_skip
from tests.orchestrator.processes import wait_until


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Host, ...]]:
    with hosts_or_skip(2, "10.34.9.0/24") as made:
        folder, inits = made[0].folder.parent, [host.init for host in made]
        yield made
    assert not folder.exists()
    assert not any(os.path.exists(f"/proc/{init}") for init in inits)
    assert not Path("/etc/netns", made[0].namespace).exists()
    # The kernel takes a namespace apart in its own time.
    wait_until(lambda: not Path("/sys/class/net", made[0].cable).exists())


def test_each_has_a_name_a_home_and_processes_of_its_own(pair: tuple[Host, ...]) -> None:
    for host in pair:
        said = host.run("hostname; echo ~; hostname -I").stdout.split()
        assert said == [host.name, str(host.home), host.address]
        assert list(host.pids()) == [host.init]


def test_one_reaches_the_other_by_ssh_and_not_while_its_cable_is_out(pair: tuple[Host, ...]) -> None:
    first, second = pair
    ssh = f"ssh -o BatchMode=yes -o ConnectTimeout=1 {second.address} hostname"
    assert first.run(ssh).stdout.strip() == second.name
    second.cut()
    try:
        assert first.run(ssh, check=False).returncode == 255
    finally:
        second.restore()
    wait_until(lambda: first.run(ssh, check=False).stdout.strip() == second.name)


def test_a_command_that_fails_says_where_and_what(pair: tuple[Host, ...]) -> None:
    with pytest.raises(RuntimeError, match="h1: cat /nowhere: 1: cat: /nowhere: No such file"):
        pair[0].run("cat /nowhere")
