"""A checkpoint's chat template: found in its files, rendered within bounds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from placement.errors import CheckpointError, InputError
from placement.files.input_file import read_text
from placement.files.quote import one_line, quote
from placement.units import size

TEMPLATE_FILE = "chat_template.jinja"
MOST_TEMPLATE_BYTES = 1_000_000
CPU_S = 5
MEMORY_BYTES = 2**29
MOST_CHARACTERS = 4_000_000
# CPU time is what counts; this ends a template that waits.
WALL_S = 120


def find_template(model_dir: Path, settings: Mapping[str, Any]) -> str | None:
    """The template of chat_template.jinja, or else of tokenizer_config.json; None where there is none.

    Args:
        settings: the content of tokenizer_config.json. Its `chat_template` is a text, or a list of named ones
            of which "default" is meant.

    Raises:
        CheckpointError: the template is no text.
    """
    path = model_dir / TEMPLATE_FILE
    if os.path.lexists(path):
        return read_text(path, CheckpointError, "a chat template", most_bytes=MOST_TEMPLATE_BYTES)
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if template is not None and not isinstance(template, str):
        raise CheckpointError(
            f"{model_dir / 'tokenizer_config.json'}: chat_template is {quote(template)}, expected a text"
        )
    return template


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    special: Mapping[str, str],
    *,
    cpu_s: int = CPU_S,
    memory_bytes: int = MEMORY_BYTES,
    most_characters: int = MOST_CHARACTERS,
) -> str:
    """The text of a conversation up to where the model answers.

    A process of its own makes it, which may take so much time and memory.

    Args:
        messages, tools: plain JSON values.
        special: `bos_token` and the like, as templates use them.

    Raises:
        InputError: the template refuses the messages, fails, or takes too much.
    """
    conversation = {"messages": messages, "tools": tools, "add_generation_prompt": True}
    request = {
        "template": template,
        "variables": {**conversation, **special},
        "cpu_s": cpu_s,
        "memory_bytes": memory_bytes,
        "most_characters": most_characters,
    }
    # By its path, and without that folder among the places to import from: our modules do not load.
    program = str(Path(__file__).with_name("chat_renderer.py"))
    try:
        done = subprocess.run(
            [sys.executable, "-P", program],
            input=json.dumps(request).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=WALL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"the chat template takes longer than {WALL_S} s") from None
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise InputError(f"the chat template takes more than {cpu_s} s of computing")
    if done.returncode != 0:
        raise InputError(
            "the chat template takes down its renderer; it nests too deeply or takes too much memory"
        )
    answer: dict[str, str] = json.loads(done.stdout)
    if "memory" in answer:
        raise InputError(f"the chat template takes more than {size(memory_bytes)} of memory")
    if "error" in answer:
        raise InputError(f"the chat template refuses these messages or fails: {one_line(answer['error'])}")
    return answer["text"]
