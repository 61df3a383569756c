"""Requests become token ids, and what their answers are read and bound by."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.answers.held_calls import HeldCalls
from orchestrator.answers.held_tools import HeldTool, ToolError, held_tools
from orchestrator.answers.history import clean
from orchestrator.answers.output_form import FormMatcher, OutputForms
from orchestrator.answers.parser import Parser, choose_parser
from orchestrator.answers.reasoning_budget import END_TEXT, HINT_TEXT, BudgetTokens
from orchestrator.answers.tagged_parser import TaggedParser
from orchestrator.answers.tags import END_OF_THINK, TOOL_CALL
from orchestrator.serving.answer import Refused
from orchestrator.serving.request import Conversation, GenerationRequest, OutputForm
from orchestrator.tokenizer import Tokenizer
from placement.errors import InputError
from placement.files.quote import quote

_TURN = "<|im_start|>"
_FUNCTION = "\n<function="


_Rendered = tuple[str, tuple[int, ...], Conversation | None]
"""A text as the model sees it, its tokens, and the conversation as the template was given it."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a request asks the model, in tokens.

    Attributes:
        parser: of the answer.
        turn_begins: the length of the prompt before the header of the answer's turn; the whole length where
            there is none. Later turns of the conversation have it in common.
        form: what the answer must look like.
        held: what its calls must look like; None where they are free.
        begun: the prompt's last tokens, which begin the answer: the end of reasoning, a call's first words.
        forced: tokens that come once reasoning has ended, such as a call's.
    """

    token_ids: tuple[int, ...]
    parser: Parser
    turn_begins: int
    form: FormMatcher | None = None
    begun: tuple[int, ...] = ()
    forced: tuple[int, ...] = ()
    held: HeldCalls | None = None

    @property
    def is_bound(self) -> bool:
        """Whether `allowed` may ever leave out a token."""
        return self.form is not None or self.held is not None

    def allowed(self, drafts: Sequence[int]) -> Sequence[NDArray[np.uint32] | None]:
        """See `FormMatcher.allowed`. Where a call's name is held to the form, that says all."""
        if self.held is None:
            return [] if self.form is None else self.form.allowed(drafts)
        held = self.held.allowed(drafts)
        if self.form is None:
            return held
        rows = zip(self.form.allowed(drafts), held, strict=True)
        return [in_call if row is None else row for row, in_call in rows]


class Prompts:
    """Makes prompts for one model."""

    def __init__(self, tokenizer: Tokenizer, vocab: int, end_ids: Sequence[int]) -> None:
        """`vocab`: logits of a row."""
        self._tokenizer = tokenizer
        self._vocab = vocab
        self._end_ids = tuple(end_ids)
        self._forms: OutputForms | None = None
        self._turn_id = tokenizer.token_id(_TURN)
        self.budget_tokens = _budget_tokens(tokenizer)
        """The texts of a reasoning budget as tokens."""

    def of(self, request: GenerationRequest, call_prefix: str) -> Prompt:
        """A request's prompt; see `of_all`."""
        return self._of(request, call_prefix, {})

    def of_all(self, requests: Sequence[GenerationRequest], call_prefixes: Sequence[str]) -> list[Prompt]:
        """Prompts of several answers to one client; may take seconds for long texts and unusual grammars.

        Answers to the same prompt have it rendered and tokenized once.

        Args:
            call_prefixes: with what the ids of each answer's calls begin.

        Raises:
            Refused: "invalid": what is wrong with one of them.
        """
        known: dict[int, _Rendered] = {}
        return [self._of(*each, known) for each in zip(requests, call_prefixes, strict=True)]

    def _of(self, request: GenerationRequest, call_prefix: str, known: dict[int, _Rendered]) -> Prompt:
        """`known`: what is rendered already, by the prompt's id."""
        with _refusing("logit_bias"):
            request.sampling.check_tokens(self._vocab)
        if request.output is not None and request.ignore_eos:
            words = "ignore_eos with a form of the answer: it ends where its form does; leave one out"
            raise Refused("invalid", words, field="ignore_eos")
        rendered = known.get(id(request.prompt))
        if rendered is None:
            with _refusing("prompt"):
                rendered = known[id(request.prompt)] = self._rendered(request.prompt)
        text, token_ids, chat = rendered
        tools = chat.tools if chat is not None else ()
        template = self._tokenizer.template if chat is not None else None
        with _refusing("tools"):
            bound = held_tools(tools, chat.inputs) if chat is not None else {}
        parser = choose_parser(template, text, tools, call_prefix, bound)
        with _refusing("output"):
            form = self._form(request, parser)
        # An answer that has a form has no calls.
        with _refusing("tools"):
            held = self._held(parser, bound) if bound and form is None else None
        forced: tuple[int, ...] = ()
        with _refusing("tool_choice"):
            if chat is not None and (names := _called(chat)):
                if form is not None:
                    raise InputError("tool_choice asks for a call, and the form for an answer: leave one out")
                forced = self._forced(names)
                form = self._one_of(names)
        begun: tuple[int, ...] = ()
        if parser.in_reasoning and request.reasoning_tokens == 0:
            begun = self.budget_tokens.end
        if begun or not parser.in_reasoning:
            begun, forced = (*begun, *forced), ()
        turn_begins = self._turn_begins(token_ids, chat)
        return Prompt((*token_ids, *begun), parser, turn_begins, form, begun, forced, held)

    def count(self, prompt: Conversation | str | Sequence[int]) -> int:
        """Tokens of a prompt; raises Refused."""
        with _refusing("prompt"):
            return len(self._rendered(prompt)[1])

    def _rendered(self, prompt: Conversation | str | Sequence[int]) -> _Rendered:
        if isinstance(prompt, str):
            return prompt, tuple(self._tokenizer.encode_prompt(prompt)), None
        if not isinstance(prompt, Conversation):
            self._check(prompt)
            return "", tuple(prompt), None
        chat = clean(prompt)
        if chat.tool_choice == "none":
            chat = Conversation(chat.messages, (), "none")
        text = self._tokenizer.chat_prompt(chat.messages, tools=chat.tools or None)
        return text, tuple(self._tokenizer.encode(text)), chat

    def _check(self, token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            if not 0 <= token_id < self._vocab:
                raise InputError(
                    f"token {token_id} is not in the vocabulary; expected 0 to {self._vocab - 1}"
                )

    def _form(self, request: GenerationRequest, parser: Parser) -> FormMatcher | None:
        if request.output is None:
            return None
        begins_after = None
        if parser.in_reasoning:
            end = self._tokenizer.encode(END_OF_THINK)
            if len(end) != 1:
                raise InputError(
                    "this model writes the end of reasoning in several tokens, so no form can begin there; "
                    "ask for a form in a completion"
                )
            begins_after = end[0]
        return self._made_forms().matcher(request.output, begins_after)

    def _held(self, parser: Parser, tools: Mapping[str, HeldTool]) -> HeldCalls | None:
        """Where the model's calls are read at all."""
        if not isinstance(parser, TaggedParser):
            return None
        return HeldCalls(parser, tools, self._made_forms(), self._tokenizer, self._end_ids)

    def _forced(self, names: Sequence[str]) -> tuple[int, ...]:
        """What a call of one of these tools begins with."""
        name = f"{names[0]}>\n" if len(names) == 1 else ""
        return tuple(self._tokenizer.encode(f"{TOOL_CALL}{_FUNCTION}{name}"))

    def _one_of(self, names: Sequence[str]) -> FormMatcher | None:
        """Holds a call's name to these, where it is not forced."""
        begins = self._tokenizer.encode(TOOL_CALL)
        if len(names) == 1 or len(begins) != 1:
            return None
        name = "|".join(map(re.escape, names))
        return self._made_forms().matcher(
            OutputForm("regex", f"{_FUNCTION}({name})>\n"), begins[0], then_free=True
        )

    def _made_forms(self) -> OutputForms:
        """Made when they are wanted: a large vocabulary takes a second."""
        if self._forms is None:
            self._forms = OutputForms(self._tokenizer, self._vocab, self._end_ids)
        return self._forms

    def _turn_begins(self, token_ids: Sequence[int], chat: Conversation | None) -> int:
        if chat is not None and self._turn_id in token_ids:
            return len(token_ids) - 1 - token_ids[::-1].index(self._turn_id)
        return len(token_ids)


@contextmanager
def _refusing(field: str) -> Iterator[None]:
    """Refuse the request for what is wrong with this field of it."""
    try:
        yield
    except ToolError as error:
        raise Refused("invalid", str(error), field=f"tools.{error.tool}") from error
    except InputError as error:
        raise Refused("invalid", str(error), field=field) from error


def has_form(request: GenerationRequest) -> bool:
    """Whether a form has to be compiled for it, which may take seconds."""
    chat = request.prompt
    if request.output is not None or not isinstance(chat, Conversation):
        return request.output is not None
    return bool(chat.inputs) or any(tool.get("function", {}).get("strict") is True for tool in chat.tools)


def _budget_tokens(tokenizer: Tokenizer) -> BudgetTokens:
    texts = (END_TEXT, HINT_TEXT, END_OF_THINK, TOOL_CALL)
    end, hint, *ends = (tuple(tokenizer.encode(text)) for text in texts)
    return BudgetTokens(end, hint, tuple(ends))


def _called(chat: Conversation) -> list[str]:
    """Names of the tools of which one has to be called; none where none has to."""
    if chat.tool_choice in ("auto", "none") or not chat.tools:
        return []
    names = [str(tool.get("function", {}).get("name")) for tool in chat.tools]
    if chat.tool_choice == "required":
        return names
    if chat.tool_choice not in names:
        raise InputError(f"tool_choice names {quote(chat.tool_choice)}, which is none of the tools")
    return [chat.tool_choice]
