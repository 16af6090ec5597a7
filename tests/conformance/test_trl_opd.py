"""TRL's IWOPDTrainer (plain K1 and importance-weighted) and DistillationTrainer (divergences)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl.experimental.iw_opd.iw_opd_trainer import IWOPDTrainer
from trl.trainer.distillation_trainer import _chunked_divergence_loss

from reopold.divergences import Divergence, TopK, Vocabulary
from reopold.objectives import build
from reopold.rollouts import Credit
from reopold.scoring import output_head
from tests.conformance.conftest import (
    Batch,
    Record,
    gradients,
    hidden_of,
    logits_of,
    make_model,
    our_loss,
    relative_error,
    sampled,
)


def iw_opd_trainer(gamma: float) -> Any:
    """The trainer's own loss method, without its training loop."""
    trainer = IWOPDTrainer.__new__(IWOPDTrainer)
    trainer.temperature, trainer.iw_opd_gamma, trainer.iw_opd_epsilon = 1.0, gamma, 1e-8
    trainer.model = torch.nn.Module()
    trainer._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    return trainer


@pytest.mark.parametrize("gamma", [0.0, 0.5], ids=["plain K1", "weighted"])
def test_iw_opd(model: PreTrainedModel, batch: Batch, record: Record, gamma: float) -> None:
    labels = batch.targets_BT.masked_fill(batch.mask_BT == 0, -100)
    theirs = iw_opd_trainer(gamma)._compute_iw_opd_loss(
        student_logits=logits_of(model, batch),
        completion_tokens=batch.targets_BT,
        labels=labels,
        teacher_actual_logprobs=batch.teacher_BT,
    )
    expected = gradients(model, theirs)
    with torch.no_grad():
        old = sampled(logits_of(model, batch), batch)
    objective = build("opd") if gamma == 0.0 else build("iw_opd", gamma=gamma)
    credit = objective(batch.token_batch(old), 0)
    error = relative_error(gradients(model, our_loss(model, batch, credit, old)), expected)
    name = "IWOPDTrainer, plain K1" if gamma == 0.0 else "IWOPDTrainer, gamma 0.5"
    record.add("trl", name, model.dtype, error)


def teacher_of(model: PreTrainedModel) -> PreTrainedModel:
    return make_model(5, model.dtype, tied=False)


def gkd(kind: Any, teacher: Vocabulary | TopK, count: int, mixture: float) -> Credit:
    head = torch.zeros(count, dtype=torch.float64)
    wanted = Divergence(kind, torch.ones_like(head), teacher, mixture)
    return Credit(head, torch.ones(count, dtype=torch.bool), {}, wanted)


def vocabulary(teacher: PreTrainedModel, batch: Batch) -> Vocabulary:
    with torch.no_grad():
        hidden = hidden_of(teacher, batch)[batch.mask_BT.bool()]
    return Vocabulary(hidden, output_head(teacher))


KINDS = [("forward", 0.0), ("reverse", 1.0), ("js", 0.3)]


@pytest.mark.parametrize(("kind", "beta"), KINDS, ids=[kind for kind, _ in KINDS])
def test_distillation_trainer(
    model: PreTrainedModel, batch: Batch, record: Record, kind: str, beta: float
) -> None:
    """Its chunked kernel works in float32 whatever it is given."""
    teacher = teacher_of(model)
    with torch.no_grad():
        teacher_hidden = hidden_of(teacher, batch)
    theirs, _, _ = _chunked_divergence_loss(
        hidden_of(model, batch),
        teacher_hidden,
        model.get_output_embeddings().weight,
        teacher.get_output_embeddings().weight,
        batch.mask_BT,
        beta,
    )
    expected = gradients(model, theirs)
    credit = gkd(kind, vocabulary(teacher, batch), int(batch.mask_BT.sum()), beta)
    error = relative_error(gradients(model, our_loss(model, batch, credit, None)), expected)
    record.add("trl", f"DistillationTrainer, {kind} KL", model.dtype, error)


@pytest.mark.parametrize(("kind", "beta"), KINDS, ids=[kind for kind, _ in KINDS])
def test_generalized_jsd(
    model: PreTrainedModel, batch: Batch, record: Record, kind: str, beta: float
) -> None:
    teacher = teacher_of(model)
    theirs = jsd(model, teacher, batch, beta)
    expected = gradients(model, theirs)
    credit = gkd(kind, vocabulary(teacher, batch), int(batch.mask_BT.sum()), beta)
    error = relative_error(gradients(model, our_loss(model, batch, credit, None)), expected)
    record.add("trl", f"generalized_jsd_loss, {kind}", model.dtype, error)


def test_top_k_with_a_tail(model: PreTrainedModel, batch: Batch, record: Record) -> None:
    """Forward KL: the support is the teacher's in both. (For the reverse KL TRL takes the
    student's top ids, which a teacher behind a server cannot score.)"""
    teacher = teacher_of(model)
    expected = gradients(model, jsd(model, teacher, batch, 0.0, top_k=8))
    rows = torch.arange(int(batch.mask_BT.sum()))
    values, ids = vocabulary(teacher, batch).logprobs(rows).topk(8, -1)
    credit = gkd("forward", TopK(ids, values), len(rows), 0.5)
    error = relative_error(gradients(model, our_loss(model, batch, credit, None)), expected)
    record.add("trl", "generalized_jsd_loss, forward, top 8, tail", model.dtype, error)


def jsd(
    model: PreTrainedModel, teacher: PreTrainedModel, batch: Batch, beta: float, top_k: int = 0
) -> Tensor:
    labels = batch.targets_BT.masked_fill(batch.mask_BT == 0, -100)
    with torch.no_grad():
        teacher_logits = logits_of(teacher, batch)
    found: Tensor = IWOPDTrainer.generalized_jsd_loss(
        logits_of(model, batch), teacher_logits, labels=labels, beta=beta, top_k=top_k
    )
    return found
