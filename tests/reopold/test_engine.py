"""The sampler: its log-probs are the trainer's, its draws are the model's distribution."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from reopold.engines.draws import choose
from reopold.engines.hf import HFEngine
from reopold.rollouts import Rollout, SamplingParams
from reopold.scoring import output_head, score

PROMPTS = ["3+4*2=", "9-1*5+2-7*3=", "1*1=", "3+4*2=", "8-8-8="]


@pytest.fixture(scope="module")
def engine(suite: Path) -> HFEngine:
    engine = HFEngine.load(suite / "teacher-init")
    # Sharpen the untrained head: EOS must win now and then, so that rows end at different times.
    with torch.no_grad():
        engine.model.get_input_embeddings().weight.mul_(6.0)
    return engine


def encode(engine: HFEngine, texts: list[str]) -> list[list[int]]:
    return [engine.tokenizer.encode(text) for text in texts]


def sample(engine: HFEngine, texts: list[str], seeds: list[int], **params: float) -> list[Rollout]:
    settings = SamplingParams(int(params.get("max_new_tokens", 16)), params.get("temperature", 1.0))
    return engine.generate(encode(engine, texts), settings, seeds=seeds)


def test_sampler_log_probs_are_the_trainers(engine: HFEngine) -> None:
    """With ragged prompts (left padding), finished rows leaving, and shared prefills."""
    texts = [text for text in PROMPTS for _ in range(8)]
    rollouts = sample(engine, texts, list(range(len(texts))))
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    head = output_head(engine.model, len(engine.tokenizer))
    trainer = score(engine.model, rollouts, head=head, micro_batch=7).logprobs_N
    sampler = torch.tensor([x for r in rollouts for x in r.logprobs])
    assert (trainer - sampler).abs().max() < 2e-5


def test_a_request_does_not_depend_on_its_company(engine: HFEngine) -> None:
    together = sample(engine, PROMPTS, [5, 6, 7, 8, 9])
    for i, text in enumerate(PROMPTS):
        alone = sample(engine, [text], [5 + i])[0]
        assert alone.response_ids == together[i].response_ids
        assert alone.logprobs == pytest.approx(together[i].logprobs, abs=2e-5)
    assert together[0].response_ids != together[3].response_ids  # same prompt, another seed
    assert sample(engine, PROMPTS, [5, 6, 7, 8, 9]) == together


def test_eos_is_the_last_token_of_a_stopped_response_and_of_no_other(engine: HFEngine) -> None:
    eos = engine.tokenizer.eos_token_id
    for rollout in sample(engine, PROMPTS * 10, list(range(50))):
        assert eos not in rollout.response_ids[:-1]
        assert (rollout.response_ids[-1] == eos) == (rollout.finish_reason == "stop")
        assert len(rollout.response_ids) == len(rollout.logprobs) <= 16
        if rollout.finish_reason == "length":
            assert len(rollout.response_ids) == 16


def test_greedy_equals_transformers_generate(engine: HFEngine) -> None:
    for rollout in sample(engine, PROMPTS, [0] * 5, temperature=0.0):
        reference = engine.model.generate(
            torch.tensor([rollout.prompt_ids]), do_sample=False, max_new_tokens=16, use_cache=False
        )[0, len(rollout.prompt_ids) :]
        assert rollout.response_ids == reference.tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_models_distribution(engine: HFEngine, temperature: float) -> None:
    """Frequencies of two-token continuations against their exact probabilities (chi-square)."""
    n, vocabulary = 4000, len(engine.tokenizer)
    prompt = engine.tokenizer.encode("3+4=")
    params = SamplingParams(2, temperature)
    rollouts = engine.generate([prompt] * n, params, seeds=list(range(n)))
    counts = Counter(tuple(r.response_ids) for r in rollouts)
    with torch.no_grad():
        first = torch.softmax(engine.model(torch.tensor([prompt])).logits[0, -1] / temperature, -1)
        rows = torch.tensor([[*prompt, token] for token in range(vocabulary)])
        second = torch.softmax(engine.model(rows).logits[:, -1] / temperature, -1)
    eos = engine.tokenizer.eos_token_id
    exact = {
        (a, b): float(first[a] * second[a, b])
        for a, b in itertools.product(range(vocabulary), repeat=2)
        if a != eos
    }
    exact[(eos,)] = float(first[eos])
    common = {key: p for key, p in exact.items() if n * p >= 5}
    chi2 = sum((counts[key] - n * p) ** 2 / (n * p) for key, p in common.items())
    rest = n * (1 - sum(common.values()))
    if rest >= 5:
        chi2 += (n - sum(counts[key] for key in common) - rest) ** 2 / rest
    degrees = len(common)
    assert chi2 < degrees + 5 * math.sqrt(2 * degrees)


def test_log_probs_are_those_of_temperature_one(engine: HFEngine) -> None:
    rollouts = sample(engine, PROMPTS, [1, 2, 3, 4, 5], temperature=0.5)
    head = output_head(engine.model, len(engine.tokenizer))
    trainer = score(engine.model, rollouts, head=head, micro_batch=5).logprobs_N
    sampler = torch.tensor([x for r in rollouts for x in r.logprobs])
    assert (trainer - sampler).abs().max() < 2e-5


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0 - 1e-16])
def test_an_impossible_token_is_never_drawn(uniform: float) -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    ids, logprobs = choose(logits, torch.tensor([uniform], dtype=torch.float64), 1.0)
    assert ids.item() in (1, 3)
    assert logprobs.item() == pytest.approx(math.log(0.5))


def test_no_prompts_no_rollouts(engine: HFEngine) -> None:
    assert engine.generate([], SamplingParams(4), seeds=[]) == []
