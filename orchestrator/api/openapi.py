"""The OpenAPI document: what may be sent where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from orchestrator.api.chat_models import ChatBody
from orchestrator.api.completions_request import CompletionBody
from orchestrator.api.messages_models import CountBody, MessagesBody
from orchestrator.api.responses_models import ResponseBody

Json = dict[str, Any]

BODIES: Mapping[str, type[BaseModel]] = {
    "POST /v1/chat/completions": ChatBody,
    "POST /v1/completions": CompletionBody,
    "POST /v1/responses": ResponseBody,
    "POST /v1/messages": MessagesBody,
    "POST /v1/messages/count_tokens": CountBody,
}
_READS = {
    "GET /v1/models": None,
    "GET /v1/models/{model_id}": "model_id",
    "GET /v1/responses/{response_id}": "response_id",
    "DELETE /v1/responses/{response_id}": "response_id",
}
_ERRORS = {
    "4XX": {"description": "The request is at fault, or comes too soon."},
    "503": {"description": "Not now; Retry-After says when."},
}


def openapi() -> Json:
    """The document, in version 3.1."""
    _, schemas = models_json_schema(
        [(model, "validation") for model in BODIES.values()], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Json] = {}
    for route, model in BODIES.items():
        schema = {"$ref": f"#/components/schemas/{model.__name__}"}
        _add(
            paths,
            route,
            {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
        )
    for route, parameter in _READS.items():
        given = [] if parameter is None else [_parameter(parameter)]
        _add(paths, route, {"parameters": given})
    return {
        "openapi": "3.1.0",
        "info": {"title": "Potluck", "version": "1"},
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }


def _add(paths: dict[str, Json], route: str, operation: Json) -> None:
    method, path = route.split()
    success = {"200": {"description": "The answer.", "content": {"application/json": {}}}}
    paths.setdefault(path, {})[method.lower()] = {**operation, "responses": {**success, **_ERRORS}}


def _parameter(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
