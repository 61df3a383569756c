"""What is wrong with a box is one line each, from facts alone."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, replace
from typing import Any

import pytest

from orchestrator.cluster.checks import Expected, findings
from orchestrator.cluster.facts import BoxFacts, DiskFacts, ModelFacts, PortFacts, RouteFacts
from orchestrator.cluster.launcher_file import Box
from orchestrator.cluster.reach import Reach

HEAD = Box("study", "192.168.1.10", "potluck", 22, None, "~/v", None, None, None)
BOX = Box("attic", "192.168.1.11", "potluck", 22, None, "~/v", None, None, "cable")
MODEL = ModelFacts("/m/step", True, "aa", {"a.safetensors": "1", "b.safetensors": "2"})
CABLE = RouteFacts("eth0", False, 1000)
FACTS = BoxFacts(
    system="Linux",
    python="3.11.7",
    ray="2.60.0",
    potluck="0.1.0",
    code="c0de",
    clock_s=1000.0,
    addresses=("192.168.1.11",),
    memory_free_bytes=30 * 10**9,
    memory_told_by="this machine",
    disks=(DiskFacts("~", "keys and logs", 10**12), DiskFacts("/tmp", "Ray", 10**12)),
    route=CABLE,
    model=MODEL,
)
OURS = replace(FACTS, addresses=("192.168.1.10",))
EXPECTED = Expected(HEAD, OURS, 999.0, 1001.0)


def lines(facts: BoxFacts, box: Box = BOX, **more: Any) -> list[str]:
    return [f"{f.severity} {f.line}" for f in findings(box, facts, replace(EXPECTED, **more))]


def test_nothing_is_said_of_a_box_that_is_right() -> None:
    assert lines(FACTS, reach=Reach("", ""), needed_bytes=30 * 10**9) == []


def test_facts_travel_as_json() -> None:
    facts = replace(FACTS, ports=(PortFacts(6379, "in use", "redis, pid 3"),))
    assert BoxFacts.from_json(json.loads(json.dumps(asdict(facts)))) == facts
    bare = replace(FACTS, route=None, model=None)
    assert BoxFacts.from_json(json.loads(json.dumps(asdict(bare)))) == bare


@pytest.mark.parametrize(
    ("change", "severity", "expected"),
    [
        ({"system": "Darwin"}, "error", "it runs Darwin, expected Linux"),
        ({"python": "3.12.1"}, "error", "Python 3.12.1 there, 3.11.7 on the head: Ray joins"),
        ({"python": "3.11.9"}, "warning", "Python 3.11.9 there, 3.11.7 on the head: Ray may"),
        ({"ray": ""}, "error", "Ray is not installed there: pip install ray==2.60.0"),
        ({"ray": "2.50.0"}, "error", "Ray 2.50.0 there, 2.60.0 on the head: pip install ray==2.60.0"),
        ({"potluck": "0.2.0"}, "error", "Potluck 0.2.0 there, 0.1.0 on the head: run `potluck update`"),
        ({"code": "beef"}, "error", "another Potluck 0.1.0 there than on the head"),
        ({"clock_s": 1062.0}, "warning", "its clock is 61 seconds ahead: let it be set"),
        ({"clock_s": 1001.0 - 3600}, "warning", "its clock is 60 minutes behind"),
        ({"clock_s": 1001.0 + 3 * 86400}, "error", "its clock is 3 days ahead"),
        ({"addresses": ()}, "error", "192.168.1.11 is not an address of it (it has none)"),
        ({"addresses": ("10.0.0.1",)}, "error", "192.168.1.11 is not an address of it (10.0.0.1): give"),
        (
            {"ports": (PortFacts(6379, "address already in use", "redis, pid 3"),)},
            "error",
            "port 6379 is in use by redis, pid 3: end that",
        ),
        (
            {"ports": (PortFacts(80, "permission denied"),)},
            "error",
            "cannot listen on 192.168.1.11:80: permission denied",
        ),
        ({"route": RouteFacts("wlan0", True)}, "warning", "it is on Wi-Fi (wlan0) where the file expects"),
        ({"route": RouteFacts("eth0", False, 100)}, "warning", "its cable runs at 100 Mbit/s (eth0)"),
        (
            {"model": ModelFacts("/m/step", is_there=False)},
            "error",
            "model missing: nothing at /m/step: on study run `rsync -a --partial /m/step/ "
            "potluck@192.168.1.11:/m/step/`",
        ),
        (
            {"model": replace(MODEL, identity="", error="/m/step/config.json: too short")},
            "error",
            "model not usable: /m/step/config.json: too short: on study run `rsync",
        ),
        (
            {"model": replace(MODEL, identity="bb", files=MODEL.files | {"b.safetensors": "3"})},  # type: ignore[operator]
            "error",
            "another model at /m/step than on the head: b.safetensors differs: on study",
        ),
        (
            {"model": replace(MODEL, identity="bb", files={"a.safetensors": "1"})},
            "error",
            "another model at /m/step than on the head: b.safetensors is not part of it",
        ),
        (
            {"model": replace(MODEL, identity="bb", files=dict(MODEL.files) | {"c": "1"})},
            "error",
            "another model at /m/step than on the head: it has c in addition",
        ),
        (
            {"disks": (DiskFacts("/tmp", "Ray", 10**8),)},
            "error",
            "disk full: /tmp (Ray) has 100.0 MB left, expected 1.0 GB: make room",
        ),
        ({"on_battery": True}, "warning", "it runs on its battery"),
        ({"governor": "powersave"}, "warning", "its processor is kept slow (governor powersave)"),
    ],
)
def test_each_thing_that_is_wrong_is_one_line(change: dict[str, Any], severity: str, expected: str) -> None:
    found = lines(replace(FACTS, **change))
    assert len(found) == 1
    assert found[0].startswith(f"{severity} attic: {expected}"), found
    assert len(found[0].splitlines()) == 1


def test_a_clock_is_judged_by_the_time_that_the_question_took() -> None:
    """A slow answer makes no clock wrong."""
    slow: dict[str, Any] = {"asked_s": 1000.0, "answered_s": 1200.0}
    assert lines(replace(FACTS, clock_s=1100.0), BOX, **slow) == []
    assert lines(replace(FACTS, clock_s=1260.0), BOX, **slow) == []
    assert lines(replace(FACTS, clock_s=939.0), BOX, **slow)


def test_wifi_is_mentioned_where_nobody_said_what_is_expected_and_not_where_it_is_meant() -> None:
    facts = replace(FACTS, route=RouteFacts("wlan0", True))
    (line,) = lines(facts, replace(BOX, network=None))
    assert "`network: wifi` in the file says that this is meant" in line
    assert lines(facts, replace(BOX, network="wifi")) == []
    assert lines(replace(FACTS, route=None)) == []


def test_memory_counts_once_a_plan_is_known() -> None:
    assert lines(FACTS) == []
    (line,) = lines(FACTS, needed_bytes=31 * 10**9)
    assert line.startswith(
        "error attic: not enough memory: 31.0 GB of experts are to lie there, this machine"
    )


def test_closed_ports_are_said_for_each_direction() -> None:
    to_box, from_box = lines(FACTS, reach=Reach("no answer", "no route to host"))
    assert "study (192.168.1.10) cannot connect to attic (192.168.1.11) (no answer)" in to_box
    assert "on attic run `sudo ufw allow from 192.168.1.10`" in to_box
    assert "attic (192.168.1.11) cannot connect to study (192.168.1.10) (no route to host)" in from_box
    assert "on study run `sudo ufw allow from 192.168.1.11`" in from_box


def test_full_digests_find_what_samples_do_not() -> None:
    whole = {"a.safetensors": "x", "b.safetensors": "y"}
    ours = replace(OURS, model=replace(MODEL, whole=whole))
    same = replace(FACTS, model=replace(MODEL, whole=whole))
    assert lines(same, ours=ours) == []
    assert lines(FACTS, ours=ours) == []
    other = replace(FACTS, model=replace(MODEL, whole=whole | {"b.safetensors": "z"}))
    (line,) = lines(other, ours=ours)
    assert line.startswith("error attic: damaged model: b.safetensors has other bytes than on the head")
    assert "`rsync -a --partial --checksum /m/step/ " in line


def test_the_command_that_brings_a_model_is_one_for_a_shell() -> None:
    box = replace(BOX, port=2222, user=None)
    ours = replace(OURS, model=replace(MODEL, path="/my models/step.gguf"))
    facts = replace(FACTS, model=ModelFacts("/there/a b.gguf", is_there=False))
    (line,) = lines(facts, box, ours=ours)
    command = line.split("`")[1]
    assert shlex.split(command) == [
        "rsync",
        "-a",
        "--partial",
        "-e",
        "ssh -p 2222",
        "/my models/step.gguf",
        "192.168.1.11:/there/a b.gguf",
    ]


def test_errors_come_before_warnings() -> None:
    facts = replace(FACTS, clock_s=1100.0, ray="", on_battery=True)
    assert [line.split()[0] for line in lines(facts)] == ["error", "warning", "warning"]
