"""The page, and the state and metrics that it and others ask for."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from html.parser import HTMLParser
from threading import Event as ThreadEvent
from threading import Thread
from typing import Any

import httpx2
import pytest

from orchestrator.api.chat_answer import usage_of
from orchestrator.api.keys import make_key
from orchestrator.api.server import build_app
from orchestrator.api.settings import ApiSettings
from orchestrator.api.watch_routes import PAGE, content_policy
from orchestrator.palette import OKABE_ITO
from orchestrator.serving.answer import Usage
from orchestrator.serving.state import BoxState, RequestState, ServerState, Totals
from placement.errors import InputError
from tests.orchestrator.api.scripted import Scripted
from tests.orchestrator.api.serving import Server, client, served
from tests.orchestrator.api.watched import HOSTILE, STATE, Watched

ANN, ANNS = make_key("ann")
TEXT = PAGE.read_text(encoding="utf-8")
SCRIPT = re.findall(r"<script>(.*?)</script>", TEXT, re.DOTALL)[0]
DATA = ("/api/state", "/metrics", "/api/whatif")
RANKED = {"workload": {}, "now": {"what": "as it is"}, "changes": []}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served(Scripted(), source=Watched(), whatif=lambda: RANKED) as running:
        yield running


@pytest.fixture
def http(server: Server) -> Iterator[httpx2.Client]:
    with client(server) as made:
        yield made


class Tags(HTMLParser):
    """Elements with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


TAGS = Tags(TEXT).found


def test_the_page_is_one_file_that_asks_for_no_other(http: httpx2.Client) -> None:
    response = http.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.text == TEXT.replace("<body>", "<body data-whatif>")
    places = [value for _, given in TAGS for name, value in given.items() if name in ("src", "href")]
    assert all(place is not None and place.startswith("data:") for place in places)
    assert not re.search(r"url\(|@import|//[a-z]+\.", TEXT.replace("http://www.w3.org/2000/svg", ""))
    assert {tag for tag, _ in TAGS} & {"img", "iframe", "object", "embed"} == set()


def test_only_the_pages_own_style_and_script_may_run(http: httpx2.Client) -> None:
    policy = dict(part.split(" ", 1) for part in http.get("/").headers["content-security-policy"].split("; "))
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == f"'sha256-{digest}'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in " ".join(policy.values())
    # The policy would keep these from working.
    assert not [name for _, given in TAGS for name in given if name == "style" or name.startswith("on")]


def test_a_page_with_a_second_script_has_no_policy() -> None:
    with pytest.raises(ValueError, match="too many"):
        content_policy(TEXT.replace("</body>", "<script>1</script></body>"))


def test_what_a_server_says_never_becomes_markup() -> None:
    """Browsers that know trusted types hold it too: benchmarks/page_screenshots.py."""
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|DOMParser", SCRIPT
    )


def test_every_element_that_the_script_names_is_there_once() -> None:
    ids = [given["id"] for _, given in TAGS if "id" in given]
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'\$\("([\w-]+)"\)', SCRIPT)) <= set(ids)
    assert {given.get("for") for tag, given in TAGS if tag == "label"} <= set(ids)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("state", ServerState),
        ("totals", Totals),
        ("now", Totals),
        ("box", BoxState),
        ("request", RequestState),
    ],
)
def test_the_script_reads_what_there_is(name: str, kind: Any) -> None:
    read = set(re.findall(rf"\b{name}\.([a-z_]+)\b(?!\()", SCRIPT))
    assert read
    assert read <= {field.name for field in fields(kind)}


def test_the_chat_reads_what_usage_has() -> None:
    usage = usage_of(Usage(0, 0, 0, 0))
    for name, told in (("usage", usage), ("details", usage["completion_tokens_details"])):
        read = set(re.findall(rf"\b{name}\.([a-z_]+)\b", SCRIPT))
        assert read
        assert read <= told.keys()


def test_the_pages_colours_are_the_palettes() -> None:
    listed = re.search(r"const COLOURS = (\[.*?\]);", SCRIPT)
    assert listed
    assert tuple(json.loads(listed[1])) == tuple(colour for colour in OKABE_ITO if colour != "#000000")


def test_the_state_is_told_as_json(http: httpx2.Client) -> None:
    response = http.get("/api/state")
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.json()["boxes"][1]["name"] == HOSTILE
    assert response.json()["tokens_per_s"] == STATE.tokens_per_s


def test_metrics_are_told_as_prometheus_wants_them(http: httpx2.Client) -> None:
    response = http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "potluck_tokens_per_second 31.25" in response.text


def test_nothing_is_shown_where_nobody_knows_the_state() -> None:
    routes = {getattr(route, "path", "") for route in build_app(Scripted(), ApiSettings()).routes}
    assert not routes & {"/", *DATA}


def test_changes_are_offered_only_where_somebody_can_rank_them(http: httpx2.Client) -> None:
    assert http.get("/api/whatif").json() == RANKED
    with served(Scripted(), source=Watched()) as without, client(without) as asking:
        assert "<body>" in asking.get("/").text
        refused = asking.get("/api/whatif")
        assert refused.status_code == 404
        assert "run `potluck probe` in the folder" in refused.json()["error"]["message"]


def test_changes_are_ranked_for_one_at_a_time() -> None:
    begun, gate = ThreadEvent(), ThreadEvent()

    def ranked() -> Mapping[str, Any]:
        begun.set()
        assert gate.wait(60)
        return RANKED

    codes: list[int] = []
    with served(Scripted(), source=Watched(), whatif=ranked) as server, client(server) as http:
        first = Thread(target=lambda: codes.append(http.get("/api/whatif").status_code))
        first.start()
        assert begun.wait(60)
        with client(server) as other:
            busy = other.get("/api/whatif")
            assert other.get("/api/state").status_code == 200
        gate.set()
        first.join(60)
    assert busy.status_code == 429
    assert "retry-after" in busy.headers
    assert codes == [200]


def test_why_changes_cannot_be_ranked_is_told() -> None:
    def ranked() -> Mapping[str, Any]:
        raise InputError("no cluster file")

    with served(Scripted(), source=Watched(), whatif=ranked) as server, client(server) as http:
        response = http.get("/api/whatif")
    assert response.status_code == 503
    assert response.json()["error"]["message"] == "no cluster file"


def test_the_page_wants_no_key_and_the_data_do() -> None:
    settings = ApiSettings(port=0, grace_s=0.0, keys=(ANNS,))
    with (
        served(Scripted(), settings, source=Watched(), whatif=lambda: RANKED) as server,
        client(server) as http,
    ):
        assert http.get("/").status_code == 200
        assert STATE.model not in re.findall(r"\w+", http.get("/").text)
        assert http.post("/").status_code == http.get("/x").status_code == 401
        for path in DATA:
            assert http.get(path).status_code == 401
            assert http.get(path, headers={"authorization": f"Bearer {ANN}"}).status_code == 200


@pytest.mark.parametrize("path", ["/", *DATA])
def test_pages_elsewhere_see_nothing(http: httpx2.Client, path: str) -> None:
    assert http.get(path, headers={"host": "evil.example"}).status_code == 403
    assert http.get(path, headers={"origin": "http://evil.example"}).status_code == 403
    assert http.get(path).headers["cross-origin-resource-policy"] == "same-origin"
