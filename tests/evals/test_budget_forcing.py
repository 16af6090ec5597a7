"""Budget forcing: exact budgets, what is appended, what is counted.

The rules are checked on played responses, written down by hand; the budgets as properties of an
engine that ends thoughts at random; both once more on a real model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3Config, Qwen3ForCausalLM

from evals.scaling.budget_forcing import (
    Budget,
    Forced,
    force_budget,
    parallel_control,
    truncated,
)
from reopold.config import ConfigError
from reopold.data.images import Image
from reopold.engines.base import EngineFailure
from reopold.engines.hf import HFEngine
from reopold.rollouts import Rollout, SamplingParams
from tests.evals.played_engine import (
    BEYOND,
    CLOSE,
    EOS,
    TOKENIZER,
    FakeEngine,
    Noise,
    Play,
    decode,
    encode,
    limits,
)


def force(engine: FakeEngine, thinking: int, **fields: Any) -> Forced:
    budget = Budget(
        thinking, fields.pop("answer", 9), tuple(encode(fields.pop("end", "</think>"))), **fields
    )
    (found,) = run(engine, [encode("q<think>")], budget, [77])
    return found


def run(
    engine: Any, prompts: Sequence[Sequence[int]], budget: Budget, seeds: Sequence[int]
) -> list[Forced]:
    return force_budget(engine, prompts, budget, TOKENIZER, seeds)


def cut_off(
    engine: Any, prompts: Sequence[Sequence[int]], budget: Budget, seeds: Sequence[int]
) -> list[Forced]:
    return truncated(engine, prompts, budget, TOKENIZER, seeds)


def test_a_thought_that_ends_by_itself_is_left_alone() -> None:
    engine = Play("abc</think>", "=42<eos>")
    found = force(engine, 10)
    assert decode(found.ids) == "abc</think>=42<eos>"
    assert found.text == "abc</think>=42"
    assert (found.thinking_tokens, found.answer_tokens, found.appended_tokens) == (4, 4, 0)
    assert (found.forced, found.ignored, found.finish_reason) == (False, 0, "stop")
    assert found.tokens == 8
    assert [decode(call.prompt) for call in engine.calls] == ["q<think>", "q<think>abc</think>"]
    assert limits(engine) == [10, 9]


@pytest.mark.parametrize(
    ("thought", "closing"),
    [
        ("abcde", "\n</think>\nFinal Answer:"),
        ("abcd\n", "</think>\nFinal Answer:"),  # there is a newline already
    ],
)
def test_a_thought_of_the_whole_budget_is_closed_and_the_answer_asked_for(
    thought: str, closing: str
) -> None:
    engine = Play(thought, "42<eos>")
    found = force(engine, 5)
    assert decode(found.ids) == thought + closing + "42<eos>"
    assert (found.thinking_tokens, found.answer_tokens) == (5, 3)
    assert found.appended_tokens == len(encode(closing)) and found.forced
    assert decode(engine.calls[1].prompt) == "q<think>" + thought + closing


def test_the_newline_of_a_prompt_is_no_newline_of_the_thought() -> None:
    found = force(Play([BEYOND], "4<eos>"), 1)
    assert decode(found.ids).startswith("\n</think>")  # the prompt ends with <think>
    budget = Budget(1, 9, (CLOSE,))
    prompts = [encode("q<think>\n")]
    (found,) = run(Play([BEYOND], "4<eos>"), prompts, budget, [1])
    assert decode(found.ids).startswith("</think>")


def test_ends_are_ignored_with_the_budget_that_is_left() -> None:
    engine = Play("ab</think>", "cd</think>", "efg</think>", "1<eos>")
    found = force(engine, 30, ignores=2)
    assert decode(found.ids) == "abWaitcdWaitefg</think>1<eos>"
    assert limits(engine) == [30, 30 - 3 - 4, 30 - 7 - 7, 9]
    assert (found.ignored, found.forced) == (2, False)
    assert (found.thinking_tokens, found.appended_tokens, found.answer_tokens) == (10, 8, 2)
    assert [call.params.min_new_tokens for call in engine.calls] == [1, 1, 1, 0]
    assert [decode(call.prompt) for call in engine.calls[1:3]] == [
        "q<think>abWait",
        "q<think>abWaitcdWait",
    ]


def test_an_ignored_end_does_not_come_again_at_once() -> None:
    """min_tokens 1, as in s1: after "Wait" at least one token is thought."""
    found = force(Play("ab</think>", "</think>c</think>", "1<eos>"), 30, ignores=1)
    assert decode(found.ids) == "abWaitc</think>1<eos>"
    plain = force(Play("</think>", "1<eos>"), 30)
    assert decode(plain.ids) == "</think>1<eos>"  # without ignoring a thought may be empty


def test_a_continued_thought_may_use_its_budget_up() -> None:
    engine = Play("ab</think>", "cdefgh", "1<eos>")
    found = force(engine, 12, ignores=5)
    assert decode(found.ids) == "abWaitcdefg\n</think>\nFinal Answer:1<eos>"
    assert limits(engine) == [12, 5, 9]
    assert (found.forced, found.ignored, found.thinking_tokens) == (True, 1, 8)


@pytest.mark.parametrize(
    ("thinking", "plays", "text"),
    [
        (8, ["ab</think>", "c", "1<eos>"], "abWaitc\n</think>\nFinal Answer:1<eos>"),
        (7, ["ab</think>", "1<eos>"], "ab</think>1<eos>"),
        (3, ["ab</think>", "1<eos>"], "ab</think>1<eos>"),
    ],
)
def test_an_end_is_ignored_only_if_a_token_is_left_after_wait(
    thinking: int, plays: list[str], text: str
) -> None:
    assert decode(force(Play(*plays), thinking, ignores=1).ids) == text


def test_eos_ends_a_thought_too() -> None:
    found = force(Play("ab<eos>", "1<eos>"), 10)
    assert decode(found.ids) == "ab</think>1<eos>"
    assert (found.thinking_tokens, found.appended_tokens, found.forced) == (3, 1, False)
    again = force(Play("ab<eos>", "cd</think>", "1<eos>"), 20, ignores=1)
    assert decode(again.ids) == "abWaitcd</think>1<eos>" and again.appended_tokens == 4


def test_a_mark_of_several_tokens_is_found_where_it_is_complete() -> None:
    """Sampling stops at its last id; where the others do not stand before it, it goes on."""
    engine = Play("a>", "b#>", "c##>", "1<eos>")
    found = force(engine, 30, end="##>")
    assert decode(found.ids) == "a>b#>c##>1<eos>"
    assert limits(engine) == [30, 28, 25, 9]
    assert (found.thinking_tokens, found.appended_tokens, found.forced) == (9, 0, False)
    ignored = force(Play("a##>", ">b##>", "1<eos>"), 30, end="##>", ignores=1)
    assert decode(ignored.ids) == "aWaitb##>1<eos>" and ignored.ignored == 1


def test_a_mark_may_come_in_two_parts_but_not_across_what_was_appended() -> None:
    engine = Play("a>", ">", "1<eos>")
    found = force(engine, 30, end=">>")
    assert decode(found.ids) == "a>>1<eos>" and limits(engine) == [30, 28, 9]
    across = Play("a##>", "#>", "d##>", "1<eos>")
    found = force(across, 30, end="##>", ignores=1, ignore_text="b#")
    assert decode(found.ids) == "ab##>d##>1<eos>" and found.ignored == 1


def test_a_part_of_a_mark_at_the_end_of_the_budget_is_no_end() -> None:
    found = force(Play("a>", "1<eos>"), 2, end="#>")
    assert found.forced and decode(found.ids) == "a>\n#>\nFinal Answer:1<eos>"


def test_ids_that_the_tokenizer_does_not_have_are_counted_but_not_fed_back() -> None:
    engine = Play([*encode("a"), BEYOND, *encode("b</think>")], [BEYOND, *encode("1<eos>")])
    found = force(engine, 10)
    assert decode(found.ids) == "ab</think>1<eos>"
    assert (found.thinking_tokens, found.answer_tokens) == (4, 3)


def test_an_answer_has_a_limit_of_its_own() -> None:
    found = force(Play("ab</think>", "123456"), 10, answer=4)
    assert (found.answer_tokens, found.finish_reason) == (4, "length")
    assert found.text == "ab</think>1234"


def test_texts_are_the_callers() -> None:
    engine = Play("ab</think>", "cdefg", "1<eos>")
    found = force(engine, 9, ignores=1, ignore_text="hmm", final_text=" = ")
    assert decode(found.ids) == "abhmmcde\n</think> = 1<eos>"


def test_seeds_are_the_samples_own_and_then_derived() -> None:
    engine = Play("ab</think>", "cd</think>", "1<eos>")
    force(engine, 30, ignores=1)
    seeds = [call.seed for call in engine.calls]
    assert seeds[0] == 77 and len(set(seeds)) == 3
    again = Play("ab</think>", "cd</think>", "1<eos>")
    force(again, 30, ignores=1)
    assert [call.seed for call in again.calls] == seeds


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"thinking_tokens": 0}, "at least 1 token to think"),
        ({"answer_tokens": 0}, "1 to answer"),
        ({"ignores": -1}, "-1 times"),
        ({"end_think": ()}, "end_think is empty"),
    ],
)
def test_senseless_budgets(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Budget(**{"thinking_tokens": 5, "answer_tokens": 5, "end_think": (CLOSE,), **fields})


def test_a_text_that_the_tokenizer_does_not_know() -> None:
    with pytest.raises(ConfigError, match="does not know some of 'Würde'"):
        force(Play(), 9, ignores=1, ignore_text="Würde")
    assert force(Play("ab</think>", "1<eos>"), 9, ignore_text="Würde").text  # never appended


def test_an_engine_that_exceeds_its_limit_is_not_believed() -> None:
    class Greedy(Play):
        def one(self, *arguments: Any) -> Rollout:
            return Rollout(arguments[0], encode("abcdef"), [0.0] * 6, "length")

    with pytest.raises(EngineFailure, match="6 tokens where 5 were allowed"):
        force(Greedy(), 5)


def test_nothing_to_force() -> None:
    assert run(Play(), [], Budget(5, 5, (CLOSE,)), []) == []


BUDGETS = st.builds(
    Budget,
    thinking_tokens=st.integers(1, 40),
    answer_tokens=st.integers(1, 8),
    end_think=st.sampled_from([(CLOSE,), tuple(encode("#>")), tuple(encode(">>"))]),
    ignores=st.integers(0, 4),
    ignore_text=st.sampled_from(["Wait", "W", "#", ""]),
)


@settings(max_examples=150, deadline=None)
@given(budget=BUDGETS, seed=st.integers(0, 2**40))
def test_budgets_are_exact(budget: Budget, seed: int) -> None:
    """Whatever the model says: never a token more, and none less without the model's own end."""
    engine = Noise()
    prompts = [encode("q<think>"), encode("qq<think>\n"), encode("q<think>")]
    seeds = [seed, seed + 1, seed + 2]
    found = run(engine, prompts, budget, seeds)
    wait = len(encode(budget.ignore_text))
    for forced in found:
        spent = forced.thinking_tokens + forced.ignored * wait
        assert spent <= budget.thinking_tokens and forced.ignored <= budget.ignores
        left = budget.thinking_tokens - spent
        assert not forced.forced or left == 0
        assert forced.forced or forced.ignored == budget.ignores or left <= wait
        assert 1 <= forced.answer_tokens <= budget.answer_tokens
        assert forced.finish_reason == "stop" or forced.answer_tokens == budget.answer_tokens
        assert all(token < len(TOKENIZER) for token in forced.ids)
        closing = decode(budget.end_think) + budget.final_text * forced.forced
        assert closing in decode(forced.ids)
    thinking = [call for call in engine.calls if call.params.stop_ids]
    assert sum(len(call.response) for call in thinking) == sum(f.thinking_tokens for f in found)
    answers = [call for call in engine.calls if not call.params.stop_ids]
    assert [len(call.response) for call in answers] == [f.answer_tokens for f in found]
    for i, forced in enumerate(found):
        alone = run(Noise(), prompts[i : i + 1], budget, seeds[i : i + 1])
        assert alone == [forced]


@settings(max_examples=60, deadline=None)
@given(budget=BUDGETS, seed=st.integers(0, 2**40))
def test_every_continuation_is_asked_for_what_is_left(budget: Budget, seed: int) -> None:
    engine = Noise()
    prompt = encode("q<think>")
    run(engine, [prompt], budget, [seed])
    *thinking, answer = engine.calls
    wait, mark = encode(budget.ignore_text), list(budget.end_think)
    left, ignores, closing = budget.thinking_tokens, budget.ignores, mark
    fed, said = prompt, encode("")
    for call in thinking:
        assert (list(call.prompt), call.limit) == (fed + said, left)
        left -= len(call.response)
        said = said + [token for token in call.response if token < len(TOKENIZER)]
        ended = len(mark) if said[-len(mark) :] == mark else int(call.response[-1] == EOS)
        if not ended:
            assert left or call is thinking[-1]
            closing = [*encode("\n" * (decode(fed + said)[-1] != "\n")), *mark]
            closing += encode("\nFinal Answer:")
            continue
        fed, said, closing = fed + said[:-ended], [], mark
        if ignores and left > len(wait):
            fed, left, ignores = fed + wait, left - len(wait), ignores - 1
        else:
            assert call is thinking[-1]
    assert list(answer.prompt) == fed + said + closing
    assert len({call.seed for call in engine.calls}) == len(engine.calls)


def test_samples_of_a_question_differ() -> None:
    budget = Budget(20, 8, (CLOSE,), ignores=1)
    prompts = [encode("q<think>")] * 12
    found = run(Noise(), prompts, budget, list(range(12)))
    assert len({tuple(forced.ids) for forced in found}) == 12


def test_thoughts_go_on_together() -> None:
    """One batch a round, however much budget each thought has left."""
    engine = Noise()
    budget = Budget(60, 5, (CLOSE,), ignores=2)
    prompts = [encode("q<think>")] * 50
    found = run(engine, prompts, budget, list(range(50)))
    assert max(forced.ignored for forced in found) == 2
    assert engine.batches <= 4


def test_the_truncated_control_has_the_same_budget_and_the_same_thoughts() -> None:
    budget = Budget(5, 4, (CLOSE,))
    engine = Play("abc</think>=42<eos>", "abcdefghij", [*encode("a"), BEYOND, *encode("b<eos>")])
    prompts = [encode("q<think>")] * 3
    short, cut, silent = cut_off(engine, prompts, budget, [1, 2, 3])
    assert limits(engine) == [9, 9, 9] and [call.seed for call in engine.calls] == [1, 2, 3]
    assert (short.thinking_tokens, short.answer_tokens, short.finish_reason) == (4, 4, "stop")
    assert (cut.thinking_tokens, cut.answer_tokens, cut.finish_reason) == (9, 0, "length")
    assert (cut.text, short.text) == ("abcdefghi", "abc</think>=42")
    assert (silent.thinking_tokens, silent.text) == (4, "ab")
    assert not any(f.forced or f.ignored or f.appended_tokens for f in (short, cut, silent))
    marks = Budget(20, 4, tuple(encode("##>")))
    engine = Play("a#>b##>c##>d<eos>")
    (several,) = cut_off(engine, prompts[:1], marks, [1])
    assert (several.thinking_tokens, several.answer_tokens) == (7, 6)


def test_a_vote_that_costs_the_same() -> None:
    """Samples cost 100 and 300 on average, so 200: 700 tokens buy three of them."""
    lengths = [[100, 50, 150, 100], [300, 300, 200, 400]]
    answers: list[list[str | None]] = [["1", "1", "2", "1"], ["5", "6", None, "6"]]
    found = parallel_control(700.0, lengths, answers, ["1", "6"])
    # Three of four: "1" wins every vote; "6" wins {5,6,6}, {6,N,6} and halves of {5,6,N} twice.
    assert (found.k, found.tokens) == (3, 600.0)
    assert found.majority == pytest.approx((1.0 + (1 + 1 + 0.5 + 0.5) / 4) / 2)


@pytest.mark.parametrize(("tokens", "k"), [(100.0, 3), (99.0, 2), (10.0, 1), (1e6, 3), (66.7, 2)])
def test_how_many_samples_a_budget_buys(tokens: float, k: int) -> None:
    found = parallel_control(tokens, [[33, 33, 34]], [["1", "1", "1"]], ["1"])
    assert found.k == k and found.tokens == pytest.approx(k * 100 / 3)


@pytest.mark.parametrize("samples", [[], [[]], [[3], [4]], [[3, 4]]])
def test_a_vote_needs_samples_and_answers_for_them(samples: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"zip|every question needs"):
        parallel_control(9.0, samples, [["1"]] * min(len(samples), 1), ["1"] * min(len(samples), 1))


@pytest.fixture(scope="module")
def model_engine() -> HFEngine:
    torch.manual_seed(5)
    config = Qwen3Config(
        vocab_size=len(TOKENIZER) + 8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=False,
    )
    return HFEngine(Qwen3ForCausalLM(config).eval(), TOKENIZER)


@pytest.mark.parametrize("ignores", [0, 2])
def test_a_real_model(model_engine: HFEngine, ignores: int) -> None:
    budget = Budget(40, 6, (CLOSE,), ignores, ignore_text="W", temperature=0.8, top_p=0.98)
    prompts = [encode("1=<think>"), encode("22=<think>\n")] * 15
    seeds = list(range(30))
    found = run(model_engine, prompts, budget, seeds)
    least = int(ignores > 0)
    params = SamplingParams(40, 0.8, top_p=0.98, stop_ids=(CLOSE,), min_new_tokens=least)
    plain = model_engine.generate(prompts, params, seeds=seeds)
    assert {forced.forced for forced in found} == {True, False}
    for forced, rollout in zip(found, plain, strict=True):
        assert forced.thinking_tokens + forced.ignored <= 40 and forced.answer_tokens <= 6
        ends = [t for t, token in enumerate(rollout.response_ids) if token in (CLOSE, EOS)]
        first = rollout.response_ids[: ends[0]] if ends else rollout.response_ids
        assert forced.ids[: len(first)] == first  # drawn with the sample's own seed
        if ends and ignores and len(first) < 38:
            assert forced.ids[len(first)] == encode("W")[0]
        assert "</think>" in forced.text and EOS not in forced.ids[: forced.ids.index(CLOSE)]
    alone = run(model_engine, prompts[7:8], budget, seeds[7:8])
    assert alone == found[7:8]


def test_every_part_of_a_response_sees_its_prompt_s_images() -> None:
    engine = Noise()
    budget = Budget(30, 9, tuple(encode("</think>")), ignores=2)
    prompts = [encode("q<think>"), encode("r<think>")]
    images = [(Image("a.png", "1"), Image("b.png", "2")), ()]
    force_budget(engine, prompts, budget, TOKENIZER, [7, 8], images=images)
    shown = [seen for batch in engine.shown for seen in batch]
    assert len(engine.shown) > 2  # thoughts went on after an ignored end
    for call, seen in zip(engine.calls, shown, strict=True):
        assert seen == images[call.prompt[: len(prompts[0])] != tuple(prompts[0])]
