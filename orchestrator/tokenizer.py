"""A checkpoint's tokenizer and chat template, and decoding while tokens arrive."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as FastTokenizer

from placement.errors import CheckpointError, InputError

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """Text to token ids and back."""

    def __init__(
        self,
        fast: FastTokenizer,
        chat_template: str | None,
        special: Mapping[str, str],
        *,
        add_bos_token: bool = False,
    ) -> None:
        self._fast = fast
        self._chat_template = chat_template
        self._special = dict(special)
        self._prefix = (
            [self.token_id(special["bos_token"])] if add_bos_token and "bos_token" in special else []
        )

    @classmethod
    def load(cls, model_dir: Path) -> Tokenizer:
        """Read tokenizer.json, tokenizer_config.json and, if there is one, chat_template.jinja.

        Raises:
            InputError: the checkpoint has no tokenizer.
            CheckpointError: a file is not what its name says.
        """
        path = model_dir / "tokenizer.json"
        if not path.is_file():
            raise InputError(
                f"{model_dir} has no tokenizer.json, so it takes no text; expected a checkpoint with a "
                "tokenizer, or a prompt given as token ids"
            )
        try:
            fast = FastTokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise CheckpointError(f"{path} is not a tokenizer file ({error}); download it again") from error
        settings = _settings(model_dir / "tokenizer_config.json")
        template_path = model_dir / "chat_template.jinja"
        template = template_path.read_text() if template_path.is_file() else _template(settings)
        special = {
            name: text
            for name in ("bos_token", "eos_token", "pad_token", "unk_token")
            if (text := _token_text(settings.get(name))) is not None
        }
        return cls(fast, template, special, add_bos_token=settings.get("add_bos_token") is True)

    @property
    def vocab_size(self) -> int:
        """Tokens known, added ones included."""
        return int(self._fast.get_vocab_size())

    def token_id(self, token: str) -> int | None:
        """Id of a token by its string, None if unknown."""
        found: int | None = self._fast.token_to_id(token)
        return found

    def encode(self, text: str) -> list[int]:
        """Token ids of text; special tokens written in it count as such, none is added."""
        return list(self._fast.encode(text, add_special_tokens=False).ids)

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text to continue, behind the token every document of the model begins with."""
        return [token_id for token_id in self._prefix if token_id is not None] + self.encode(text)

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of token ids; bytes that are not UTF-8 become replacement characters."""
        return str(self._fast.decode(list(token_ids), skip_special_tokens=skip_special))

    def chat_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Render the checkpoint's chat template.

        Raises:
            InputError: there is no template, or it refuses the messages.
        """
        if self._chat_template is None:
            raise InputError("this checkpoint has no chat template; expected one in tokenizer_config.json")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        try:
            return environment.from_string(self._chat_template).render(
                messages=messages, tools=tools, add_generation_prompt=add_generation_prompt, **self._special
            )
        except jinja2.TemplateError as error:
            raise InputError(f"the chat template refuses these messages: {error}") from error


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
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); download it again") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} holds a {type(settings).__name__}; expected a JSON object")
    return settings


def _template(settings: Mapping[str, Any]) -> str | None:
    """The chat template, a string or a list of named ones of which "default" is meant."""
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _token_text(token: object) -> str | None:
    """A special token's text; files hold a string or an object with the string in `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters, which models were not trained on. The arguments are those
    # that published templates pass.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
