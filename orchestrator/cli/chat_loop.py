"""A chat line by line: messages go to the server, commands are done here."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from orchestrator.chat.chunks import Piece
from orchestrator.chat.commands import HELP, Command, read_line
from orchestrator.chat.connection import Server
from orchestrator.chat.figures import Summary, summary
from orchestrator.chat.session import Answer, Session
from orchestrator.cli.chat_screen import Screen
from orchestrator.cli.output import errors, print_error, print_note, share, table
from placement.errors import PotluckError
from placement.files.atomic import replacing


def converse(session: Session, server: Server, lines: Iterable[str], screen: Screen) -> Session:
    """Do what the lines say, to `/quit` or their end.

    On a terminal a mistake is told and the chat goes on, since whoever sits there can do better.

    Raises:
        PotluckError: a mistake, or what the server says, where there is no terminal.
    """
    for line in lines:
        try:
            asked = read_line(line)
            if asked is None:
                continue
            if not isinstance(asked, Command):
                session = _ask(session, server, asked.text, screen)
            elif asked.name == "quit":
                break
            else:
                session = _do(session, asked)
        except PotluckError as error:
            if not screen.is_terminal:
                raise
            print_error(str(error))
        except KeyboardInterrupt:
            print_note("stopped")
    return session


def _ask(session: Session, server: Server, question: str, screen: Screen) -> Session:
    """The session with the answer. Ctrl-C on a terminal stops it, and what came is kept."""
    answer = Answer(time.monotonic())
    was_stopped = False
    try:
        with closing(server.answer(session.request(question))) as said:
            for one in said:
                answer.take(one, time.monotonic())
                if isinstance(one, Piece):
                    screen.show(one)
    except KeyboardInterrupt:
        was_stopped = True
    finally:
        screen.end()
    if was_stopped and answer.first_s is None:
        print_note("stopped before anything came: the question is forgotten")
        return session
    if was_stopped:
        print_note("stopped; what came is kept")
    else:
        for note in _notes(answer, session.wishes.max_tokens):
            print_note(note)
    return session.answered(question, answer)


def _notes(answer: Answer, max_tokens: int | None) -> Iterator[str]:
    """What its text does not show: why it was cut, and where it has gone if there is none."""
    written = None if answer.tokens is None else answer.tokens.completion
    if answer.why == "length":
        is_wish = max_tokens is not None and (written is None or written >= max_tokens)
        yield f"cut at --max-tokens {max_tokens}" if is_wish else "cut at the server's limit"
    elif answer.why not in ("stop", None):
        yield f"the answer was cut: {answer.why}"
    if answer.text:
        return
    if answer.reasoning:
        whole = "all of it was" if written is None else f"all {written:,} tokens were"
        yield f"the answer is empty: {whole} reasoning; try --reasoning-tokens 0"
    else:
        yield "the answer is empty"


def _do(session: Session, command: Command) -> Session:
    """What is said here goes to standard error, so that standard output has answers alone."""
    if command.name == "reset":
        print_note("forgotten; the next message begins anew")
        return session.reset()
    if command.name == "system":
        print_note("system text changed" if command.text else "system text removed")
        return session.with_system(command.text)
    if command.name == "save":
        _save(session, Path(command.text))
        print_note(f"{command.text}: {len(session.turns)} messages written")
    elif command.name == "stats":
        _show_stats(session)
    else:
        rows = [[f"/{name} {text}".strip(), what] for name, (text, what) in HELP.items()]
        width = max(len(row[0]) for row in rows)
        print_note("\n".join(f"{name:<{width}}  {what}" for name, what in rows))
        print_note("Ctrl-C stops an answer; a message that begins with / is written with //")
    return session


def _save(session: Session, path: Path) -> None:
    """Raises InputError where it cannot be written."""
    text = json.dumps(session.document(), ensure_ascii=False, indent=2)
    with replacing(path) as file:
        file.write(text.encode("utf-8", "replace") + b"\n")


def _show_stats(session: Session) -> None:
    if not session.answers:
        print_note("no answers so far")
        return
    last, whole = summary(session.answers[-1:]), summary(session.answers)
    rows = list(zip(_NAMES, _cells(last), _cells(whole), strict=True))
    if whole.accepted_share is None:
        # A server without MTP layers drafts nothing, so there is nothing to say of drafts.
        rows.pop()
    errors.print(table(session.model, ["", "last", "all"], rows))


_NAMES = (
    "answers",
    "tokens/s",
    "s to the first",
    "tokens written",
    "of these reasoning",
    "tokens read",
    "of these cached",
    "MTP drafts that held",
)


def _cells(figures: Summary) -> list[str]:
    """ "-" for what the server did not tell, as of answers that were stopped."""
    rate, wait_s, held = figures.tokens_per_s, figures.wait_s, figures.accepted_share
    counts = [
        figures.completion_tokens,
        figures.reasoning_tokens,
        figures.prompt_tokens,
        figures.cached_tokens,
    ]
    return [
        f"{figures.answers:,}",
        "-" if rate is None else f"{rate:.1f}",
        "-" if wait_s is None else f"{wait_s:.2f}",
        *(f"{count:,}" if figures.told else "-" for count in counts),
        "-" if held is None else share(held),
    ]
