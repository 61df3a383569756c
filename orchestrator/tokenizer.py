"""A checkpoint's tokenizer, and decoding while tokens arrive."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from orchestrator import chat_template
from orchestrator.gguf_tokenizer import UnknownTokenizer, read_tokenizer
from placement.errors import CheckpointError, InputError
from placement.files.input_file import read_text
from placement.files.json_file import expect_object, read_json
from placement.files.quote import one_line, quote
from workers.formats.gguf.parts import GgufParts
from workers.formats.open_model import is_gguf

TOKENIZER_FILE = "tokenizer.json"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# The largest published tokenizer.json has some 30 MB.
MOST_TOKENIZER_BYTES = 256_000_000
MOST_SETTINGS_BYTES = 16_000_000
SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class Tokenizer:
    """Text to token ids and back.

    Args:
        add_bos_token: whether a text to continue begins with `bos_token` where the tokenizer's own
            post-processor puts nothing in front of it.
    """

    def __init__(
        self,
        fast: FastTokenizer,
        template: str | None,
        special: Mapping[str, str],
        *,
        add_bos_token: bool = False,
    ) -> None:
        # Settings for training in batches: a prompt is neither cut nor filled up.
        fast.no_truncation()
        fast.no_padding()
        self._fast = fast
        self._template = template
        self._special = dict(special)
        self._renderer = chat_template.Renderer()
        self._prefix = self._find_prefix(add_bos_token)

    @classmethod
    def load(cls, model: Path, metadata: Mapping[str, Any] | None = None) -> Tokenizer:
        """The tokenizer of a model's directory or GGUF file.

        A directory has it in tokenizer.json, tokenizer_config.json and, if there is one, chat_template.jinja.
        A GGUF file has it in its metadata; where it has none that is known, those files count if they lie
        beside it.

        Args:
            metadata: of the GGUF file, where somebody has read it already.

        Raises:
            UnknownTokenizer: the model has no tokenizer, or none that is known.
            CheckpointError: a file is not what its name says.
        """
        if not is_gguf(model):
            return cls._of_folder(model)
        folder = model.parent
        try:
            found = read_tokenizer(metadata or GgufParts.open(model).metadata, model)
        except UnknownTokenizer:
            if not os.path.lexists(folder / TOKENIZER_FILE):
                raise
            return cls._of_folder(folder)
        template = chat_template.find_template(folder, {}) if found.template is None else found.template
        try:
            return cls(found.fast, template, found.special, add_bos_token=found.begins_with_bos)
        except CheckpointError as error:
            raise CheckpointError(f"{model}: {error}") from error

    @classmethod
    def _of_folder(cls, folder: Path) -> Tokenizer:
        path = folder / TOKENIZER_FILE
        if not os.path.lexists(path):
            raise UnknownTokenizer(
                f"{folder} has no {TOKENIZER_FILE}, so it takes no text; expected a checkpoint with a "
                "tokenizer, or a prompt given as token ids"
            )
        text = read_text(
            path, CheckpointError, "a tokenizer file: download it again", most_bytes=MOST_TOKENIZER_BYTES
        )
        try:
            fast = FastTokenizer.from_str(text)
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(
                f"{path} is not a tokenizer file ({quote(str(error))}); download it again"
            ) from error
        settings_path = folder / "tokenizer_config.json"
        settings = _settings(settings_path)
        special = {}
        for name in SPECIAL_TOKENS:
            token = _token_text(settings.get(name))
            if token is not None:
                if not _is_unicode(token):
                    raise CheckpointError(f"{settings_path}: {name} is {quote(token)}, expected Unicode text")
                special[name] = token
        add_bos_token = settings.get("add_bos_token")
        if add_bos_token not in (None, True, False):
            raise CheckpointError(
                f"{settings_path}: add_bos_token is {quote(add_bos_token)}, expected true or false"
            )
        template = chat_template.find_template(folder, settings)
        try:
            return cls(fast, template, special, add_bos_token=add_bos_token is True)
        except CheckpointError as error:
            raise CheckpointError(f"{settings_path}: {error}") from error

    @property
    def vocab_size(self) -> int:
        """Tokens known, added ones included."""
        return int(self._fast.get_vocab_size())

    @property
    def template(self) -> str | None:
        """The chat template, if there is one."""
        return self._template

    def as_json(self) -> str:
        """As a tokenizer.json would have it."""
        return str(self._fast.to_str())

    def token_id(self, token: str) -> int | None:
        """Id of a token by its string, None if unknown."""
        found: int | None = self._fast.token_to_id(token)
        return found

    def encode(self, text: str) -> list[int]:
        """Token ids of text; special tokens written in it count as such, none is added.

        Raises:
            InputError: the text holds what no Unicode text can, such as bytes that are no UTF-8.
        """
        if not _is_unicode(text):
            raise InputError("the prompt holds bytes that are no UTF-8 text; expected UTF-8")
        try:
            return list(self._fast.encode(text, add_special_tokens=False).ids)
        except BaseException as error:
            # A pattern that takes too long makes Rust panic. That arrives here as no Exception.
            if type(error).__name__ != "PanicException":
                raise
            raise InputError(f"the tokenizer cannot take this text: {one_line(str(error))}") from None

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text to continue, after the tokens that every document of the model begins with.

        If the text begins with those tokens itself, they are not added a second time.

        Raises:
            InputError: as `encode`.
        """
        token_ids = self.encode(text)
        if token_ids[: len(self._prefix)] == self._prefix:
            return token_ids
        return self._prefix + token_ids

    def encode_chat(self, prompt: str, system: str | None = None) -> list[int]:
        """Token ids of a user's turn, after a system turn if there is one, up to where the answer begins.

        The template renders the token that documents begin with, so none is added.

        Raises:
            InputError: there is no template, it fails, or a text is no Unicode.
        """
        messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        for message in messages:
            if not _is_unicode(message["content"]):
                raise InputError(f"the {message['role']} text holds bytes that are no UTF-8; expected UTF-8")
        return self.encode(self.chat_prompt(messages))

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of token ids; bytes that are not UTF-8 become replacement characters."""
        return str(self._fast.decode(list(token_ids), skip_special_tokens=skip_special))

    def chat_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Render the checkpoint's chat template, up to where the model answers.

        Raises:
            InputError: there is no template, or it refuses the messages.
        """
        if self._template is None:
            raise InputError(
                "this checkpoint has no chat template; expected one in chat_template.jinja, "
                "tokenizer_config.json or the GGUF file, or a prompt without --chat"
            )
        text = self._renderer.render(self._template, messages, tools, self._special)
        if not _is_unicode(text):
            raise InputError("the chat template gives text that is no Unicode")
        return text

    def _find_prefix(self, add_bos_token: bool) -> list[int]:
        """Tokens that stand in front of every document.

        Raises:
            CheckpointError: `add_bos_token` without a `bos_token` that the tokenizer knows.
        """
        # What the post-processor adds belongs to no sequence. What it adds behind the text is left out,
        # because the text goes on.
        encoded = self._fast.encode("The 1 的.", add_special_tokens=True)
        added = [sequence is None for sequence in encoded.sequence_ids]
        length = added.index(False) if False in added else 0
        if length or not add_bos_token:
            return list(encoded.ids[:length])
        token = self._special.get("bos_token")
        token_id = self.token_id(token) if token is not None else None
        if token_id is None:
            raise CheckpointError(
                f"add_bos_token is true, but bos_token is {quote(token)}, expected a token of the tokenizer"
            )
        return [token_id]


class StreamDecoder:
    """Decodes tokens as they come, holding back a character whose bytes are not all there."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        # Text is decoded from a little before what is new: some decoders treat the first token differently.
        self._context: list[int] = []
        self._waiting: list[int] = []

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that became complete with these tokens; may be empty."""
        complete = ""
        for token_id in token_ids:
            self._waiting.append(token_id)
            text = self._new_text()
            if not text.endswith(REPLACEMENT):
                complete += text
                self._context, self._waiting = self._waiting, []
        return complete

    def finish(self) -> str:
        """What is still held back, incomplete characters as replacement characters."""
        text = self._new_text()
        self._context, self._waiting = [], []
        return text

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._context, skip_special=self._skip_special)
        both = self._tokenizer.decode(self._context + self._waiting, skip_special=self._skip_special)
        return both[len(before) :]


def _settings(path: Path) -> dict[str, Any]:
    """The content of tokenizer_config.json, nothing where there is no such file."""
    if not os.path.lexists(path):
        return {}
    expected = "the JSON object of a tokenizer's settings: download it again"
    return expect_object(
        read_json(path, CheckpointError, expected, most_bytes=MOST_SETTINGS_BYTES), CheckpointError, str(path)
    )


def _token_text(token: object) -> str | None:
    """A special token's text; files hold a string or an object with the string in `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: lone surrogates stand for bytes that could not be read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
