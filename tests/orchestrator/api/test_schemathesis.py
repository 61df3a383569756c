"""Whatever fits the OpenAPI document, or just does not, is no failure of the server.

One test asks for all operations in turn. With one test each, every process would draw requests for all of
them while it collects. pytest 9.2 would also give these tests one name, of which pytest-xdist runs the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.python.asgi import ASGIClient, get_client

from orchestrator.api.server import build_app
from orchestrator.api.settings import ApiSettings
from tests.examples import examples
from tests.orchestrator.api.scripted import THOUGHT, Scripted

APP = build_app(Scripted(THOUGHT), ApiSettings())
SCHEMA = schemathesis.pytest.from_fixture("schema")


@pytest.fixture
def schema(request: pytest.FixtureRequest) -> Any:
    # Schemathesis 4.32 changes this, which pytest 9.2 keeps elsewhere.
    request.node._nodeid = request.node.nodeid
    return schemathesis.openapi.from_asgi("/openapi.json", APP, headers={"host": "localhost"})


@pytest.fixture(scope="module")
def client() -> Iterator[ASGIClient]:
    with get_client(APP) as client:
        # Or each request looks for proxies in the whole environment.
        client.trust_env = False
        yield client


@SCHEMA.parametrize()
@settings(examples(8), suppress_health_check=list(HealthCheck))
def test_no_request_is_a_failure_of_the_server(case: schemathesis.Case[Any], client: ASGIClient) -> None:
    response: Any = case.call(session=client, headers={"host": "localhost"})
    case.validate_response(response, checks=[not_a_server_error])
    assert response.status_code in (200, 400, 404, 405, 415)
