"""Claude Code and Codex, each asked to run one command; what it leaves shows that all the way worked."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

COMMAND = "echo potluck-$((40+2)) > proof.txt"
PROOF = "potluck-42"
PACKAGES = ("@anthropic-ai/claude-code", "@openai/codex")
_PROMPT = f"Run this command with your shell tool, then say that it is done: {COMMAND}"
_PATIENCE_S = 600


def claude_code(project: Path, url: str, key: str, model: str) -> str:
    """Nothing where it worked, or else what it printed last; with the variables that docs/serve.md names.

    Args:
        project: where the packages are installed.
    """
    variables = {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": key,
        "ANTHROPIC_MODEL": model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": model,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    return _proved(project, ["claude", "-p", _PROMPT, "--allowedTools", "Bash"], variables)


def codex(project: Path, url: str, key: str, model: str) -> str:
    """The same for Codex, with the settings that docs/serve.md shows and a key."""
    settings = project / "home" / ".codex"
    settings.mkdir(parents=True, exist_ok=True)
    (settings / "config.toml").write_text(f"""
model = "{model}"
model_provider = "potluck"
[model_providers.potluck]
name = "Potluck"
base_url = "{url}/v1"
wire_api = "responses"
env_key = "POTLUCK_KEY"
""")
    # A container may not be allowed to make Codex's own sandbox. The folder is made for this alone.
    command = [
        "codex",
        "exec",
        "--skip-git-repo-check",
        "--dangerously-bypass-approvals-and-sandbox",
        _PROMPT,
    ]
    return _proved(project, command, {"POTLUCK_KEY": key})


def _proved(project: Path, command: list[str], variables: dict[str, str]) -> str:
    """Run an agent with a home of its own, so that it sees nothing of the user's."""
    home, work = project / "home", project / "work" / command[0]
    home.mkdir(exist_ok=True)
    work.mkdir(parents=True)
    done = subprocess.run(
        [str(project / "node_modules" / ".bin" / command[0]), *command[1:]],
        cwd=work,
        env={"PATH": os.environ["PATH"], "HOME": str(home), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        check=False,
    )
    proof = work / "proof.txt"
    if proof.is_file() and proof.read_text().strip() == PROOF:
        return ""
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[-1][:300] if lines else f"exit code {done.returncode}"
