"""Drafts of answers that are held to a form: chosen from what it allows, so that more of them hold."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from benchmarks.held_drafts import FreeDrafter
from orchestrator.answers.output_form import OutputForms
from orchestrator.generate import GenerationParams, new_sequence, prefill, step
from orchestrator.model.mtp import DraftRequest, MtpDrafter
from orchestrator.model.step35 import Step35Model
from orchestrator.sampling_params import SamplingParams
from orchestrator.serving.live_answer import LiveAnswer
from orchestrator.serving.prompts import Prompts
from orchestrator.serving.request import OutputForm
from orchestrator.tokenizer import Tokenizer
from tests.orchestrator.serving import calling
from tests.orchestrator.serving.calling import CHOICES, END, SCHEMA, VOCAB, asking, calls_of
from tests.orchestrator.serving.served import MODEL, Served, chatting, load

PROMPT = list(range(40, 72))
ENDS = (1, 3)
FORMS = (
    OutputForm("json_schema", json.dumps(SCHEMA)),
    OutputForm("regex", r"([0-9]{4}-[0-9]{2} (info|error): [a-z ]{4,30}\n){2,4}"),
    OutputForm("grammar", 'start: line line line\nline: ("+" | "-") /[a-z ]{9,19}/ "\\n"'),
)
CALLS = """Some text.
<tool_call>
<function=edit>
<parameter=path>
a <b> </parameters>
c
</parameter>
<parameter=count>
12
</parameter>
<parameter=mode>
write it
</parameter>
<parameter=spans>
[{"to": 3}]
</parameter>
</function>
</tool_call>
<tool_call>
<function=patch>
<parameter=input>
*** Begin
+a
*** End
</parameter>
</function>
</tool_call>
<tool_call>
<function=edit_freely>
<parameter=count>
many
</parameter>
</function>
</tool_call>
Done."""
SAMPLINGS = (
    SamplingParams(0.0),
    SamplingParams(0.7, seed=3),
    SamplingParams(0.7, top_p=0.9, frequency_penalty=0.3, logit_bias=((300, 2.0),), seed=4),
)


class Recording(MtpDrafter):
    """Keeps what it drafted."""

    def __init__(self, model: Step35Model, num_layers: int) -> None:
        super().__init__(model, num_layers)
        self.made: list[tuple[int, list[int]]] = []
        """Tokens before, and the drafts behind them."""

    def draft(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        found = super().draft(requests)
        self.made += [(len(of.tokens), drafts) for of, drafts in zip(requests, found, strict=True)]
        return found


@pytest.fixture(scope="module")
def model() -> Step35Model:
    return load()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(MODEL)


@pytest.fixture(scope="module")
def forms(model: Step35Model, tokenizer: Tokenizer) -> OutputForms:
    return OutputForms(tokenizer, model.config.vocab_size, model.config.eos_token_ids)


@pytest.fixture(scope="module")
def calls(tokenizer: Tokenizer) -> Prompts:
    return Prompts(tokenizer, VOCAB, (END,))


def written(
    model: Step35Model,
    forms: OutputForms,
    form: OutputForm,
    sampling: SamplingParams,
    drafter: MtpDrafter | None,
    begins_after: int | None = None,
    max_tokens: int = 32,
) -> tuple[list[int], int]:
    """An answer of a form, and how many drafts held."""
    matcher = forms.matcher(form, begins_after)
    sequence = new_sequence(model, drafter, PROMPT, GenerationParams(max_tokens, sampling))
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
    for sampling, depth in zip(SAMPLINGS, (3, 1, 2), strict=True):
        alone, _ = written(model, forms, form, sampling, None)
        drafter = Recording(model, depth)
        tokens, _ = written(model, forms, form, sampling, drafter)
        assert tokens == alone
        assert sum(len(drafts) for _, drafts in drafter.made) > 10
        for length, drafts in drafter.made:
            assert fits(forms, form, tokens[: length - len(PROMPT)], drafts), (length, drafts)


def test_more_drafts_hold_than_of_those_chosen_from_all_tokens(
    model: Step35Model, forms: OutputForms
) -> None:
    in_a_step = []
    for kind in (MtpDrafter, FreeDrafter):
        held = steps = 0
        for seed in range(2):
            for form in FORMS:
                sampling = SamplingParams(0.7 * seed, seed=seed)
                tokens, accepted = written(model, forms, form, sampling, kind(model, 3))
                held += accepted
                steps += len(tokens) - accepted
        in_a_step.append(held / steps)
    fitting, free = in_a_step
    assert fitting > 2 * free > 0


def test_drafts_are_free_in_reasoning_and_fit_behind_its_end(model: Step35Model, forms: OutputForms) -> None:
    form = FORMS[1]
    for seed in range(2):
        sampling, free = SamplingParams(0.7, seed=seed), Recording(model, 3)
        never, _ = written(model, forms, form, sampling, free, begins_after=2047)
        drafted = [(length - len(PROMPT), drafts) for length, drafts in free.made if len(drafts) > 1]
        held = [at for at, drafts in drafted if drafts[0] == never[at] and drafts[0] not in never[:at]]
        # As if that ended the reasoning: then more are drafted behind it.
        at, end = held[0], never[held[0]]
        alone, _ = written(model, forms, form, sampling, None, begins_after=end)
        assert alone[: at + 1] == never[: at + 1]
        assert fits(forms, form, [], alone[at + 1 :])
        drafter = Recording(model, 3)
        tokens, _ = written(model, forms, form, sampling, drafter, begins_after=end)
        assert tokens == alone
        texts = [[*alone[: length - len(PROMPT)], *drafts] for length, drafts in drafter.made]
        assert all(fits(forms, form, [], text[text.index(end) + 1 :]) for text in texts if end in text)
        # Some were drafted together with the end.
        assert any(end in drafts[:-1] for _, drafts in drafter.made)


def test_a_form_that_leads_nowhere_ends_the_answer_at_the_same_token_with_drafts(
    model: Step35Model, tokenizer: Tokenizer
) -> None:
    form = OutputForm("grammar", 'start: /[a-z]/+ ("Q" E | "!" E)\nE: /x/ & /y/')
    bias = tuple((tokenizer.encode(text)[0], 7.0) for text in "Q!")
    found: dict[int, list[tuple[str, str, str]]] = {}
    for mtp in (0, 1, 3):
        served, found[mtp] = Served(model, mtp=mtp), []
        # With these, drafts hold that lead nowhere; the token behind them is chosen without the form.
        for seed in range(9, 12):
            sampling = SamplingParams(1.5, seed=seed, logit_bias=bias)
            asked = chatting("Hi", sampling=sampling, output=form, reasoning_tokens=0, max_tokens=32)
            (answer,) = served.run(asked)
            assert answer.end is not None
            found[mtp].append((answer.text(), answer.end.reason, answer.end.message))
        served.close()
    assert found[0] == found[1] == found[3]
    assert len({len(text) for text, reason, _ in found[0] if reason == "form"}) > 1


def test_drafts_lead_from_one_part_of_a_call_to_the_next(tokenizer: Tokenizer, calls: Prompts) -> None:
    """Whoever drafts what comes loses nothing, and is told what would be told a token at a time."""
    text = tokenizer.encode(CALLS)
    request = asking()
    alone, told = calls.of(request, ""), []
    answer = LiveAnswer(request, alone, tokenizer, calls.budget_tokens)
    for token_id in text:
        told += alone.allowed([])
        assert answer.take([token_id], None).kept == 1
    assert sum(row is not None for row in told) > 60
    for depth in (1, 2, 3, 7):
        prompt = calls.of(request, "")
        answer, at = LiveAnswer(request, prompt, tokenizer, calls.budget_tokens), 0
        while at < len(text):
            drafts = text[at : at + depth]
            # As drafts are made, one after another.
            rows = [prompt.allowed(drafts[:length]) for length in range(len(drafts) + 1)][-1]
            for row, expected in zip(rows, told[at:], strict=False):
                assert (row is None) == (expected is None)
                assert row is None or (row == expected).all()
            verified = text[at : at + depth + 1]
            assert answer.take(verified, None).kept == len(verified)
            at += len(verified)
        assert [name for name, _ in calls_of(answer.events())] == ["edit", "patch", "edit_freely"]


def test_fitting_drafts_of_any_calls_change_nothing(tokenizer: Tokenizer, calls: Prompts) -> None:
    held = 0
    for seed in range(5):
        request, found = asking(choice=CHOICES[seed % len(CHOICES)]), []
        for depth in (0, 1, 3):
            answer = calling.written(tokenizer, calls, request, seed, depth, fitting=True)
            found.append((answer.tokens[:380], calls_of(answer.events), answer.reason))
            held += answer.held
        assert found[0] == found[1] == found[2]
    assert held > 1000
