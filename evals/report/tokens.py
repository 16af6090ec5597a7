"""A few rollouts with each token's reward R = teacher - student log-prob, to read by eye."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from evals.report.study import Run, Study
from reopold.run_dir import read_lines

ROLLOUTS = 6
#: Tokens shown of one rollout: a long response would bury the page.
TOKENS = 400
#: |R| in nats at which the colour is full.
FULL = 3.0
#: |R| below which a token stays blank.
SMALL = 0.05
_VISIBLE = {"\n": "⏎", "\t": "⇥", "": "␣"}


@dataclass(frozen=True)
class Token:
    text: str
    sign: str
    """"up" (the teacher likes it better than the student), "down", or "none" below SMALL."""
    strength: int
    """Of the colour, 0 to 100."""
    label: str
    """R with one decimal, empty where it rounds to 0."""
    kept: bool
    title: str


@dataclass(frozen=True)
class ShownRollout:
    prompt: str
    answer: str
    reward: str
    finish: str
    tokens: list[Token]
    left_out: int


@dataclass(frozen=True)
class RolloutPage:
    """Rollouts of one run at its newest checkpoint."""

    run: str
    step: int
    rollouts: list[ShownRollout]


def rollout_page(study: Study) -> RolloutPage | None:
    """Rollouts of reopold's first seed that has any; None if none has."""
    for run in study.of("reopold"):
        files = sorted((run.directory.path / "rollouts").glob("step-*.jsonl"))
        for file in reversed(files):
            shown = _read(run, file.name)
            if shown:
                return RolloutPage(run.name, int(file.stem.removeprefix("step-")), shown)
    return None


def _read(run: Run, name: str) -> list[ShownRollout]:
    try:
        records = read_lines(run.directory.path / "rollouts" / name)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return []
    scored = [record for record in records if _has_rewards(record)]
    return [_shown(record) for record in scored[:ROLLOUTS]]


def _has_rewards(record: dict[str, Any]) -> bool:
    tokens = record.get("tokens") or []
    return bool(tokens) and all(token.get("teacher_logprob") is not None for token in tokens)


def _shown(record: dict[str, Any]) -> ShownRollout:
    tokens = record["tokens"]
    reward = record.get("reward")
    return ShownRollout(
        prompt=clean(str(record.get("prompt", ""))),
        answer=clean(str(record.get("answer", ""))),
        reward="–" if reward is None else f"{float(reward):g}",
        finish={"length": "truncated", "stop": ""}.get(str(record.get("finish_reason")), ""),
        tokens=[token_view(token) for token in tokens[:TOKENS]],
        left_out=max(0, len(tokens) - TOKENS),
    )


def token_view(token: dict[str, Any]) -> Token:
    """One token of the rollout file as the page shows it."""
    teacher, student = float(token["teacher_logprob"]), float(token["student_logprob"])
    reward = teacher - student
    shown = abs(reward) >= SMALL  # False for NaN, the difference of two infinities
    kept = bool(token.get("kept", True))
    facts = [f"R {reward:+.2f}", f"teacher {teacher:.2f}", f"student {student:.2f}"]
    if token.get("entropy") is not None:
        facts.append(f"entropy {float(token['entropy']):.2f}")
    facts.append("kept" if kept else "left out")
    text = clean(str(token["text"]))
    return Token(
        text=_VISIBLE.get(text.strip(" "), text),
        sign="none" if not shown else "up" if reward > 0 else "down",
        strength=round(100 * min(1.0, abs(reward) / FULL)) if shown else 0,
        label=f"{reward:+.1f}".replace("-", "−") if shown else "",
        kept=kept,
        title=", ".join(facts).replace("-", "−"),
    )


def clean(text: str) -> str:
    """Text that can be encoded and shown: lone surrogates and control characters replaced."""
    encodable = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c in "\n\t" or c.isprintable() or c == " " else "�" for c in encodable)
