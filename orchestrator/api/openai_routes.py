"""OpenAI's paths."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from orchestrator.api import responses_models
from orchestrator.api.chat_answer import ChatWriter
from orchestrator.api.chat_models import ChatBody
from orchestrator.api.chat_request import chat_asked
from orchestrator.api.completions_answer import CompletionWriter
from orchestrator.api.completions_request import CompletionBody, completion_asked
from orchestrator.api.errors import ApiError, invalid
from orchestrator.api.responses_answer import ResponseWriter
from orchestrator.api.responses_request import echo, not_stored, response_asked
from orchestrator.api.sending import json_response
from orchestrator.api.service import Service, client_of, new_id, new_seed, now_s
from orchestrator.api.writer import Writer
from orchestrator.serving.answer import ModelInfo


def openai_routes(service: Service) -> APIRouter:
    """Chat completions, completions, models and responses."""
    router = APIRouter(include_in_schema=False)

    @router.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await service.body(request, "POST /v1/chat/completions", ChatBody)
        asked = chat_asked(body, client_of(request), new_seed())
        writer = ChatWriter(
            new_id(),
            now_s(),
            service.engine.model.name,
            asked.tools,
            len(asked.requests),
            with_logprobs=body.logprobs,
            usage_at_end=asked.usage_at_end,
        )
        names = {"prompt": "messages", "output": "response_format", **asked.tools.places}
        return service.answer(asked.requests, writer, "openai", is_streamed=body.stream, names=names)

    @router.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await service.body(request, "POST /v1/completions", CompletionBody)
        asked = completion_asked(body, client_of(request), new_seed())
        writer = CompletionWriter(
            new_id(),
            now_s(),
            service.engine.model.name,
            len(asked.requests),
            asked.n,
            with_logprobs=body.logprobs is not None,
            usage_at_end=asked.usage_at_end,
        )
        names = {"prompt": "prompt"}
        return service.answer(asked.requests, writer, "openai", is_streamed=body.stream, names=names)

    @router.get("/v1/models")
    async def models() -> Response:
        name = service.engine.model.name
        rest = {"has_more": False, "first_id": name, "last_id": name}
        return json_response({"object": "list", "data": [model_of(service.engine.model)], **rest})

    @router.get("/v1/models/{model_id:path}")
    async def model(model_id: str) -> Response:
        if model_id != service.engine.model.name:
            words = f"no model {model_id[:100]!r} is served, but {service.engine.model.name!r} is"
            raise ApiError(404, words, code="model_not_found")
        return json_response(model_of(service.engine.model))

    @router.post("/v1/responses")
    async def responses(request: Request) -> Response:
        body = await service.body(request, "POST /v1/responses", responses_models.ResponseBody)
        return _respond(service, body, client_of(request))

    @router.get("/v1/responses/{response_id}")
    async def stored(request: Request, response_id: str) -> Response:
        if request.query_params.get("stream") == "true":
            raise invalid("stream", "is not supported: a stored response comes whole")
        found = service.store.get(client_of(request), response_id)
        if found is None:
            raise not_stored(response_id)
        return json_response(found.response)

    @router.delete("/v1/responses/{response_id}")
    async def deleted(request: Request, response_id: str) -> Response:
        if not service.store.delete(client_of(request), response_id):
            raise not_stored(response_id)
        return json_response({"id": response_id, "object": "response", "deleted": True})

    return router


def model_of(model: ModelInfo) -> dict[str, Any]:
    """The model as OpenAI describes one, with what Anthropic's clients look for."""
    created = _date(model.created_s)
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_s,
        "owned_by": "potluck",
        "max_model_len": model.context,
        "type": "model",
        "display_name": model.name,
        "created_at": created,
    }


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _respond(service: Service, body: responses_models.ResponseBody, client: str) -> Response:
    history: tuple[dict[str, Any], ...] = ()
    if body.previous_response_id is not None:
        before = service.store.get(client, body.previous_response_id)
        if before is None:
            raise not_stored(body.previous_response_id, "previous_response_id")
        history = before.items
    asked = response_asked(body, history, lambda item: service.store.item(client, item), client, new_seed())
    writer = ResponseWriter(
        new_id(),
        now_s(),
        service.engine.model.name,
        echo(body),
        asked.tools,
        now_s,
        with_encrypted=asked.with_encrypted,
        with_logprobs=asked.with_logprobs,
    )

    def keep(made: Writer) -> None:
        if body.store:
            response = made.whole()
            service.store.put(client, response, [*asked.items, *response["output"]])

    names = {"prompt": "input", "output": "text.format.schema", **asked.tools.places}
    return service.answer([asked.request], writer, "openai", is_streamed=body.stream, names=names, ended=keep)
