"""What the estimator estimates: exact expectations over every short sequence (Remark 3.1).

A policy over three tokens (the last is EOS) and at most three steps; the logits of each prefix are
a smooth function of a few shared parameters, so gradients of different prefixes interfere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from reopold.divergences import Divergence, TopK, Vocabulary
from reopold.logprobs import Head
from reopold.loss import fused_policy_loss, policy_loss
from reopold.objectives import build
from reopold.rollouts import Credit, TokenBatch

EOS, TOKENS, LONGEST, FEATURES = 2, 3, 3, 4
Prefix = tuple[int, ...]


def features(prefix: Prefix, seed: int) -> Tensor:
    """Hidden state of a prefix."""
    generator = torch.Generator().manual_seed(
        seed + sum(3**i * (t + 1) for i, t in enumerate(prefix))
    )
    return torch.randn(FEATURES, generator=generator, dtype=torch.float64)


def weights(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(TOKENS, FEATURES, generator=generator, dtype=torch.float64)


STUDENT, TEACHER = weights(1), 1.5 * weights(2)


def student(prefix: Prefix, weight: Tensor) -> Tensor:
    return torch.log_softmax(weight @ features(prefix, 10), -1)


def teacher(prefix: Prefix) -> Tensor:
    return torch.log_softmax(TEACHER @ features(prefix, 20), -1)


def prefixes() -> Iterator[Prefix]:
    """Every prefix at which a token is sampled."""
    layer: list[Prefix] = [()]
    for _ in range(LONGEST):
        yield from layer
        layer = [(*prefix, token) for prefix in layer for token in range(TOKENS) if token != EOS]


def sequences(prefix: Prefix = ()) -> Iterator[Prefix]:
    if len(prefix) == LONGEST or (prefix and prefix[-1] == EOS):
        yield prefix
    else:
        for token in range(TOKENS):
            yield from sequences((*prefix, token))


def probability(sequence: Prefix, weight: Tensor) -> Tensor:
    logs = [student(sequence[:t], weight)[token] for t, token in enumerate(sequence)]
    return torch.stack(logs).sum().exp() if logs else weight.new_ones(())


def expected_gradient(of: Callable[[Prefix, Tensor], Tensor]) -> Tensor:
    """Sum over all sequences of their probability times the gradient of `of(sequence, weight)`."""
    total = torch.zeros_like(STUDENT)
    for sequence in sequences():
        weight = STUDENT.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(of(sequence, weight), weight)
        total += probability(sequence, STUDENT) * gradient
    return total


def kl_gradient(direction: str) -> Tensor:
    """Gradient of sum_t E_{prefix ~ sg(pi)} KL at the visited prefixes."""
    weight = STUDENT.clone().requires_grad_()
    loss = weight.new_zeros(())
    for prefix in prefixes():
        ours, theirs = student(prefix, weight), teacher(prefix)
        kl = (ours.exp() * (ours - theirs)).sum()
        if direction == "forward":
            kl = (theirs.exp() * (theirs - ours)).sum()
        loss = loss + probability(prefix, STUDENT) * kl
    return torch.autograd.grad(loss, weight)[0]


def signals(sequence: Prefix, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs of the sampled tokens: student with gradient, teacher."""
    ours = [student(sequence[:t], weight)[token] for t, token in enumerate(sequence)]
    theirs = [teacher(sequence[:t])[token] for t, token in enumerate(sequence)]
    return torch.stack(ours), torch.stack(theirs)


def opd_credit(logprobs: Tensor, teacher_logprobs: Tensor) -> Credit:
    n = len(logprobs)
    batch = TokenBatch(
        student_logprobs_N=logprobs.detach(),
        teacher_logprobs_N=teacher_logprobs,
        entropy_N=torch.zeros(n, dtype=torch.float64),
        valid_N=torch.ones(n, dtype=torch.bool),
        sequence_N=torch.zeros(n, dtype=torch.long),
    )
    return build("opd")(batch, 0)


def test_the_probabilities_of_all_sequences_add_up() -> None:
    total = sum(float(probability(s, STUDENT)) for s in sequences())
    assert total == pytest.approx(1.0, abs=1e-14)


def test_opd_estimates_the_reverse_kl_gradient() -> None:
    """With stop-gradient on R: through the real objective and loss."""

    def loss(sequence: Prefix, weight: Tensor) -> Tensor:
        ours, theirs = signals(sequence, weight)
        return policy_loss(ours, ours.detach(), opd_credit(ours, theirs), normaliser=1)[0]

    assert torch.allclose(expected_gradient(loss), kl_gradient("reverse"), atol=1e-13)


def test_the_fused_loss_estimates_the_same() -> None:
    def loss(sequence: Prefix, weight: Tensor) -> Tensor:
        hidden = torch.stack([features(sequence[:t], 10) for t in range(len(sequence))])
        ours, theirs = signals(sequence, weight.detach())
        credit = opd_credit(ours, theirs)
        targets = torch.tensor(sequence)
        return fused_policy_loss(hidden, weight, targets, ours, credit, normaliser=1)[0]

    assert torch.allclose(expected_gradient(loss), kl_gradient("reverse"), atol=1e-13)


def test_without_stop_gradient_samples_differ_but_the_expectation_does_not() -> None:
    """E[rho R grad log pi] = E[rho (R - 1) grad log pi]."""

    def loss(sequence: Prefix, weight: Tensor) -> Tensor:
        ours, theirs = signals(sequence, weight)
        return -((ours - ours.detach()).exp() * (theirs - ours)).sum()

    assert torch.allclose(expected_gradient(loss), kl_gradient("reverse"), atol=1e-13)
    gradients = []
    for stopped in (True, False):
        weight = STUDENT.clone().requires_grad_()
        ours, theirs = signals((0, 1, EOS), weight)
        rewards = theirs - (ours.detach() if stopped else ours)
        value = -((ours - ours.detach()).exp() * rewards).sum()
        gradients.append(torch.autograd.grad(value, weight)[0])
    assert not torch.allclose(*gradients, atol=1e-3)


def test_k1_as_a_direct_loss_teaches_nothing() -> None:
    """Its expected gradient is zero whatever the teacher says (OpenRLHF PR 1309)."""

    def loss(sequence: Prefix, weight: Tensor) -> Tensor:
        ours, theirs = signals(sequence, weight)
        return (ours - theirs).sum()

    assert torch.allclose(expected_gradient(loss), torch.zeros_like(STUDENT), atol=1e-13)
    assert kl_gradient("reverse").abs().max() > 1e-2


def test_k3_as_a_direct_loss_gives_the_forward_kl_gradient() -> None:
    def loss(sequence: Prefix, weight: Tensor) -> Tensor:
        ours, theirs = signals(sequence, weight)
        return ((theirs - ours).exp() - 1.0 - (theirs - ours)).sum()

    assert torch.allclose(expected_gradient(loss), kl_gradient("forward"), atol=1e-13)


@pytest.mark.parametrize("kind", ["reverse", "forward"])
@pytest.mark.parametrize("support", ["vocabulary", "top of all but one"])
def test_gkd_is_the_gradient_itself(kind: str, support: str) -> None:
    """No sampling within a prefix is left; with the tail a single id, nor is any truncation."""
    visited = list(prefixes())
    hidden = torch.stack([features(prefix, 10) for prefix in visited])
    theirs = torch.stack([features(prefix, 20) for prefix in visited])
    distribution: Vocabulary | TopK = Vocabulary(theirs, Head(TEACHER))
    if support != "vocabulary":
        logprobs = torch.stack([teacher(prefix) for prefix in visited])
        distribution = TopK(*logprobs.topk(TOKENS - 1, -1)[::-1])
    weight = STUDENT.clone().requires_grad_()
    n = len(visited)
    credit = Credit(
        torch.zeros(n, dtype=torch.float64),
        torch.ones(n, dtype=torch.bool),
        {},
        Divergence(
            kind,  # type: ignore[arg-type]
            torch.stack([probability(prefix, STUDENT) for prefix in visited]),
            distribution,
        ),
    )
    loss, _, _ = fused_policy_loss(
        hidden, weight, torch.zeros(n, dtype=torch.long), None, credit, normaliser=1
    )
    (gradient,) = torch.autograd.grad(loss, weight)
    assert torch.allclose(gradient, kl_gradient(kind), atol=1e-12)
