"""Chat templates: where they are found, what they render, and that whatever they do ends in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrator import chat_renderer
from orchestrator.chat_template import Renderer
from orchestrator.tokenizer import Tokenizer
from placement.errors import InputError
from tests.tiny_checkpoint import write_random_checkpoint

USER = [{"role": "user", "content": "a"}]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(
        tmp_path_factory.mktemp("checkpoint"), seed=1, num_layers=1, moe_layers=(), tokenizer=True
    )


def load(model_dir: Path, directory: Path, settings: dict[str, Any] | None) -> Tokenizer:
    (directory / "tokenizer.json").write_bytes((model_dir / "tokenizer.json").read_bytes())
    if settings is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return Tokenizer.load(directory)


@pytest.mark.parametrize("as_list", [False, True])
def test_templates_as_a_text_or_as_named_ones(model_dir: Path, tmp_path: Path, as_list: bool) -> None:
    template = "{% if tools %}{{ tools | tojson }}{% endif %}{{ bos_token }}{{ messages[0].content }}"
    named = [
        {"name": ["a"], "template": "no"},
        {"name": "other", "template": "no"},
        {"name": "default", "template": template},
    ]
    settings = {"bos_token": {"content": "<s>"}, "chat_template": named if as_list else template}
    tokenizer = load(model_dir, tmp_path, settings)
    assert tokenizer.chat_prompt(USER, tools=[{"name": "<é>"}]) == '[{"name": "<é>"}]<s>a'


def test_a_template_file_comes_before_the_settings(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no system turn') }}")
    tokenizer = load(model_dir, tmp_path, {"chat_template": "other"})
    with pytest.raises(InputError, match="no system turn"):
        tokenizer.chat_prompt([])


@pytest.mark.parametrize("settings", [None, {}, {"chat_template": [{"name": "other", "template": "no"}]}])
def test_without_a_template_there_is_no_chat(
    model_dir: Path, tmp_path: Path, settings: dict[str, Any] | None
) -> None:
    with pytest.raises(InputError, match="no chat template"):
        load(model_dir, tmp_path, settings).chat_prompt(USER)


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    found = Renderer(cpu_s=1, memory_bytes=2**28, wall_s=30)
    yield found
    found.close()


Render = Callable[[str], str]


@pytest.fixture
def render(renderer: Renderer) -> Render:
    return lambda template: renderer.render(template, USER, None, {"bos_token": "<s>"})


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 'a' + 1 }}", "TypeError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion|renderer"),
        ("{{ (10.0 ** 300) ** 2 }}", "OverflowError"),
        ("{{ {}['a'].b }}", "has no attribute|undefined"),
        ("{{ messages[0].content.encode('ascii', 5) }}", "TypeError"),
        ("{{ '%d' % 'a' }}", "TypeError"),
        ("{{ '{x}'.format() }}", "KeyError"),
        ("{{ [].pop() }}", "unsafe|IndexError"),
        ("{{ messages.__class__.a }}", "unsafe"),
        ("{{ nobody.knows }}", "undefined"),
        ("{% for %}", "Expected|expected|Unexpected"),
        ("{{ '('*3 }}" + "{% if 1 %}" * 500, "Unexpected|recursion|nested|renderer"),
        ("{{ " + "(" * 50_000 + ")" * 50_000 + " }}", "recursion|renderer"),
        ("{{ raise_exception('x' * 5000) }}", "x{100,160}…$"),
        ("{{ raise_exception('two\nlines') }}", "two lines$"),
    ],
)
def test_every_error_is_one_line(render: Render, template: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        render(template)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% set ns = namespace(t='a') %}{% for i in range(99) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
        "{% set ns = namespace(t='a') %}{% for i in range(99) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ 'a'.ljust(10 ** 10) }}",
        "{{ 'a' | center(10 ** 10) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ [0] * 10 ** 10 }}",
        "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
        "{{ ('a' * 5000) | replace('a', 'a' * 5000) | replace('a', 'a' * 5000) }}",
    ],
)
def test_whatever_takes_without_end_is_stopped(render: Render, template: str) -> None:
    with pytest.raises(InputError, match=r"seconds?|of computing|memory|characters|range|big|large|digits"):
        render(template)


def test_the_memory_a_template_may_take_is_named(render: Render) -> None:
    with pytest.raises(InputError, match=r"^the chat template takes more than 268\.4 MB of memory$"):
        render("{{ 'a' * 10 ** 10 }}")


def test_threads_share_a_renderer_and_each_gets_its_own_text(renderer: Renderer) -> None:
    def render(number: int) -> str:
        messages = [{"role": "user", "content": str(number) * 50_000}]
        return renderer.render("{{ messages[0].content }}", messages, None, {})

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(render, range(12))) == [str(number) * 50_000 for number in range(12)]


def test_a_template_gives_the_same_each_time_whatever_was_rendered_between(render: Render) -> None:
    def outcome(template: str) -> str:
        try:
            return render(template)
        except InputError as error:
            return str(error)

    templates = [
        "{{ messages[0].content }}",
        "{{ 1",
        "{{ bos_token }}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ nobody.a }}",
    ]
    first = [outcome(template) for template in templates]
    assert len(set(first)) == len(templates)
    assert [[outcome(template) for template in templates] for _ in range(2)] == [first, first]
    twice = [template for template in templates for _ in range(2)]
    assert [outcome(template) for template in twice] == [text for text in first for _ in range(2)]


def answers(requests: list[tuple[str, int]]) -> list[dict[str, str]]:
    """Of one renderer, to a template and the bytes of memory it may take."""
    said = b""
    for template, memory_bytes in requests:
        limits = {"cpu_s": 30, "memory_bytes": memory_bytes, "wall_s": 120, "most_characters": 100}
        for value in (template, {"variables": {"number": 3}, **limits}):
            text = json.dumps(value).encode()
            said += len(text).to_bytes(8, "little") + text
    program = [sys.executable, "-P", chat_renderer.__file__]
    left = subprocess.run(program, input=said, capture_output=True, check=True).stdout
    found = []
    while left:
        end = 8 + int.from_bytes(left[:8], "little")
        found.append(json.loads(left[8:end]))
        left = left[end:]
    return found


def test_a_template_is_compiled_once_within_the_bounds_of_the_request_that_needs_it() -> None:
    # Jinja works the length out as it compiles if it can: only that takes the memory.
    template, other = "{{ ('a' * 2 * 10 ** 8) | length + number }}", "{{ number }}"
    little, much = 2**27, 2**30
    text, short = {"text": "200000003"}, {"memory": "all of it"}
    asked = [(template, much), (template, little), (other, little), (template, little)]
    assert answers(asked) == [text, text, {"text": "3"}, short]


def test_code_that_is_too_large_to_keep_is_not_kept() -> None:
    def code(characters: int) -> bytes:
        return chat_renderer._as_bytes(compile(repr("a" * characters) + " + x", "a", "eval"))

    assert code(chat_renderer.MOST_CODE_BYTES // 2)
    assert not code(chat_renderer.MOST_CODE_BYTES)


def test_a_renderer_that_was_ended_is_started_again(renderer: Renderer, render: Render) -> None:
    assert render("a") == "a"
    assert renderer._process is not None
    renderer._process.kill()
    renderer._process.wait()
    assert render("b") == "b"
    renderer.close()
    assert render("c") == "c"


def test_a_renderer_that_ends_again_is_no_accident(
    renderer: Renderer, render: Render, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[bytes]()

    def ends(request: bytes) -> bytes:
        asked.append(request)
        return b""

    monkeypatch.setattr(renderer, "_said", ends)
    with pytest.raises(InputError, match="takes down its renderer"):
        render("a")
    assert len(asked) == 2


def test_a_template_that_waits_is_ended() -> None:
    renderer = Renderer(wall_s=1)
    with pytest.raises(InputError, match=r"longer than 1 s|of computing"):
        renderer.render(
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", [], None, {}
        )
    renderer.close()


def test_text_that_is_no_unicode_is_refused(model_dir: Path, tmp_path: Path) -> None:
    tokenizer = load(model_dir, tmp_path, {"chat_template": "{{ '\\ud800' }}"})
    with pytest.raises(InputError, match="no Unicode"):
        tokenizer.chat_prompt(USER)
