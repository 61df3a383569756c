"""What all routes share: the engine, and the little that a server remembers."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from starlette.requests import Request
from starlette.responses import Response

from orchestrator.api.answering import Quiet, answers, streamed, whole
from orchestrator.api.bodies import LARGE_BYTES, parse, read_body
from orchestrator.api.errors import ApiError, Shape, refused
from orchestrator.api.fields import TABLES
from orchestrator.api.guard import Life
from orchestrator.api.responses_store import ResponseStore
from orchestrator.api.sending import Streamed, Whole
from orchestrator.api.settings import ApiSettings
from orchestrator.api.validated import Body, validated
from orchestrator.api.writer import Writer
from orchestrator.serving.answer import AnswerEvent, Engine, Refused
from orchestrator.serving.request import Conversation, GenerationRequest


def _nothing(writer: Writer) -> None:
    """Of answers that nobody keeps."""


@dataclass(frozen=True, slots=True)
class Service:
    """Of one server."""

    engine: Engine
    settings: ApiSettings
    life: Life
    store: ResponseStore = field(default_factory=ResponseStore)

    async def body(self, request: Request, route: str, model: type[Body]) -> Body:
        """A request's object.

        Args:
            route: as the tables of fields name it.

        Raises:
            ApiError: it cannot be taken.
            ClientLeft: it broke off.
        """
        settings = self.settings
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json":
            # A page of another origin can send other kinds without asking first.
            raise ApiError(415, f"the body is {kind[:100]!r}, expected application/json")
        content = await read_body(request.receive, settings.most_body_bytes, settings.body_s)

        def read() -> Body:
            return validated(parse(content), TABLES[route], model)

        return await asyncio.to_thread(read) if len(content) > LARGE_BYTES else read()

    def answer(
        self,
        requests: Sequence[GenerationRequest],
        writer: Writer,
        shape: Shape,
        *,
        is_streamed: bool,
        names: Mapping[str, str] = MappingProxyType({}),
        ended: Callable[[Writer], None] = _nothing,
    ) -> Response:
        """The response that makes an answer.

        Args:
            names: of fields, for errors; see `refused`.
            ended: told of a whole one, before the client is.
        """
        quiet_s = self.settings.quiet_s

        def source() -> AsyncGenerator[tuple[int, AnswerEvent] | Quiet]:
            return answers(self.engine, requests, self.life.is_over, quiet_s, names)

        async def work() -> object:
            made = await whole(source(), writer)
            ended(writer)
            return made

        if is_streamed:
            return Streamed(streamed(source(), writer, quiet_s, ended), shape, self.settings.write_s)
        return Whole(work, shape)

    async def count(self, prompt: Conversation, names: Mapping[str, str]) -> int:
        """Tokens of a prompt.

        Args:
            names: of fields, for errors; see `refused`.

        Raises:
            ApiError: it cannot be taken.
        """
        try:
            return await self.engine.count_tokens(prompt)
        except Refused as refusal:
            raise refused(refusal, names) from None


def client_of(request: Request) -> str:
    """Who asks, as the guard found out."""
    return str(request.state.client)


def new_id() -> str:
    """Of an answer; ids of its parts are made from it."""
    return secrets.token_hex(12)


def new_seed() -> int:
    """For a request that names none."""
    return secrets.randbelow(2**63)


def now_s() -> int:
    """Seconds since 1970."""
    return int(time.time())
