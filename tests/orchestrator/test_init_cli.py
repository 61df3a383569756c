"""`potluck init` writes a file that Potluck and Ray's launcher both take, or says what keeps it."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cluster.launcher_file import Launcher, load_launcher
from orchestrator.cluster.launcher_text import Draft, launcher_text, ray_port_of
from tests.orchestrator.command_line import Potluck, document, says
from tests.orchestrator.test_json_doc import documented, printed, sections

THREE = ("--head", "study=192.168.1.10", "--node", "attic=192.168.1.11", "--node", "no=192.168.1.12")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, and a home with a key in it."""
    home, work = tmp_path / "home", tmp_path / "work"
    (home / ".ssh").mkdir(parents=True)
    work.mkdir()
    (home / ".ssh" / "id_rsa").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    return work


def check_by_ray(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Ray's launcher makes of a file, once it has found nothing wrong with it."""
    # Here, since every process of pytest collects all tests.
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.chdir(path.parent)
    prepared: dict[str, Any] = prepare_config(yaml.safe_load(path.read_text()))
    validate_config(prepared)
    return prepared


def test_what_it_writes_is_read_back_and_taken_by_ray(
    potluck: Potluck, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = potluck("init", *THREE, "--user", "anna", "--name", "flat")
    assert (code, out) == (0, ""), err
    assert "next, on study: potluck up cluster.yaml --model DIR" in err
    path = place / "cluster.yaml"
    launcher = load_launcher(path)
    assert launcher.name == "flat"
    assert launcher.addresses == {"study": "192.168.1.10", "attic": "192.168.1.11", "no": "192.168.1.12"}
    assert launcher.head.name == "study"
    assert {box.user for box in launcher.boxes} == {"anna"}
    assert launcher.head.key_path == Path.home() / ".ssh" / "id_rsa"
    assert yaml.safe_load(path.read_text())["auth"]["ssh_private_key"] == "~/.ssh/id_rsa"
    assert launcher.ray_port == ray_port_of("flat")
    assert launcher.notes == ()
    prepared = check_by_ray(path, monkeypatch)
    assert prepared["max_workers"] == 2
    assert (launcher.state_folder / "keys" / "no.key").is_file()
    # The files that Ray would bring to the boxes are there, and they are private.
    for local in prepared["file_mounts"].values():
        assert stat.S_IMODE(os.stat(local).st_mode) == 0o600
    assert not [local for local in prepared["file_mounts"].values() if "ca.key" in local]


def test_the_shipped_file_is_what_it_would_write(place: Path) -> None:
    """But for the figures that somebody typed below, and what is said at its top."""
    shipped = load_launcher(Path(__file__).parents[2] / "cluster.yaml")
    draft = Draft(shipped.name, "study", shipped.addresses, "potluck", "~/.ssh/id_ed25519")
    path = place / "made.yaml"
    path.write_text(launcher_text(draft))
    made = load_launcher(path)
    assert (made.head_start, made.worker_start) == (shipped.head_start, shipped.worker_start)
    ours, theirs = (yaml.safe_load(p.read_text()) for p in (path, shipped.path))
    assert ours.pop("metadata")
    assert theirs.pop("metadata")
    assert ours == theirs


def test_the_document_is_the_one_that_is_documented(potluck: Potluck, place: Path) -> None:
    made = document(potluck("init", "flat.yaml", *THREE, "--json"))
    assert printed(made) == documented(sections("json.md")["`potluck init`"])
    assert made["file"] == "flat.yaml"
    assert made["nodes"][1] == {"name": "attic", "address": "192.168.1.11"}


def test_a_file_that_is_there_is_kept_unless_told_otherwise(potluck: Potluck, place: Path) -> None:
    path = place / "cluster.yaml"
    path.write_text("mine")
    code, out, err = potluck("init", *THREE)
    assert (code, out) == (2, "")
    assert says(err, "cluster.yaml: there is such a file already … --force to replace it")
    assert path.read_text() == "mine"
    assert not (place / ".potluck").exists()
    assert potluck("init", *THREE, "--force")[0] == 0
    token = (place / ".potluck" / "home" / "token").read_text()
    # Keys of a cluster of that name stay.
    assert potluck("init", *THREE, "--force")[0] == 0
    assert (place / ".potluck" / "home" / "token").read_text() == token


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "--head: expected the box that you will run `potluck` on, NAME=ADDRESS"),
        (("--node", "a=10.0.0.1"), "--head: expected the box"),
        (("--head", "study"), "--head: expected NAME=ADDRESS … found 'study'"),
        (("--head", "a b=10.0.0.1"), "--head: expected a name of letters … found 'a b'"),
        (("--head", "a=attic.local"), "--head: expected an IPv4 address … found 'attic.local'"),
        (("--head", "a=fe80::1"), "--head: expected an IPv4 address … found IPv6: 'fe80::1'"),
        (
            ("--head", "a=10.0.0.1", "--node", "a=10.0.0.2"),
            "--node: expected each name once, found 'a'",
        ),
        (
            ("--head", "a=10.0.0.1", "--node", "b=10.0.0.1"),
            "--node: expected each address once, found 10.0.0.1 again",
        ),
        (("--head", "a=10.0.0.1", "--user", "-oX"), "--user: expected a user's name, found '-oX'"),
        (("--head", "a=10.0.0.1", "--name", "../x"), "--name: expected letters … found '../x'"),
        (("--head", "a=10.0.0.1", "--name", "x" * 17), "--name: expected … at most 16"),
        (("--head", "a=10.0.0.1", "--key", "none"), "--key: cannot read none: No such file"),
        (
            ("--head", "a=10.0.0.1", "--key", "mine.pub"),
            "--key: expected a private key, such as mine, found another file: mine.pub",
        ),
        (("none/cluster.yaml", "--head", "a=10.0.0.1"), "cannot write none/cluster.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    arguments: tuple[str, ...], expected: str, potluck: Potluck, place: Path
) -> None:
    (place / "mine.pub").write_text("ssh-ed25519 AAAA")
    code, out, err = potluck("init", *arguments)
    assert (code, out) == (2, "")
    assert says(err, expected), err
    assert [path.name for path in place.iterdir()] == ["mine.pub"]


def test_without_a_key_it_says_how_to_make_one(potluck: Potluck, place: Path) -> None:
    shutil.rmtree(Path.home() / ".ssh")
    code, _, err = potluck("init", *THREE)
    assert code == 2
    assert says(err, "--key: found no private key in ~/.ssh: make one with `ssh-keygen … `ssh-copy-id`")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def answer(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("".join(f"{line}\n" for line in lines)))


def test_it_asks_at_a_terminal_until_answers_can_be_taken(
    potluck: Potluck, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["study", "study=10.0.0.1", "den=10.0.0.1", "den=10.0.0.2", "", "anna", "~/none", "~/.ssh/id_rsa"]
    answer(lines, monkeypatch)
    code, out, err = potluck("init")
    assert (code, out) == (0, ""), err
    for mistake in ("found 'study'", "each address once, found 10.0.0.1 again", "cannot read"):
        assert mistake in err
    launcher = load_launcher(place / "cluster.yaml")
    assert launcher.addresses == {"study": "10.0.0.1", "den": "10.0.0.2"}
    assert launcher.head.user == "anna"


def test_questions_that_nobody_answers_leave_nothing(
    potluck: Potluck, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(["study=10.0.0.1"], monkeypatch)
    code, _, err = potluck("init")
    assert code == 2
    assert "the questions were not answered: nothing was written" in err
    assert list(place.iterdir()) == []


def start_command(launcher: Launcher, kind: str, tools: Path, addresses: str) -> str:
    """What a start command would run on a box with these addresses: tools print in place of the real ones."""
    (tools / "ray").write_text('#!/bin/sh\necho "$RAY_USE_TLS $RAY_AUTH_TOKEN_PATH $@"\n')
    (tools / "ip").write_text(f"#!/bin/sh\nprintf '{addresses}'\n")
    for tool in ("ray", "ip"):
        (tools / tool).chmod(0o755)
    command = (launcher.head_start if kind == "head" else launcher.worker_start)[-1]
    command = re.sub(r"source \S+ &&", "", command)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": "/home/x", "RAY_HEAD_IP": "192.168.1.1"}
    done = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, check=True, timeout=30
    )
    return done.stdout


@pytest.mark.parametrize("kind", ["head", "worker"])
def test_a_box_finds_its_own_address_and_name(kind: str, tmp_path: Path) -> None:
    """Also where one address begins another, and on any box, so that the head can move."""
    nodes = {"study": "192.168.1.1", "attic": "192.168.1.11", "den": "192.168.1.12"}
    path = tmp_path / "cluster.yaml"
    path.write_text(launcher_text(Draft("home", "study", nodes, "anna", "~/.ssh/k")))
    launcher = load_launcher(path)
    for name, address in nodes.items():
        shown = f"1: lo inet 127.0.0.1/8\\n2: eth0 inet {address}/24 brd 192.168.1.255\\n"
        found = start_command(launcher, kind, tmp_path, shown)
        assert found.startswith("1 /home/x/.potluck/home/token start ")
        assert f"--node-ip-address={address} " in found
        assert json.dumps({name: 1}, separators=(",", ":")) in found
        assert "--temp-dir=/home/x/.potluck/home/ray" in found
        port = ray_port_of("home")
        expected = f"--head --port={port}" if kind == "head" else f"--address=192.168.1.1:{port}"
        assert expected in found


def test_two_clusters_have_two_ports() -> None:
    ports = {ray_port_of(name) for name in ("home", "flat", "office", "trial")}
    assert len(ports) == 4
    assert all(20_000 <= port < 32_768 for port in ports)
