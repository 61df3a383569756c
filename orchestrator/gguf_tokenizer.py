"""The tokenizer and chat template in a GGUF file's metadata, as llama.cpp's converter writes them.

Byte-level BPE alone: that is what models of the Step-3.5 architecture have. How a text is cut before merging
is not in the file but goes by a name, `tokenizer.ggml.pre`; the patterns are the published tokenizers'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from orchestrator.chat_template import MOST_TEMPLATE_BYTES
from placement.errors import CheckpointError, InputError
from placement.files.gguf_file import GgufTexts
from placement.files.quote import quote
from placement.units import size

_KEY = "tokenizer.ggml."
_BYTE_LEVEL_BPE = "gpt2"
# Token types of gguf's enum TokenType: control tokens are left out of what people read.
_CONTROL, _USER_DEFINED = 3, 4
_SPECIAL_TOKENS = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}


@dataclass(frozen=True, slots=True)
class Cutting:
    """How a text is cut before merging.

    Attributes:
        patterns: each cuts what the ones before left; none: the pattern of GPT-2.
        whole_words: a piece that is a token is not built from merges.
        begins_with_bos: where the file does not say whether texts do.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    begins_with_bos: bool = False


_LLAMA_3 = Cutting(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    whole_words=True,
    begins_with_bos=True,
)
CUTTINGS: Mapping[str, Cutting] = MappingProxyType(
    {
        # What the converter writes for Step-3.5 and Step-3.7.
        "deepseek-v3": Cutting(
            (
                r"\p{N}{1,3}",
                "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
                r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
                r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            )
        ),
        "gpt-2": Cutting(()),
        "llama-bpe": _LLAMA_3,
        "llama3": _LLAMA_3,
    }
)
"""By the name in `tokenizer.ggml.pre`."""


class UnknownTokenizer(InputError):
    """A model has no tokenizer, or none that is known. Prompts as token ids still work."""


@dataclass(frozen=True, slots=True)
class FoundTokenizer:
    """`special`: bos_token and the like, as templates use them."""

    fast: Tokenizer
    template: str | None
    special: Mapping[str, str]
    begins_with_bos: bool


def read_tokenizer(metadata: Mapping[str, Any], where: object) -> FoundTokenizer:
    """Build the tokenizer that a file describes.

    Args:
        where: the file, for messages.

    Raises:
        UnknownTokenizer: there is none, or of a kind or with a cutting that is not known.
        CheckpointError: the description is damaged; names the key.
    """
    kind = metadata.get(f"{_KEY}model")
    if kind != _BYTE_LEVEL_BPE:
        has = "no tokenizer" if kind in (None, "none", "no_vocab") else "a tokenizer that is not known"
        raise UnknownTokenizer(
            f"{where} has {has} ({_KEY}model is {quote(kind)}, expected {_BYTE_LEVEL_BPE!r}), so it takes no "
            "text: put the model's tokenizer.json beside it, or give the prompt as --token-ids"
        )
    name = metadata.get(f"{_KEY}pre")
    cutting = CUTTINGS.get(name) if isinstance(name, str) else None
    if cutting is None:
        raise UnknownTokenizer(
            f"{where}: {_KEY}pre is {quote(name)}, expected one of {', '.join(CUTTINGS)}: put the model's "
            "tokenizer.json beside the file, or give the prompt as --token-ids"
        )
    tokens = _texts(metadata, "tokens", where)
    begins = metadata.get(f"{_KEY}add_bos_token", cutting.begins_with_bos)
    if not isinstance(begins, bool):
        raise CheckpointError(f"{where}: {_KEY}add_bos_token is {quote(begins)}, expected true or false")
    special = {
        ours: tokens[token_id]
        for ours, theirs in _SPECIAL_TOKENS.items()
        if (token_id := _token_id(metadata, theirs, len(tokens), where)) is not None
    }
    fast = _byte_level_bpe(tokens, _merges(metadata, where), cutting, where)
    _mark_added(fast, tokens, _types(metadata, len(tokens), where))
    return FoundTokenizer(fast, _template(metadata, where), special, begins)


def _byte_level_bpe(
    tokens: Sequence[str], merges: Sequence[tuple[str, str]], cutting: Cutting, where: object
) -> Tokenizer:
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        twice = next(token for token_id, token in enumerate(tokens) if vocabulary[token] != token_id)
        raise CheckpointError(f"{where}: {_KEY}tokens has {quote(twice)} twice, expected distinct tokens")
    try:
        fast = Tokenizer(models.BPE(vocabulary, list(merges), ignore_merges=cutting.whole_words))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(
            f"{where}: {_KEY}merges do not belong to its tokens ({quote(str(error))}): download it again"
        ) from None
    pieces: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cutting.patterns]
    pieces.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not cutting.patterns))
    fast.pre_tokenizer = pre_tokenizers.Sequence(pieces)
    fast.decoder = decoders.ByteLevel()
    return fast


def _mark_added(fast: Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Tokens that are taken out of a text before it is cut."""
    added = [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (_CONTROL, _USER_DEFINED) and token
    ]
    fast.add_tokens([token for token in added if not token.special])
    fast.add_special_tokens([token for token in added if token.special])


def _texts(metadata: Mapping[str, Any], key: str, where: object) -> Sequence[str]:
    value = metadata.get(f"{_KEY}{key}")
    if not isinstance(value, GgufTexts) or not len(value):
        raise CheckpointError(f"{where}: {_KEY}{key} is {quote(value)}, expected a list of texts")
    return list(value)


def _merges(metadata: Mapping[str, Any], where: object) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    # Without any, every byte is a token.
    if metadata.get(f"{_KEY}merges") is None:
        return merges
    for number, merge in enumerate(_texts(metadata, "merges", where)):
        # A space that belongs to a token is written otherwise, but for one in front.
        cut = merge.find(" ", 1)
        if cut < 0:
            raise CheckpointError(
                f"{where}: {_KEY}merges[{number}] is {quote(merge)}, expected two tokens with a space between"
            )
        merges.append((merge[:cut], merge[cut + 1 :]))
    return merges


def _types(metadata: Mapping[str, Any], num_tokens: int, where: object) -> Sequence[int]:
    key = f"{_KEY}token_type"
    value = metadata.get(key)
    if value is None:
        return [0] * num_tokens
    if not isinstance(value, list) or len(value) != num_tokens:
        found = f"{len(value)} entries" if isinstance(value, list) else quote(value)
        raise CheckpointError(f"{where}: {key} is {found}, expected one for each of {num_tokens} tokens")
    return value


def _token_id(metadata: Mapping[str, Any], name: str, num_tokens: int, where: object) -> int | None:
    key = f"{_KEY}{name}_token_id"
    value = metadata.get(key)
    is_id = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < num_tokens
    if value is not None and not is_id:
        raise CheckpointError(f"{where}: {key} is {quote(value)}, expected a token below {num_tokens}")
    return value


def _template(metadata: Mapping[str, Any], where: object) -> str | None:
    value = metadata.get("tokenizer.chat_template")
    if value is None:
        return None
    if not isinstance(value, str):
        raise CheckpointError(f"{where}: tokenizer.chat_template is {quote(value)}, expected a text")
    if len(value.encode()) > MOST_TEMPLATE_BYTES:
        raise CheckpointError(
            f"{where}: tokenizer.chat_template is larger than {size(MOST_TEMPLATE_BYTES)}, expected less"
        )
    return value
