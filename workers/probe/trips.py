"""Measures links from the box this runs on: `python -m workers.probe.trips`.

It writes its public key, then reads a line of JSON for each echo to measure and answers it with one: a
`Link`, or what went wrong. It ends with its standard input.
"""

from __future__ import annotations

import json
import sys

from placement.errors import PotluckError
from placement.given.probe_figures import Link
from transport.keys import HeadKeys, KeyPair
from workers.probe.round_trips import echo_client, measure_trips


def measure_link(endpoint: str, keys: HeadKeys, seconds: float) -> Link:
    """
    Raises:
        WorkerStartError, WorkerLost: no answer.
    """
    with echo_client(endpoint, keys) as client:
        trips = measure_trips(client, seconds)
    return Link(
        round_trip_s=trips.round_trip_s,
        p50_s=trips.quantile_s(0.5),
        p99_s=trips.quantile_s(0.99),
        there_bytes_per_s=trips.there_bytes_per_s,
        back_bytes_per_s=trips.back_bytes_per_s,
    )


def main() -> int:
    keys = KeyPair.make()
    print(json.dumps({"public_key": keys.public.decode()}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            head_keys = HeadKeys(keys, asked["public_key"].encode())
            link = measure_link(asked["endpoint"], head_keys, asked["seconds"])
            print(json.dumps({"link": link.model_dump()}), flush=True)
        except PotluckError as error:
            print(json.dumps({"failed": str(error)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
