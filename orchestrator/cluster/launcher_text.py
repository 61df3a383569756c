"""Writes a cluster file that `potluck up` and Ray's own `ray up` both start a cluster from."""

from __future__ import annotations

import textwrap
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from orchestrator.cluster.keys_folder import CA, NODE, NODE_KEY, TLS, TOKEN
from orchestrator.cluster.launcher_file import STATE_FOLDER, remote_folder
from orchestrator.cluster.ray_env import ray_environment
from placement.given.cluster_spec import USUAL_VENV

MOST_NAME_OF_CLUSTER = 16
"""Ray's sockets lie in a folder of the cluster's name, and a socket's path may have a hundred characters."""
# Ports that neither Linux gives away by itself (from 32768 on) nor well-known servers use.
_FIRST_PORT, _NUM_PORTS = 20_000, 10_000


@dataclass(frozen=True, slots=True)
class Draft:
    """What somebody said of a cluster. `nodes`: name -> IPv4 address, the head among them."""

    name: str
    head: str
    nodes: Mapping[str, str]
    user: str
    key: str


def ray_port_of(cluster: str) -> int:
    """Of Ray on the head's box: two clusters on one machine have different ones, by their names."""
    return _FIRST_PORT + zlib.crc32(cluster.encode()) % _NUM_PORTS


def launcher_text(draft: Draft, file_name: str = "cluster.yaml") -> str:
    """The file's text, with comments that say what else may stand in it."""
    folder, local = remote_folder(draft.name), Path(STATE_FOLDER) / draft.name
    head_address = draft.nodes[draft.head]
    others = [address for name, address in draft.nodes.items() if name != draft.head]
    mounted = (TOKEN, *(f"{TLS}/{name}" for name in (CA, NODE, NODE_KEY)))
    mounts = "\n".join(f"  {folder}/{name}: {local}/{name}" for name in mounted)
    port = ray_port_of(draft.name)
    start = (
        f'ray start --node-ip-address=${{OWN%=*}} --resources="{{\\"${{OWN#*=}}\\":1}}"\n'
        f"    --object-store-memory=200000000 --temp-dir=$HOME/{folder[2:]}/ray"
    )
    # Each box finds its own address and name among these, so both commands do on any box.
    own = textwrap.fill(
        f"for OWN in {' '.join(f'{address}={name}' for name, address in draft.nodes.items())} none;",
        width=100,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    find = own + "\n    do ip -4 -o addr | grep -qwF ${OWN%=*} && break; done;"
    environment = "\n    ".join(f"{name}={value}" for name, value in ray_environment(folder).items())
    before = f"source {USUAL_VENV}/bin/activate &&\n    {find}\n    {environment}"
    nodes = "\n".join(
        f"      - name: {_scalar(name)}\n        address: {address}" for name, address in draft.nodes.items()
    )
    return f"""\
# A Potluck cluster, and a file for Ray's cluster launcher as well. Written by `potluck init`.
#
#   potluck up {file_name} --model DIR     starts it: run that on the head, {draft.head}
#   potluck probe {file_name}              measures the boxes
#   potluck plan {file_name} --model DIR   says where each expert would live, and how fast that is
#
# Every box needs: ssh with the key below, rsync, and Potluck installed in {USUAL_VENV}.
# With Ray's own launcher, in this file's folder: RAY_UP_enable_autoscaler_v2=0 ray up {file_name}
# (version 2 counts the head as a worker and starts one too few).

cluster_name: {_scalar(draft.name)}
max_workers: {len(others)}

provider:
  type: local
  head_ip: {head_address}
  worker_ips: [{", ".join(others)}]

auth:
  ssh_user: {_scalar(draft.user)}
  ssh_private_key: {_scalar(draft.key)}

# Ray's token and certificate, without which anybody on the network could run code on the boxes. They lie in
# {local}, which only you can read: give that to nobody. `potluck up` renews them.
file_mounts:
{mounts}

initialization_commands:
  - chmod 700 ~/{STATE_FOLDER} {folder} {folder}/{TLS}

# OWN becomes ADDRESS=NAME of the box that runs this. Ray knows a box by both.
# `ray stop` ends every Ray of this user there; `potluck up` leaves it out.
head_start_ray_commands:
  - source {USUAL_VENV}/bin/activate && ray stop --force
  - >-
    {before}
    {start}
    --head --port={port} --include-dashboard=false --autoscaling-config=~/ray_bootstrap_config.yaml

worker_start_ray_commands:
  - source {USUAL_VENV}/bin/activate && ray stop --force
  - >-
    {before}
    {start}
    --address=$RAY_HEAD_IP:{port}

# Ray hands this part to nobody. A name and an address are enough: `potluck probe` measures what a box can do.
# Each node may also say:
#   ssh_user: anna           where it differs from auth.ssh_user
#   ssh_port: 2222
#   venv: /opt/potluck       where Potluck is installed there
#   model: /data/step        where the model lies there, if not at the head's path
#   memory: 24GB             what Potluck may take of its RAM at most
#   network: cable           `potluck up` tells where it is on Wi-Fi all the same; or wifi
# Figures that you type win over measured ones; docs/formats.md and docs/hardware.md say which there are.
metadata:
  potluck:
    head: {_scalar(draft.head)}
    nodes:
{nodes}
"""


def _scalar(text: str) -> str:
    """As YAML takes it for text: a name such as `no` or `1e3` in quotes."""
    return yaml.safe_dump(text, default_flow_style=True, width=10_000).removesuffix("\n...\n").rstrip("\n")
