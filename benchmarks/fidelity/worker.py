"""One worker process: its spec as JSON on standard input, its `WorkerInfo` as JSON out, until input ends."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from workers.process import WorkerInfo, WorkerProcess, WorkerSpec
from workers.tiers import TierSpec


def spec_to_json(spec: WorkerSpec) -> str:
    """One line."""
    fields: dict[str, Any] = asdict(spec)
    fields["head_public"] = None if spec.head_public is None else spec.head_public.decode()
    return json.dumps(fields)


def spec_from_json(text: str) -> WorkerSpec:
    fields = json.loads(text)
    for tier in fields["tiers"]:
        tier["experts"] = {int(layer): tuple(ids) for layer, ids in tier["experts"].items()}
    fields["tiers"] = tuple(TierSpec(**tier) for tier in fields["tiers"])
    if fields["head_public"] is not None:
        fields["head_public"] = fields["head_public"].encode()
    return WorkerSpec(**fields)


def info_from_json(text: str) -> WorkerInfo:
    fields = json.loads(text)
    if fields["public_key"] is not None:
        fields["public_key"] = fields["public_key"].encode()
    return WorkerInfo(**fields)


def main() -> None:
    worker = WorkerProcess(spec_from_json(sys.stdin.readline()))
    info = asdict(worker.start())
    info["public_key"] = None if info["public_key"] is None else info["public_key"].decode()
    print(json.dumps(info), flush=True)
    sys.stdin.read()
    worker.stop()


if __name__ == "__main__":
    main()
