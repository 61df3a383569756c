"""Tokenizer files, chat templates, and text that appears while tokens come."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.tokenizer import StreamDecoder, Tokenizer
from placement.errors import CheckpointError, InputError
from tests.tiny_checkpoint import write_random_checkpoint

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


@pytest.mark.parametrize("as_list", [False, True])
def test_templates_as_a_string_or_as_named_ones(model_dir: Path, tmp_path: Path, as_list: bool) -> None:
    (tmp_path / "tokenizer.json").write_bytes((model_dir / "tokenizer.json").read_bytes())
    template = "{% if tools %}{{ tools | tojson }}{% endif %}{{ bos_token }}{{ messages[0].content }}"
    named = [{"name": "other", "template": "no"}, {"name": "default", "template": template}]
    settings = {"bos_token": {"content": "<s>"}, "chat_template": named if as_list else template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    prompt = Tokenizer.load(tmp_path).chat_prompt([{"role": "user", "content": "a"}], tools=[{"name": "<é>"}])
    assert prompt == '[{"name": "<é>"}]<s>a'


def test_a_template_file_comes_before_the_settings(model_dir: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((model_dir / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no system turn') }}")
    with pytest.raises(InputError, match="no system turn"):
        Tokenizer.load(tmp_path).chat_prompt([])


def test_a_checkpoint_without_a_tokenizer_takes_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_without_a_template_there_is_no_chat(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((model_dir / "tokenizer.json").read_bytes())
    with pytest.raises(InputError, match="no chat template"):
        Tokenizer.load(tmp_path).chat_prompt([])


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_broken_files_are_named(model_dir: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes((model_dir / "tokenizer.json").read_bytes())
    (tmp_path / name).write_text("{ half")
    with pytest.raises(CheckpointError, match=name):
        Tokenizer.load(tmp_path)
