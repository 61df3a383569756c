"""What a box finds out about itself."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.cluster.facts import (
    BoxFacts,
    Question,
    gather,
    interface_facts,
    route_to,
    slow_governor,
    source_digest,
)

ROOT = Path(__file__).parents[3]
TINY = ROOT / "models" / "potluck-tiny"


def test_facts_are_printed_as_one_document() -> None:
    question = {"address": "127.0.0.1", "peer": "", "model": str(TINY), "ports": []}
    before = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cluster.facts"],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=60,
    )
    facts = BoxFacts.from_json(json.loads(done.stdout))
    assert before <= facts.clock_s <= time.time()
    assert facts.python == ".".join(map(str, sys.version_info[:3]))
    assert facts.potluck
    assert facts.ray
    assert facts.memory_free_bytes > 0
    assert {disk.what for disk in facts.disks} == {"keys and logs", "Ray", "shared memory"}
    assert facts.model is not None
    assert len(facts.model.identity) == 64
    assert facts.route is None


def test_facts_load_no_torch_and_no_ray() -> None:
    program = "import sys, orchestrator.cluster.facts; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    assert not {"torch", "ray"} & set(done.stdout.split())


def test_a_port_that_is_taken_is_named_with_its_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (taken,) = gather(Question("127.0.0.1", ports=(port,))).ports
    assert taken.port == port
    assert "in use" in taken.why
    assert f"pid {os.getpid()}" in taken.holder
    assert gather(Question("127.0.0.1", ports=(port,))).ports == ()


@pytest.mark.parametrize(
    ("name", "is_there", "error"),
    [
        ("none", False, "no such file"),
        ("empty", True, "empty has 0 safetensors files"),
        ("broken.gguf", True, "broken.gguf"),
    ],
)
def test_a_model_that_cannot_be_used_says_why(name: str, is_there: bool, error: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(3))
    model = gather(Question("127.0.0.1", model=str(tmp_path / name))).model
    assert model is not None
    assert (model.is_there, model.identity) == (is_there, "")
    assert error in model.error
    assert len(model.error.splitlines()) == 1


def test_the_way_to_this_machine_itself_is_no_wifi() -> None:
    route = route_to("127.0.0.1")
    assert route is not None
    assert (route.interface, route.is_wireless) == ("lo", False)


@pytest.mark.parametrize(
    ("files", "is_wireless", "mbits"),
    [
        ({"speed": "2500\n"}, False, 2500),
        ({"speed": "-1\n"}, False, 0),
        ({}, False, 0),
        ({"wireless/x": "", "speed": "1000"}, True, 0),
        ({"phy80211/name": "phy0"}, True, 0),
    ],
)
def test_an_interface_is_told_by_what_the_system_shows(
    files: dict[str, str], is_wireless: bool, mbits: int, tmp_path: Path
) -> None:
    for name, text in files.items():
        path = tmp_path / "class" / "net" / "if0" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = interface_facts("if0", tmp_path)
    assert (found.is_wireless, found.mbits_per_s) == (is_wireless, mbits)


@pytest.mark.parametrize(
    ("governor", "driver", "expected"),
    [
        ("powersave", "acpi-cpufreq", "powersave"),
        ("powersave", "intel_pstate", ""),
        ("schedutil", "acpi-cpufreq", ""),
        (None, None, ""),
    ],
)
def test_a_processor_kept_slow_is_noticed(
    governor: str | None, driver: str | None, expected: str, tmp_path: Path
) -> None:
    folder = tmp_path / "devices" / "system" / "cpu" / "cpu0" / "cpufreq"
    folder.mkdir(parents=True)
    if governor and driver:
        (folder / "scaling_governor").write_text(f"{governor}\n")
        (folder / "scaling_driver").write_text(f"{driver}\n")
    assert slow_governor(tmp_path) == expected


def test_the_digest_of_the_code_is_of_all_packages() -> None:
    assert source_digest() == source_digest()
    assert len(source_digest()) == 16
