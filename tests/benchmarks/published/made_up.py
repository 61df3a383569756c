"""Measurements that tests make up."""

from __future__ import annotations

from typing import Any

from benchmarks.published.measurements import Measurement


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
