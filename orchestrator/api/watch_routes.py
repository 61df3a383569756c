"""What a server is doing: a page for people, JSON for it and for `potluck top`, metrics for Prometheus."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from orchestrator.api.errors import ApiError
from orchestrator.api.metrics import CONTENT_TYPE, prometheus_text
from orchestrator.api.sending import json_response
from orchestrator.api.state_json import state_json
from orchestrator.serving.state import StateSource
from placement.errors import PotluckError

PAGE = Path(__file__).with_name("page.html")

WhatIf = Callable[[], Mapping[str, Any]]
"""Ranks single changes to the cluster, in seconds to minutes: the document of `potluck whatif --json`.

It is called in a thread of its own, and never twice at once.
"""

# No other site learns what is here, nor shows it in a frame of its own.
_OURS_ALONE = {
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
}


_NO_PROBE = (
    "nothing is known of the boxes, so no change can be ranked: run `potluck probe` in the folder where the "
    "server was started, then start it again"
)


def watch_routes(source: StateSource, whatif: WhatIf | None = None) -> APIRouter:
    """The page, the state, the metrics, and the ranking of changes where somebody can make it."""
    router = APIRouter(include_in_schema=False)
    page = PAGE.read_text(encoding="utf-8")
    headers = {**_OURS_ALONE, "content-security-policy": content_policy(page)}
    if whatif is not None:
        page = page.replace("<body>", "<body data-whatif>")

    @router.get("/")
    async def shown() -> Response:
        return Response(page, 200, headers, media_type="text/html")

    @router.get("/api/state")
    async def state() -> Response:
        # Thousands of experts take milliseconds, for which no answer under way should wait.
        content = await asyncio.to_thread(lambda: state_json(source.state()))
        return Response(content, 200, _OURS_ALONE, media_type="application/json")

    @router.get("/metrics")
    async def metrics() -> Response:
        content = await asyncio.to_thread(prometheus_text, source)
        return Response(content, 200, _OURS_ALONE, media_type=CONTENT_TYPE)

    _add_whatif(router, whatif)
    return router


def health_routes(source: StateSource | None) -> APIRouter:
    """Whether the server can compute, for who watches over it and has no key."""
    router = APIRouter(include_in_schema=False)

    @router.get("/health")
    async def health() -> Response:
        if source is not None and source.state().lack:
            return json_response({"status": "boxes are missing"}, 503)
        return json_response({"status": "ok"})

    return router


def content_policy(page: str) -> str:
    """A Content-Security-Policy that lets a page's own style and script run, and speak to us alone."""
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    return "; ".join(
        (
            "default-src 'none'",
            f"style-src '{_digest(style)}'",
            f"script-src '{_digest(script)}'",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _add_whatif(router: APIRouter, whatif: WhatIf | None) -> None:
    at_once = asyncio.Lock()

    @router.get("/api/whatif")
    async def ranked() -> Response:
        if whatif is None:
            raise ApiError(404, _NO_PROBE)
        if at_once.locked():
            raise ApiError(429, "changes are being ranked for somebody already", retry_after_s=5.0)
        async with at_once:
            try:
                return json_response(await asyncio.to_thread(whatif), headers=dict(_OURS_ALONE))
            except PotluckError as error:
                raise ApiError(503, str(error)) from None


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
