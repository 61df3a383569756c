"""Stands for a process that is forked elsewhere: `python -I -S client.py SOCKET ARGUMENTS...`.

Its standard files are handed on; it takes signals for it, and ends as it ends. Killed, it takes it along.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys


def main() -> int:
    where, *arguments = sys.argv[1:]
    asked = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "new_session": False,
        "ends_with_asker": True,
    }
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(where)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: connection.send(str(number).encode()))
    socket.send_fds(connection, [json.dumps(asked).encode()], [0, 1, 2])
    # Whoever writes to it, or reads from it, sees it end with the process itself.
    for file in (0, 1, 2):
        os.close(file)
    while True:
        said = json.loads(connection.recv(100) or '{"status": 1}')
        if "status" in said:
            status: int = said["status"]
            if status < 0:
                signal.signal(-status, signal.SIG_DFL)
                os.kill(os.getpid(), -status)
            return status


if __name__ == "__main__":
    sys.exit(main())
