"""Writes vectors.json: `python -m tests.golden.generate`.

A change of these numbers is a change of the method: say why in CHANGELOG.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reopold.divergences import Vocabulary
from tests.reopold.cases import CASES, Case, objective_of, random_case

VECTORS = Path(__file__).with_name("vectors.json")
LENGTHS, SEED = (3, 1, 4, 2, 3, 5), 2026


def vectors() -> dict[str, Any]:
    """The document: shared inputs, and what each case makes of them."""
    case = random_case(SEED, LENGTHS)
    return {
        "format": 1,
        "about": "REOPOLD and its neighbours: inputs and float64 outputs; see README.md beside it",
        "inputs": inputs(case),
        "cases": [outputs(name) for name, *_ in CASES],
    }


def inputs(case: Case) -> dict[str, Any]:
    batch = case.batch
    top = batch.teacher_distribution
    full = random_case(SEED, LENGTHS, "gkd").batch.teacher_distribution
    assert top is not None and not isinstance(top, Vocabulary) and isinstance(full, Vocabulary)
    every = torch.arange(len(case.targets_N))
    return {
        "hidden_ND": numbers(case.hidden_ND),
        "weight_VD": numbers(case.weight_VD),
        "targets_N": numbers(case.targets_N),
        "old_logprobs_N": numbers(batch.student_logprobs_N),
        "entropy_N": numbers(batch.entropy_N),
        "teacher_logprobs_N": numbers(batch.teacher_logprobs_N),
        "teacher_entropy_N": numbers(batch.teacher_entropy_N),
        "teacher_full_logprobs_NV": numbers(full.logprobs(every)),
        "teacher_top_ids_NK": numbers(top.ids_NK),
        "teacher_top_logprobs_NK": numbers(top.logprobs_NK),
        "reference_logprobs_N": numbers(batch.reference_logprobs_N),
        "valid_N": numbers(batch.valid_N),
        "sequence_N": numbers(batch.sequence_N),
        "reward_S": numbers(batch.reward_S),
        "group_S": numbers(batch.group_S),
    }


def outputs(name: str) -> dict[str, Any]:
    _, method, settings, step = next(case for case in CASES if case[0] == name)
    case = random_case(SEED, LENGTHS, name)
    credit = case.credit(name)
    hidden, weight = case.gradients(name, credit)
    objective, _ = objective_of(name)
    divergence = credit.divergence
    return {
        "name": name,
        "method": method,
        "settings": settings,
        "step": step,
        "ratio_clip": None if objective.ratio_clip is None else list(objective.ratio_clip),
        "advantages_N": numbers(credit.advantages_N),
        "keep_N": numbers(credit.keep_N),
        "divergence_weight_N": None if divergence is None else numbers(divergence.weight_N),
        "normaliser": int(credit.keep_N.sum()),
        "loss": case.loss(name, credit).item(),
        "gradient_hidden_ND": numbers(hidden),
        "gradient_weight_VD": numbers(weight),
    }


def numbers(tensor: Tensor | None) -> Any:
    assert tensor is not None
    return tensor.tolist()


def text() -> str:
    """JSON with one line a field: small, and a change shows as a line."""
    document = vectors()
    inputs_text = ",\n".join(f'  "{k}": {json.dumps(v)}' for k, v in document["inputs"].items())
    cases_text = ",\n".join(
        "  {\n" + ",\n".join(f'   "{k}": {json.dumps(v)}' for k, v in case.items()) + "\n  }"
        for case in document["cases"]
    )
    return (
        f'{{\n "format": {document["format"]},\n "about": {json.dumps(document["about"])},\n'
        f' "inputs": {{\n{inputs_text}\n }},\n "cases": [\n{cases_text}\n ]\n}}\n'
    )


if __name__ == "__main__":
    VECTORS.write_text(text(), encoding="utf-8")
    print(f"wrote {VECTORS}")
