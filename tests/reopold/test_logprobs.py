"""Chunked log-probs and entropies against the plain float64 formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from reopold.logprobs import token_logprobs_and_entropy


def case(n: int = 13, d: int = 5, v: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, d, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(v, d, generator=generator, dtype=torch.float64, requires_grad=True)
    return hidden, weight, torch.randint(0, 9, (n,), generator=generator)


def reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    probabilities = torch.softmax(hidden @ weight.T / temperature, dim=-1)
    logprobs = probabilities.gather(-1, targets[:, None]).squeeze(-1).log()
    return logprobs, -(probabilities * probabilities.log()).sum(-1)


@pytest.mark.parametrize("chunk", [1, 4, 13, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_and_gradients_match_the_formula(chunk: int, temperature: float) -> None:
    hidden, weight, targets = case()
    logprobs, entropy = token_logprobs_and_entropy(
        hidden, weight, targets, chunk_tokens=chunk, temperature=temperature
    )
    expected_logprobs, expected_entropy = reference(hidden, weight, targets, temperature)
    assert torch.allclose(logprobs, expected_logprobs, atol=1e-12)
    assert torch.allclose(entropy, expected_entropy, atol=1e-12)
    ours = torch.autograd.grad(logprobs.square().sum(), (hidden, weight))
    theirs = torch.autograd.grad(expected_logprobs.square().sum(), (hidden, weight))
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=1e-11)


def test_padded_vocabulary_rows_take_no_probability() -> None:
    hidden, weight, targets = case()
    logprobs, entropy = token_logprobs_and_entropy(hidden, weight, targets, vocab_size=9)
    expected_logprobs, expected_entropy = reference(hidden, weight[:9], targets)
    assert torch.allclose(logprobs, expected_logprobs, atol=1e-12)
    assert torch.allclose(entropy, expected_entropy, atol=1e-12)


def test_low_precision_input_is_scored_in_float32() -> None:
    hidden, weight, targets = case()
    logprobs, entropy = token_logprobs_and_entropy(hidden.bfloat16(), weight.bfloat16(), targets)
    assert logprobs.dtype == entropy.dtype == torch.float32
    assert torch.allclose(logprobs.double(), reference(hidden, weight, targets)[0], atol=0.2)


def test_entropy_carries_no_gradient() -> None:
    hidden, weight, targets = case()
    assert not token_logprobs_and_entropy(hidden, weight, targets)[1].requires_grad


def test_certain_and_impossible_tokens() -> None:
    """Probabilities that underflow add 0 to the entropy; their log-prob stays exact."""
    hidden, weight = torch.ones(1, 1), torch.tensor([[0.0], [-200.0]])
    logprobs, entropy = token_logprobs_and_entropy(hidden, weight, torch.tensor([1]))
    assert logprobs.tolist() == [-200.0] and entropy.tolist() == [0.0]
    _, even = token_logprobs_and_entropy(hidden, torch.zeros(2, 1), torch.tensor([1]))
    assert even.item() == pytest.approx(math.log(2))


def test_a_chunk_must_hold_a_token() -> None:
    hidden, weight, targets = case()
    with pytest.raises(ValueError, match="at least 1"):
        token_logprobs_and_entropy(hidden, weight, targets, chunk_tokens=0)
