"""A question as its file has it: options, each a cluster file of catalogue names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from placement.errors import StudyFileError
from placement.fields.cluster_fields import NotNegative, Text
from placement.fields.yaml_file import read_mapping, validate_fields
from placement.given.cluster_file import check_figures, cluster_of
from placement.given.cluster_spec import ClusterSpec
from placement.hardware.entry import Prose

FOLDER = Path(__file__).parent
"""Where the ten lie."""


@dataclass(frozen=True, slots=True)
class Option:
    """What could be bought.

    Attributes:
        is_now: what is there already.
        keep_head: whether the head stays where the cluster has it.
        price: None where the file gives none.
    """

    name: str
    cluster: ClusterSpec
    is_now: bool = False
    keep_head: bool = False
    price: float | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """`file`: its name, without the folder. `title`: the question in a few words."""

    file: str
    title: str
    text: str
    options: tuple[Option, ...]


def load_questions(folder: Path = FOLDER) -> list[Question]:
    """All questions of a folder, in the order of their files' names; raises as `load_question`."""
    return [load_question(path) for path in sorted(folder.glob("*.yaml"))]


def load_question(path: str | os.PathLike[str]) -> Question:
    """
    Raises:
        StudyFileError: names file, field, what was expected and what was found.
        ClusterFileError: the same of an option's cluster.
    """
    document = read_mapping(path, StudyFileError, "title, question and options")
    file = validate_fields(document, _QuestionModel, path, StudyFileError)
    if len(file.options) < 2:
        raise StudyFileError(f"{path}: options: expected two or more, found {len(file.options)}")
    if sum(option.now for option in file.options) > 1:
        raise StudyFileError(
            f"{path}: options: expected `now: true` on one of them at most, found it on several"
        )
    names = [option.name for option in file.options]
    if len(set(names)) < len(names):
        raise StudyFileError(f"{path}: options: expected a name of its own for each, found one again")
    return Question(
        Path(path).name,
        file.title,
        file.question,
        tuple(_option(each, path, i) for i, each in enumerate(file.options)),
    )


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _OptionModel(_Strict):
    name: Text
    cluster: dict[Any, Any]
    now: bool = False
    keep_head: bool = False
    price: NotNegative | None = None


class _QuestionModel(_Strict):
    title: Text
    question: Prose
    options: list[_OptionModel]


def _option(option: _OptionModel, path: str | os.PathLike[str], index: int) -> Option:
    where = f"{path}: options[{index}].cluster"
    cluster = cluster_of(option.cluster, where)
    check_figures(cluster, where)
    return Option(option.name, cluster, option.now, option.keep_head, option.price)
