"""A cluster file for hosts of `benchmarks.namespaces`, as `ray up` and `potluck up` take it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.namespaces import Host
from orchestrator.cluster.keys_folder import CA, NODE, NODE_KEY, TLS, TOKEN
from orchestrator.cluster.launcher_file import STATE_FOLDER
from orchestrator.cluster.ray_env import ray_environment

_HEAD_MEMORY, _WORKER_MEMORY = "13MB", "20MB"


def write_cluster_file(
    folder: Path, hosts: Sequence[Host], *, name: str = "trial", port: int = 23456, head: int = 0
) -> Path:
    """Write `NAME.yaml`, in which each host has little memory, so that the shipped model needs several.

    For `ray up` the cluster's keys must be made first (`ensure_keys`): it brings them to the hosts.

    Args:
        port: of Ray; clusters on the same hosts need ports of their own.
        head: which host is the head.
    """
    boxes = "".join(_node(host, is_head=index == head) for index, host in enumerate(hosts))
    links = "".join(
        f"      - {{node: {host.name}, round_trip_s: 0.0002, bandwidth_gbits_per_s: 10}}\n"
        for index, host in enumerate(hosts)
        if index != head
    )
    others = ", ".join(host.address for index, host in enumerate(hosts) if index != head)
    state = f"$HOME/.potluck/{name}"
    settings = " ".join(f"{variable}={value}" for variable, value in ray_environment(state).items())
    common = f"--num-cpus=2 --object-store-memory=100000000 --temp-dir={state}/ray"
    own = '--resources="{\\"$(hostname)\\":1}" --node-ip-address=$(hostname -I | cut -d" " -f1)'
    kept = folder / STATE_FOLDER / name
    brought = (TOKEN, *(f"{TLS}/{file}" for file in (NODE, NODE_KEY, CA)))
    mounts = ", ".join(f"~/{STATE_FOLDER}/{name}/{file}: {kept}/{file}" for file in brought)
    path = folder / f"{name}.yaml"
    path.write_text(
        f"""cluster_name: {name}
max_workers: {len(hosts) - 1}
provider: {{type: local, head_ip: {hosts[head].address}, worker_ips: [{others}]}}
auth: {{ssh_user: root, ssh_private_key: ~/.ssh/id_ed25519}}
file_mounts: {{{mounts}}}
head_start_ray_commands:
  - source ~/potluck/.venv/bin/activate && ray stop --force
  - >-
    source ~/potluck/.venv/bin/activate && {settings}
    ray start --head --port={port} --include-dashboard=false {common} {own}
    --autoscaling-config=~/ray_bootstrap_config.yaml
worker_start_ray_commands:
  - source ~/potluck/.venv/bin/activate && ray stop --force
  - >-
    source ~/potluck/.venv/bin/activate && {settings}
    ray start --address=$RAY_HEAD_IP:{port} {common} {own}
metadata:
  potluck:
    head: {hosts[head].name}
    nodes:
{boxes}    links:
{links}"""
    )
    return path


def _node(host: Host, *, is_head: bool) -> str:
    memory = _HEAD_MEMORY if is_head else _WORKER_MEMORY
    device = f"name: ram, kind: ram, memory_bytes: {memory}, bandwidth_gbytes_per_s: 50, ffn_gflops: 500"
    lines = [f"- name: {host.name}", f"  address: {host.address}", "  devices:", f"    - {{{device}}}"]
    return "".join(f"      {line}\n" for line in lines)
