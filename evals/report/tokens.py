"""A few rollouts with each token's reward R = teacher - student log-prob, to read by eye.

A dialogue is shown turn by turn: what a tool said has no reward and is plain text.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from evals.report.evidence import last_rollouts
from evals.report.pictures import picture
from evals.report.study import Run, Study
from reopold.data.images import PLACEHOLDER
from reopold.run_dir import Record, read_lines

ROLLOUTS = 6
#: Tokens shown of one rollout: a long response would bury the page.
TOKENS = 400
#: |R| in nats at which the colour is full.
FULL = 3.0
#: |R| below which a token stays blank.
SMALL = 0.05
#: How a rollout ended, where that is worth a word.
_ENDS = {"length": "truncated", "turns": "out of turns", "seconds": "out of time"}
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
class Turn:
    """Consecutive tokens of one speaker."""

    observed: bool
    """Said by a tool: `text`, and no tokens."""
    tokens: list[Token]
    text: str = ""


@dataclass(frozen=True)
class ShownRollout:
    prompt: str
    pictures: list[str]
    """As `data:` addresses."""
    environment: str
    """What answered in the dialogue; empty: a single response, one turn."""
    answer: str
    reward: str
    facts: list[str]
    """How it ended and what calls it made, where there is something to say."""
    turns: list[Turn]
    left_out: int


@dataclass(frozen=True)
class RolloutPage:
    """Rollouts of one run at its newest checkpoint."""

    run: str
    step: int
    rollouts: list[ShownRollout]


def rollout_page(study: Study) -> RolloutPage | None:
    """Rollouts of the first run that has any with rewards, reopold's first; None if none has."""
    for run in [*study.of("reopold"), *study.runs]:
        for file in last_rollouts(run.directory):
            shown = _read(study, run, file.name)
            if shown:
                return RolloutPage(run.name, int(file.stem.removeprefix("step-")), shown)
    return None


def _read(study: Study, run: Run, name: str) -> list[ShownRollout]:
    try:
        records = read_lines(run.directory.path / "rollouts" / name)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return []
    scored = [record for record in records if _has_rewards(record)]
    return [_shown(study, record) for record in _varied(scored)]


def _has_rewards(record: Record) -> bool:
    sampled = [token for token in record.get("tokens") or [] if not token.get("observed")]
    broken = bool(record.get("error"))
    return bool(sampled) and not broken and all(_scored(token) for token in sampled)


def _scored(token: dict[str, Any]) -> bool:
    return token.get("teacher_logprob") is not None


def _varied(records: Sequence[Record]) -> list[Record]:
    """The first ROLLOUTS; of a run with several kinds (dialogues, pictures, text) some of each."""
    seen: dict[tuple[bool, bool], int] = defaultdict(int)
    ranked: list[tuple[int, int]] = []
    for record in records:
        kind = (bool(record.get("environment")), bool(record.get("images")))
        ranked.append((seen[kind], len(ranked)))
        seen[kind] += 1
    chosen = sorted(place for _, place in sorted(ranked)[:ROLLOUTS])
    return [records[place] for place in chosen]


def _shown(study: Study, record: Record) -> ShownRollout:
    tokens, reward = record["tokens"], record.get("reward")
    paths = [str(path) for path in record.get("images") or []]
    pictures = [picture(study, path) for path in paths]
    prompt = str(record.get("prompt", ""))
    return ShownRollout(
        prompt=clean(prompt.replace(PLACEHOLDER, "").strip() if paths else prompt),
        pictures=[each for each in pictures if each],
        environment=clean(str(record.get("environment") or "")),
        answer=clean(str(record.get("answer", ""))),
        reward="–" if reward is None else f"{float(reward):g}",
        facts=_facts(record),
        turns=_turns(tokens[:TOKENS]),
        left_out=max(0, len(tokens) - TOKENS),
    )


def _facts(record: Record) -> list[str]:
    facts = [_ENDS.get(str(record.get("finish_reason")), "")]
    if record.get("environment"):
        calls, failed = int(record.get("calls") or 0), int(record.get("failed_calls") or 0)
        facts.append(f"{calls} call{'' if calls == 1 else 's'}")
        facts.append(f"{failed} of them failed" if failed else "")
    return [fact for fact in facts if fact]


def _turns(tokens: Sequence[dict[str, Any]]) -> list[Turn]:
    turns = []
    for observed, group in groupby(tokens, key=lambda token: bool(token.get("observed"))):
        said = list(group)
        if observed:
            turns.append(Turn(True, [], clean("".join(str(each["text"]) for each in said)).strip()))
        else:
            turns.append(Turn(False, [token_view(each) for each in said]))
    return turns


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
