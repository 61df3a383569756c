"""Anthropic's paths."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from orchestrator.api.messages_answer import MessageWriter
from orchestrator.api.messages_models import CountBody, MessagesBody
from orchestrator.api.messages_request import message_asked, prompt_of
from orchestrator.api.sending import Whole
from orchestrator.api.service import Service, client_of, new_id, new_seed

_PROMPT = {"prompt": "messages"}


def anthropic_routes(service: Service) -> APIRouter:
    """Messages, and how many tokens they have."""
    router = APIRouter(include_in_schema=False)

    @router.post("/v1/messages")
    async def messages(request: Request) -> Response:
        body = await service.body(request, "POST /v1/messages", MessagesBody)
        asked = message_asked(body, client_of(request), new_seed())
        model = service.engine.model
        writer = MessageWriter(
            new_id(), model.name, model.context, asked.tools, shows_thinking=asked.shows_thinking
        )
        names = {**_PROMPT, "output": "output_config.format.schema", **asked.tools.places}
        return service.answer([asked.request], writer, "anthropic", is_streamed=body.stream, names=names)

    @router.post("/v1/messages/count_tokens")
    async def count_tokens(request: Request) -> Response:
        body = await service.body(request, "POST /v1/messages/count_tokens", CountBody)
        prompt = prompt_of(body)

        async def counted() -> dict[str, int]:
            return {"input_tokens": await service.count(prompt, _PROMPT)}

        return Whole(counted, "anthropic")

    return router
