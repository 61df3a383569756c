"""A study's results folder: what study it is, and a CSV that grows by one row a cell."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from placement.errors import StudyFileError
from placement.files.atomic import replacing
from placement.files.input_file import read_text
from placement.files.json_file import read_json
from placement.files.quote import one_line, quote

_STUDY_FILE, _ROWS_FILE = "study.json", "results.csv"
_MOST_STUDY_BYTES, _MOST_ROWS_BYTES = 100_000, 2**28
_EXPECTED = "what `potluck study` wrote there; remove the file"
_FORMAT, _VERSION = "potluck-study-results", 1


@dataclass(frozen=True, slots=True)
class Row:
    """One cell's answer. Numbers are None where the experts did not fit; `note` says why.

    `tokens_per_s_low` and `_high`: between which a measured speed is likely, where the figures are from
    `range_basis` (`placement.given.cluster_spec.FiguresFrom`).
    `moe_s` and `head_s` add up to `step_s`. `lower_bound_s` holds for every plan, `gap` is step_s over it
    minus 1; both are None for policies that are run (`policies.RUN_POLICIES`). `bound_by` is the device that
    most layers waited for, `hit_share` the share of experts found in the fast memory, None for plans.
    """

    key: str
    cluster: str
    trace: str
    quant: str
    sequences: int
    drafts: int
    accepted_drafts: float
    context: int
    policy: str
    tokens_per_s: float | None = None
    tokens_per_s_low: float | None = None
    tokens_per_s_high: float | None = None
    range_basis: str = ""
    step_s: float | None = None
    step_p95_s: float | None = None
    moe_s: float | None = None
    head_s: float | None = None
    remote_layers_per_token: float | None = None
    lower_bound_s: float | None = None
    gap: float | None = None
    bound_by: str = ""
    replicas: int | None = None
    plan_s: float | None = None
    hit_share: float | None = None
    note: str = ""


_COLUMNS = tuple(field.name for field in fields(Row))


class ResultsFolder:
    """Rows on disk; every `add` is written through, so that an interrupted study goes on where it stopped."""

    FILES = (_STUDY_FILE, _ROWS_FILE)

    def __init__(self, folder: Path, rows: list[Row]) -> None:
        self.folder = folder
        self.rows = rows

    @property
    def csv_path(self) -> Path:
        return self.folder / _ROWS_FILE

    @classmethod
    def open(cls, folder: Path, name: str, fingerprint: str, keys: Sequence[str]) -> ResultsFolder:
        """Make the folder, or go on with one of the same study.

        Args:
            keys: of the study's cells.

        Raises:
            StudyFileError: the folder holds another study's results, or other files, or rows that are not
                as they were written.
        """
        identity = {"format": _FORMAT, "version": _VERSION, "study": name, "fingerprint": fingerprint}
        marker = folder / _STUDY_FILE
        # os.path, not Path, whose own questions raise for a name that is too long or a folder that is closed.
        try:
            is_new = not os.path.exists(folder) or (os.path.isdir(folder) and not any(folder.iterdir()))
            if is_new:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudyFileError(f"{folder}: {error.strerror}; expected a folder to write to") from error
        if is_new:
            with replacing(marker) as file:
                file.write(json.dumps(identity, indent=2).encode() + b"\n")
        else:
            _check_identity(marker, identity)
        results = cls(folder, _read_rows(folder / _ROWS_FILE, keys))
        results._rewrite()
        return results

    def add(self, row: Row) -> None:
        """Append one row and write it through to the disk."""
        self.rows.append(row)
        with self.csv_path.open("a", encoding="utf-8", newline="") as file:
            file.write(_as_csv([row]))
            file.flush()
            os.fsync(file.fileno())

    def sort(self, order: Sequence[str]) -> None:
        """Put rows into the order of `order` (cell keys), on disk too: no trace of which finished first."""
        rank = {key: index for index, key in enumerate(order)}
        self.rows.sort(key=lambda row: rank[row.key])
        self._rewrite()

    def _rewrite(self) -> None:
        with replacing(self.csv_path) as file:
            file.write((",".join(_COLUMNS) + "\n" + _as_csv(self.rows)).encode())


def _check_identity(marker: Path, expected: dict[str, object]) -> None:
    advice = "give another folder with --out, or remove this one"
    if not os.path.isdir(marker.parent):
        raise StudyFileError(f"{marker.parent}: expected a folder to write to, found a file")
    if not os.path.exists(marker):
        raise StudyFileError(f"{marker.parent}: not a results folder and not empty; {advice}")
    found = read_json(
        marker, StudyFileError, f"what `potluck study` wrote there; {advice}", most_bytes=_MOST_STUDY_BYTES
    )
    if found == expected:
        return
    name = found.get("study") if isinstance(found, dict) else None
    if name is None:
        raise StudyFileError(f"{marker}: expected a study's name in it, found none; {advice}")
    if name == expected["study"]:
        raise StudyFileError(
            f"{marker.parent}: results of an earlier form of {name!r}: its grid, clusters or traces have "
            f"changed since; {advice}"
        )
    raise StudyFileError(
        f"{marker.parent}: results of another study ({quote(name)}), expected {expected['study']!r}; {advice}"
    )


def _as_csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        values = asdict(row)
        writer.writerow(["" if values[name] is None else values[name] for name in _COLUMNS])
    return text.getvalue()


def _read_rows(path: Path, keys: Sequence[str]) -> list[Row]:
    """Complete rows; a last line torn by an interruption is left out and its cell runs again."""
    if not os.path.exists(path):
        return []
    try:
        text = read_text(path, StudyFileError, _EXPECTED, most_bytes=_MOST_ROWS_BYTES)
        lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
        if not lines or tuple(lines[0]) != _COLUMNS:
            raise ValueError(f"expected the columns {', '.join(_COLUMNS)}")
        rows = [_row(line) for line in lines[1:]]
        left = set(keys)
        for row in rows:
            if row.key not in left:
                raise ValueError(f"expected each cell once, found {quote(row.key)} again or unasked for")
            left.remove(row.key)
    except (ValueError, csv.Error) as error:
        reason = one_line(str(error))
        raise StudyFileError(f"{path}: not as it was written ({reason}); remove the file") from None
    return rows


def _row(line: list[str]) -> Row:
    if len(line) != len(_COLUMNS):
        raise ValueError(f"{len(line)} values in a row")
    values: dict[str, object] = {}
    for field, text in zip(fields(Row), line, strict=True):
        kind = str(field.type)
        if text == "" and "None" in kind:
            values[field.name] = None
        elif kind.startswith("int"):
            values[field.name] = int(text)
        elif kind.startswith("float"):
            values[field.name] = float(text)
        else:
            values[field.name] = text
    return Row(**values)  # type: ignore[arg-type]
