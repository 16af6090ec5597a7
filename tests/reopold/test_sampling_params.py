"""Settings of a draw: what is refused, the nucleus, ids that end a response, limits a request.

The oracle of the nucleus is its definition in exact fractions; the rest is compared with plain
samples of the same seeds, of which every setting may only take away.
"""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3ForCausalLM

from reopold.engines.base import EngineFailure, check_limits, check_logprobs
from reopold.engines.draws import choose, nucleus
from reopold.engines.hf import HFEngine
from reopold.engines.stops import response_end
from reopold.rollouts import Rollout, SamplingParams
from reopold.scoring import output_head, score

PROMPTS = ["3+4*2=", "9-1*5+2-7*3=", "1*1=", "3+4*2=", "8-8-8="]
SEEDS = [5, 6, 7, 8, 9]


@pytest.fixture(scope="module")
def engine(suite: Path) -> HFEngine:
    """Untrained, with a head of its own: ids differ in probability, and none takes it all."""
    trained = HFEngine.load(suite / "teacher-init")
    config = trained.model.config
    config.tie_word_embeddings = False
    torch.manual_seed(11)
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(5.0)
    return HFEngine(model, trained.tokenizer)


def sample(engine: HFEngine, n: int = 6, limits: Any = None, **settings: Any) -> list[Rollout]:
    prompts = [engine.tokenizer.encode(text) for text in PROMPTS]
    params = SamplingParams(**{"max_new_tokens": 16, **settings})
    return engine.generate(prompts, params, seeds=SEEDS, n=n, limits=limits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"logprob_temperature": 0.0}, "logprob_temperature"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"stop_ids": (3, -1)}, "stop_ids"),
        ({"min_new_tokens": -1}, "min_new_tokens"),
        ({"min_new_tokens": 9}, "min_new_tokens"),
    ],
)
def test_settings_that_no_engine_could_obey(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**{"max_new_tokens": 8, **settings})


def test_settings_can_be_compared_and_hashed() -> None:
    assert len({SamplingParams(8, top_p=0.95, stop_ids=(3,)) for _ in range(2)}) == 1


def nucleus_of(weights: list[int], top_p: Fraction) -> set[int]:
    """By the definition: add likeliest tokens, the lower id first, until top_p is reached."""
    kept: set[int] = set()
    for token in sorted(range(len(weights)), key=lambda token: (-weights[token], token)):
        kept.add(token)
        if Fraction(sum(weights[t] for t in kept), sum(weights)) >= top_p:
            return kept
    return kept


@given(
    weights=st.lists(st.integers(0, 16), min_size=1, max_size=8).filter(any),
    numerator=st.integers(1, 64),
)
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(
    weights: list[int], numerator: int
) -> None:
    """Probabilities are multiples of a power of 2, so that float sums of them are exact."""
    rest = 256 - sum(weights)
    weights = [*weights, rest]
    probs = torch.tensor([weights], dtype=torch.float64) / 256
    kept = nucleus(probs, numerator / 64)[0]
    wanted = nucleus_of(weights, Fraction(numerator, 64))
    # A token without any probability cannot be drawn, whether it is in or not.
    assert {t for t in range(len(weights)) if kept[t] > 0} == {t for t in wanted if weights[t]}
    assert all(kept[t] == probs[0, t] for t in wanted)


def test_of_equally_likely_tokens_the_lower_id_is_in() -> None:
    probs = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.125, 0.5, 0.125, 0.25]]).double()
    kept = nucleus(probs, 0.5)
    assert kept.tolist() == [[0.25, 0.25, 0.0, 0.0], [0.0, 0.5, 0.0, 0.0]]
    assert nucleus(probs, 0.51).gt(0).tolist()[0] == [True, True, True, False]


def test_the_draw_inverts_the_cumulative_distribution_of_the_nucleus() -> None:
    """Probabilities 0.1, 0.4, 0.2, 0.3 at top-p 0.7: ids 1 and 3, in the ratio 4 to 3."""
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64).log()
    for uniform, wanted in ((0.0, 1), (0.571, 1), (0.572, 3), (1.0 - 2**-53, 3)):
        drawn, logprob = choose(logits, torch.tensor([uniform]).double(), 1.0, top_p=0.69)
        assert drawn.item() == wanted
        assert logprob.item() == pytest.approx(math.log({1: 0.4, 3: 0.3}[wanted]))


def test_the_nucleus_is_that_of_the_draws_temperature() -> None:
    """0.5, 0.3, 0.2: at temperature 1/2 they become 25, 9, 4 of 38, and 34/38 < 0.9."""
    logits = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log().repeat(200, 1)
    uniforms = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    assert set(choose(logits, uniforms, 1.0, top_p=0.85)[0].tolist()) == {0, 1, 2}
    assert set(choose(logits, uniforms, 0.5, top_p=0.85)[0].tolist()) == {0, 1}


def test_a_tiny_nucleus_is_greedy(engine: HFEngine) -> None:
    greedy = [r.response_ids for r in sample(engine, temperature=0.0)]
    assert [r.response_ids for r in sample(engine, top_p=1e-9)] == greedy
    assert [r.response_ids for r in sample(engine, temperature=0.0, top_p=0.3)] == greedy


def test_the_whole_distribution_is_sampled_bit_for_bit_as_without_a_nucleus(
    engine: HFEngine,
) -> None:
    assert sample(engine, top_p=1.0) == sample(engine)
    nearly = sample(engine, top_p=1.0 - 1e-15)
    assert [r.response_ids for r in nearly] == [r.response_ids for r in sample(engine)]


def test_draws_follow_the_renormalised_nucleus(engine: HFEngine) -> None:
    n = 4000
    prompt = engine.tokenizer.encode("3+4=")
    params = SamplingParams(1, 4.0, top_p=0.8)
    counts = Counter(
        r.response_ids[0] for r in engine.generate([prompt] * n, params, seeds=list(range(n)))
    )
    with torch.no_grad():
        logits = engine.model(torch.tensor([prompt])).logits[0, -1].double()
    probs = torch.softmax(logits[: len(engine.tokenizer)] / 4.0, -1).tolist()
    kept: list[int] = []
    for token in sorted(range(len(probs)), key=lambda t: -probs[t]):
        kept.append(token)
        if sum(probs[t] for t in kept) >= 0.8:
            break
    assert 2 < len(kept) < len(probs) and set(counts) <= set(kept)
    total = sum(probs[t] for t in kept)
    chi2 = sum((counts[t] - n * probs[t] / total) ** 2 / (n * probs[t] / total) for t in kept)
    assert chi2 < len(kept) + 5 * math.sqrt(2 * len(kept))


def test_log_probs_are_those_of_the_full_distribution(engine: HFEngine) -> None:
    rollouts = sample(engine, temperature=0.6, top_p=0.5, stop_ids=(4,), min_new_tokens=3)
    head = output_head(engine.model, len(engine.tokenizer))
    trainer = score(engine.model, rollouts, head=head, micro_batch=5).logprobs_N
    sampler = torch.tensor([x for r in rollouts for x in r.logprobs])
    assert (trainer - sampler).abs().max() < 2e-5


def test_a_stop_id_cuts_what_would_have_been_sampled_without_it(engine: HFEngine) -> None:
    plain = sample(engine)
    stops = tuple(engine.tokenizer.encode("012345"))
    ends = {*stops, engine.tokenizer.eos_token_id}
    cut = 0
    for before, after in zip(plain, sample(engine, stop_ids=stops), strict=True):
        place = next((t for t, token in enumerate(before.response_ids) if token in ends), None)
        length = len(before.response_ids) if place is None else place + 1
        assert after.response_ids == before.response_ids[:length]
        assert after.finish_reason == ("length" if place is None else "stop")
        cut += length < len(before.response_ids)
    assert cut > 5


def test_first_tokens_that_may_not_end_a_response(engine: HFEngine) -> None:
    stops = tuple(engine.tokenizer.encode("0123456"))
    ends = {*stops, engine.tokenizer.eos_token_id}
    for temperature in (0.0, 1.0):
        plain = sample(engine, stop_ids=stops, temperature=temperature)
        held = sample(engine, stop_ids=stops, temperature=temperature, min_new_tokens=4)
        assert min(len(r.response_ids) for r in plain) < 4
        for rollout in held:
            assert not ends & set(rollout.response_ids[:4])
            assert rollout.finish_reason == "length" or rollout.response_ids[-1] in ends
    assert any(len(r.response_ids) == 5 for r in held)  # the ban is over after four


@pytest.mark.parametrize(
    ("limits", "n"),
    [([1, 16, 5, 9, 2], 6), ([16, 16, 3, 16, 16], 1)],  # alone at its end, a row stays in the batch
)
def test_a_limit_cuts_a_request_and_changes_nothing_else(
    engine: HFEngine, limits: list[int], n: int
) -> None:
    plain = sample(engine, n)
    for i, after in enumerate(sample(engine, n, limits)):
        before, limit = plain[i], limits[i // n]
        assert after.response_ids == before.response_ids[:limit]
        whole = len(before.response_ids) <= limit and before.finish_reason == "stop"
        assert after.finish_reason == ("stop" if whole else "length")
        assert after.logprobs == pytest.approx(before.logprobs[:limit], abs=2e-5)


def test_what_was_sampled_after_the_limit_does_not_count() -> None:
    """A row that has ended stays in the batch for a while."""
    assert response_end([5, 6, 1], {1}, 2) == (2, "length")
    assert response_end([5, 1, 6, 1], {1, 9}, 2) == (2, "stop")
    assert response_end([9, 1], {1, 9}, 2) == (1, "stop")


def test_limits_outside_the_settings_are_refused() -> None:
    params = SamplingParams(8, min_new_tokens=2)
    assert check_limits([[1], [2]], params, None) == [8, 8]
    assert check_limits([[1], [2]], params, [2, 8]) == [2, 8]
    for limits in ([1, 8], [2, 9]):
        with pytest.raises(ValueError, match="is not from 2 to 8"):
            check_limits([[1], [2]], params, limits)
    with pytest.raises(ValueError, match="1 limits for 2 prompts"):
        check_limits([[1], [2]], params, [8])


def test_vllm_gives_log_probs_of_a_nucleus_where_they_are_not_raw() -> None:
    """Then a nucleus is refused, and so are other log-probs than the engine's."""
    check_logprobs(SamplingParams(8, 0.6, top_p=0.9), 1.0)
    check_logprobs(SamplingParams(8, 0.6, 0.6), 0.6)
    with pytest.raises(EngineFailure, match="without top_p"):
        check_logprobs(SamplingParams(8, 0.6, 0.6, top_p=0.9), 0.6)
    with pytest.raises(EngineFailure, match=r"temperature 1\.0 were asked"):
        check_logprobs(SamplingParams(8, 0.6), 0.6)
