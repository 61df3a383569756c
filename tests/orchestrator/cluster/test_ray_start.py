"""Ray is started by the cluster file's own commands, without those that touch other clusters."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cluster.launcher_file import load_launcher
from orchestrator.cluster.ray_start import check_port, last_word, ray_address, start_script
from placement.errors import BoxUnreachable, ClusterFileError
from tests.orchestrator.cluster.launcher_document import launcher_document, write_launcher


def test_the_head_and_the_others_run_their_own_commands_with_token_and_certificate(tmp_path: Path) -> None:
    launcher = load_launcher(write_launcher(tmp_path))
    head = start_script(launcher, launcher.head)
    other = start_script(launcher, launcher.others[0])
    assert head.endswith("\nray start --head --port=21000")
    assert other.endswith("\nray start --address=$RAY_HEAD_IP:21000")
    assert "export RAY_HEAD_IP=192.168.1.10" in other
    assert "export PATH=/v/bin:$PATH" in other
    for script in (head, other):
        assert "ray stop" not in script
        assert 'export RAY_AUTH_TOKEN_PATH="$HOME"/.potluck/home/token' in script
        assert "export RAY_USE_TLS=1" in script
        assert "orchestrator.cluster.here end-ray home 192.168.1.10:21000" in script
    assert ray_address(launcher) == "192.168.1.10:21000"


def test_what_only_rays_launcher_brings_along_is_left_out(tmp_path: Path) -> None:
    start = "ray start --head --autoscaling-config=~/ray_bootstrap_config.yaml --port=21000"
    document = launcher_document() | {"head_start_ray_commands": [start]}
    launcher = load_launcher(write_launcher(tmp_path, document))
    assert start_script(launcher, launcher.head).endswith("\nray start --head --port=21000")


def test_a_file_that_starts_no_ray_is_refused(tmp_path: Path) -> None:
    stop_and_start = ["ray stop --force && ray start --address=$RAY_HEAD_IP:21000"]
    document = launcher_document() | {"worker_start_ray_commands": stop_and_start}
    launcher = load_launcher(write_launcher(tmp_path, document))
    with pytest.raises(ClusterFileError, match="worker_start_ray_commands: expected a line with `ray start`"):
        start_script(launcher, launcher.others[0])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("one\nRuntimeError: bad port\nbye\n", "RuntimeError: bad port"),
        ("\n\nlast words\n", "last words"),
        ("", "it said nothing"),
    ],
)
def test_rays_complaint_is_found_among_its_words(text: str, word: str) -> None:
    assert last_word(text) == word


def test_a_program_that_has_rays_port_is_named(tmp_path: Path) -> None:
    launcher = load_launcher(write_launcher(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        here = replace(launcher, ray_port=port, boxes=(replace(launcher.head, address="127.0.0.1"),))
        with pytest.raises(BoxUnreachable, match=f"port {port} is taken by '.+' \\(process {os.getpid()}\\)"):
            check_port(here)
        # One of another address is no hindrance.
        check_port(replace(here, boxes=launcher.boxes))
    check_port(here)
