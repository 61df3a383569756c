"""Published decode speeds, and the halves that their devices fall into."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, field_validator, model_validator

from benchmarks.published.place import Place
from placement.fields.cluster_fields import Positive
from placement.files.quote import quote

_SPLIT = re.compile(r"all|cpu|layers|experts-in-ram(:[1-9]\d*)?")

Exclusion = Literal[
    "mmap from disk", "thermal throttling", "swapping", "not the model's usual top-k", "memory not filled"
]
"""Why a measurement says nothing of the hardware. Whoever published it says so; its error never does."""
_NOT_STATED = "not stated"


class Measurement(Place):
    """One decode speed of one text at a time, with its place.

    Attributes:
        devices: catalogue names; of several boxes in `boxes`, whose first is the head, over `link`.
        memory_bytes: as stated; a measurement that was published did fit.
        split: what the engine places where (`benchmarks.published.engine`).
        context: tokens before the one measured.
        kv: what keys and values are kept in.
        acceptance: mean accepted drafts by position, where there are drafts.
        excluded: the rule by which it is left out of fit and judgement, None where it counts.
    """

    id: str = Field(min_length=1)
    model: str
    quant: str
    weight_bytes: Positive | None = None
    engine: str
    build: str | None = None
    devices: list[str] = Field(default_factory=list)
    boxes: list[list[str]] = Field(default_factory=list)
    link: str | None = None
    memory_bytes: str | int | None = None
    split: str
    context: int = Field(ge=0)
    kv: Literal["f16", "q8_0"] = "f16"
    drafts: int = Field(default=0, ge=0)
    acceptance: list[float] | None = None
    decode_tokens_per_s: Positive
    prefill_tokens_per_s: Positive | None = None
    excluded: Exclusion | None = None

    @field_validator("split")
    @classmethod
    def _known_split(cls, split: str) -> str:
        if not _SPLIT.fullmatch(split):
            raise ValueError(
                f"expected all, cpu, layers, experts-in-ram or experts-in-ram:LAYERS, found {quote(split)}"
            )
        return split

    @model_validator(mode="after")
    def _has_devices(self) -> Measurement:
        if bool(self.devices) == bool(self.boxes) or not all(self.boxes):
            raise ValueError(f"{self.id}: expected devices of one box, or boxes with devices each")
        if len(self.boxes) > 1 and self.link is None:
            raise ValueError(f"{self.id}: expected a link between its boxes")
        return self

    @property
    def of_boxes(self) -> list[list[str]]:
        """Its devices by box, the head's box first."""
        return self.boxes or [self.devices]

    @property
    def left_out(self) -> str | None:
        """Why neither fit nor judgement can use it, None where they can."""
        return "form of the weights not stated" if self.quant == _NOT_STATED else self.excluded

    @property
    def first_device(self) -> str:
        """By which its half is told."""
        return self.of_boxes[0][0]

    @property
    def layers_in_ram(self) -> int | None:
        """Whose experts the CPU computes; None for all."""
        _, _, number = self.split.partition(":")
        return int(number) if number else None


@dataclass(frozen=True, slots=True)
class Halves:
    """Names of first devices whose measurements set shares, and of those whose measurements judge them."""

    fit: frozenset[str]
    judged: frozenset[str]

    @classmethod
    def of(cls, classes: Iterable[tuple[str, str]]) -> Halves:
        """
        Args:
            classes: (device, its class), each device once or more often.
        """
        fit: set[str] = set()
        judged: set[str] = set()
        by_class: dict[str, set[str]] = {}
        for device, of_class in classes:
            by_class.setdefault(of_class, set()).add(device)
        for devices in by_class.values():
            for index, device in enumerate(sorted(devices)):
                (judged if index % 2 else fit).add(device)
        return cls(frozenset(fit), frozenset(judged))
