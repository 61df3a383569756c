"""Each command of the README runs as it is written there, and its sample output is today's."""

from __future__ import annotations

import io
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from models.tiny.gguf_file import write_gguf
from orchestrator.cli import demo
from orchestrator.cli.app import COMMANDS
from tests.orchestrator.command_line import Potluck

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(heading: str) -> list[str]:
    """The lines of code below a bold heading, without comments."""
    section = README[README.index(f"**{heading}") :].split("\n\n**")[0].split("\n##")[0].split("\n###")[0]
    lines = re.findall(r"(?m)^    (\S.*?)(?:\s+#.*)?$", section)
    assert lines, heading
    return lines


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the README's paths are there, as in a clone."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    shutil.copy(ROOT / "cluster.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(potluck: Potluck, line: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    if line.startswith("echo -n "):
        echo, line = line.split(" | ")
        content = shlex.split(echo)[2].encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    program, *arguments = shlex.split(line)
    assert program == "potluck", line
    return potluck(*arguments)


def test_the_commands_of_one_workstation_run(
    potluck: Potluck,
    clone: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The shipped model stands for the one that people download.
    write_gguf(ROOT / "models" / "potluck-tiny", clone / "Step-3.5-Flash-Q4_K_S.gguf", "q8_0")
    for line in commands("One workstation"):
        code, out, err = run(potluck, line, monkeypatch)
        assert code == 0, f"{line}: {err}"
        assert out.strip(), line


def test_the_commands_of_several_boxes_are_understood(
    potluck: Potluck,
    clone: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All but the first end in one line: there are no such boxes here (tests/launcher has some)."""
    (clone / "DIR").symlink_to(ROOT / "models" / "potluck-tiny")
    key = clone / "key"
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    first, *others = commands("Several boxes")
    code, _, err = run(potluck, f"{first} --key {key}", monkeypatch)
    assert code == 0, err
    for line in others:
        code, _, err = run(potluck, line, monkeypatch)
        assert code == 2, line
        assert "192.168.1.10" in err or "expected a running cluster" in err, f"{line}: {err}"


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_commands_without_hardware_run(
    whole: bool,
    potluck: Potluck,
    clone: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a policy that takes no time and a short text, unless `whole`: plans of a large model are many."""
    for line in commands("No hardware"):
        if not whole:
            line = line.replace("--tokens 4096", "--tokens 200")
        if line.startswith("potluck study"):
            line += " --processes 1"
            _shorten_study(clone)
        elif not whole and line.startswith(("potluck plan", "potluck whatif")):
            line += " --policy uniform"
        code, _, err = run(potluck, line, monkeypatch)
        assert code == 0, f"{line}: {err}"
    assert (clone / "results" / "report.html").is_file()


def _shorten_study(clone: Path) -> None:
    """The same grid with fewer cells: all of them take minutes."""
    studies = ROOT / "docs" / "studies"
    study = yaml.safe_load((studies / "home-clusters.yaml").read_text())
    study |= {"batches": [1], "contexts": [1000], "policies": ["one-box", "uniform"]}
    study["clusters"] = study["clusters"][:1]
    study["traces"] = [{"name": "general", "domain": "general", "tokens": 200}]
    (clone / "docs").unlink()
    (clone / "docs" / "studies").mkdir(parents=True)
    (clone / "docs" / "studies" / "clusters").symlink_to(studies / "clusters")
    (clone / "docs" / "studies" / "home-clusters.yaml").write_text(yaml.safe_dump(study))


@pytest.mark.whole_search
def test_the_sample_output_begins_as_the_demo_prints_today() -> None:
    sample = re.search(r"```\n(potluck-tiny: .*?)\n…", README, re.DOTALL)
    assert sample
    console = Console(file=io.StringIO(), width=100)
    console.print(*demo.description(*demo.plan_demo(3)), sep="\n")
    assert isinstance(console.file, io.StringIO)
    printed = [line.rstrip() for line in console.file.getvalue().splitlines()]
    begins = [line for line in sample[1].splitlines() if line]
    assert begins == [line for line in printed if line][: len(begins)]
    assert any(line.startswith("closet-ram") for line in begins)


def test_every_command_is_in_the_readme() -> None:
    for name in (name.split()[0] for name in COMMANDS):
        assert f"potluck {name}" in README or f"make {name}" in README, name
