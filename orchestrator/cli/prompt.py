"""What a run continues: text or token ids, from a command line or standard input."""

from __future__ import annotations

import sys

from orchestrator.gguf_tokenizer import UnknownTokenizer
from orchestrator.tokenizer import Tokenizer
from placement.errors import InputError
from placement.files.input_file import decode_text
from placement.files.quote import quote
from placement.units import size
from workers.formats.open_model import OpenModel

# Far more text than any model's positions hold.
MOST_PROMPT_BYTES = 16_000_000


def load_tokenizer(model: OpenModel, *, needed: bool) -> Tokenizer | None:
    """A checkpoint without a tokenizer that is known still takes and gives ids: None, if not `needed`."""
    try:
        return Tokenizer.load(model.path, model.checkpoint.metadata)
    except UnknownTokenizer:
        if needed:
            raise
        return None


def check_prompt_options(
    prompt: str | None, token_ids: str | None, *, chat: bool, system: str | None
) -> None:
    if (prompt is None) == (token_ids is None):
        raise InputError("expected either --prompt TEXT or --token-ids 1,2,3")
    if chat and prompt is None:
        raise InputError("--chat asks a text; expected it with --prompt TEXT, not with --token-ids")
    if system is not None and not chat:
        raise InputError("--system stands before a user's turn; expected it with --chat")


def ids_of(token_ids: str) -> list[int]:
    try:
        return [int(part) for part in token_ids.split(",")]
    except ValueError:
        raise InputError(
            f"--token-ids {quote(token_ids)}: expected whole numbers with commas, 1,2,3"
        ) from None


def encoded(prompt: str | None, tokenizer: Tokenizer | None, *, chat: bool, system: str | None) -> list[int]:
    assert prompt is not None
    assert tokenizer is not None
    text = _standard_input() if prompt == "-" else prompt
    if not text:
        raise InputError("--prompt: expected some text, found none")
    return tokenizer.encode_chat(text, system) if chat else tokenizer.encode_prompt(text)


def _standard_input() -> str:
    if sys.stdin is None:
        raise InputError("--prompt -: standard input is closed; expected text")
    try:
        content = sys.stdin.buffer.read(MOST_PROMPT_BYTES + 1)
    except OSError as error:
        raise InputError(f"--prompt -: {error.strerror}; expected text on standard input") from error
    if len(content) > MOST_PROMPT_BYTES:
        raise InputError(f"--prompt -: more than {size(MOST_PROMPT_BYTES)}; expected a prompt")
    return decode_text(content, InputError, "--prompt -", "a prompt")
