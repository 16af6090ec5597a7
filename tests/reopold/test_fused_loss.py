"""The fused head and loss: against plain autograd, finite differences, and its own promises."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from reopold import logprobs as logprobs_module
from reopold.divergences import Divergence, TopK, Vocabulary, divergence
from reopold.logprobs import Head, token_logprobs_and_entropy
from reopold.loss import fused_policy_loss, policy_loss
from reopold.rollouts import Credit
from tests.reopold.cases import CASES, NAMES, random_case

N, D, V = 13, 5, 11
REAL = V - 2  # rows of the head from here on are padding


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


class Setting:
    """A head with its peculiarities, a credit with or without a divergence, plain and fused."""

    def __init__(
        self, bias: bool, scale: float, softcap: float | None, temperature: float, **asked: Any
    ) -> None:
        self.hidden, self.weight = normal(1, N, D), normal(2, V, D)
        self.inputs = [self.hidden, self.weight] + ([normal(3, V)] if bias else [])
        for tensor in self.inputs:
            tensor.requires_grad_()
        self.bias = self.inputs[2] if bias else None
        self.scale, self.softcap, self.temperature = scale, softcap, temperature
        self.targets = torch.arange(N) * 5 % REAL
        self.clip = asked.get("clip")
        self.logprobs = self._logprobs()
        self.sampled = self.logprobs.gather(-1, self.targets[:, None]).squeeze(-1)
        self.old = self.sampled.detach() + 0.3 * normal(4, N)
        keep = torch.arange(N) % 3 > 0
        self.credit = Credit(normal(5, N), keep, {}, self._divergence(**asked))

    def _logprobs(self) -> Tensor:
        logits = self.hidden @ self.weight.T
        logits = (logits if self.bias is None else logits + self.bias)[:, :REAL] * self.scale
        if self.softcap:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return torch.log_softmax(logits / self.temperature, -1)

    def _divergence(
        self, kind: Any = None, top: bool = False, clip: object = None
    ) -> Divergence | None:
        if kind is None:
            return None
        whole = Vocabulary(normal(6, N, 3), Head(normal(7, REAL, 3)))
        every = torch.arange(N)
        teacher = TopK(*whole.logprobs(every).topk(4, -1)[::-1]) if top else whole
        weight = normal(8, N).abs() * (every % 4 > 0)
        return Divergence(kind, weight, teacher, 0.3)

    def plain(self) -> Tensor:
        """The loss by autograd through whole log-probs."""
        loss, _ = policy_loss(
            self.sampled, self.old, self.credit, ratio_clip=self.clip, normaliser=7.0
        )
        asked = self.credit.divergence
        if asked is None:
            return loss
        rows = torch.arange(N)
        if isinstance(asked.teacher, TopK):
            top = self.logprobs.gather(-1, asked.teacher.ids_NK)
            tail = torch.log1p(-top.exp().sum(-1, keepdim=True))
            student, teacher = torch.cat([top, tail], -1), asked.teacher.with_tail(rows)
        else:
            student, teacher = self.logprobs, asked.teacher.logprobs(rows)
        each = asked.weight_N * divergence(asked.kind, teacher, student, asked.mixture)
        return loss + each[self.credit.keep_N].sum() / 7.0

    def fused(self, chunk: int | None) -> tuple[Tensor, Tensor, Tensor]:
        return fused_policy_loss(
            self.hidden,
            self.weight,
            self.targets,
            self.old,
            self.credit,
            normaliser=7.0,
            ratio_clip=self.clip,
            chunk_tokens=chunk,
            **self.head(),
        )

    def head(self) -> dict[str, Any]:
        return {
            "vocab_size": REAL,
            "bias_V": self.bias,
            "scale": self.scale,
            "softcap": self.softcap,
            "temperature": self.temperature,
        }


HEADS = list(itertools.product([False, True], [1.0, 0.5], [None, 3.0], [1.0, 0.7]))
TERMS: list[dict[str, Any]] = [
    {},
    {"clip": (0.1, 0.2)},
    *({"kind": k, "top": t} for k in ("forward", "reverse", "js") for t in (True, False)),
]


@pytest.mark.parametrize("terms", TERMS, ids=str)
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_value_and_gradients_are_those_of_plain_autograd(head: Any, terms: dict[str, Any]) -> None:
    setting = Setting(*head, **terms)
    plain = setting.plain()
    expected = torch.autograd.grad(plain, setting.inputs, retain_graph=True)
    squares = torch.autograd.grad(setting.sampled.square().sum(), setting.inputs, retain_graph=True)
    full = setting.logprobs.detach()
    entropy = -(full.exp() * full).sum(-1)
    for chunk in (1, 4, None):
        loss, logprobs, entropies = setting.fused(chunk)
        keep = setting.credit.keep_N
        assert loss.item() == pytest.approx(plain.item(), rel=1e-12)
        assert torch.allclose(logprobs[keep], setting.sampled[keep], atol=1e-12)
        assert torch.allclose(entropies[keep], entropy[keep], atol=1e-12)
        assert logprobs[~keep].isnan().all() and entropies[~keep].isnan().all()
        for ours, theirs in zip(
            torch.autograd.grad(3.0 * loss, setting.inputs), expected, strict=True
        ):
            assert torch.allclose(ours, 3.0 * theirs, atol=1e-11)
        scored, entropies = token_logprobs_and_entropy(
            setting.hidden, setting.weight, setting.targets, chunk_tokens=chunk, **setting.head()
        )
        assert torch.allclose(scored, setting.sampled, atol=1e-12)
        assert torch.allclose(entropies, entropy, atol=1e-12)
        ours_all = torch.autograd.grad(scored.square().sum(), setting.inputs)
        for ours, theirs in zip(ours_all, squares, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_matches_finite_differences(name: str) -> None:
    """Central differences in every hidden state and every weight of the head, float64."""
    case = random_case(3, method=name)
    credit = case.credit(name)
    gradients = case.gradients(name, credit)
    step = 1e-6
    for tensor, gradient in zip((case.hidden_ND, case.weight_VD), gradients, strict=True):
        flat = tensor.view(-1)
        for i in range(flat.numel()):
            kept = flat[i].item()
            values = []
            for sign in (1.0, -1.0):
                flat[i] = kept + sign * step
                values.append(case.loss(name, credit).item())
            flat[i] = kept
            slope = (values[0] - values[1]) / (2 * step)
            assert gradient.view(-1)[i].item() == pytest.approx(slope, abs=2e-9, rel=1e-6)
    assert any(bool(g.abs().max() > 1e-3) for g in gradients)


def test_every_method_has_a_case() -> None:
    from reopold.objectives import OBJECTIVES

    assert {method for _, method, *_ in CASES} == set(OBJECTIVES)


def small(keep: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Credit]:
    hidden, weight = normal(1, N, D).requires_grad_(), normal(2, V, D).requires_grad_()
    keep = torch.arange(N) % 4 == 0 if keep is None else keep
    return hidden, weight, torch.arange(N) % V, normal(4, N), Credit(normal(5, N), keep)


def test_a_tied_head_adds_its_gradient_to_the_embedding() -> None:
    table = normal(2, V, D).requires_grad_()
    ids = torch.arange(N) % V
    _, _, targets, old, credit = small()
    loss, _, _ = fused_policy_loss(table[ids].tanh(), table, targets, old, credit, normaliser=2)
    (ours,) = torch.autograd.grad(loss, table)
    sampled = torch.log_softmax(table[ids].tanh() @ table.T, -1).gather(-1, targets[:, None])
    plain, _ = policy_loss(sampled.squeeze(-1), old, credit, normaliser=2)
    (theirs,) = torch.autograd.grad(plain, table)
    assert torch.allclose(ours, theirs, atol=1e-12)


def test_low_precision_is_accumulated_in_float32() -> None:
    """bfloat16 inputs give what float64 gives on the same numbers, to float32's rounding; logits
    rounded to bfloat16 would be off by a hundred times more."""
    hidden, weight, targets, old, credit = small()
    low = [t.detach().bfloat16().requires_grad_() for t in (hidden, weight)]
    wide = [t.detach().double().requires_grad_() for t in low]
    found = []
    for h, w in (low, wide):
        loss, logprobs, _ = fused_policy_loss(h, w, targets, old, credit, normaliser=3)
        loss.backward()
        scored, entropy = token_logprobs_and_entropy(h, w, targets)
        found.append((loss, logprobs[credit.keep_N], scored, entropy))
    for ours, exact in zip(*found, strict=True):
        assert ours.dtype == torch.float32
        assert torch.allclose(ours.double(), exact, atol=3e-6)
    for ours, exact in zip(low, wide, strict=True):
        assert ours.grad is not None and exact.grad is not None
        assert ours.grad.dtype == torch.bfloat16
        assert torch.allclose(ours.grad.double(), exact.grad, rtol=2**-8, atol=1e-5)


def test_dropped_tokens_cost_no_head_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only kept rows meet the head; whatever dropped ones hold does no harm."""
    rows = 0
    product = logprobs_module._product

    def counted(hidden: Tensor, weight: Tensor, out: Tensor) -> None:
        nonlocal rows
        rows += len(hidden)
        product(hidden, weight, out)

    monkeypatch.setattr(logprobs_module, "_product", counted)
    hidden, weight, targets, old, credit = small()
    expected, _, _ = fused_policy_loss(hidden, weight, targets, old, credit, normaliser=3)
    expected.backward()
    assert rows == int(credit.keep_N.sum())
    assert hidden.grad is not None and not hidden.grad[~credit.keep_N].any()
    poisoned = old.where(credit.keep_N, torch.tensor([math.nan, math.inf] * 7)[:N])
    advantages = credit.advantages_N.where(credit.keep_N, math.nan)
    loss, _, _ = fused_policy_loss(
        hidden, weight, targets, poisoned, Credit(advantages, credit.keep_N), normaliser=3
    )
    assert loss.item() == expected.item()
    before = hidden.grad.clone()
    loss.backward()
    assert torch.equal(hidden.grad, 2 * before)


def test_nothing_kept_is_a_zero_loss_with_a_zero_gradient() -> None:
    hidden, weight, targets, old, credit = small(torch.zeros(N, dtype=torch.bool))
    loss, logprobs, _ = fused_policy_loss(hidden, weight, targets, old, credit, normaliser=0)
    loss.backward()
    assert loss.item() == 0.0 and logprobs.isnan().all()
    assert hidden.grad is not None and weight.grad is not None
    assert not hidden.grad.any() and not weight.grad.any()


def test_what_cannot_be_differentiated_says_so() -> None:
    hidden, weight, targets, old, credit = small()
    loss, logprobs, entropy = fused_policy_loss(hidden, weight, targets, old, credit, normaliser=3)
    assert not logprobs.requires_grad and not entropy.requires_grad
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once only"):
        loss.backward()
    attached = Credit(credit.advantages_N.clone().requires_grad_(), credit.keep_N)
    for call in (
        lambda: fused_policy_loss(hidden, weight, targets, old, attached, normaliser=3),
        lambda: policy_loss(old, old, attached),
    ):
        with pytest.raises(ValueError, match="K1 as a direct loss"):
            call()


def test_without_gradients_only_the_values_are_computed() -> None:
    hidden, weight, targets, old, credit = small()
    with torch.no_grad():
        loss, logprobs, _ = fused_policy_loss(hidden, weight, targets, old, credit, normaliser=3)
    again, same, _ = fused_policy_loss(hidden, weight, targets, old, credit, normaliser=3)
    assert loss.item() == again.item() and not loss.requires_grad
    assert torch.equal(logprobs[credit.keep_N], same[credit.keep_N])


class Largest(TorchDispatchMode):
    """Records the largest tensor any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.numel())
        return out


@pytest.mark.parametrize("name", ["opd", "trust_region", "gkd reverse", "gkd js top"])
def test_no_tensor_over_all_tokens_and_the_vocabulary(name: str) -> None:
    case = random_case(5, lengths=(40,) * 6, method=name)
    credit = case.credit(name)
    with Largest() as seen:
        case.gradients(name, credit, chunk_tokens=8)
        token_logprobs_and_entropy(case.hidden_ND, case.weight_VD, case.targets_N, chunk_tokens=8)
    # hidden states of student or teacher are the largest: 240 x 5; logits would be 240 x 7
    assert seen.numel <= 240 * 5
