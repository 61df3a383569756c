"""The last decision about moving experts, kept beside what is noted of a cluster, for `potluck status`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from orchestrator.migration.migration import MigrationPhase, MigrationState
from placement.errors import PotluckError
from placement.files.atomic import replacing
from placement.files.json_file import read_json

DECISION = "migration.json"
_MOST_BYTES = 100_000
_NUMBERS = ("decided_s", "p_value", "payback_s", "moved_experts", "moved_bytes")


class DecisionError(PotluckError):
    """The file of the last decision cannot be read."""


def write_decision(state: MigrationState, folder: Path, decided_at: float) -> None:
    """Write it whole or not at all.

    Args:
        decided_at: seconds since 1970, in place of the state's own clock.
    """
    fields = asdict(state) | {"decided_s": decided_at}
    with replacing(folder / DECISION) as file:
        file.write(json.dumps(fields, indent=1).encode())


def read_decision(folder: Path) -> MigrationState | None:
    """What was written last, `decided_s` in seconds since 1970; None where nothing was.

    Raises:
        DecisionError: unreadable, or a field that should not be so.
    """
    path = folder / DECISION
    if not path.exists():
        return None
    fields = read_json(path, DecisionError, "the last decision about moving experts", most_bytes=_MOST_BYTES)
    phases = {phase.value: phase for phase in MigrationPhase}
    if not isinstance(fields, dict) or set(fields) != {"phase", "reason", *_NUMBERS}:
        raise DecisionError(f"{path}: expected an object with phase, reason, {', '.join(_NUMBERS)}")
    if not isinstance(fields["phase"], str) or fields["phase"] not in phases:
        raise DecisionError(f"{path}: phase: expected one of {', '.join(phases)}")
    if not isinstance(fields["reason"], str):
        raise DecisionError(f"{path}: reason: expected text")
    for name in _NUMBERS:
        may_lack = name in ("p_value", "payback_s") and fields[name] is None
        if not may_lack and not _is_number(fields[name]):
            raise DecisionError(f"{path}: {name}: expected a number")
    return MigrationState(**{**fields, "phase": phases[fields["phase"]]})


def _is_number(value: object) -> bool:
    """One that can be reckoned with: Python reads `Infinity` and whole numbers beyond any float as well."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
