"""A worker's service with experts that compute nothing: `python -m workers.probe.echo`.

A line of JSON on standard input says where to listen (`EchoSpec`), a line of JSON on standard output where it
does (`EchoInfo`). The process ends when standard input does.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from types import MappingProxyType

import numpy as np

from placement.errors import PotluckError
from placement.experts import Experts
from transport.expert_rows import ExpertRows
from transport.keys import KeyPair, WorkerKeys
from transport.messages import WireLimits
from workers.partial_sum import PartialSum
from workers.service import ExpertService

NAME, DTYPE = "echo", "float32"
LAYER, HIDDEN_SIZE, NUM_EXPERTS, TOP_K = 0, 4096, 288, 8
"""Rows as wide as Step-3.5-Flash's."""
LIMITS = WireLimits("probe", frozenset({LAYER}), HIDDEN_SIZE, NUM_EXPERTS, TOP_K)


@dataclass(frozen=True, slots=True)
class EchoSpec:
    """`endpoints` to listen on; those `encrypted` let in the holder of `head_public` (Z85) alone."""

    endpoints: tuple[str, ...]
    head_public: str
    encrypted: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class EchoInfo:
    """The endpoints, their ports known now, and the service's public key (Z85)."""

    endpoints: tuple[str, ...]
    public_key: str


class NoExperts:
    """An `ExpertTier` that holds all experts and computes none."""

    experts: Experts = MappingProxyType({LAYER: tuple(range(NUM_EXPERTS))})
    num_experts = NUM_EXPERTS
    held_bytes = 0

    def notices(self) -> tuple[str, ...]:
        return ()

    def forward(self, layer: int, rows: ExpertRows) -> PartialSum:
        return PartialSum(np.zeros((rows.num_rows, HIDDEN_SIZE), np.int32), np.zeros(rows.num_rows, np.bool_))


def main() -> int:
    fields = json.loads(sys.stdin.readline())
    spec = EchoSpec(tuple(fields["endpoints"]), fields["head_public"], tuple(fields["encrypted"]))
    keys = WorkerKeys(KeyPair.make(), frozenset({spec.head_public.encode()}))
    with ExitStack() as stack:
        try:
            services = [
                stack.enter_context(
                    ExpertService(
                        NAME, NoExperts(), LIMITS, endpoint, dtype=DTYPE, keys=keys if encrypted else None
                    )
                )
                for endpoint, encrypted in zip(spec.endpoints, spec.encrypted, strict=True)
            ]
        except PotluckError as error:
            print(error, file=sys.stderr)
            return error.exit_code
        info = EchoInfo(tuple(service.endpoint for service in services), keys.own.public.decode())
        print(json.dumps(asdict(info)), flush=True)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
