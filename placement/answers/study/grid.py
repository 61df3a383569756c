"""The cells of a study and what each is asked."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path

from placement.answers.study.config import Batch, Study
from placement.answers.study.routing_source import RoutingSource
from placement.errors import ClusterFileError, HardwareFileError
from placement.files.input_file import digest
from placement.hardware.catalogue import CATALOGUE, REACHED
from placement.hardware.spread import SPREADS
from placement.model_shape import ModelShape
from placement.workload import Workload, usual_workload


@dataclass(frozen=True, slots=True)
class Setting:
    """What policies are compared in: one planning problem and its text."""

    cluster: Path
    trace: RoutingSource
    quant: str
    batch: Batch
    context: int
    head_bits: float | None
    prompt_ratio: float

    @property
    def workload(self) -> Workload:
        usual = usual_workload(self.quant)
        return replace(
            usual,
            num_sequences=self.batch.sequences,
            drafts=self.batch.drafts,
            accepted_drafts=self.batch.accepted,
            context=self.context,
            head_bits_per_weight=usual.head_bits_per_weight if self.head_bits is None else self.head_bits,
            prompt_tokens_per_token=self.prompt_ratio,
        )

    @property
    def key(self) -> str:
        batch = f"{self.batch.sequences}x{self.batch.drafts}x{self.batch.accepted:g}"
        return "/".join((self.cluster.stem, self.trace.name, self.quant, batch, str(self.context)))


@dataclass(frozen=True, slots=True)
class Cell:
    """One policy and its test. `key` names it in the results folder."""

    setting: Setting
    policy: str

    @property
    def key(self) -> str:
        return f"{self.setting.key}/{self.policy}"


def cells(study: Study) -> list[Cell]:
    """All combinations, those of one trace, cluster and setting together: what they share is made once."""
    axes = itertools.product(study.traces, study.clusters, study.quants, study.batches, study.contexts)
    settings = [
        Setting(cluster, trace, quant, batch, context, study.head_bits, study.prompt_ratio)
        for trace, cluster, quant, batch, context in axes
    ]
    return [Cell(setting, policy) for setting in settings for policy in study.policies]


def fingerprint(study: Study, shape: ModelShape) -> str:
    """Hexadecimal digits of all that decides the results: the grid, the model, the contents of its files.

    Those of the catalogue too: what devices reach in it, and how far predictions lie from measurements.
    """
    content = [
        study.name,
        shape.name,
        repr(shape),
        [cell.key for cell in cells(study)],
        [study.head_bits, study.prompt_ratio],
        [digest(path, ClusterFileError, "a cluster file") for path in study.clusters],
        [trace.fingerprint() for trace in study.traces],
        [
            digest(path, HardwareFileError, "a file of the catalogue")
            for path in (CATALOGUE, REACHED, SPREADS)
        ],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
