"""Tokenizer files, how prompts begin, and text that appears while tokens come."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.processors import TemplateProcessing

from orchestrator.tokenizer import StreamDecoder, Tokenizer
from placement.errors import CheckpointError, InputError
from tests.tiny_checkpoint import write_random_checkpoint

# One process imports transformers.
pytestmark = pytest.mark.xdist_group("transformers")

TEXT = "naïve 東京 🥘 end"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(
        tmp_path_factory.mktemp("checkpoint"), seed=1, num_layers=1, moe_layers=(), tokenizer=True
    )


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Tokenizer:
    return Tokenizer.load(model_dir)


def test_text_survives_the_round_trip(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_special_tokens_count_in_prompts_and_are_left_out_of_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|>hi<|im_end|>")
    assert ids[0] == tokenizer.token_id("<|im_start|>")
    assert len(ids) == 4
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|>hi<|im_end|>"


def test_a_prompt_begins_as_the_model_s_documents_do(
    model_dir: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    assert tokenizer.encode_prompt("hi") == tokenizer.encode("hi")
    settings = json.loads((model_dir / "tokenizer_config.json").read_text()) | {"add_bos_token": True}
    (tmp_path / "tokenizer.json").write_bytes((model_dir / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with_bos = Tokenizer.load(tmp_path)
    assert with_bos.encode_prompt("hi") == [with_bos.token_id("<|bos|>"), *tokenizer.encode("hi")]


def copy_tokenizer(model_dir: Path, directory: Path, change: dict[str, Any]) -> Path:
    """tokenizer.json and changed settings, without weights."""
    (directory / "tokenizer.json").write_bytes((model_dir / "tokenizer.json").read_bytes())
    settings = json.loads((model_dir / "tokenizer_config.json").read_text()) | change
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def with_post_processor(directory: Path, template: str) -> None:
    """Have tokenizer.json put special tokens around a text."""
    fast = FastTokenizer.from_file(str(directory / "tokenizer.json"))
    names = ("<|bos|>", "<|eos|>")
    fast.post_processor = TemplateProcessing(
        single=template, special_tokens=[(name, fast.token_to_id(name)) for name in names]
    )
    fast.save(str(directory / "tokenizer.json"))


@pytest.mark.parametrize("add_bos_token", [None, True, False])
@pytest.mark.parametrize("template", [None, "<|bos|> $A", "$A"])
def test_a_prompt_begins_as_transformers_begins_it(
    model_dir: Path, tmp_path: Path, add_bos_token: bool | None, template: str | None
) -> None:
    from transformers import PreTrainedTokenizerFast

    change = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
    copy_tokenizer(model_dir, tmp_path, change)
    if template is not None:
        with_post_processor(tmp_path, template)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    if add_bos_token:
        # from_pretrained drops the setting in version 5; the class itself honours it.
        file = str(tmp_path / "tokenizer.json")
        theirs = PreTrainedTokenizerFast(tokenizer_file=file, bos_token="<|bos|>", add_bos_token=True)
    assert Tokenizer.load(tmp_path).encode_prompt("hi 東京") == theirs("hi 東京").input_ids


def test_the_end_that_a_post_processor_adds_is_left_out(
    model_dir: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with_post_processor(copy_tokenizer(model_dir, tmp_path, {}), "<|bos|> $A <|eos|>")
    ids = Tokenizer.load(tmp_path).encode_prompt("hi")
    assert ids == [tokenizer.token_id("<|bos|>"), *tokenizer.encode("hi")]


@pytest.mark.parametrize("template", [None, "<|bos|> $A"])
def test_a_beginning_that_is_typed_counts_once(model_dir: Path, tmp_path: Path, template: str | None) -> None:
    copy_tokenizer(model_dir, tmp_path, {} if template else {"add_bos_token": True})
    if template is not None:
        with_post_processor(tmp_path, template)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode_prompt("<|bos|>hi") == tokenizer.encode_prompt("hi")


def test_a_prompt_is_neither_cut_nor_filled_up(model_dir: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    copy_tokenizer(model_dir, tmp_path, {})
    fast = FastTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    fast.enable_truncation(3)
    fast.enable_padding(length=9)
    fast.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode("hello") == tokenizer.encode("hello")


def test_a_chat_is_the_template_s_text_and_nothing_before_it(model_dir: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(copy_tokenizer(model_dir, tmp_path, {"add_bos_token": True}))
    assert tokenizer.encode_chat("hello", "be brief") == tokenizer.encode(
        "<|bos|><|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n"
    )
    assert tokenizer.encode_chat("hello") == tokenizer.encode(
        tokenizer.chat_prompt([{"role": "user", "content": "hello"}])
    )


def test_bytes_that_are_no_text_are_refused(tokenizer: Tokenizer) -> None:
    for call in (tokenizer.encode, tokenizer.encode_prompt, tokenizer.encode_chat):
        with pytest.raises(InputError, match=r"holds bytes that are no UTF-8"):
            call(b"a\xff".decode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match="the system text holds bytes"):
        tokenizer.encode_chat("hi", "\ud800")


def test_streaming_never_shows_half_a_character(tokenizer: Tokenizer) -> None:
    stream = StreamDecoder(tokenizer)
    pieces = [stream.push([token_id]) for token_id in tokenizer.encode(TEXT)]
    assert "".join(pieces) == TEXT
    assert "�" not in "".join(pieces)
    assert pieces.count("") == len(TEXT.encode()) - len(TEXT)
    assert stream.finish() == ""


def test_several_tokens_at_once_show_all_that_is_complete(tokenizer: Tokenizer) -> None:
    stream = StreamDecoder(tokenizer)
    ids = tokenizer.encode("ab🥘")
    assert stream.push(ids[:4]) == "ab"
    assert stream.push(ids[4:]) == "🥘"


def test_finishing_shows_what_stayed_incomplete(tokenizer: Tokenizer) -> None:
    stream = StreamDecoder(tokenizer)
    assert stream.push(tokenizer.encode("🥘")[:2]) == ""
    assert "�" in stream.finish()
    assert stream.push(tokenizer.encode("on")) == "on"


def test_chat_template_gives_the_published_form(tokenizer: Tokenizer) -> None:
    prompt = tokenizer.chat_prompt([{"role": "user", "content": "  hello \n"}])
    assert prompt == "<|bos|><|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert tokenizer.encode(prompt)[0] == tokenizer.token_id("<|bos|>")


def test_a_checkpoint_without_a_tokenizer_takes_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_broken_files_are_named(model_dir: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes((model_dir / "tokenizer.json").read_bytes())
    (tmp_path / name).write_text("{ half")
    with pytest.raises(CheckpointError, match=name):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_files_that_are_no_text_files_are_named(model_dir: Path, tmp_path: Path, name: str) -> None:
    path = copy_tokenizer(model_dir, tmp_path, {}) / name
    for content in (b'{"a": "\xff"}', b'{"a":' * 100_000):
        path.write_bytes(content)
        if name != "chat_template.jinja" or b"\xff" in content:
            with pytest.raises(CheckpointError, match=name):
                Tokenizer.load(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match=f"{name}: it is a pipe"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bos_token": "\ud800"}, "bos_token is .*ud800.*, expected Unicode text"),
        ({"add_bos_token": 5}, "add_bos_token is 5, expected true or false"),
        ({"add_bos_token": True, "bos_token": "<nowhere>"}, "bos_token is '<nowhere>', expected a token of"),
        ({"add_bos_token": True, "bos_token": None}, "bos_token is None, expected a token of"),
        ({"chat_template": 5}, "chat_template is 5, expected a text"),
    ],
)
def test_settings_that_make_no_sense_are_named(
    model_dir: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"tokenizer_config\.json: .*{message}"):
        Tokenizer.load(copy_tokenizer(model_dir, tmp_path, change))


def test_a_pattern_that_finds_no_end_is_one_line(model_dir: Path, tmp_path: Path) -> None:
    """Rust panics there, which Python sees as no Exception."""
    document = json.loads((model_dir / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document | {"pre_tokenizer": split}))
    with pytest.raises(InputError, match=r"the tokenizer cannot take this text: .*retry-limit"):
        Tokenizer.load(tmp_path).encode("a" * 40 + "! hi")
