"""Pickles of plain data, read without running anything.

Python's unpickler imports and calls whatever a pickle names. This interpreter knows the opcodes for None,
numbers, text, lists, dicts and tuples; what a pickle names stays a name, and a call is a question to the
caller. Every other opcode is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from placement.files.quote import quote

# Each takes some fifty bytes of memory; a recorder's dump of 10,000 passes has some 500,000.
_MOST_OPCODES = 2_000_000


@dataclass(frozen=True, slots=True)
class Name:
    """A global that a pickle mentions, as "module name"."""

    text: str


class RefusedError(Exception):
    """A pickle asks for something that plain data does not need, or is not well formed."""


def interpret(
    pickled: bytes,
    *,
    names: Collection[str],
    call: Callable[[str, Any], Any],
    persistent: Callable[[Any], Any],
) -> Any:
    """The object that a pickle describes; Python's pickletools documents the opcodes.

    Args:
        names: globals that the pickle may mention, as "module name". They are never looked up.
        call: given such a name and the arguments the pickle calls it with, returns the result.
        persistent: given a persistent id, returns the object.

    Raises:
        RefusedError: an opcode or name that is not allowed, or a pickle that is not well formed.
        ValueError: cut off.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop() -> Any:
        if not stack or (marks and len(stack) <= marks[-1]):
            raise RefusedError("pickle: takes more than it put on the stack")
        return stack.pop()

    def pop_to_mark() -> list[Any]:
        if not marks:
            raise RefusedError("pickle: no mark on the stack")
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def top(kind: type) -> Any:
        if not stack or type(stack[-1]) is not kind:
            raise RefusedError(f"pickle: expected a {kind.__name__} on the stack")
        return stack[-1]

    def remembered(key: Any) -> Any:
        if key not in memo:
            raise RefusedError("pickle: recalls what it did not memoize")
        return memo[key]

    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if count > _MOST_OPCODES:
            raise RefusedError(f"pickle: more than {_MOST_OPCODES:,} opcodes")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return pop()
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1":
                stack.append((pop(),))
            case "TUPLE2":
                second = pop()
                stack.append((pop(), second))
            case "TUPLE3":
                third, second = pop(), pop()
                stack.append((pop(), second, third))
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "APPEND":
                item = pop()
                top(list).append(item)
            case "APPENDS":
                items = pop_to_mark()
                top(list).extend(items)
            case "SETITEM":
                value, key = pop(), pop()
                _set_items(top(dict), [key, value])
            case "SETITEMS":
                items = pop_to_mark()
                _set_items(top(dict), items)
            case "BINPUT" | "LONG_BINPUT":
                item = pop()
                stack.append(item)
                memo[int(argument or 0)] = item
            case "MEMOIZE":
                item = pop()
                stack.append(item)
                memo[len(memo)] = item
            case "BINGET" | "LONG_BINGET":
                stack.append(remembered(argument))
            case "GLOBAL":
                if argument not in names:
                    raise RefusedError(f"names {quote(argument)}, which plain data do not need; refused")
                stack.append(Name(str(argument)))
            case "BINPERSID":
                stack.append(persistent(pop()))
            case "REDUCE":
                arguments, function = pop(), pop()
                if not isinstance(function, Name):
                    raise RefusedError("pickle: calls what is not a function")
                stack.append(call(function.text, arguments))
            case _:
                raise RefusedError(f"pickle opcode {opcode.name}, which plain data do not need; refused")
    raise RefusedError("pickle: ends without STOP")


def _set_items(target: dict[Any, Any], items: list[Any]) -> None:
    keys = items[::2]
    if len(items) % 2 or not all(isinstance(key, str | int) for key in keys):
        raise RefusedError("pickle: expected a dict with text or whole numbers as keys")
    target.update(zip(keys, items[1::2], strict=True))
