"""Ends with 0 where a server answers on this machine's port 8000, else with 1; for a container's HEALTHCHECK.

    python healthy.py [PORT]

It has no key. A server that asks for one is there, too.
"""

from __future__ import annotations

import http.client
import sys

_PATIENCE_S = 5.0
_ALIVE = (200, 401)


def status(port: int) -> int:
    """The status of the list of models; raises OSError or HTTPException where nothing answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    try:
        connection.request("GET", "/v1/models")
        return connection.getresponse().status
    finally:
        connection.close()


def main() -> int:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    try:
        found = status(port)
    except (OSError, http.client.HTTPException) as error:
        print(f"port {port}: {error}")
        return 1
    print(f"port {port}: status {found}")
    return 0 if found in _ALIVE else 1


if __name__ == "__main__":
    sys.exit(main())
