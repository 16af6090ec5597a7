"""Scores of given responses: independent of padding, order and micro-batches; the right shift."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from reopold.config import ConfigError
from reopold.engines.hf import load_model
from reopold.rollouts import Rollout
from reopold.scoring import check_head, score


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
    logprobs, entropy = score(model, ROLLOUTS, vocab_size=20, micro_batch=3)
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
    whole, _ = score(model, ROLLOUTS, vocab_size=20, micro_batch=5)
    parts, _ = score(model, ROLLOUTS, vocab_size=20, micro_batch=size)
    assert torch.allclose(whole, parts, atol=1e-6)


def test_rows_follow_the_order_of_the_rollouts(model: PreTrainedModel) -> None:
    forward, _ = score(model, ROLLOUTS, vocab_size=20, micro_batch=2)
    backward, _ = score(model, ROLLOUTS[::-1], vocab_size=20, micro_batch=2)
    lengths = [len(r.response_ids) for r in ROLLOUTS]
    pieces = torch.split(backward, lengths[::-1])
    assert torch.allclose(torch.cat(pieces[::-1]), forward, atol=1e-6)


def test_heads_that_would_be_scored_wrongly_are_refused(model: PreTrainedModel) -> None:
    check_head(model, "teacher")
    model.config.final_logit_softcapping = 30.0
    try:
        with pytest.raises(ConfigError, match="soft-capped"):
            check_head(model, "teacher")
    finally:
        model.config.final_logit_softcapping = None
