"""`potluck generate`: where the prompt comes from, and what is refused."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.tiny.gguf_file import write_gguf
from orchestrator.tokenizer import Tokenizer
from tests.forks.forks import Forks
from tests.orchestrator.command_line import Potluck, document
from tests.tiny_checkpoint import write_random_checkpoint

SHORT = ("--max-tokens", 3, "--ignore-eos", "--json")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint"), seed=5, tokenizer=True)


def type_in(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Put bytes on standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_a_prompt_from_standard_input_is_taken_as_it_comes(
    potluck: Potluck, monkeypatch: pytest.MonkeyPatch, model_dir: Path
) -> None:
    text = "naïve\n東京\n"
    expected = document(potluck("generate", "--model", model_dir, "--prompt", text, *SHORT))
    for content in (text.encode(), b"\xef\xbb\xbf" + text.encode()):
        type_in(monkeypatch, content)
        made = document(potluck("generate", "--model", model_dir, "--prompt", "-", *SHORT))
        assert made["token_ids"] == expected["token_ids"]


def test_standard_input_that_is_no_text_is_one_line(
    potluck: Potluck, monkeypatch: pytest.MonkeyPatch, model_dir: Path
) -> None:
    type_in(monkeypatch, b"ab\xff")
    code, _, err = potluck("generate", "--model", model_dir, "--prompt", "-", *SHORT)
    assert code == 2
    assert "--prompt -: not UTF-8 text (invalid start byte at byte 2)" in err


def test_a_chat_continues_the_rendered_template(potluck: Potluck, model_dir: Path) -> None:
    ids = Tokenizer.load(model_dir).encode_chat("hello", "be brief")
    expected = document(
        potluck("generate", "--model", model_dir, "--token-ids", ",".join(map(str, ids)), *SHORT)
    )
    chat = ("--chat", "--system", "be brief", "--prompt", "hello")
    made = document(potluck("generate", "--model", model_dir, *chat, *SHORT))
    assert made["token_ids"] == expected["token_ids"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--chat", "--token-ids", "1,2"), "--chat asks a text; expected it with --prompt"),
        (
            ("--system", "be brief", "--prompt", "a"),
            "--system stands before a user's turn; expected it with --ch",
        ),
        (("--prompt", b"a\xff".decode("utf-8", "surrogateescape")), "bytes that are no UTF-8"),
        (("--chat", "--prompt", "\ud800"), "the user text holds bytes that are no UTF-8"),
        (("--token-ids", "x" * 5000), "expected whole numbers"),
        (
            ("--prompt", "a", "--mtp", 4),
            "--mtp 4: 4 drafts a step asked for, but config.json announces 3 MTP layers",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line(
    potluck: Potluck, model_dir: Path, arguments: tuple[object, ...], message: str
) -> None:
    code, out, err = potluck("generate", "--model", model_dir, *arguments)
    assert code == 2
    assert out == ""
    assert message in " ".join(err.split())
    assert len(err) < 400


def test_a_chat_without_a_template_is_one_line(potluck: Potluck, model_dir: Path, tmp_path: Path) -> None:
    for path in model_dir.iterdir():
        if path.name != "tokenizer_config.json":
            (tmp_path / path.name).symlink_to(path)
    code, _, err = potluck("generate", "--model", tmp_path, "--chat", "--prompt", "a")
    assert code == 2
    assert "this checkpoint has no chat template" in err


def test_a_pipe_in_place_of_a_text_for_stats_is_not_waited_for(
    potluck: Potluck, model_dir: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "text.txt")
    code, _, err = potluck(
        "stats", "--model", model_dir, "--out", tmp_path / "routing.npz", tmp_path / "text.txt"
    )
    assert code == 2
    assert "text.txt: it is a pipe" in " ".join(err.split())
    assert not (tmp_path / "routing.npz").exists()


def test_keys_and_values_are_kept_as_asked(potluck: Potluck, model_dir: Path) -> None:
    ask = ("generate", "--model", model_dir, "--token-ids", ",".join(map(str, range(40))), *SHORT)
    plain, bfloat16 = (document(potluck(*ask, *kv)) for kv in ((), ("--kv", "bfloat16")))
    assert plain["token_ids"] == bfloat16["token_ids"]
    assert len(document(potluck(*ask, "--kv", "int8"))["token_ids"]) == 3
    code, _, err = potluck(*ask, "--kv", "int4")
    assert code == 2
    assert "int4" in err


def test_a_run_says_in_what_it_is_not_as_planned(potluck: Potluck, model_dir: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    (tmp_path / "boxes.yaml").write_text(HEAD_AND_DISK)
    planned = ("plan", tmp_path / "boxes.yaml", "--model", model_dir, "--kv", "int8", "--policy", "uniform")
    assert potluck(*planned, "--out", plan)[0] == 0
    ask = ("generate", "--model", model_dir, "--plan", plan, "--token-ids", "5,6,7", "--max-tokens", 2)
    note = "plan.json was made for keys and values in int8 and no drafts a step; this run has"
    for options, told in (
        ((), None),
        (("--kv", "bfloat16"), f"{note} bfloat16 and no drafts"),
        (("--mtp", 1), f"{note} int8 and one draft"),
    ):
        code, _, err = potluck(*ask, *options)
        words = " ".join(err.split())
        assert code == 0, err
        assert ("was made for keys" in words) == (told is not None)
        assert (told or "") in words
        assert re.search(r"\d+ experts of head stay on disk; a cache in memory has [\d.]+ [kM]?B", words)


HEAD_AND_DISK = """
head: here
nodes:
  - name: here
    devices:
      - {name: ram, kind: ram, memory_bytes: 2.4MB, bandwidth_gbytes_per_s: 20, ffn_gflops: 100}
      - {name: ssd, kind: disk, memory_bytes: 1GB, bandwidth_gbytes_per_s: 2, ffn_gflops: 100}
"""


def test_the_prompt_options_are_looked_at_before_the_model(potluck: Potluck, tmp_path: Path) -> None:
    for options, message in (
        ((), "expected either --prompt TEXT or --token-ids"),
        (("--token-ids", "x"), "expected whole numbers"),
        (("--prompt", "x"), "nope: no such file or directory; expected a model"),
    ):
        code, _, err = potluck("generate", "--model", tmp_path / "nope", *options)
        assert (code, message in " ".join(err.split())) == (2, True), err


def test_a_run_says_that_it_rounds_float32_weights(potluck: Potluck, tmp_path: Path) -> None:
    ask = ("--token-ids", "5,6,7", "--max-tokens", 2)
    note = "weights are float32 in the files and rounded to bfloat16; --dtype float32 keeps them"
    for dtype in (torch.float32, torch.bfloat16):
        path = write_random_checkpoint(tmp_path / str(dtype), seed=3, dtype=dtype)
        for options in ((), ("--dtype", "float32"), ("--json",)):
            code, _, err = potluck("generate", "--model", path, *ask, *options)
            assert code == 0
            assert (note in " ".join(err.split())) == (dtype == torch.float32 and not options)


def test_a_run_in_one_process_opens_its_file_once_and_loads_no_planner(
    model_dir: Path, tmp_path: Path, forks: Forks
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(model_dir, path)
    program = f"""
import json, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from orchestrator.cli.app import load, run
arguments = ["generate", "--model", {str(path)!r}, "--token-ids", "5,6,7", "--max-tokens", "2", "--json"]
assert run(load(arguments), arguments) == 0
loaded = {{name.split(".")[0] for name in sys.modules}} | {{*sys.modules}}
print(json.dumps([opened.count({str(path)!r}), sorted(loaded)]))
"""
    # What it is forked from has loaded none of these.
    run = subprocess.run(
        forks.command(["-c", program]), capture_output=True, text=True, timeout=120, check=True
    )
    count, loaded = json.loads(run.stdout.splitlines()[-1])
    # Its header, the divisors of the frequencies that the configuration needs, and the mapping.
    assert count == 3
    assert not {"scipy", "ray", "matplotlib", "transformers"} & set(loaded)
    assert not [name for name in loaded if name.startswith("placement.policies")]


def test_settings_of_chance_at_temperature_0_are_told_to_change_nothing(
    potluck: Potluck, model_dir: Path
) -> None:
    words = ("generate", "--model", model_dir, "--prompt", "a", "--max-tokens", 3, "--ignore-eos")
    code, _, err = potluck(*words, "--seed", 5)
    assert code == 0
    assert "--seed change nothing at --temperature 0" in err
    for quiet in (("--seed", 5, "--temperature", 1), ("--top-k", 3, "--json"), ()):
        code, _, err = potluck(*words, *quiet)
        assert code == 0
        assert "change nothing" not in err


def test_a_seed_gives_its_text_with_any_number_of_drafts(potluck: Potluck, model_dir: Path) -> None:
    words = ("generate", "--model", model_dir, "--prompt", "a", *SHORT, "--temperature", 1, "--top-p", 0.9)
    texts = [
        document(potluck(*words, "--seed", seed, "--mtp", mtp))["token_ids"]
        for seed, mtp in ((3, 0), (3, 2), (4, 0))
    ]
    assert texts[0] == texts[1] != texts[2]
