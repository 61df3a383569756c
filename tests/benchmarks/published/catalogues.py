"""Measurements that tests make up, and the catalogue without what was published of single devices."""

from __future__ import annotations

from functools import cache
from typing import Any

from benchmarks.published.measurements import Measurement
from benchmarks.published.shares import by_class_alone
from placement.hardware.catalogue import Catalogue, packaged_catalogue


@cache
def classes_alone() -> Catalogue:
    return by_class_alone(packaged_catalogue())


def measured(devices: list[str], split: str = "all", **fields: Any) -> Measurement:
    """One of gpt-oss-120b, unless the fields say otherwise."""
    named = {
        "id": "made-up",
        "model": "gpt-oss-120b",
        "quant": "MXFP4",
        "engine": "llama.cpp",
        "context": 0,
        "decode_tokens_per_s": 50.0,
        "source": "nobody",
        "url": "nowhere",
        "quote": "nothing",
    }
    boxes = {} if "boxes" in fields else {"devices": devices}
    return Measurement(**{**named, **boxes, "split": split, **fields})
