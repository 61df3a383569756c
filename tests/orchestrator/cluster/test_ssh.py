"""Commands over ssh: to hosts that are there, and what is said of those that are not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.launcher_file import Box
from orchestrator.cluster.ssh import Ssh, is_here, quoted_path, why_unreachable
from placement.errors import BoxUnreachable
from tests.launcher.hosts import hosts_or_skip

ROOT = Path(__file__).parents[3]
DEN = Box("den", "192.168.1.11", "potluck", 22, Path("/k"), "~/v", None, None, None)


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """What `ssh_session` found on the first of three hosts, and whether something of it still ran there."""
    with hosts_or_skip(3, "10.35.0.0/24") as hosts:
        addresses = [host.address for host in hosts]
        module = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "tests.orchestrator.cluster.ssh_session"]
        found: dict[str, Any] = json.loads(hosts[0].run([*module, *addresses]).stdout)
        found["left"] = [line for line in hosts[0].pids().values() if "sshd" not in line]
        return found


def test_a_command_is_run_with_its_input_and_its_code_comes_back(seen: dict[str, Any]) -> None:
    assert seen["answer"] == [3, "h2\ngiven \xff\n", "oh"]
    assert seen["home"].endswith("h2/home")


def test_one_connection_serves_all_commands_and_none_is_left(seen: dict[str, Any]) -> None:
    assert seen["left"] == []
    assert seen["sockets"] == 1
    assert not seen["sockets_left"]


def test_a_command_on_this_box_needs_no_ssh(seen: dict[str, Any]) -> None:
    name, home = seen["own_home"]
    assert name == "h1"
    assert home.endswith("h1/home")


def test_a_command_that_fails_is_told_by_its_last_line(seen: dict[str, Any]) -> None:
    assert re.fullmatch(r"den \(10.35.0.2\): `echo first .*` failed: no room", seen["fails"])
    assert seen["slow"] == "den (10.35.0.2): no answer within 0.5 s to `exec sleep 60`"


def test_a_file_is_copied_whole_to_any_name(seen: dict[str, Any]) -> None:
    assert seen["copied"] == "same"
    assert seen["no_source"].startswith("cannot read ")
    assert seen["no_source"].endswith("/none: No such file or directory")


def test_secrets_are_pushed_for_their_user_alone(seen: dict[str, Any]) -> None:
    assert seen["pushed"] == [
        "700 d .",
        "700 d ./home",
        "700 d ./home/keys",
        "600 f ./home/keys/allowed",
        "600 f ./home/keys/den.key",
        "700 d ./home/tls",
        "600 f ./home/tls/ca.crt",
        "600 f ./home/tls/node.crt",
        "600 f ./home/tls/node.key",
        "600 f ./home/token",
    ]
    assert seen["own_keys"]


def test_all_boxes_are_tried_at_once_and_each_says_what_it_lacks(seen: dict[str, Any]) -> None:
    assert seen["each"]["den"] == "h2"
    assert seen["each"]["refused"].startswith("refused (10.35.0.2): ssh refused on port 23: start sshd there")
    assert seen["each"]["silent"].startswith("silent (10.35.0.77): unreachable: is it on")


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("no_key", "den (10.35.0.2): no key accepted for nobody: run `ssh-copy-id nobody@10.35.0.2`"),
        ("missing_key", "/none is missing: name a private key of yours"),
        ("open_key", "which other users can read: run `chmod 600 "),
        ("unknown", "this machine does not know its host key: run `ssh root@10.35.0.3 true`"),
        ("changed", "its host key is not the one that this machine knows: .*`ssh-keygen -R 10.35.0.3`"),
    ],
)
def test_what_keeps_from_a_box_is_one_line(case: str, expected: str, seen: dict[str, Any]) -> None:
    pattern = ".*".join(map(re.escape, expected.split(".*")))
    assert re.search(pattern, seen[case]), seen[case]
    assert len(seen[case].splitlines()) == 1


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        ("ssh: connect to host x port 22: Network is unreachable", "unreachable: is it on"),
        ("kex_exchange_identification: read: Connection reset by peer", "closed the connection"),
        ("a\nsomething new\n", "den (192.168.1.11): ssh failed: something new"),
        ("", "ssh failed: it said nothing"),
    ],
)
def test_what_ssh_says_becomes_what_to_do(stderr: str, expected: str) -> None:
    assert expected in why_unreachable(DEN, stderr)


@pytest.mark.parametrize("path", ["~/a b", "/x/$(touch y)", "~/it's", "/a;b"])
def test_a_path_means_nothing_but_itself(path: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f"printf %s {quoted_path(path)}"],
        env={"HOME": "/home/anna"},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout == path.replace("~", "/home/anna")
    assert not list(tmp_path.iterdir())


def test_an_address_of_this_machine_is_known_as_such() -> None:
    assert is_here("127.0.0.1")
    assert not is_here("192.0.2.1")


def test_a_machine_without_ssh_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BoxUnreachable, match="this machine has no ssh"):
        Ssh()
