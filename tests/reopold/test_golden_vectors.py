"""The published vectors: still what the code gives, and what plain Python gives from the page.

The second half uses `math` alone: an implementation from tests/golden/README.md, by hand.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from tests.golden.generate import VECTORS, vectors
from tests.reopold.cases import NAMES

DOCUMENT: dict[str, Any] = json.loads(VECTORS.read_text(encoding="utf-8"))
BY_NAME = {case["name"]: case for case in DOCUMENT["cases"]}
INPUTS: dict[str, Any] = DOCUMENT["inputs"]
TOKENS = range(len(INPUTS["targets_N"]))
SEQUENCES = range(len(INPUTS["reward_S"]))


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, list) and theirs and not isinstance(theirs[0], str):
        ours, theirs = (torch.tensor(x, dtype=torch.float64) for x in (ours, theirs))
        return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    if isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-10, abs_tol=1e-12)
    return bool(ours == theirs)


def test_the_code_still_gives_them() -> None:
    found = vectors()
    assert [case["name"] for case in DOCUMENT["cases"]] == NAMES
    for key, value in DOCUMENT["inputs"].items():
        assert same(found["inputs"][key], value), key
    for ours, theirs in zip(found["cases"], DOCUMENT["cases"], strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert same(ours[key], value), (theirs["name"], key)


def log_softmax(logits: list[float]) -> list[float]:
    highest = max(logits)
    total = highest + math.log(sum(math.exp(x - highest) for x in logits))
    return [x - total for x in logits]


def student(n: int, hidden: Any = None, weight: Any = None) -> list[float]:
    """Log-probs of the whole vocabulary at token n."""
    h = (hidden or INPUTS["hidden_ND"])[n]
    rows = weight or INPUTS["weight_VD"]
    return log_softmax([sum(a * b for a, b in zip(row, h, strict=True)) for row in rows])


def reward(n: int) -> float:
    return float(INPUTS["teacher_logprobs_N"][n] - INPUTS["old_logprobs_N"][n])


def top_by(values: list[float], fraction: float) -> list[bool]:
    order = sorted(TOKENS, key=lambda n: (-values[n], n))[: math.ceil(fraction * len(values))]
    return [n in order for n in TOKENS]


def group_advantage(rewards: list[float], scaled: bool) -> list[float]:
    found = []
    for s in SEQUENCES:
        mine = [rewards[i] for i in SEQUENCES if INPUTS["group_S"][i] == INPUTS["group_S"][s]]
        mean = sum(mine) / len(mine)
        std = math.sqrt(sum((r - mean) ** 2 for r in mine) / len(mine))
        found.append((rewards[s] - mean) / (std + 1e-4 if scaled else 1.0))
    return found


def length(s: int) -> int:
    return sum(other == s for other in INPUTS["sequence_N"])


Verdict = tuple[list[float], list[bool], list[float]]


def refinement(settings: dict[str, Any], floor: float, mask: list[bool]) -> Verdict:
    clip = settings.get("clip", True)
    return [max(reward(n), floor) if clip else reward(n) for n in TOKENS], mask, []


def by_hand(case: dict[str, Any]) -> Verdict:
    """Advantages, mask and divergence weights of a case, from the page's formulas."""
    settings, method = case["settings"], case["method"]
    every, zero = [True for _ in TOKENS], [0.0 for _ in TOKENS]
    rewards = [reward(n) for n in TOKENS]
    lam = settings.get("lam", 0.3)
    floor = math.log(lam) / (1 - lam)
    if settings.get("floor") == "odds":
        floor = math.log(lam / (1 - lam))
    above = [r >= floor for r in rewards]
    sequence, outcome = INPUTS["sequence_N"], INPUTS["reward_S"]
    if case["name"] == "random mask":
        return refinement(settings, floor, case["keep_N"])  # the draw is not to be reproduced
    if method == "reopold" and case["step"] < settings.get("switch_step", 0):
        verdict: Verdict = rewards, above, []
    elif method == "reopold":
        masks = {"none": every, "reward": above}
        chosen = settings.get("mask", "entropy")
        entropy = top_by(INPUTS["entropy_N"], settings.get("beta", 0.2))
        verdict = refinement(settings, floor, masks.get(chosen, entropy))
    elif method == "opd":
        verdict = rewards, every, []
    elif method == "exopd":
        extra = zip(INPUTS["teacher_logprobs_N"], INPUTS["reference_logprobs_N"], strict=True)
        scale = settings["reward_scale"] - 1.0
        verdict = (
            [r + scale * (t - ref) for r, (t, ref) in zip(rewards, extra, strict=True)],
            every,
            [],
        )
    elif method == "iw_opd":
        weighted = []
        for n in TOKENS:
            mine = [abs(rewards[i]) for i in TOKENS if sequence[i] == sequence[n]]
            before = sum(abs(rewards[i]) for i in range(n) if sequence[i] == sequence[n])
            weighted.append(rewards[n] * (1 + settings["gamma"] * (1 - before / sum(mine))))
        verdict = weighted, every, []
    elif method == "entropy_opd":
        gate = [float(h >= settings["entropy_threshold"]) for h in INPUTS["teacher_entropy_N"]]
        verdict = rewards, every, gate
    elif method == "trust_region":  # the draw is in the weights
        drawn = case["divergence_weight_N"]
        verdict = [0.0 if w else r for r, w in zip(rewards, drawn, strict=True)], every, drawn
    elif method == "gkd":
        verdict = zero, every, [1.0 for _ in TOKENS]
    elif method == "sft":
        verdict = [1.0 for _ in TOKENS], every, []
    else:
        return outcome_methods(case)
    if settings.get("outcome_weight"):
        extra_S = group_advantage(outcome, scaled=True)
        mixed = [
            a + settings["outcome_weight"] * extra_S[sequence[n]] for n, a in enumerate(verdict[0])
        ]
        verdict = mixed, verdict[1], verdict[2]
    return verdict


def outcome_methods(case: dict[str, Any]) -> Verdict:
    settings, method = case["settings"], case["method"]
    sequence, outcome, every = INPUTS["sequence_N"], INPUTS["reward_S"], [True for _ in TOKENS]
    if method == "dapo":
        longest, buffer = settings["max_length"], settings["overlong_buffer"]
        shaped = [
            r - min(max(length(s) - (longest - buffer), 0), buffer) / buffer
            for s, r in enumerate(outcome)
        ]
        mixed = [
            len({outcome[i] for i in SEQUENCES if INPUTS["group_S"][i] == INPUTS["group_S"][s]}) > 1
            for s in SEQUENCES
        ]
        advantage = group_advantage(shaped, scaled=True)
        return [advantage[s] for s in sequence], [mixed[s] for s in sequence], []
    advantage = group_advantage(outcome, scaled=method == "grpo")
    per = [length(s) if method == "grpo" else settings["max_length"] for s in SEQUENCES]
    share = [len(TOKENS) / (len(SEQUENCES) * per[s]) for s in SEQUENCES]
    return [advantage[s] * share[s] for s in sequence], every, []


def kl(p: list[float], q: list[float]) -> float:
    return sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))


def divergence(case: dict[str, Any], n: int, logprobs: list[float]) -> float:
    settings = case["settings"]
    teacher = INPUTS["teacher_full_logprobs_NV"][n]
    if case["method"] != "gkd" or settings.get("support") == "top_k":
        ids = INPUTS["teacher_top_ids_NK"][n]
        teacher = [*INPUTS["teacher_top_logprobs_NK"][n]]
        logprobs = [logprobs[i] for i in ids]
        for side in (teacher, logprobs):
            side.append(math.log(1 - sum(math.exp(x) for x in side)))
    kind = settings.get("divergence", "forward")
    if kind == "forward":
        return kl(teacher, logprobs)
    if kind == "reverse":
        return kl(logprobs, teacher)
    b = settings.get("mixture", 0.5)
    mixed = [
        math.log(b * math.exp(t) + (1 - b) * math.exp(s))
        for t, s in zip(teacher, logprobs, strict=True)
    ]
    return b * kl(teacher, mixed) + (1 - b) * kl(logprobs, mixed)


def loss(case: dict[str, Any], hidden: Any = None, weight: Any = None) -> float:
    """The loss of a case, with advantages, mask and weights as they stand in the file."""
    total = 0.0
    for n in TOKENS:
        if not case["keep_N"][n]:
            continue
        logprobs, advantage = student(n, hidden, weight), case["advantages_N"][n]
        ratio = math.exp(logprobs[INPUTS["targets_N"][n]] - INPUTS["old_logprobs_N"][n])
        gain = ratio * advantage
        if case["ratio_clip"]:
            low, high = case["ratio_clip"]
            gain = min(gain, min(max(ratio, 1 - low), 1 + high) * advantage)
        total -= gain
        if case["divergence_weight_N"] and case["divergence_weight_N"][n]:
            total += case["divergence_weight_N"][n] * divergence(case, n, logprobs)
    return total / case["normaliser"]


@pytest.mark.parametrize("name", NAMES)
def test_plain_python_gives_them_too(name: str) -> None:
    case = BY_NAME[name]
    advantages, keep, weights = by_hand(case)
    kept = [n for n in TOKENS if keep[n]]
    assert keep == case["keep_N"] and case["normaliser"] == len(kept)
    for n in kept:
        assert advantages[n] == pytest.approx(case["advantages_N"][n], rel=1e-12, abs=1e-14)
    assert (weights or None) == case["divergence_weight_N"]
    assert loss(case) == pytest.approx(case["loss"], rel=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradients_are_the_slopes_of_that_loss(name: str) -> None:
    """One hidden state and one row of the head, by central differences."""
    case, step = BY_NAME[name], 1e-5
    n = case["keep_N"].index(True)
    for key, place in (("hidden_ND", n), ("weight_VD", INPUTS["targets_N"][n])):
        for d, wanted in enumerate(case[f"gradient_{key}"][place]):
            values = []
            for sign in (1, -1):
                moved = [list(row) for row in INPUTS[key]]
                moved[place][d] += sign * step
                values.append(loss(case, **{"hidden" if key == "hidden_ND" else "weight": moved}))
            slope = (values[0] - values[1]) / (2 * step)
            assert slope == pytest.approx(wanted, rel=1e-5, abs=1e-8)
