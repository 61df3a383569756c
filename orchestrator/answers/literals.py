"""Values as models write them: JSON, or Python's literals, or a mixture of both."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

MOST_DEPTH = 64
"""Lists and objects within each other."""

_BLANK = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_WORD = re.compile(r"[A-Za-z]+")
_PLAIN = re.compile(r"[^\\\"']+")
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "/": "/", "\\": "\\", "'": "'", '"': '"'}
_CLOSING = {"[": "]", "(": ")", "{": "}"}


def parse_literal(text: str) -> Any:
    """A value written as JSON or as a literal of Python, of kinds that JSON has.

    Raises:
        ValueError: it is neither, nests too deeply, has a number that is not finite, or a text that is no
            Unicode.
    """
    try:
        value = json.loads(text, parse_constant=_not_finite, parse_float=_finite)
    except (ValueError, RecursionError):
        value = _Reader(text).read()
    if text.count("[") + text.count("{") > MOST_DEPTH:
        _check_depth(value, 0)
    # A surrogate alone can be written as an escape, but no answer can carry it.
    json.dumps(value, ensure_ascii=False).encode()
    return value


def _check_depth(value: Any, depth: int) -> None:
    if depth > MOST_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_depth(inner, depth + 1)


def _not_finite(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _not_finite(text)
    return value


class _Reader:
    """Reads one value, what is JSON in it and what is Python."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def read(self) -> Any:
        value = self._value(0)
        self._skip_blank()
        if self._at != len(self._text):
            raise ValueError("text after the value")
        return value

    def _value(self, depth: int) -> Any:
        self._skip_blank()
        if depth > MOST_DEPTH:
            raise ValueError("nested too deeply")
        character = self._text[self._at : self._at + 1]
        if character == "{":
            return self._object(depth)
        if character in ("[", "("):
            return self._list(depth)
        if character in ('"', "'"):
            return self._string()
        if word := _WORD.match(self._text, self._at):
            self._at = word.end()
            if word.group() not in _WORDS:
                raise ValueError("a word that is no value")
            return _WORDS[word.group()]
        return self._number()

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self._at += 1
        while not self._takes("}"):
            key = self._value(depth + 1)
            if not isinstance(key, str) or not self._takes(":"):
                raise ValueError("expected a text and a colon")
            found[key] = self._value(depth + 1)
            if not self._takes(","):
                self._expect("}")
                break
        return found

    def _list(self, depth: int) -> list[Any]:
        closing = _CLOSING[self._text[self._at]]
        found: list[Any] = []
        self._at += 1
        while not self._takes(closing):
            found.append(self._value(depth + 1))
            if not self._takes(","):
                self._expect(closing)
                break
        return found

    def _string(self) -> str:
        quote = self._text[self._at]
        pieces: list[str] = []
        self._at += 1
        while True:
            if plain := _PLAIN.match(self._text, self._at):
                pieces.append(plain.group())
                self._at = plain.end()
            character = self._text[self._at : self._at + 1]
            self._at += 1
            if character == quote:
                return "".join(pieces)
            if character == "":
                raise ValueError("a text without its end")
            pieces.append(self._escape() if character == "\\" else character)

    def _escape(self) -> str:
        character = self._text[self._at : self._at + 1]
        self._at += 1
        digits = {"u": 4, "x": 2}.get(character)
        if digits is None:
            if character not in _ESCAPES:
                raise ValueError("an escape that is not known")
            return _ESCAPES[character]
        code = self._text[self._at : self._at + digits]
        if not re.fullmatch(f"[0-9a-fA-F]{{{digits}}}", code):
            raise ValueError("an escape without its digits")
        self._at += digits
        return chr(int(code, 16))

    def _number(self) -> int | float:
        number = _NUMBER.match(self._text, self._at)
        if number is None:
            raise ValueError("no value")
        self._at = number.end()
        text = number.group()
        return int(text) if text.lstrip("+-").isdigit() else _finite(text)

    def _takes(self, character: str) -> bool:
        self._skip_blank()
        if not self._text.startswith(character, self._at):
            return False
        self._at += 1
        return True

    def _expect(self, character: str) -> None:
        if not self._takes(character):
            raise ValueError(f"expected {character}")

    def _skip_blank(self) -> None:
        blank = _BLANK.match(self._text, self._at)
        assert blank is not None
        self._at = blank.end()
