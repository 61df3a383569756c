"""What clients that others wrote can do with a server: a table of what passed.

    python -m benchmarks.clients [--url http://127.0.0.1:8000] [--key KEY] [--model NAME] [--agents]

Makes a virtual environment and an npm project in a temporary folder, with the newest releases of OpenAI's and
Anthropic's clients, litellm and the Vercel AI SDK (npm and node are needed). With `--agents` also Claude Code
and Codex, which run a command that the model gives them: do that only with a model that you trust. Without a
URL it starts a server whose engine plays scripts. Ends with exit code 1 where something failed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.clients.agents import PACKAGES, claude_code, codex
from benchmarks.clients.scripted_server import scripted_server

HERE = Path(__file__).parent
PATIENCE_S = 900
# The one that is left out was published by somebody who had broken in.
PYTHON_PACKAGES = ("openai", "anthropic", "litellm!=1.107.0")
NPM_PACKAGES = ("ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "@ai-sdk/anthropic", "zod")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one thing that a client tried."""

    client: str
    what: str
    ok: bool
    detail: str = ""


def main(
    url: Annotated[str | None, typer.Option(help="Of a server; without it a scripted one starts")] = None,
    key: Annotated[str, typer.Option(help="A key of that server")] = "none",
    model: Annotated[str, typer.Option(help="A name to ask for")] = "scripted",
    agents: Annotated[bool, typer.Option("--agents", help="Claude Code and Codex, too")] = False,
) -> None:
    console = Console()
    with tempfile.TemporaryDirectory(prefix="potluck-clients-") as folder, _server(url) as base:
        variables = {"CLIENTS_URL": base, "CLIENTS_KEY": key, "CLIENTS_MODEL": model}
        outcomes = _python(Path(folder), variables) + _npm(Path(folder), variables)
        if agents:
            outcomes += _agents(Path(folder), base, key, model)
    table = Table("client", "what", "passed")
    for outcome in outcomes:
        table.add_row(outcome.client, outcome.what, "yes" if outcome.ok else f"no: {outcome.detail}")
    console.print(table)
    raise typer.Exit(0 if all(outcome.ok for outcome in outcomes) else 1)


@contextmanager
def _server(url: str | None) -> Iterator[str]:
    if url is not None:
        yield url.rstrip("/")
    else:
        with scripted_server() as started:
            yield started


def _python(folder: Path, variables: dict[str, str]) -> list[Outcome]:
    environment = folder / "venv"
    python = environment / "bin" / "python"
    made = _run([sys.executable, "-m", "venv", str(environment)], folder, {})
    if made.returncode == 0:
        made = _run([str(python), "-m", "pip", "install", "-q", *PYTHON_PACKAGES], folder, {})
    if made.returncode != 0:
        return [Outcome("Python", "install", ok=False, detail=_last(made.stderr))]
    return _outcomes(_run([str(python), str(HERE / "python_clients.py")], folder, variables), "Python")


def _npm(folder: Path, variables: dict[str, str]) -> list[Outcome]:
    project = folder / "npm"
    project.mkdir()
    (project / "package.json").write_text('{"private": true, "type": "module"}')
    made = _run(["npm", "install", "--silent", "--no-audit", "--ignore-scripts", *NPM_PACKAGES], project, {})
    if made.returncode != 0:
        return [Outcome("npm", "install", ok=False, detail=_last(made.stderr or made.stdout))]
    # Node looks for packages beside the program.
    shutil.copy(HERE / "vercel_clients.mjs", project)
    return _outcomes(_run(["node", "vercel_clients.mjs"], project, variables), "npm")


def _agents(folder: Path, base: str, key: str, model: str) -> list[Outcome]:
    project = folder / "agents"
    project.mkdir()
    (project / "package.json").write_text('{"private": true}')
    made = _run(["npm", "install", "--silent", "--no-audit", *PACKAGES], project, {})
    if made.returncode != 0:
        return [Outcome("agents", "install", ok=False, detail=_last(made.stderr or made.stdout))]
    return [
        Outcome(name, "runs a command", ok=not trouble, detail=trouble)
        for name, trouble in (
            ("Claude Code", claude_code(project, base, key, model)),
            ("Codex", codex(project, base, key, model)),
        )
    ]


def _run(command: list[str], folder: Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def _outcomes(done: subprocess.CompletedProcess[str], client: str) -> list[Outcome]:
    """One JSON object a line; clients may print other lines."""
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"client"')]
    found = [Outcome(**json.loads(line)) for line in lines]
    if done.returncode != 0 or not found:
        found.append(Outcome(client, "run", ok=False, detail=_last(done.stderr)))
    return found


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else "no output"


if __name__ == "__main__":
    typer.run(main)
