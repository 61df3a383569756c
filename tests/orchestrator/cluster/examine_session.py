"""What a head finds wrong with the other boxes, as JSON: run on one host, with the addresses of others."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from orchestrator.cluster.examine import examine
from orchestrator.cluster.launcher_file import load_launcher
from orchestrator.cluster.ssh import Ssh
from placement.errors import PotluckError

ROOT = Path(__file__).parents[3]
TINY = str(ROOT / "models" / "potluck-tiny")


def launcher(here: str, there: str, third: str, **of_third: object) -> dict[str, Any]:
    """A cluster of these, with what the third node has in addition."""
    nodes = [
        {"name": "h1", "address": here},
        {"name": "h2", "address": there},
        {"name": "h3", "address": third} | of_third,
    ]
    return {
        "cluster_name": "trial",
        "provider": {"type": "local", "head_ip": here, "worker_ips": [there, third]},
        "auth": {"ssh_user": "root", "ssh_private_key": "~/.ssh/id_ed25519"},
        "metadata": {"potluck": {"head": "h1", "nodes": nodes}},
    }


def main(here: str, there: str, third: str) -> None:
    path = Path.home() / "cluster.yaml"
    found: dict[str, list[str]] = {}
    with Ssh(connect_timeout_s=2) as ssh:

        def look(case: str, document: dict[str, Any], *boxes: str, **more: Any) -> None:
            path.write_text(yaml.safe_dump(document))
            read = load_launcher(path)
            asked = [read.box(name) for name in boxes]
            results = examine(read, ssh, model=TINY, boxes=asked, **more)
            found[case] = [finding.line for each in results for finding in each.findings]
            assert [each.is_usable for each in results if each.findings] == [False] * bool(found[case])

        plain = launcher(here, there, third)
        look("right", plain, "h1", "h2")
        look("closed", plain, "h3")
        ssh.check(load_launcher(path).box("h3"), "nft delete table inet firewall")
        look("port and memory", plain, "h3", ports={"h3": [22]}, needed_bytes={"h3": 10**15})
        look("no venv", launcher(here, there, third, venv="~/none"), "h3")
        look("no model", launcher(here, there, third, model="~/none"), "h3")
        look("other model", launcher(here, there, third, model="~/other"), "h3")
        look("bare python", launcher(here, there, third, venv="~/bare"), "h3")
        look("refused", launcher(here, there, third, ssh_port=23), "h3")
        try:
            document = plain["metadata"]["potluck"] | {"head": "h2"}
            path.write_text(yaml.safe_dump(plain | {"metadata": {"potluck": document}}))
            examine(load_launcher(path), ssh)
        except PotluckError as error:
            found["not the head"] = [str(error)]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
