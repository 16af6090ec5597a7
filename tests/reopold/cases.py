"""One random step on a tiny vocabulary, and every objective with settings that bite on it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reopold.divergences import TopK, Vocabulary
from reopold.logprobs import Head
from reopold.loss import fused_policy_loss
from reopold.objectives import Objective, build
from reopold.rollouts import Credit, TokenBatch

HIDDEN, VOCABULARY, TOP = 4, 7, 3

#: Name, method, settings, step.
CASES: list[tuple[str, str, dict[str, Any], int]] = [
    ("exploration", "reopold", {"lam": 0.6, "switch_step": 5}, 4),
    ("refinement", "reopold", {"lam": 0.6, "beta": 0.3, "switch_step": 5}, 5),
    ("odds", "reopold", {"lam": 0.4, "floor": "odds", "phases": "one", "mask": "none"}, 0),
    ("random mask", "reopold", {"lam": 0.6, "phases": "one", "mask": "random", "beta": 0.4}, 2),
    ("reward mask", "reopold", {"phases": "one", "mask": "reward", "clip": False, "lam": 0.6}, 0),
    ("opd", "opd", {}, 0),
    ("opd with outcome", "opd", {"outcome_weight": 0.5}, 0),
    ("reopold with outcome", "reopold", {"lam": 0.6, "switch_step": 5, "outcome_weight": 0.5}, 4),
    ("exopd", "exopd", {"reward_scale": 1.5}, 0),
    ("iw_opd", "iw_opd", {"gamma": 0.7}, 0),
    ("entropy_opd", "entropy_opd", {"entropy_threshold": 1.5, "top_k": TOP}, 0),
    ("trust_region", "trust_region", {"top_k": TOP}, 1),
    ("gkd forward", "gkd", {"divergence": "forward"}, 0),
    ("gkd reverse", "gkd", {"divergence": "reverse"}, 0),
    ("gkd js", "gkd", {"divergence": "js", "mixture": 0.3}, 0),
    ("gkd forward top", "gkd", {"divergence": "forward", "support": "top_k", "top_k": TOP}, 0),
    ("gkd reverse top", "gkd", {"divergence": "reverse", "support": "top_k", "top_k": TOP}, 0),
    ("gkd js top", "gkd", {"divergence": "js", "support": "top_k", "top_k": TOP}, 0),
    ("grpo", "grpo", {}, 0),
    ("dr_grpo", "dr_grpo", {"max_length": 6}, 0),
    ("dapo", "dapo", {"max_length": 6, "overlong_buffer": 3}, 0),
    ("sft", "sft", {}, 0),
]
NAMES = [name for name, *_ in CASES]


def objective_of(name: str) -> tuple[Objective, int]:
    """The objective of a case, and the step it is asked at."""
    _, method, settings, step = CASES[NAMES.index(name)]
    return build(method, **settings), step


@dataclass(frozen=True)
class Case:
    """Hidden states and head of a student, and all signals of its tokens, float64."""

    hidden_ND: Tensor
    weight_VD: Tensor
    targets_N: Tensor
    batch: TokenBatch

    def credit(self, name: str) -> Credit:
        objective, step = objective_of(name)
        return objective(self.batch, step)

    def loss(self, name: str, credit: Credit, **settings: Any) -> Tensor:
        """The loss of some tokens; `settings` replace normaliser, chunk and rows."""
        objective, _ = objective_of(name)
        rows = settings.pop("rows", torch.arange(len(self.targets_N)))
        normaliser = settings.pop("normaliser", credit.keep_N.sum())
        loss, _, _ = fused_policy_loss(
            self.hidden_ND[rows],
            self.weight_VD,
            self.targets_N[rows],
            self.batch.student_logprobs_N[rows],
            credit.at(rows),
            normaliser=normaliser,
            ratio_clip=objective.ratio_clip,
            **settings,
        )
        return loss

    def gradients(self, name: str, credit: Credit, **settings: Any) -> tuple[Tensor, Tensor]:
        """Gradients in hidden states and head."""
        hidden, weight = self.hidden_ND.clone(), self.weight_VD.clone()
        leaf = dataclasses.replace(
            self, hidden_ND=hidden.requires_grad_(), weight_VD=weight.requires_grad_()
        )
        loss = leaf.loss(name, credit, **settings)
        found = torch.autograd.grad(loss, (hidden, weight))
        return found[0], found[1]

    def at(self, index_N: Tensor) -> Case:
        """The case with its tokens taken in another order, or only some of them."""
        batch = self.batch
        fields = {
            field.name: getattr(batch, field.name)[index_N]
            for field in dataclasses.fields(batch)
            if field.name.endswith("_N") and getattr(batch, field.name) is not None
        }
        distribution = batch.teacher_distribution
        fields["teacher_distribution"] = None if distribution is None else distribution.at(index_N)
        return Case(
            self.hidden_ND[index_N],
            self.weight_VD,
            self.targets_N[index_N],
            dataclasses.replace(batch, **fields),
        )


def random_case(
    seed: int, lengths: tuple[int, ...] = (3, 1, 6, 2, 4, 5), method: str = "", drift: float = 0.2
) -> Case:
    """Sequences of the given lengths, two a prompt; pi_old is `drift` away from the student."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    n = sum(lengths)
    hidden, weight = normal(n, HIDDEN), normal(VOCABULARY, HIDDEN)
    targets = torch.randint(0, VOCABULARY, (n,), generator=generator)
    old = torch.log_softmax(hidden @ (weight + drift * normal(VOCABULARY, HIDDEN)).T, -1)
    teacher_hidden, teacher_weight = normal(n, 5), normal(VOCABULARY, 5)
    teacher = torch.log_softmax(teacher_hidden @ teacher_weight.T, -1)
    reference = torch.log_softmax(normal(n, VOCABULARY), -1)
    rewards = [float(i % 2 == (i // 2) % 2) for i in range(len(lengths))]
    if len(rewards) > 2:
        rewards[:2] = [1.0, 1.0]  # a group that teaches nothing

    def sampled(logprobs: Tensor) -> Tensor:
        return logprobs.gather(-1, targets[:, None]).squeeze(-1)

    top = TopK(*teacher.topk(TOP, dim=-1)[::-1])
    full = method.startswith("gkd") and not method.endswith("top")
    return Case(
        hidden,
        weight,
        targets,
        TokenBatch(
            student_logprobs_N=sampled(old),
            teacher_logprobs_N=sampled(teacher),
            entropy_N=-(old.exp() * old).sum(-1),
            valid_N=torch.ones(n, dtype=torch.bool),
            sequence_N=torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)),
            reward_S=torch.tensor(rewards, dtype=torch.float64),
            group_S=torch.arange(len(lengths)) // 2,
            reference_logprobs_N=sampled(reference),
            teacher_entropy_N=-(teacher.exp() * teacher).sum(-1),
            teacher_distribution=Vocabulary(teacher_hidden, Head(teacher_weight)) if full else top,
        ),
    )
