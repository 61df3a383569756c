"""Ends with 0 where a server answers, else with 1; for a container's HEALTHCHECK.

    POTLUCK_URL=https://127.0.0.1:8443 python healthy.py

Without POTLUCK_URL it asks http://127.0.0.1:8000. It asks for no more than the server tells without a key: a
server whose cluster lacks boxes is not healthy. It sends nothing that is secret and trusts no answer, so any
certificate will do.
"""

from __future__ import annotations

import http.client
import os
import ssl
import sys
from urllib.parse import urlsplit

_PATIENCE_S = 5.0


def status(url: str) -> int:
    """What the server says of itself.

    Raises:
        OSError, HTTPException: nothing answers.
        ValueError: it is no URL of a server.
    """
    parts = urlsplit(url)
    if not parts.hostname or parts.scheme not in ("http", "https"):
        raise ValueError("expected a URL such as http://127.0.0.1:8000 in POTLUCK_URL")
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=_PATIENCE_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=_PATIENCE_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    finally:
        connection.close()


def main() -> int:
    url = os.environ.get("POTLUCK_URL") or "http://127.0.0.1:8000"
    try:
        found = status(url)
    except (OSError, http.client.HTTPException, ValueError) as error:
        print(f"{url}: {error}")
        return 1
    print(f"{url}: status {found}")
    return 0 if found == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
