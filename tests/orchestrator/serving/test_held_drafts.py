"""Drafts of answers that are held to a form: chosen from what it allows, so that more of them hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest

from orchestrator.answers.output_form import OutputForms
from orchestrator.generate import GenerationParams, new_sequence, prefill, step
from orchestrator.model.mtp import DraftRequest, MtpDrafter
from orchestrator.model.step35 import Step35Model
from orchestrator.sampling import Choice
from orchestrator.sampling_params import SamplingParams
from orchestrator.serving.request import OutputForm
from orchestrator.tokenizer import Tokenizer
from tests.orchestrator.serving.served import MODEL, load
from tests.orchestrator.serving.test_held_calls import SCHEMA

PROMPT = list(range(40, 72))
ENDS = (1, 3)
FORMS = (
    OutputForm("json_schema", json.dumps(SCHEMA)),
    OutputForm("regex", r"([0-9]{4}-[0-9]{2} (info|error): [a-z ]{4,30}\n){2,4}"),
    OutputForm("grammar", 'start: line line line\nline: ("+" | "-") /[a-z ]{9,19}/ "\\n"'),
)
SAMPLINGS = (
    SamplingParams(0.0),
    SamplingParams(0.7, seed=3),
    SamplingParams(0.7, top_p=0.9, frequency_penalty=0.3, logit_bias=((300, 2.0),), seed=4),
)


class Recording(MtpDrafter):
    """Keeps what it drafted. `is_free`: it chooses from all tokens, as if there were no form."""

    def __init__(self, model: Step35Model, num_layers: int, *, is_free: bool = False) -> None:
        super().__init__(model, num_layers)
        self.made: list[tuple[int, list[int]]] = []
        """Tokens before, and the drafts behind them."""
        self._is_free = is_free

    def draft(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        if self._is_free:
            requests = [replace(request, choice=partial(_free, request.choice)) for request in requests]
        found = super().draft(requests)
        self.made += [(len(of.tokens), drafts) for of, drafts in zip(requests, found, strict=True)]
        return found


def _free(choice: Callable[[list[int]], Choice], drafts: list[int]) -> Choice:
    return replace(choice(drafts), allowed=None)


@pytest.fixture(scope="module")
def model() -> Step35Model:
    return load()


@pytest.fixture(scope="module")
def forms(model: Step35Model) -> OutputForms:
    return OutputForms(Tokenizer.load(MODEL), model.config.vocab_size, model.config.eos_token_ids)


def written(
    model: Step35Model,
    forms: OutputForms,
    form: OutputForm,
    sampling: SamplingParams,
    drafter: MtpDrafter | None,
    begins_after: int | None = None,
) -> tuple[list[int], int]:
    """An answer of a form, and how many drafts held."""
    matcher = forms.matcher(form, begins_after)
    sequence = new_sequence(model, drafter, PROMPT, GenerationParams(48, sampling))
    sequence.masks = matcher.allowed
    prefill(model, drafter, sequence, 64)
    noted = 0
    while True:
        matcher.note(sequence.generated[noted:])
        noted = len(sequence.generated)
        if sequence.finish_reason is not None:
            break
        step(model, drafter, [sequence])
    sequence.close()
    return sequence.generated, sum(sequence.accepted)


def fits(forms: OutputForms, form: OutputForm, text: Sequence[int], drafts: Sequence[int]) -> bool:
    """Whether the form allows each draft behind the text and those before it, up to an end."""
    matcher = forms.matcher(form)
    matcher.note(text)
    for draft in drafts[: next((at + 1 for at, draft in enumerate(drafts) if draft in ENDS), None)]:
        (row,) = matcher.allowed([])
        if row is None or not row[draft // 32] >> (draft % 32) & 1:
            return False
        matcher.note([draft])
    return True


@pytest.mark.parametrize("form", FORMS, ids=[form.kind for form in FORMS])
def test_drafts_of_a_form_fit_it_and_change_nothing(
    model: Step35Model, forms: OutputForms, form: OutputForm
) -> None:
    for sampling in SAMPLINGS:
        alone, _ = written(model, forms, form, sampling, None)
        for depth in (1, 2, 3):
            drafter = Recording(model, depth)
            tokens, _ = written(model, forms, form, sampling, drafter)
            assert tokens == alone
            assert sum(len(drafts) for _, drafts in drafter.made) > 10
            for length, drafts in drafter.made:
                assert fits(forms, form, tokens[: length - len(PROMPT)], drafts), (length, drafts)


def test_more_drafts_hold_than_of_those_chosen_from_all_tokens(
    model: Step35Model, forms: OutputForms
) -> None:
    held = {True: 0, False: 0}
    steps = {True: 0, False: 0}
    for seed in range(6):
        for form in FORMS:
            for is_free in held:
                drafter = Recording(model, 3, is_free=is_free)
                sampling = SamplingParams(0.7 * (seed % 2), seed=seed)
                _, accepted = written(model, forms, form, sampling, drafter)
                held[is_free] += accepted
                steps[is_free] += len(drafter.made)
    # Twice as many in a step, and more.
    assert held[False] / steps[False] > 2 * held[True] / steps[True] > 0


def test_drafts_are_free_in_reasoning_and_fit_behind_its_end(model: Step35Model, forms: OutputForms) -> None:
    form, crossing = FORMS[1], 0
    for seed in range(6):
        sampling = SamplingParams(0.7, seed=seed)
        never, _ = written(model, forms, form, sampling, None, begins_after=2047)
        # As if this ended the reasoning.
        end = never[7]
        at = never.index(end) + 1
        alone, _ = written(model, forms, form, sampling, None, begins_after=end)
        assert alone[:at] == never[:at]
        assert fits(forms, form, [], alone[at:])
        drafter = Recording(model, 3)
        tokens, _ = written(model, forms, form, sampling, drafter, begins_after=end)
        assert tokens == alone
        for length, drafts in drafter.made:
            text = [*alone[: length - len(PROMPT)], *drafts]
            if end in text:
                assert fits(forms, form, [], text[text.index(end) + 1 :])
                crossing += end in drafts[:-1]
    assert crossing
