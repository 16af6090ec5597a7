"""Scores of given responses: independent of padding, order and micro-batches; the right shift."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from reopold.config import ConfigError
from reopold.divergences import TopK, Vocabulary
from reopold.engines.hf import load_model
from reopold.rollouts import Rollout
from reopold.scoring import check_head, micro_batches, output_head, score


@pytest.fixture(scope="module")
def model(suite: Path) -> PreTrainedModel:
    return load_model(str(suite / "teacher-init"), dtype="float64", device="cpu")


def rollout(prompt: list[int], response: list[int]) -> Rollout:
    return Rollout(prompt, response, [], "stop")


ROLLOUTS = [
    rollout([2, 7, 8, 3], [9, 10, 11, 1]),
    rollout([2, 5, 3], [4]),
    rollout([2, 7, 8, 9, 9, 9, 3], [12, 1]),
    rollout([2, 3], []),
    rollout([2, 6, 3], [1, 0, 1]),  # a pad inside, and two EOS: masks go by position, not by id
]


def test_scores_equal_one_sequence_at_a_time_through_the_plain_model(
    model: PreTrainedModel,
) -> None:
    scores = score(model, ROLLOUTS, head=output_head(model, 21), micro_batch=3)
    logprobs, entropy = scores.logprobs_N, scores.entropy_N
    expected_logprobs, expected_entropy = [], []
    for r in ROLLOUTS:
        with torch.no_grad():
            logits = model(torch.tensor([r.prompt_ids + r.response_ids])).logits[0].double()
        for t, token in enumerate(r.response_ids):
            row = torch.log_softmax(logits[len(r.prompt_ids) + t - 1], -1)
            expected_logprobs.append(row[token])
            expected_entropy.append(-(row.exp() * row).sum())
    assert torch.allclose(logprobs.double(), torch.stack(expected_logprobs), atol=1e-6)
    assert torch.allclose(entropy.double(), torch.stack(expected_entropy), atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 5, 50])
def test_scores_do_not_depend_on_the_micro_batch(model: PreTrainedModel, size: int) -> None:
    whole = score(model, ROLLOUTS, head=output_head(model, 21), micro_batch=5).logprobs_N
    parts = score(model, ROLLOUTS, head=output_head(model, 21), micro_batch=size).logprobs_N
    assert torch.allclose(whole, parts, atol=1e-6)


def test_a_micro_batch_ends_before_it_would_pad_much() -> None:
    """However large it may be: padding is work that nobody asked for."""
    ragged = [rollout([2, 3], [5] * (1 + 7 * i % 60)) for i in range(200)]
    batches = list(micro_batches(ragged, 1000, "cpu"))
    assert sum(len(batch.input_ids_BL) for batch in batches) == 200
    places = sum(batch.input_ids_BL.numel() for batch in batches)
    assert places < 1.15 * sum(2 + len(r.response_ids) for r in ragged)
    assert max(len(batch.input_ids_BL) for batch in micro_batches(ragged, 16, "cpu")) == 16


def test_rows_follow_the_order_of_the_rollouts(model: PreTrainedModel) -> None:
    forward = score(model, ROLLOUTS, head=output_head(model, 21), micro_batch=2).logprobs_N
    backward = score(model, ROLLOUTS[::-1], head=output_head(model, 21), micro_batch=2).logprobs_N
    lengths = [len(r.response_ids) for r in ROLLOUTS]
    pieces = torch.split(backward, lengths[::-1])
    assert torch.allclose(torch.cat(pieces[::-1]), forward, atol=1e-6)


def tiny(kind: str, **settings: object) -> PreTrainedModel:
    """A model of the real class, with the given peculiarity of its output head."""
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    config = AutoConfig.for_model(kind, **{**sizes, **settings}, pad_token_id=0)
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():  # the bias of a new model is zero, and small logits never meet a cap
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.5)
    return model


@pytest.mark.parametrize(
    "model_of",
    [
        lambda: tiny("qwen3", head_dim=8, tie_word_embeddings=False),
        lambda: tiny("qwen3", head_dim=8, tie_word_embeddings=True),
        lambda: tiny("gemma2", head_dim=8, final_logit_softcapping=2.0),
        lambda: tiny("cohere", logit_scale=0.3),
        lambda: tiny("granite", logits_scaling=4.0),
        lambda: tiny("phi"),  # a bias
    ],
    ids=["untied", "tied", "soft cap", "scale", "divisor", "bias"],
)
def test_every_kind_of_head_is_scored_as_the_model_itself_does(
    model_of: Callable[[], PreTrainedModel],
) -> None:
    model = model_of()
    check_head(model, "it")
    scores = score(model, ROLLOUTS, head=output_head(model, 21, temperature=0.7), micro_batch=2)
    expected = []
    for r in ROLLOUTS:
        with torch.no_grad():
            logits = model(torch.tensor([r.prompt_ids + r.response_ids])).logits[0, :, :21]
        rows = torch.log_softmax(logits.double() / 0.7, -1)[len(r.prompt_ids) - 1 : -1]
        expected += [row[token] for row, token in zip(rows, r.response_ids, strict=True)]
    assert torch.allclose(scores.logprobs_N, torch.stack(expected), atol=1e-9)


def test_heads_that_would_be_scored_wrongly_are_refused() -> None:
    model = tiny("qwen3", head_dim=8)
    model.config.final_logit_softcapping = 3.0  # Qwen3 has none: our reading of it would be wrong
    with pytest.raises(ConfigError, match="in a way that is not supported"):
        check_head(model, "teacher")


def test_more_of_the_distribution_where_it_is_asked_for(model: PreTrainedModel) -> None:
    """Top-k and full vocabulary against the plain model, across micro-batches."""
    head = output_head(model, 21)
    rows = []
    for r in ROLLOUTS:
        with torch.no_grad():
            logits = model(torch.tensor([r.prompt_ids + r.response_ids])).logits[0, :, :21]
        rows += list(torch.log_softmax(logits, -1)[len(r.prompt_ids) - 1 : -1])
    expected = torch.stack(rows[: sum(len(r.response_ids) for r in ROLLOUTS)])
    whole = score(model, ROLLOUTS, head=head, micro_batch=2, vocabulary=True).distribution
    assert isinstance(whole, Vocabulary)
    every = torch.arange(len(expected))
    assert torch.allclose(whole.logprobs(every), expected, atol=1e-12)
    top = score(model, ROLLOUTS, head=head, micro_batch=2, top_k=3).distribution
    assert isinstance(top, TopK)
    values, ids = expected.topk(3, dim=-1)
    assert torch.equal(top.ids_NK, ids) and torch.allclose(top.logprobs_NK, values, atol=1e-12)
    tail = 1.0 - values.exp().sum(-1)
    assert torch.allclose(top.with_tail(every)[:, -1].exp(), tail, atol=1e-12)
