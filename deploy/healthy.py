"""Ends with 0 where a server answers on this machine's port 8000, else with 1; for a container's HEALTHCHECK.

    python healthy.py [PORT]

It asks for no more than the server tells without a key. A server whose cluster lacks boxes is not healthy.
"""

from __future__ import annotations

import http.client
import sys

_PATIENCE_S = 5.0


def status(port: int) -> int:
    """What the server says of itself; raises OSError or HTTPException where nothing answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    try:
        connection.request("GET", "/health")
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
    return 0 if found == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
