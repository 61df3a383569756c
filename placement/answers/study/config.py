"""A study file: the axes of a grid, read from YAML and checked. docs/studies/README.md describes it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from placement.answers.study.routing_source import FileSource, RoutingSource, SyntheticSource
from placement.errors import InputError, StudyFileError
from placement.fields.yaml_file import read_mapping, validate_fields
from placement.files.quote import quote
from placement.given.traces import DOMAINS, Domain
from placement.policies.registry import check_policy
from placement.routing.text import DOCUMENT_TOKENS
from placement.weight_format import planned_format
from placement.workload import DEFAULT_CONTEXT, DEFAULT_PROMPT_RATIO


@dataclass(frozen=True, slots=True)
class Batch:
    """What one pass decodes: `sequences` texts, each with `drafts` MTP drafts of which `accepted` hold."""

    sequences: int
    drafts: int = 0
    accepted: float = 0.0

    @property
    def tokens_per_step(self) -> int:
        """Rows of one pass."""
        return self.sequences * (1 + self.drafts)

    @property
    def label(self) -> str:
        """Such as "1", or "1+3 drafts (1.6 hold)"."""
        drafts = f"+{self.drafts} drafts ({self.accepted:g} hold)" if self.drafts else ""
        return f"{self.sequences}{drafts}"


@dataclass(frozen=True, slots=True)
class Study:
    """A grid: every combination of the axes is one cell. Paths are absolute; axes are never empty.

    In all cells the head's weights have `head_bits`, None for those of published files of the cell's quant,
    and `prompt_ratio` prompt tokens are read for each token written.
    """

    name: str
    model: str
    policies: tuple[str, ...]
    clusters: tuple[Path, ...]
    quants: tuple[str, ...]
    batches: tuple[Batch, ...]
    contexts: tuple[int, ...]
    traces: tuple[RoutingSource, ...]
    head_bits: float | None = None
    prompt_ratio: float = DEFAULT_PROMPT_RATIO

    @property
    def files(self) -> tuple[Path, ...]:
        """The cluster and routing files."""
        return (*self.clusters, *(file for trace in self.traces for file in trace.files))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Study:
        """Read and check a study file; paths in it are relative to it.

        Raises:
            StudyFileError: names file and field; also for an empty axis, an unknown policy or quantisation,
                or a file that is not there.
        """
        document = read_mapping(path, StudyFileError, ", ".join(_StudyModel.model_fields))
        return _study(validate_fields(document, _StudyModel, path, StudyFileError), Path(path))


def _as_batch(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return {"sequences": value}
    if not isinstance(value, dict | _BatchModel):
        keys = ", ".join(_BatchModel.model_fields)
        raise ValueError(f"expected a number of sequences or a mapping with {keys}, found {quote(value)}")
    return value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _BatchModel(_Strict):
    sequences: Annotated[int, Field(ge=1, le=4096)] = 1
    drafts: Annotated[int, Field(ge=0, le=16)] = 0
    accepted_drafts: Annotated[float, Field(ge=0)] = 0.0


class _TraceModel(_Strict):
    name: Annotated[str, Field(min_length=1, max_length=64)]
    domain: str | None = None
    held_out_domain: str | None = None
    tokens: Annotated[int, Field(ge=16, le=1_000_000)] = 4096
    seed: Annotated[int, Field(ge=0)] = 0
    file: str | None = None
    held_out_file: str | None = None
    document_tokens: Annotated[int, Field(ge=64)] | None = None


class _StudyModel(_Strict):
    name: Annotated[str, Field(min_length=1, max_length=100)]
    model: str
    policies: list[str]
    clusters: list[str]
    quants: list[str]
    traces: list[_TraceModel]
    batches: list[Annotated[_BatchModel, BeforeValidator(_as_batch)]] = [_BatchModel()]
    contexts: list[Annotated[int, Field(ge=0)]] = [DEFAULT_CONTEXT]
    head_bits: Annotated[float, Field(ge=1, le=64)] | None = None
    prompt_ratio: Annotated[float, Field(ge=0, le=1e6)] = DEFAULT_PROMPT_RATIO


def _study(file: _StudyModel, path: Path) -> Study:
    """The rules that span fields or need other files."""
    folder = path.parent.resolve()
    axes: dict[str, list[Any]] = {
        "policies": file.policies,
        "clusters": file.clusters,
        "quants": file.quants,
        "batches": file.batches,
        "contexts": file.contexts,
        "traces": [trace.name for trace in file.traces],
    }
    for name, values in axes.items():
        if not values:
            raise StudyFileError(
                f"{path}: {name}: expected at least one value, found none: the grid is empty"
            )
        for value, times in Counter(values).items():
            if times > 1:
                raise StudyFileError(f"{path}: {name}: expected each value once, found {quote(value)} again")
    for index, policy in enumerate(file.policies):
        _known(check_policy, policy, f"{path}: policies[{index}]")
    for index, quant in enumerate(file.quants):
        _known(planned_format, quant, f"{path}: quants[{index}]")
    stems = [Path(cluster).stem for cluster in file.clusters]
    if len(set(stems)) < len(stems):
        raise StudyFileError(f"{path}: clusters: expected file names that differ, found {quote(stems)}")
    for index, batch in enumerate(file.batches):
        if batch.accepted_drafts > batch.drafts:
            raise StudyFileError(
                f"{path}: batches[{index}].accepted_drafts: expected at most drafts ({batch.drafts}), "
                f"found {batch.accepted_drafts}"
            )
    return Study(
        name=file.name,
        model=file.model,
        policies=tuple(file.policies),
        clusters=tuple(
            _existing(folder / cluster, f"{path}: clusters[{index}]")
            for index, cluster in enumerate(file.clusters)
        ),
        quants=tuple(file.quants),
        batches=tuple(Batch(b.sequences, b.drafts, b.accepted_drafts) for b in file.batches),
        contexts=tuple(file.contexts),
        traces=tuple(
            _source(trace, folder, f"{path}: traces[{index}]") for index, trace in enumerate(file.traces)
        ),
        head_bits=file.head_bits,
        prompt_ratio=file.prompt_ratio,
    )


def _known(check: Callable[[str], object], name: str, where: str) -> None:
    try:
        check(name)
    except InputError as error:
        raise StudyFileError(f"{where}: {error}") from None


def _source(trace: _TraceModel, folder: Path, where: str) -> RoutingSource:
    if (trace.domain is None) == (trace.file is None):
        raise StudyFileError(f"{where}: expected either domain (synthetic) or file, found both or neither")
    if trace.file is not None:
        if trace.held_out_domain is not None:
            raise StudyFileError(f"{where}.held_out_domain: expected held_out_file beside file")
        held_out = trace.held_out_file and _existing(folder / trace.held_out_file, f"{where}.held_out_file")
        return FileSource(
            trace.name,
            _existing(folder / trace.file, f"{where}.file"),
            held_out or None,
            trace.document_tokens or DOCUMENT_TOKENS,
        )
    if trace.held_out_file is not None:
        raise StudyFileError(f"{where}.held_out_file: expected held_out_domain beside domain")
    if trace.document_tokens is not None:
        raise StudyFileError(
            f"{where}.document_tokens: expected beside file only; synthetic documents have {DOCUMENT_TOKENS}"
        )
    domain = _domain(trace.domain or "", f"{where}.domain")
    other = domain
    if trace.held_out_domain is not None:
        other = _domain(trace.held_out_domain, f"{where}.held_out_domain")
    return SyntheticSource(trace.name, domain, other, trace.tokens, trace.seed)


def _domain(name: str, where: str) -> Domain:
    if name not in DOMAINS:
        raise StudyFileError(f"{where}: expected {' or '.join(DOMAINS)}, found {quote(name)}")
    return DOMAINS[name]


def _existing(path: Path, where: str) -> Path:
    # Unlike Path.exists, False for names that no file can have.
    if not os.path.exists(path):
        raise StudyFileError(f"{where}: no such file: {path}")
    return path.resolve()
