"""Whether two boxes reach each other on a port that nobody uses: `python -m orchestrator.cluster.reach`.

ssh works through a firewall that lets nothing else pass, and then workers are never heard. So the box listens
on a port of the system's choice at its own address, the head connects to it, and the box connects to one of
the head's.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import dataclass

from orchestrator.cluster.launcher_file import Box
from orchestrator.cluster.ssh import Ssh, python_of
from placement.errors import BoxUnreachable
from placement.files.quote import last_line

CONNECT_TIMEOUT_S = 3.0
_WAIT_S = 15.0


@dataclass(frozen=True, slots=True)
class Reach:
    """Why one end could not connect to the other, "" where it could."""

    to_box: str
    from_box: str


def try_reach(ssh: Ssh, box: Box, own_address: str) -> Reach:
    """Connect from this machine to a box and back.

    Raises:
        BoxUnreachable: the box cannot be asked.
    """
    with socket.create_server((own_address, 0)) as server:
        server.settimeout(CONNECT_TIMEOUT_S)
        question = f"{box.address} {own_address} {server.getsockname()[1]}\n"
        process = subprocess.Popen(
            ssh.command(box, f"exec {python_of(box)} -m orchestrator.cluster.reach"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(question)
                process.stdin.flush()
                port = json.loads(process.stdout.readline() or "{}").get("port")
                if port is None:
                    raise BoxUnreachable(f"{box.at}: cannot listen on {box.address}: {_last(process)}")
                to_box = connect(box.address, port)
                printed, _ = process.communicate("done\n", timeout=_WAIT_S)
                return Reach(to_box, json.loads(printed)["back"])
            except (subprocess.TimeoutExpired, ValueError, KeyError, BrokenPipeError) as error:
                raise BoxUnreachable(f"{box.at}: gave no answer to a test of its ports") from error
            finally:
                process.kill()


def connect(address: str, port: int) -> str:
    """Why no connection to a port comes about, "" where one does."""
    try:
        with socket.create_connection((address, port), CONNECT_TIMEOUT_S):
            return ""
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return (error.strerror or str(error)).lower()


def _last(process: subprocess.Popen[str]) -> str:
    _, complaints = process.communicate(timeout=_WAIT_S)
    return last_line(complaints) or "it said nothing"


def main() -> None:
    """Listen at the address that the first line of standard input gives, until a second line comes."""
    own, other, port = sys.stdin.readline().split()
    with socket.create_server((own, 0)) as server:
        print(json.dumps({"port": server.getsockname()[1]}), flush=True)
        back = connect(other, int(port))
        # The system accepts connections by itself as long as this waits.
        sys.stdin.readline()
        print(json.dumps({"back": back}), flush=True)


if __name__ == "__main__":
    main()
