"""The agents are tried with the settings that docs/serve.md tells people to make."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from benchmarks.clients import agents

SERVE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")


def test_agents_get_what_the_page_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: dict[str, dict[str, str]] = {}

    def proved(project: Path, command: list[str], variables: dict[str, str]) -> str:
        given[command[0]] = variables
        return ""

    monkeypatch.setattr(agents, "_proved", proved)
    assert agents.claude_code(tmp_path, "http://x", "a key", "any") == ""
    assert agents.codex(tmp_path, "http://x", "a key", "any") == ""
    (row,) = re.findall(r"(?m)^\| Claude Code \|.*$", SERVE)
    named, _, unset = row.partition("Unset")
    assert set(re.findall(r"ANTHROPIC_\w+", named)) == {
        name for name in given["claude"] if "ANTHROPIC" in name
    }
    assert not set(re.findall(r"ANTHROPIC_\w+", unset)) & given["claude"].keys()
    (shown,) = re.findall(r"(?s)```toml\n(.*?)```", SERVE)
    page = tomllib.loads(shown.replace("# env_key", "env_key"))
    made = tomllib.loads((tmp_path / "home" / ".codex" / "config.toml").read_text(encoding="utf-8"))
    base = {"base_url": "http://x/v1"}
    assert made["model_providers"]["potluck"] == page["model_providers"]["potluck"] | base
    assert given["codex"].keys() == {made["model_providers"]["potluck"]["env_key"]}
