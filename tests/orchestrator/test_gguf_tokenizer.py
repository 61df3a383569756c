"""Tokenizers in GGUF files: the same ids as tokenizer.json gives, or one line that says what still works."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from models.tiny.gguf_file import write_gguf
from orchestrator.gguf_tokenizer import UnknownTokenizer, read_tokenizer
from orchestrator.tokenizer import Tokenizer
from placement.errors import CheckpointError
from placement.files.gguf_file import GgufTexts
from tests.orchestrator.command_line import Potluck, says
from tests.workers.formats.gguf_files import rewritten

TINY = Path(__file__).parents[2] / "models" / "potluck-tiny"
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 12 * 345? <think> about it"},
    {"role": "assistant", "content": "4140, naïvely 東京", "reasoning_content": "12 * 345"},
    {"role": "user", "content": "  Thanks!\n\n\tAnd now? It's \x07 🥘\u200d \r\n "},
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(TINY, path)
    return path


def test_ids_are_those_of_the_published_tokenizer(path: Path) -> None:
    published, found = Tokenizer.load(TINY), Tokenizer.load(path)
    assert found.vocab_size == published.vocab_size
    texts = [file.read_text("utf-8") for file in sorted((TINY / "heldout").glob("*.txt"))]
    assert len(texts) > 2
    for text in [*texts, *(message["content"] for message in CONVERSATION), "", "<s>a</s>b<tool_call>"]:
        ids = published.encode_prompt(text)
        assert found.encode_prompt(text) == ids
        for skip in (True, False):
            assert found.decode(ids, skip_special=skip) == published.decode(ids, skip_special=skip)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    assert found.chat_prompt(CONVERSATION, tools=tools) == published.chat_prompt(CONVERSATION, tools=tools)
    assert found.encode_chat("Hi there", "Be brief.") == published.encode_chat("Hi there", "Be brief.")


def test_a_file_without_its_own_takes_what_lies_beside_it(path: Path, tmp_path: Path) -> None:
    bare = rewritten(path, tmp_path / "bare.gguf", tokenizer__ggml__model="no_vocab")
    with pytest.raises(UnknownTokenizer, match=r"bare\.gguf has no tokenizer .* or give .* --token-ids"):
        Tokenizer.load(bare)
    (tmp_path / "tokenizer.json").write_bytes((TINY / "tokenizer.json").read_bytes())
    assert Tokenizer.load(bare).encode("Hello") == Tokenizer.load(TINY).encode("Hello")
    unknown = rewritten(path, tmp_path / "unknown.gguf", tokenizer__ggml__pre="martian")
    assert Tokenizer.load(unknown).encode("Hello") == Tokenizer.load(TINY).encode("Hello")


def test_token_ids_work_where_the_tokenizer_is_unknown(path: Path, tmp_path: Path, potluck: Potluck) -> None:
    model = rewritten(path, tmp_path / "m.gguf", tokenizer__ggml__pre="martian")
    arguments = ("generate", "--model", str(model), "--max-tokens", "3")
    code, _, err = potluck(*arguments, "--prompt", "Hello")
    assert code == 2
    assert says(err, "tokenizer.ggml.pre is 'martian', expected one of deepseek-v3, gpt-2 … --token-ids")
    ids = Tokenizer.load(TINY).encode_prompt("Hello")
    code, out, _ = potluck(*arguments, "--token-ids", ",".join(map(str, ids)))
    assert code == 0
    assert len(out.split()) == 3
    assert all(token.isdigit() for token in out.split())


def test_the_template_in_the_file_is_the_one_that_counts(path: Path, tmp_path: Path) -> None:
    without = {"tokenizer__chat_template": None}
    bare = rewritten(path, tmp_path / "bare.gguf", **without)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert Tokenizer.load(bare).chat_prompt([{"role": "user", "content": "Hi"}]) == "Hi!"
    own = rewritten(path, tmp_path / "own.gguf", tokenizer__chat_template="{{ bos_token }}?")
    assert Tokenizer.load(own).chat_prompt([{"role": "user", "content": "Hi"}]) == "<s>?"


def texts(*items: str) -> GgufTexts:
    packed = b"".join(struct.pack("<Q", len(item.encode())) + item.encode() for item in items)
    return GgufTexts(packed, len(items))


def described(**changed: Any) -> Mapping[str, Any]:
    """Metadata of a small tokenizer with other values under some `tokenizer.ggml.` keys."""
    keys: dict[str, Any] = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": texts("<s>", "a", "b", "ab", "Ġ", "Ġab", "1"),
        "merges": texts("a b", "Ġ ab"),
        "token_type": [3, 1, 1, 1, 1, 1, 1],
        "bos_token_id": 0,
    }
    keys |= changed
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items() if value is not None}


def test_merges_types_and_the_first_token_are_as_described() -> None:
    found = read_tokenizer(described(add_bos_token=True), "x")
    assert found.fast.encode("ab ab<s>ba").ids == [3, 5, 0, 2, 1]
    assert (found.special, found.begins_with_bos) == ({"bos_token": "<s>"}, True)
    assert found.fast.decode([0, 3, 5]) == "ab ab"
    assert not read_tokenizer(described(), "x").begins_with_bos
    assert read_tokenizer(described(pre="llama-bpe"), "x").begins_with_bos
    as_text = read_tokenizer(described(token_type=None, merges=None), "x")
    assert as_text.fast.encode("ab").ids == [1, 2]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": None}, "tokens is None, expected a list of texts"),
        ({"tokens": [1, 2]}, "tokens is .*, expected a list of texts"),
        ({"tokens": texts("a", "b", "ab", "a", "b", "c", "d")}, "tokens has 'a' twice"),
        ({"merges": texts("a b", "ab")}, r"merges\[1\] is 'ab', expected two tokens"),
        ({"merges": texts("a zz")}, "merges do not belong to its tokens .*zz"),
        ({"token_type": [1]}, "token_type is 1 entries, expected one for each of 7"),
        ({"token_type": "x"}, "token_type is 'x', expected one for each of 7"),
        ({"bos_token_id": 7}, "bos_token_id is 7, expected a token below 7"),
        ({"eos_token_id": -1}, "eos_token_id is -1, expected a token below 7"),
        ({"bos_token_id": 1.0}, "bos_token_id is 1.0, expected a token below 7"),
        ({"bos_token_id": "0"}, "bos_token_id is '0', expected a token below 7"),
        ({"add_bos_token": 1}, "add_bos_token is 1, expected true or false"),
    ],
)
def test_a_damaged_description_is_refused_by_its_key(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"m\.gguf: tokenizer\.ggml\.{message}") as caught:
        read_tokenizer(described(**changed), "m.gguf")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("template", [3, "x" * 2_000_000])
def test_a_template_that_is_none_is_refused(template: Any) -> None:
    with pytest.raises(CheckpointError, match=r"m\.gguf: tokenizer\.chat_template is "):
        read_tokenizer({**described(), "tokenizer.chat_template": template}, "m.gguf")


def pieces(pre: str, text: str) -> Sequence[str]:
    """How a text is cut before merging, bytes undone."""
    fast = read_tokenizer(described(pre=pre), "x").fast
    cutting = fast.pre_tokenizer
    assert isinstance(cutting, pre_tokenizers.Sequence)
    return [text[begin:end] for _, (begin, end) in cutting.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("deepseek-v3", "It's 12345 + 6", ["It", "'s", " ", "123", "45", " +", " ", "6"]),
        ("deepseek-v3", "東京は春。naïve", ["東京は春", "。", "naïve"]),
        ("deepseek-v3", "x = ~y;\n\n  z", ["x", " =", " ~", "y", ";\n\n", " ", " z"]),
        ("gpt-2", "It's 12345 + 6", ["It", "'s", " 12345", " +", " 6"]),
        ("gpt-2", "x = ~y;\n\n  z", ["x", " =", " ~", "y", ";", "\n\n ", " z"]),
        ("llama-bpe", "IT'S 12345 + 6", ["IT", "'S", " ", "123", "45", " +", " ", "6"]),
        ("llama-bpe", "x = ~y;\n\n  z", ["x", " =", " ~", "y", ";\n\n", " ", " z"]),
    ],
)
def test_texts_are_cut_as_the_published_patterns_say(pre: str, text: str, expected: list[str]) -> None:
    assert pieces(pre, text) == expected
