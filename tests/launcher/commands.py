"""Commands of ours on hosts, and what they must not leave there."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.cluster_of_hosts import write_cluster_file
from benchmarks.namespaces import Host
from tests.orchestrator.processes import ROOT, wait_until

MODEL = ROOT / "models" / "potluck-tiny"
PROMPT = ("--prompt", "The following options", "--ignore-eos", "--max-tokens")
FEW = 24
PATIENCE_S = 600.0


def potluck(host: Host, *arguments: object, settings: str = "") -> tuple[int, str, str]:
    """Run a command on a host: exit code, standard output, standard error."""
    done = host.run(command(*arguments, settings=settings), check=False, timeout_s=PATIENCE_S)
    return done.returncode, done.stdout, done.stderr


def command(*arguments: object, settings: str = "") -> str:
    """What a shell runs for one of ours."""
    words = " ".join(f"'{word}'" for word in arguments)
    program = f"{sys.executable} -c 'from orchestrator.cli.main import main; main()'"
    return f"cd / && PYTHONPATH={ROOT} {settings} {program} {words}"


def planned(hosts: tuple[Host, ...]) -> Path:
    """A plan for any cluster of these hosts: clusters of them differ in nothing that it asks for."""
    path = hosts[0].home / "plan.json"
    file = write_cluster_file(hosts[0].home, hosts, name="planned")
    code, _, err = potluck(hosts[0], "plan", file, "--model", MODEL, "--policy", "uniform", "--out", path)
    assert code == 0, err
    return path


def check_nothing_is_left(hosts: tuple[Host, ...]) -> None:
    secrets = r"find ~ -path ~/.ssh -prune -o \( -name '*.key' -o -name token -o -name '*.crt' \) -print"
    for host in hosts:
        wait_until(lambda host=host: list(host.pids()) == [host.init])  # type: ignore[misc]
        listening = host.run("ss -ltnxH").stdout.splitlines()
        assert [line for line in listening if f"{host.address}:22" not in line] == []
        assert host.run("ls /dev/shm").stdout == ""
        assert host.run(secrets).stdout == ""
