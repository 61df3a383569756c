"""A small cluster file that Ray's launcher takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def launcher_document() -> dict[str, Any]:
    nodes = [
        {"name": "study", "address": "192.168.1.10"},
        {"name": "attic", "address": "192.168.1.11", "ssh_user": "anna", "ssh_port": 2222, "venv": "/v"},
    ]
    return {
        "cluster_name": "home",
        "provider": {"type": "local", "head_ip": "192.168.1.10", "worker_ips": ["192.168.1.11"]},
        "auth": {"ssh_user": "potluck", "ssh_private_key": "~/.ssh/id"},
        "head_start_ray_commands": ["ray stop --force", "ray start --head --port=21000"],
        "worker_start_ray_commands": ["ray start --address=$RAY_HEAD_IP:21000"],
        "metadata": {"potluck": {"head": "study", "nodes": nodes}},
    }


def write_launcher(folder: Path, document: dict[str, Any] | None = None) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(launcher_document() if document is None else document))
    return path
