"""A sequence that goes on from a kept prefix has the bits of one that computes all itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orchestrator.generate import GenerationParams, generate, new_sequence, prefill, step
from orchestrator.model.attention import SequenceSlice
from orchestrator.model.kv_pool import KvPool
from orchestrator.model.mtp import DraftRequest, MtpDrafter
from orchestrator.model.mtp_state import MtpState
from orchestrator.model.routing_recorder import RoutingRecorder
from orchestrator.model.rows_behind import CONTEXT_ROWS
from orchestrator.model.step35 import Step35Model
from orchestrator.prefix.cache import PrefixCache
from orchestrator.sampling import Choice, LogitsInRam, Sampler
from orchestrator.sampling_params import GREEDY, SamplingParams
from orchestrator.scheduling.step_plan import Decode, Prefill, StepPlan
from orchestrator.serving.batch import keep_prompts, keep_text, run_step
from orchestrator.session import load_local
from placement.kv_size import PAGE_POSITIONS, KvForm, SequenceSize
from tests.examples import examples
from tests.orchestrator.heads import hidden_states
from tests.orchestrator.prefix.begun import begun
from tests.tiny_checkpoint import write_random_checkpoint
from workers.formats.open_model import open_model

VOCAB = 6
"""So few that chance accepts a fair share of a random model's drafts."""
WINDOWS = (8, 140)
POOL_BYTES = 64 << 20
LoadModel = Callable[..., Step35Model]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> LoadModel:
    """A small model of a full and two sliding layers, one of them with experts, and three MTP layers."""
    directories: dict[int, Path] = {}
    models: dict[tuple[int, KvForm], Step35Model] = {}

    def load(window: int, kv_form: KvForm = KvForm.float32) -> Step35Model:
        if window not in directories:
            directories[window] = write_random_checkpoint(
                tmp_path_factory.mktemp("prefix") / str(window),
                seed=5,
                vocab_size=VOCAB,
                hidden_size=32,
                num_layers=3,
                num_heads=2,
                num_sliding_heads=2,
                num_kv_heads=1,
                sliding_window=window,
                intermediate_size=32,
                moe_layers=(2,),
                num_experts=4,
                top_k=2,
                moe_intermediate_size=16,
                share_expert_dim=16,
            )
        key = window, kv_form
        if key not in models:
            models[key] = load_local(open_model(directories[window]), torch.float32, kv_form)
        model = models[key]
        model.kv_pool, model.recorder = KvPool(POOL_BYTES), None
        return model

    return load


def text(length: int, seed: int = 1) -> list[int]:
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def greedy(drafts: list[int]) -> Choice:
    return Sampler(GREEDY).choice(len(drafts))


def drafts(drafter: MtpDrafter, state: MtpState, rows: Tensor, tokens: Sequence[int]) -> Tensor:
    """Logits of the drafts after `tokens`, of which all but the last have their row."""
    seen: list[Tensor] = []

    def noted(logits: Tensor) -> LogitsInRam:
        seen.extend(logits)
        return LogitsInRam(logits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.model.mtp.LogitsInRam", noted)
        drafter.draft([DraftRequest(state, rows, tokens, drafter.num_layers, greedy)])
    return torch.stack(seen)


def parted(tokens: Sequence[int], same: int, more: int) -> list[int]:
    """A text that has just so many tokens in common with another one."""
    return [*tokens[:same], 3 + (tokens[same] - 2) % 3, *text(more, seed=same)]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("kv_form", list(KvForm))
def test_rows_and_draft_logits_are_the_same_wherever_in_a_page_a_text_is_kept(
    load: LoadModel, window: int, kv_form: KvForm
) -> None:
    model = load(window, kv_form)
    prefix, drafter, tokens = PrefixCache.of(model), MtpDrafter(model, 3), text(400)
    stops = range(255, 255 + PAGE_POSITIONS + 2)
    expected, expected_drafts = hidden_states(model, tokens), {}
    cache, state = model.new_cache(), drafter.new_state()
    for stop in range(stops.start - 1, stops.stop + 5):
        drafts_of = drafts(drafter, state, expected[state.num_hidden : stop], tokens[: stop + 1])
        expected_drafts[stop] = drafts_of
    state = drafter.new_state()
    for stop in stops:
        rows = model.forward(
            torch.tensor(tokens[cache.length : stop]), [SequenceSlice(cache, stop - cache.length)]
        )
        assert torch.equal(drafts(drafter, state, rows, tokens[: stop + 1]), expected_drafts[stop])
        prefix.evict(POOL_BYTES)
        assert prefix.keep(tokens[: stop + 1], cache, state) == stop - 2
        again = begun(prefix, model, tokens[: stop + 5], drafter)
        assert again.mtp is not None
        assert again.matched == stop - 2
        rows = model.forward(torch.tensor(tokens[stop - 2 : stop + 4]), [SequenceSlice(again.cache, 6)])
        assert torch.equal(rows, expected[stop - 2 : stop + 4])
        assert torch.equal(drafts(drafter, again.mtp, rows, tokens[: stop + 5]), expected_drafts[stop + 4])
        again.cache.close()
        again.mtp.close()


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("last_drafts", [0, 150, 260])
def test_a_text_that_nobody_drafted_for_is_kept_with_the_rows_that_wait(
    load: LoadModel, window: int, last_drafts: int
) -> None:
    """Drafts were made up to some row, if any. Those after it have the bits of a text that is read whole."""
    model = load(window)
    prefix, drafter, tokens = PrefixCache.of(model), MtpDrafter(model, 3), text(700)
    rows = hidden_states(model, tokens)
    cache, state = model.new_cache(), drafter.new_state()
    for start in range(0, 620, 20):
        model.forward(torch.tensor(tokens[start : start + 20]), [SequenceSlice(cache, 20)])
        state.defer(rows[start : start + 20])
        if start + 20 <= last_drafts:
            drafts(drafter, state, rows[:0], tokens[: start + 21])
    used = model.kv_pool.used_bytes
    assert state.deferred > 150
    assert prefix.keep(tokens[:621], cache, state) == 618
    assert model.kv_pool.used_bytes == used
    for stop in (618, 610, 570):
        others = parted(tokens, stop + 3, 60)
        again = begun(prefix, model, others, drafter)
        assert again.mtp is not None
        assert again.matched == stop
        left = len(others) - 1 - stop
        more = model.forward(torch.tensor(others[stop:-1]), [SequenceSlice(again.cache, left)])
        alone = drafts(drafter, drafter.new_state(), hidden_states(model, others[:-1]), others)
        assert torch.equal(drafts(drafter, again.mtp, more, others), alone)
        again.cache.close()
        again.mtp.close()
    cache.close()
    state.close()
    prefix.close()
    assert model.kv_pool.used_bytes == model.kv_pool.kept_bytes == 0


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_rows_that_were_kept_from_a_position_on_go_on_as_they_would_have(
    load: LoadModel, window: int, depth: int
) -> None:
    model = load(window)
    prefix, drafter, tokens = PrefixCache.of(model), MtpDrafter(model, 3), text(500)
    rows = hidden_states(model, tokens)
    cache, state = model.new_cache(), drafter.new_state()
    state.begin_at(230)
    for start in range(0, 420, 10):
        model.forward(torch.tensor(tokens[start : start + 10]), [SequenceSlice(cache, 10)])
        if start >= 230:
            state.defer(rows[start : start + 10])
            if depth:
                drafter.draft([DraftRequest(state, rows[:0], tokens[: start + 11], depth, greedy)])
    assert prefix.keep(tokens[:421], cache, state) == 418
    again = begun(prefix, model, tokens[:450], drafter)
    assert again.mtp is not None
    assert (again.matched, again.mtp.first_position) == (418, 230)
    expected = drafts(drafter, state, rows[420:449], tokens[:450])
    assert torch.equal(drafts(drafter, again.mtp, rows[418:449], tokens[:450]), expected)
    # Before the first row that was kept, the text serves without them.
    others = parted(tokens, 200, 20)
    early = begun(prefix, model, others, drafter)
    assert early.mtp is not None
    assert early.matched in (0, 200)
    assert early.mtp.first_position == early.matched
    for one in (early, again):
        assert one.mtp is not None
        one.cache.close()
        one.mtp.close()
    cache.close()
    state.close()
    prefix.close()
    assert model.kv_pool.used_bytes == model.kv_pool.kept_bytes == 0


def test_a_text_kept_without_mtp_layers_serves_drafts_from_its_end_on_where_it_spares_a_page_more(
    load: LoadModel,
) -> None:
    model = load(WINDOWS[0])
    prefix, drafter, tokens = PrefixCache.of(model), MtpDrafter(model, 3), text(500)
    cache, state = model.new_cache(), drafter.new_state()

    def read(stop: int) -> Tensor:
        start = cache.length
        return model.forward(torch.tensor(tokens[start:stop]), [SequenceSlice(cache, stop - start)])

    def found() -> tuple[int, int]:
        again = begun(prefix, model, tokens, drafter)
        assert again.mtp is not None
        position = again.mtp.first_position
        again.cache.close()
        again.mtp.close()
        return again.matched, position

    state.defer(read(203))
    assert prefix.keep(tokens[:203], cache, state) == 200
    page_more = 200 + PAGE_POSITIONS
    for stop, expected in ((page_more - 1, (200, 0)), (page_more, (page_more, page_more))):
        read(stop + CONTEXT_ROWS)
        assert prefix.keep(tokens[: cache.length], cache, None) == stop + CONTEXT_ROWS
        assert found() == expected
    # No farther back than the trunk can go on.
    read(400)
    assert cache.lowest == 391
    assert prefix.keep(tokens[:400], cache, None) == 400
    assert found() == (391, 391)


def test_a_beginning_that_was_kept_without_mtp_layers_is_soon_kept_with_them(load: LoadModel) -> None:
    """Else short answers behind a common beginning would never have rows for drafts."""
    model = load(WINDOWS[1])
    prefix, drafter = PrefixCache.of(model), MtpDrafter(model, 3)
    params, common = GenerationParams(max_tokens=5, ignore_eos=True), text(60)

    def answered(own: int, *, keeps_rows: bool = True) -> tuple[int, int, bool]:
        """Tokens that were spared, where MTP layers begin, and whether drafts were made."""
        prompt = [*common, own, *text(5, own)]
        sequence = new_sequence(model, drafter, prompt, params, prefix=prefix)
        steps, may_draft = {0: sequence}, False
        while sequence.finish_reason is None:
            decode = () if sequence.to_prefill else (Decode(0, 3 * may_draft),)
            prefill = (Prefill(0, sequence.to_prefill),) if sequence.to_prefill else ()
            plan = StepPlan(decode, prefill, keeps_rows=keeps_rows)
            may_draft = run_step(model, drafter, steps, plan).advances[0].may_draft
            keep_prompts(steps, plan)
        begun_at = sequence.mtp.first_position if sequence.mtp is not None else -1
        keep_text(sequence)
        sequence.close()
        return sequence.matched, begun_at, sum(sequence.drafted) > 0

    assert answered(1, keeps_rows=False) == (0, -1, False)
    assert answered(2, keeps_rows=False) == (60, -1, False)
    assert answered(3) == (60 - CONTEXT_ROWS, 60 - CONTEXT_ROWS, True)
    assert answered(4) == (57, 60 - CONTEXT_ROWS, True)


def test_mtp_layers_that_begin_behind_a_match_take_nothing_of_another_text(load: LoadModel) -> None:
    """They were kept up to near there, where the newest slots were computed from the other text's tokens."""
    model = load(WINDOWS[1])
    prefix, drafter, tokens = PrefixCache.of(model), MtpDrafter(model, 3), text(330)
    rows = hidden_states(model, tokens)
    cache, state = model.new_cache(), drafter.new_state()
    model.forward(torch.tensor(tokens[:307]), [SequenceSlice(cache, 307)])
    state.begin_at(307)
    for stop in range(308, 319):
        model.forward(torch.tensor(tokens[stop - 1 : stop]), [SequenceSlice(cache, 1)])
        drafter.draft([DraftRequest(state, rows[stop - 1 : stop], tokens[: stop + 1], 3, greedy)])
    assert prefix.keep(tokens[:319], cache, state) == 316
    for same in range(306, 315):
        others = parted(tokens, same, 40)
        again = begun(prefix, model, others, drafter)
        assert again.mtp is not None
        alone, begin = hidden_states(model, others[:-1]), again.mtp.first_position
        late = drafter.new_state()
        late.begin_at(begin)
        expected = drafts(drafter, late, alone[begin:], others)
        assert torch.equal(drafts(drafter, again.mtp, alone[again.matched :], others), expected)
        again.cache.close()
        again.mtp.close()
        late.close()


@pytest.mark.parametrize("window", WINDOWS)
def test_rows_come_whole_out_of_a_text_that_has_to_go_for_them(load: LoadModel, window: int) -> None:
    """All three layers have rows that wait; their copies have room only where the kept ones were."""
    model = load(window)
    prefix, drafter, tokens = PrefixCache.of(model), MtpDrafter(model, 3), text(500)
    rows = hidden_states(model, tokens)
    cache, state = model.new_cache(), drafter.new_state()
    for start in range(0, 420, 20):
        model.forward(torch.tensor(tokens[start : start + 20]), [SequenceSlice(cache, 20)])
        state.defer(rows[start : start + 20])
        depth = 3 if start < 100 else 2 if start < 200 else 1 if start < 300 else 0
        if depth:
            drafter.draft([DraftRequest(state, rows[:0], tokens[: start + 21], depth, greedy)])
    assert all(map(len, state.rows))
    assert prefix.keep(tokens[:421], cache, state) == 418
    cache.close()
    state.close()
    model.kv_pool.budget_bytes = model.kv_pool.kept_bytes
    again = begun(prefix, model, tokens[:450], drafter)
    assert (again.matched, prefix.stats.boundaries) == (418, 0)
    assert again.mtp is not None
    assert model.kv_pool.used_bytes <= model.kv_pool.budget_bytes
    model.kv_pool.budget_bytes = POOL_BYTES
    alone = drafts(drafter, drafter.new_state(), rows[:449], tokens[:450])
    assert torch.equal(drafts(drafter, again.mtp, rows[418:449], tokens[:450]), alone)
    again.cache.close()
    again.mtp.close()


def test_a_text_is_kept_as_far_where_rows_have_no_room_for_copies(load: LoadModel) -> None:
    """What is kept has the sequence's own pages, and rows go on to wait."""
    model = load(WINDOWS[0], KvForm.bfloat16)
    config, drafter = model.config, MtpDrafter(model, 1)
    size = SequenceSize.of(config.shape(""), model.kv_form, 1)
    model.kv_pool = KvPool(size.num_bytes(60, 256))
    prefix = PrefixCache.of(model)
    params = GenerationParams(max_tokens=4, mtp=1, ignore_eos=True)
    sequence = new_sequence(model, drafter, text(50), params, prefix=prefix)
    sequence.resume()
    run_step(model, drafter, {0: sequence}, StepPlan(prefill=(Prefill(0, 50),)))
    assert sequence.mtp is not None
    assert sequence.mtp.deferred == 50
    used = model.kv_pool.budget_bytes = model.kv_pool.used_bytes
    keep_text(sequence)
    assert (sequence.mtp.deferred, model.kv_pool.used_bytes) == (50, used)
    sequence.close()
    assert begun(prefix, model, sequence.tokens, drafter).matched >= 46


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("num_mtp", [0, 1, 3])
def test_a_text_that_parts_from_a_kept_one_has_its_own_bits(
    load: LoadModel, window: int, num_mtp: int
) -> None:
    model = load(window)
    prefix, drafter, tokens = PrefixCache.of(model), MtpDrafter(model, num_mtp), text(300)
    state = drafter.new_state() if num_mtp else None
    cache = model.new_cache()
    rows = model.forward(torch.tensor(tokens), [SequenceSlice(cache, 300)])
    if state is not None:
        drafts(drafter, state, rows[:290], tokens[:291])
    assert prefix.keep(tokens, cache, state) == (290 + 1 - num_mtp if num_mtp else 300)
    spared = []
    for same in (3, 40, 127, 128, 129, 200, 255, 257, 286, 289, 290, 299):
        others = parted(tokens, same, 4)
        again = begun(prefix, model, others, drafter if num_mtp else None)
        assert again.shared == min(same, 291 if num_mtp else 300)
        assert again.matched in (0, min(same - num_mtp, 300 if not num_mtp else 291 - num_mtp))
        spared.append(again.matched)
        rows = model.forward(
            torch.tensor(others[again.matched : -1]),
            [SequenceSlice(again.cache, len(others) - 1 - again.matched)],
        )
        alone = hidden_states(model, others[:-1])
        assert torch.equal(rows, alone[again.matched :])
        if again.mtp is not None:
            assert torch.equal(
                drafts(drafter, again.mtp, rows, others), drafts(drafter, drafter.new_state(), alone, others)
            )
    # A window of 140 and two pages of slack are all of the text.
    assert all(spared[-4:])
    assert not spared[0]


def turns_of(
    model: Step35Model,
    params: GenerationParams,
    messages: Sequence[int],
    prefix: PrefixCache | None,
    evicted: int,
) -> list[object]:
    """What a session's turns show: a reply each, after all that was said before and some tokens more."""
    tokens: list[int] = []
    shown: list[object] = []
    for turn, length in enumerate(messages):
        tokens += text(length, seed=turn)
        rows: list[Tensor] = []
        made = generate(
            model,
            tokens,
            params,
            on_hidden=lambda part, rows=rows: rows.append(part.clone()),
            prefix=prefix,
            ends=(len(tokens) - 3,),
        )
        shown += [
            made.token_ids,
            made.finish_reason,
            made.steps,
            made.drafted_by_position,
            made.accepted_by_position,
        ]
        shown.append(torch.cat(rows))
        # As templates do that leave a reply's end out of what comes back.
        tokens += made.token_ids[: len(made.token_ids) - turn]
        if prefix is not None and evicted:
            prefix.evict(evicted)
    return shown


@examples(12)
@given(
    window=st.sampled_from(WINDOWS),
    kv_form=st.sampled_from(list(KvForm)),
    mtp=st.sampled_from([0, 1, 3]),
    temperature=st.sampled_from([0.0, 0.9]),
    chunk_size=st.sampled_from([7, 100, 128, 256]),
    messages=st.lists(st.integers(4, 150), min_size=3, max_size=4),
    max_tokens=st.integers(1, 40),
    evicted=st.sampled_from([0, 0, 1, POOL_BYTES]),
)
def test_a_session_shows_the_same_with_and_without_what_is_kept(
    load: LoadModel,
    window: int,
    kv_form: KvForm,
    mtp: int,
    temperature: float,
    chunk_size: int,
    messages: list[int],
    max_tokens: int,
    evicted: int,
) -> None:
    model = load(window, kv_form)
    params = GenerationParams(
        max_tokens, SamplingParams(temperature, seed=3), ignore_eos=True, mtp=mtp, chunk_size=chunk_size
    )
    plain = turns_of(model, params, messages, None, 0)
    # Of memory there is just what the longest turn takes alone.
    config = model.config
    size = SequenceSize.of(config.shape(""), kv_form, mtp)
    model.kv_pool = KvPool(
        size.num_bytes(sum(messages) + len(messages) * max_tokens, max(chunk_size, 1 + mtp))
    )
    prefix = PrefixCache.of(model)
    ours = turns_of(model, params, messages, prefix, evicted)
    assert model.kv_pool.used_bytes == 0
    for one, other in zip(plain, ours, strict=True):
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            assert torch.equal(one[len(one) - len(other) :], other)
        else:
            assert one == other
    if not evicted and messages[0] >= 25:
        assert prefix.stats.saved_tokens


def test_sequences_that_share_pages_and_run_together_have_their_own_bits(load: LoadModel) -> None:
    model = load(WINDOWS[1])
    drafter, params = MtpDrafter(model, 3), GenerationParams(40, mtp=3, ignore_eos=True, chunk_size=128)
    prompts = [[*text(200), *text(9, seed=seed)] for seed in range(2, 5)]
    alone = [generate(model, prompt, params) for prompt in prompts]
    prefix = PrefixCache.of(model)
    first = new_sequence(model, drafter, prompts[0], params, prefix=prefix, ends=(200,))
    prefill(model, drafter, first, params.chunk_size)
    running = [first]
    for prompt in prompts[1:]:
        running.append(new_sequence(model, drafter, prompt, params, prefix=prefix))
        prefill(model, drafter, running[-1], params.chunk_size)
        assert running[-1].matched >= 197
    assert model.kv_pool.used_bytes < sum(
        of.cache.nbytes + sum(own.nbytes for own in (*of.mtp.caches, *of.mtp.rows))
        for of in running
        if of.mtp
    )
    prefix.evict(POOL_BYTES)
    while going := [sequence for sequence in running if sequence.finish_reason is None]:
        step(model, drafter, going)
    for sequence, result in zip(running, alone, strict=True):
        assert tuple(sequence.generated) == result.token_ids
        assert tuple(sequence.accepted) == result.accepted_by_position
        sequence.close()
    assert model.kv_pool.used_bytes == 0


def test_experts_of_tokens_that_were_kept_are_not_recorded_again(load: LoadModel) -> None:
    model = load(WINDOWS[0])
    config, prompt, params = model.config, text(150), GenerationParams(1)
    plain, second = (RoutingRecorder((2,), 4, 2) for _ in range(2))
    prefix = PrefixCache.of(model)
    model.recorder = plain
    generate(model, prompt, params, prefix=prefix)
    model.recorder = second
    generate(model, prompt, params, prefix=prefix)
    assert config.num_hidden_layers == 3
    assert len(plain.trace()) == 150
    assert len(second.trace()) == 150 - prefix.stats.saved_tokens == 1
    assert (second.trace() == plain.trace()[-1:]).all()


def test_the_example_of_the_page_runs_and_changes_no_token(load: LoadModel) -> None:
    model, prompt_ids = load(WINDOWS[0]), text(300)
    page = (Path(__file__).parents[3] / "docs" / "prefix-cache.md").read_text(encoding="utf-8")
    example = page.partition("```python\n")[2].partition("```")[0]
    names = {
        "PrefixCache": PrefixCache,
        "new_sequence": new_sequence,
        "prefill": prefill,
        "step": step,
        "keep_text": keep_text,
        "model": model,
        "drafter": MtpDrafter(model, 3),
        "prompt_ids": prompt_ids,
        "params": GenerationParams(max_tokens=20, mtp=3, ignore_eos=True),
        "ends": (len(prompt_ids) - 2,),
    }
    exec(example, names)
    prefix, params = names["prefix"], names["params"]
    assert isinstance(prefix, PrefixCache)
    assert isinstance(params, GenerationParams)
    assert generate(model, prompt_ids, params).token_ids == tuple(names["sequence"].generated)
    generate(model, prompt_ids, params, prefix=prefix)
    assert prefix.stats.hits == 1
