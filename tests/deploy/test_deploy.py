"""The unit and the container start the server that there is, and give it time to stop."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.api.keys import make_key
from orchestrator.api.settings import ApiSettings
from orchestrator.cluster.tls import make_tls
from tests.deploy.command_lines import parse
from tests.orchestrator.api.scripted import Scripted
from tests.orchestrator.api.serving import served
from tests.orchestrator.api.watched import STATE, Watched

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNIT = (DEPLOY / "potluck.service").read_text(encoding="utf-8")
CONTAINER = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
PAGES = [DEPLOY / "README.md", ROOT / "docs" / "serve.md"]
# From the end of the grace to the server's last byte, and then to the end of its workers.
LAST_S = 5 + 20


def settings_of_unit(name: str) -> list[str]:
    return re.findall(rf"(?m)^{name}=(.*)$", UNIT)


def command_of_unit() -> list[str]:
    (line,) = settings_of_unit("ExecStart")
    for setting in settings_of_unit("Environment"):
        name, _, value = setting.partition("=")
        line = line.replace(f"${{{name}}}", value)
    return shlex.split(line)


def instructions(name: str) -> list[str]:
    """What stands behind an instruction of the Containerfile, continued lines as one."""
    text = CONTAINER.replace("\\\n", " ")
    return re.findall(rf"(?m)^{name} +(.*)$", text)


def command_of_container() -> list[str]:
    (entry,), (command,) = instructions("ENTRYPOINT"), instructions("CMD")
    return [*json.loads(entry), *json.loads(command)]


@pytest.mark.parametrize("words", [command_of_unit(), command_of_container()], ids=["unit", "container"])
def test_they_start_the_server_with_options_that_it_has(words: list[str]) -> None:
    assert Path(words[0]).name == "potluck"
    assert words[1] == "serve"
    assert not any("$" in word for word in words)
    given = {word for word in words if word.startswith("--")}
    assert given == {"--model", "--host", "--port", "--api-keys"}
    parse(words[1:])


def test_the_unit_gives_the_server_time_to_stop() -> None:
    (stop_s,) = map(int, settings_of_unit("TimeoutStopSec"))
    assert stop_s >= ApiSettings().grace_s + LAST_S
    # Its workers would be told to end at once, too.
    assert settings_of_unit("KillMode") == ["mixed"]
    assert settings_of_unit("Restart") == ["on-failure"]


def test_the_unit_bounds_no_starts() -> None:
    # systemd counts starts by hand, too: it would stop a server and then refuse to start it.
    assert settings_of_unit("StartLimitIntervalSec") == ["0"]
    assert settings_of_unit("StartLimitBurst") == []


def test_the_container_is_given_time_to_stop_and_the_page_says_so() -> None:
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    found = re.findall(r"--stop-timeout (\d+)", (DEPLOY / "README.md").read_text(encoding="utf-8"))
    assert found
    assert all(int(seconds) >= ApiSettings().grace_s + LAST_S for seconds in found)


def test_the_page_starts_the_container_with_the_machine() -> None:
    # Docker leaves one down that ended well with the machine, if it may be started on failures alone.
    found = re.findall(r"--restart ([\w-]+)", (DEPLOY / "README.md").read_text(encoding="utf-8"))
    assert found
    assert set(found) <= {"unless-stopped", "always"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_the_unit_and_finds_it_well_closed(tmp_path: Path) -> None:
    unit = tmp_path / "potluck.service"
    # It is not installed here.
    unit.write_text(UNIT.replace(command_of_unit()[0], sys.executable), encoding="utf-8")
    for command in (["verify"], ["security", "--offline=true", "--threshold=25"]):
        done = subprocess.run(
            ["systemd-analyze", *command, str(unit)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert str(unit) not in done.stderr


def is_sent_to_the_builder(path: str) -> bool:
    """Whether `.dockerignore` leaves a file in; the last line that fits decides."""
    is_sent = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        if any(_fits(part, pattern) for part in _with_parents(path)):
            is_sent = line.startswith("!")
    return is_sent


def _with_parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:number]) for number in range(1, len(parts) + 1)]


def _fits(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch.fnmatchcase(path.rsplit("/", 1)[-1], pattern[3:])
    return path == pattern or ("/" not in path and fnmatch.fnmatchcase(path, pattern))


def copied() -> list[str]:
    """Files and folders of the repository that the container's build takes."""
    lines = [line.split() for line in instructions("COPY")]
    return [source for line in lines if not line[0].startswith("--") for source in line[:-1]]


def test_the_container_copies_what_building_needs_and_no_more() -> None:
    sources = copied()
    assert all((ROOT / source).exists() and is_sent_to_the_builder(source) for source in sources)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = {"pyproject.toml", "MANIFEST.in", "constraints.txt", project["project"]["readme"]}
    needed |= set(project["project"]["license-files"])
    extensions = project["tool"]["setuptools"]["ext-modules"]
    needed |= {name for one in extensions for name in (*one["sources"], *one.get("depends", ()))}
    needed |= {
        str(next((ROOT / name.rstrip("*")).glob("*.py")).relative_to(ROOT))
        for name in project["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    assert [name for name in needed if not any(name == s or name.startswith(f"{s}/") for s in sources)] == []
    assert all(map(is_sent_to_the_builder, needed))
    for secret in (".venv/bin/python", ".git/config", "keys.json", "models/potluck-tiny/model.safetensors"):
        assert not is_sent_to_the_builder(secret)
    assert not is_sent_to_the_builder("workers/kernels/_native.cpython-311-x86_64-linux-gnu.so")


def test_the_container_is_not_run_by_root_and_has_no_model() -> None:
    (user,) = instructions("USER")
    assert user != "root"
    assert not user.startswith("0")
    # One for models would leave an empty volume behind with each run, since models are mounted below it.
    assert json.loads(instructions("VOLUME")[0]) == ["/keys"]
    assert not any("models" in source for source in copied())


def healthy(url: str) -> int:
    environment = os.environ | {"POTLUCK_URL": url}
    return subprocess.run([sys.executable, DEPLOY / "healthy.py"], env=environment, check=False).returncode


def test_a_server_is_healthy_with_keys_and_without() -> None:
    for keys in ((), (make_key("ann")[1],)):
        with served(Scripted(), ApiSettings(port=0, grace_s=0.0, keys=keys)) as server:
            assert healthy(server.url) == 0
    lacking = Watched(replace(STATE, lack="box b2"))
    with served(Scripted(), ApiSettings(port=0, grace_s=0.0), source=lacking) as server:
        assert healthy(server.url) == 1
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}", "127.0.0.1", "http://127.0.0.1:99999"):
        assert healthy(url) == 1


def test_a_server_with_tls_is_healthy_whoever_made_its_certificate(tmp_path: Path) -> None:
    made = make_tls("test", [], datetime.now(UTC))
    for name in ("key", "certificate"):
        (tmp_path / name).write_bytes(getattr(made, name))
    settings = ApiSettings(
        port=0, grace_s=0.0, tls_key=tmp_path / "key", tls_certificate=tmp_path / "certificate"
    )
    with served(Scripted(), settings) as server:
        assert healthy(server.url) == 0
        assert healthy(server.url.replace("https", "http")) == 1


def test_the_container_checks_the_port_that_it_serves() -> None:
    words = command_of_container()
    port = words[words.index("--port") + 1]
    assert instructions("EXPOSE") == [port]
    assert f'or "http://127.0.0.1:{port}"\n' in (DEPLOY / "healthy.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_pages_are_understood(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"(?m)^    .*?(?:^| |/)(potluck +(?:serve|chat|keys)\b.*)$", text)
    assert lines
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        words = words[: next((at for at, word in enumerate(words) if word in "|>&;"), len(words))]
        parse(words)


@pytest.mark.parametrize("text", [CONTAINER, PAGES[0].read_text(encoding="utf-8")], ids=["container", "page"])
def test_what_is_installed_is_pinned_setuptools_too(text: str) -> None:
    # A new environment may have a setuptools that is too old, which pip keeps where no version is asked for.
    lines = re.findall(r"(?m)^.*/pip install .*$", text.replace("\\\n", " "))
    assert any(" setuptools" in line for line in lines)
    assert all(" --constraint constraints.txt " in line for line in lines)
