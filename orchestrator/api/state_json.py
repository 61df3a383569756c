"""A server's state as JSON, and back for who asked another process for it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pydantic import TypeAdapter, ValidationError

from orchestrator.serving.state import ServerState

# Of shares of a layer's choices; more digits would make most of the document and tell nobody anything.
_HEAT_DIGITS = 6


@dataclass(frozen=True, slots=True)
class _Listed(ServerState):
    """Exact types for what has thousands of values: lists are written ten times as fast as sequences."""

    places: list[list[int]]
    heat: list[list[float]]


_STATE = TypeAdapter(_Listed)


def state_json(state: ServerState) -> bytes:
    """In one line, with the names of `ServerState` (docs/json.md)."""
    values = {field.name: getattr(state, field.name) for field in fields(state)}
    values["places"] = [list(row) for row in state.places]
    values["heat"] = [[round(share, _HEAT_DIGITS) for share in row] for row in state.heat]
    return _STATE.dump_json(_Listed(**values))


def read_state(content: bytes) -> ServerState:
    """What `state_json` wrote.

    Raises:
        ValueError: it is something else; the message is one line.
    """
    try:
        return _STATE.validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise ValueError(f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None
