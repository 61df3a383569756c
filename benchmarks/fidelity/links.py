"""A slow link on one machine: a network namespace with a token bucket."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

# What the bucket lets through at once: little, or small messages would never feel the limit.
_BURST_BYTES = 3200


@contextmanager
def limited_namespace(name: str, subnet: int, mbits_per_s: int) -> Iterator[str | None]:
    """A namespace reached at 10.77.`subnet`.2, both ways limited; None where this user may not make one.

    Yields:
        The address a process in it listens on; start it with `ip netns exec NAME`.
    """
    commands = [
        f"ip netns add {name}",
        f"ip link add {name}h type veth peer name eth0 netns {name}",
        f"ip addr add 10.77.{subnet}.1/24 dev {name}h",
        f"ip link set {name}h up",
        f"ip -n {name} link set lo up",
        f"ip -n {name} addr add 10.77.{subnet}.2/24 dev eth0",
        f"ip -n {name} link set eth0 up",
        f"tc qdisc replace dev {name}h root tbf rate {mbits_per_s}mbit burst {_BURST_BYTES} latency 100ms",
        f"ip netns exec {name} "
        f"tc qdisc replace dev eth0 root tbf rate {mbits_per_s}mbit burst {_BURST_BYTES} latency 100ms",
    ]
    with ExitStack() as stack:
        made = shutil.which("ip") is not None and shutil.which("tc") is not None
        for command in commands if made else ():
            result = subprocess.run(command.split(), capture_output=True, check=False)
            if result.returncode:
                made = False
                break
            if command == commands[0]:
                stack.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True, check=False)
        yield f"10.77.{subnet}.2" if made else None
