"""The sampler's log-probs against the trainer's, and truncated importance weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reopold.objectives import build
from reopold.rewards import MissingScore
from reopold.rollouts import TokenBatch
from reopold.sampler_gap import gap_metrics, truncated_weights


def batch(trainer: list[float], sampler: list[float] | None, **more: object) -> TokenBatch:
    count = len(trainer)
    fields: dict[str, object] = {
        "teacher_logprobs_N": torch.full((count,), -1.0),
        "entropy_N": torch.ones(count),
        "valid_N": torch.ones(count, dtype=torch.bool),
        "sequence_N": torch.zeros(count, dtype=torch.long),
        "sampler_logprobs_N": None if sampler is None else torch.tensor(sampler),
    }
    return TokenBatch(torch.tensor(trainer), **{**fields, **more})  # type: ignore[arg-type]


def test_the_gap_by_hand() -> None:
    trainer, sampler = torch.tensor([-1.0, -2.0, 9.0]), torch.tensor([-1.5, -1.0, math.nan])
    found = gap_metrics(trainer, sampler, torch.tensor([True, True, False]))
    assert found["rollout/sampler_gap"] == pytest.approx(0.75)
    assert found["rollout/sampler_gap_max"] == 1.0
    k3 = (math.exp(0.5) - 1.5 + math.exp(-1.0)) / 2
    assert found["rollout/sampler_kl"] == pytest.approx(k3)
    none = gap_metrics(trainer, sampler, torch.zeros(3, dtype=torch.bool))
    assert set(none.values()) == {0.0}


@given(st.lists(st.tuples(st.floats(-9, 0), st.floats(-9, 0)), min_size=1, max_size=30))
def test_the_kl_estimate_is_never_negative(pairs: list[tuple[float, float]]) -> None:
    trainer, sampler = (torch.tensor(side) for side in zip(*pairs, strict=True))
    found = gap_metrics(trainer, sampler, torch.ones(len(pairs), dtype=torch.bool))
    assert found["rollout/sampler_kl"] >= -1e-9


def test_weights_of_tokens_and_of_sequences() -> None:
    """A sequence's ratio is the exponential of the sum of log-ratios, not of their mean."""
    trainer, sampler = [-1.0, -1.0, -1.0, -2.0], [-1.5, -0.5, -1.25, -1.0]
    both = batch(trainer, sampler, sequence_N=torch.tensor([0, 1, 1, 1]))
    token = truncated_weights(both, "token", 1.5)
    assert token.tolist() == pytest.approx([1.5, math.exp(-0.5), math.exp(0.25), math.exp(-1.0)])
    sequence = truncated_weights(both, "sequence", 2.0)
    assert sequence.tolist() == pytest.approx([math.exp(0.5)] + [math.exp(-1.25)] * 3)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_masked_positions_do_not_matter_and_others_fail_closed(level: str, bad: float) -> None:
    valid = torch.tensor([True, False])
    masked = batch([-1.0, bad], [-1.2, 3.0], valid_N=valid)
    found = truncated_weights(masked, level, 5.0)  # type: ignore[arg-type]
    assert found.tolist() == pytest.approx([math.exp(0.2), 1.0])
    with pytest.raises(MissingScore, match="not finite"):
        truncated_weights(batch([-1.0, -1.0], [-1.0, bad]), level, 5.0)  # type: ignore[arg-type]
    with pytest.raises(MissingScore, match="own log-probs"):
        truncated_weights(batch([-1.0], None), level, 5.0)  # type: ignore[arg-type]


def test_an_objective_with_weights_keeps_what_it_kept() -> None:
    signals = batch([-1.0, -3.0, -2.0], [-1.3, -2.0, -2.0])
    plain = build("opd")(signals, 0)
    weighed = build("opd", sampler_weights="token", sampler_weight_cap=1.2)(signals, 0)
    weights = [1.2, math.exp(-1.0), 1.0]
    assert torch.equal(plain.keep_N, weighed.keep_N)
    assert weighed.advantages_N.tolist() == pytest.approx(
        [a * w for a, w in zip(plain.advantages_N.tolist(), weights, strict=True)]
    )
    assert weighed.metrics["rollout/sampler_weight_cut"] == pytest.approx(1 / 3)
    grouped = build("grpo", sampler_weights="sequence")
    assert grouped.needs.outcome and grouped.ratio_clip is not None


def test_weighed_samples_of_another_policy_have_the_gradient_of_pi_old() -> None:
    """Exact enumeration over 5 tokens: E_q[(p/q) R dlog p] = E_p[R dlog p]; without it, not."""
    generator = torch.Generator().manual_seed(2)
    logits, other, reward = (torch.randn(5, generator=generator).double() for _ in range(3))
    p, q = logits.softmax(-1), other.softmax(-1)
    score = torch.eye(5).double() - p  # row a: d log p(a) / d logits
    wanted = (p[:, None] * reward[:, None] * score).sum(0)
    signals = batch(p.log().tolist(), q.log().tolist(), sequence_N=torch.arange(5))
    for level in ("token", "sequence"):
        weight = truncated_weights(signals, level, 1e6).double()  # type: ignore[arg-type]
        found = (q[:, None] * (weight * reward)[:, None] * score).sum(0)
        assert torch.allclose(found, wanted, atol=1e-6)
    assert not torch.allclose((q[:, None] * reward[:, None] * score).sum(0), wanted, atol=1e-2)
