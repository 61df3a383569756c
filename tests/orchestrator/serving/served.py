"""Requests on the shipped model, without threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from orchestrator.model.mtp import MtpDrafter
from orchestrator.model.step35 import Step35Model
from orchestrator.sampling_params import GREEDY, SamplingParams
from orchestrator.scheduler import Scheduler
from orchestrator.scheduling.kv_budget import KvBudget
from orchestrator.scheduling.limits import Limits
from orchestrator.scheduling.native import MeasuredCosts
from orchestrator.serving.answer import (
    AnswerEvent,
    CallArguments,
    CallEnded,
    Finished,
    Reasoning,
    Refused,
    Started,
    Text,
)
from orchestrator.serving.prompts import Prompts
from orchestrator.serving.request import Conversation, GenerationRequest
from orchestrator.serving.runner import Asked, Runner
from orchestrator.session import load_local
from orchestrator.tokenizer import Tokenizer
from placement.pass_costs import costs_of_reading
from workers.formats.open_model import open_model

MODEL = Path(__file__).parents[3] / "models" / "potluck-tiny"
NO_REASONING = 0
TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
        },
    },
)


def load() -> Step35Model:
    return load_local(open_model(MODEL), torch.bfloat16)


@dataclass(slots=True)
class Answer:
    """What a request was told."""

    events: list[AnswerEvent] = field(default_factory=list)
    refused: Refused | None = None

    def take(self, event: AnswerEvent | Refused) -> None:
        assert self.end is None
        if isinstance(event, Refused):
            self.refused = event
        else:
            assert self.events or isinstance(event, Started)
            self.events.append(event)

    @property
    def end(self) -> Finished | None:
        last = self.events[-1] if self.events else None
        return last if isinstance(last, Finished) else None

    @property
    def started(self) -> Started:
        (found,) = (event for event in self.events if isinstance(event, Started))
        return found

    def text(self, kind: type[Text] | type[Reasoning] = Text) -> str:
        return "".join(event.text for event in self.events if isinstance(event, kind))

    @property
    def calls(self) -> list[dict[str, Any]]:
        return [dict(event.arguments) for event in self.events if isinstance(event, CallEnded)]

    @property
    def arguments(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, CallArguments))


class Served:
    """A runner on a virtual clock."""

    def __init__(self, model: Step35Model, *, mtp: int = 3, limits: Limits | None = None) -> None:
        self.model = model
        self.now_s = 0.0
        self.is_whole = True
        self.tokenizer = Tokenizer.load(MODEL)
        self.prompts = Prompts(self.tokenizer, model.config.vocab_size, model.config.eos_token_ids)
        limits = limits or Limits(2048)
        costs = MeasuredCosts(costs_of_reading(model.config.shape(""), 16.0))
        kv = KvBudget(tuple(model.kv_sizes(mtp)), limits.pass_rows)
        self.runner = Runner(
            model,
            MtpDrafter(model, mtp) if mtp else None,
            self.tokenizer,
            self.prompts.budget_tokens,
            Scheduler(limits, kv, costs, mtp),
            self._clock,
            lambda: self.is_whole,
        )
        self._number = 0

    def _clock(self) -> float:
        self.now_s += 0.001
        return self.now_s

    def submit(self, request: GenerationRequest) -> Answer:
        (answer,) = self.submit_all(request)
        return answer

    def submit_all(self, *requests: GenerationRequest) -> list[Answer]:
        """Of one client, at once."""
        answers, asked = [], []
        for request in requests:
            answers.append(Answer())
            prompt = self.prompts.of(request, f"call_{self._number}_")
            asked.append(Asked(self._number, request, prompt, answers[-1].take))
            self._number += 1
        try:
            self.runner.submit(asked)
        except Refused as refusal:
            for answer in answers:
                answer.take(refusal)
        return answers

    def run(self, *requests: GenerationRequest, most_turns: int = 2000) -> list[Answer]:
        answers = [self.submit(request) for request in requests]
        for _ in range(most_turns):
            if not self.runner.live:
                return answers
            wait_s = self.runner.turn()
            assert wait_s is not None
            self.now_s += wait_s
        raise AssertionError("requests do not end")

    def close(self) -> None:
        """Nothing may be held by then but what is kept."""
        assert not self.runner.live
        self.runner.prefix.close()
        assert self.model.kv_pool.used_bytes == 0
        assert self.model.kv_pool.kept_bytes == 0


def asking(prompt: str = "Once upon a time", **settings: Any) -> GenerationRequest:
    settings.setdefault("max_tokens", 24)
    settings.setdefault("sampling", GREEDY)
    return GenerationRequest("me", prompt, **settings)


def chatting(*said: str, **settings: Any) -> GenerationRequest:
    """`said`: by user and assistant in turn."""
    roles = ("user", "assistant")
    messages = tuple({"role": roles[turn % 2], "content": text} for turn, text in enumerate(said))
    tools, choice = settings.pop("tools", ()), settings.pop("tool_choice", "auto")
    parallel = settings.pop("parallel_tool_calls", True)
    settings.setdefault("max_tokens", 24)
    settings.setdefault("sampling", SamplingParams(seed=5))
    return GenerationRequest("me", Conversation(messages, tools, choice, parallel), **settings)


def shown(answers: Sequence[Answer]) -> list[tuple[str, str, str]]:
    """What clients see of answers."""
    found = []
    for answer in answers:
        assert answer.end is not None
        found.append((answer.text(Reasoning), answer.text(), answer.end.reason))
    return found
